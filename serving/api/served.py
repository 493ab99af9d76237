"""``/tenants/{tenant}/deployments``: the served models that a tenant may use, and nothing of what runs them."""

from __future__ import annotations

from typing import Any, ClassVar

import django_filters
from django.db.models import Exists, Min, OuterRef, Prefetch, Q, QuerySet
from drf_spectacular.utils import extend_schema_field
from rest_framework import serializers
from rest_framework.request import Request
from rest_framework.response import Response

from capacity.selectors import pools_usable
from serving.models import Deployment, Replica, Revision
from serving.options import spoken
from tenants.api.base import TenantViewSet
from tenants.policy.roles import Action


class ServedModelSerializer(serializers.ModelSerializer[Deployment]):
    """``name`` is what clients send as model."""

    pool = serializers.CharField(source="pool.slug", read_only=True, help_text="Slug of the pool that is billed.")
    label = serializers.SerializerMethodField(  # type: ignore[assignment]
        help_text="simulated: no model answers, figures are made up. Else empty."
    )
    speaks = serializers.SerializerMethodField(
        help_text="What it can be asked: generate (completions, chat), embed, score, invocations, http."
    )
    context_tokens = serializers.IntegerField(read_only=True, allow_null=True, help_text="Known once one is ready.")
    is_ready = serializers.BooleanField(read_only=True, help_text="Whether requests are answered now.")

    class Meta:
        model = Deployment
        fields = ("id", "name", "pool", "label", "speaks", "context_tokens", "is_ready")
        read_only_fields = fields

    @extend_schema_field(serializers.ListField(child=serializers.CharField()))
    def get_speaks(self, row: Any) -> list[str]:
        return list(spoken(row.current[0].runtime, row.current[0].options)) if row.current else []

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
        pools = pools_usable(self.tenant).order_by()
        ready = Q(replicas__state=Replica.State.READY)
        simulated = Revision.objects.filter(
            deployment=OuterRef("pk"), is_current=True, runtime=Revision.Runtime.SIMULATED
        )
        return (
            Deployment.objects.filter(is_enabled=True, pool__in=pools.values("pk"))
            .select_related("pool")
            .prefetch_related(
                Prefetch("revisions", queryset=Revision.objects.filter(is_current=True), to_attr="current")
            )
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
