"""``/tenants/{tenant}/deployments``: the served models that a tenant may use, and nothing of what runs them."""

from __future__ import annotations

from typing import Any, ClassVar

import django_filters
from django.db.models import Exists, Min, OuterRef, Q, QuerySet
from rest_framework import serializers
from rest_framework.request import Request
from rest_framework.response import Response

from capacity.models import Pool
from serving.models import Deployment, Replica, Revision
from tenants.api.base import TenantViewSet
from tenants.policy.roles import Action


class ServedModelSerializer(serializers.ModelSerializer[Deployment]):
    """``name`` is what clients send as model."""

    pool = serializers.CharField(source="pool.slug", read_only=True, help_text="Slug of the pool that is billed.")
    label = serializers.SerializerMethodField(  # type: ignore[assignment]
        help_text="simulated: no model answers, figures are made up. Else empty."
    )
    context_tokens = serializers.IntegerField(read_only=True, allow_null=True, help_text="Known once one is ready.")
    is_ready = serializers.BooleanField(read_only=True, help_text="Whether requests are answered now.")

    class Meta:
        model = Deployment
        fields = ("id", "name", "pool", "label", "context_tokens", "is_ready")
        read_only_fields = fields

    def get_label(self, row: Any) -> str:
        return "simulated" if row.is_simulated else ""


class ServedModelFilter(django_filters.FilterSet):
    pool = django_filters.CharFilter(field_name="pool__slug", label="Slug of the pool.")
    is_ready = django_filters.BooleanFilter(label="Whether requests are answered now.")

    class Meta:
        model = Deployment
        fields = ("name",)


class ServedModelsViewSet(TenantViewSet[Deployment]):
    required: ClassVar = {"list": Action.TENANT_VIEW}
    queryset = Deployment.objects.none()
    serializer_class = ServedModelSerializer
    filterset_class = ServedModelFilter
    ordering_fields = ("name",)

    def get_queryset(self) -> QuerySet[Deployment]:
        pools = Pool.objects.filter(Q(is_public=True) | Q(tenants=self.tenant)).order_by()
        ready = Q(replicas__state=Replica.State.READY)
        simulated = Revision.objects.filter(
            deployment=OuterRef("pk"), is_current=True, runtime=Revision.Runtime.SIMULATED
        )
        return (
            Deployment.objects.filter(is_enabled=True, pool__in=pools.values("pk"))
            .select_related("pool")
            .annotate(
                is_simulated=Exists(simulated),
                is_ready=Exists(Replica.objects.filter(deployment=OuterRef("pk"), state=Replica.State.READY)),
                context_tokens=Min("replicas__max_model_len", filter=ready),
            )
            .order_by("name")
        )

    def list(self, request: Request, tenant: str) -> Response:
        """Served models that the tenant may send requests to, by name."""
        return self.listed(self.get_queryset())
