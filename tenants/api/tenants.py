"""``/tenants``: the tenants that a caller has a part in."""

from __future__ import annotations

from typing import Any, ClassVar

import django_filters
from django.db.models import QuerySet
from django.http import Http404
from drf_spectacular.utils import extend_schema
from rest_framework import exceptions, serializers, status
from rest_framework.request import Request
from rest_framework.response import Response

from tenants.api.base import NO_TENANT, ApiViewSet, find_tenant
from tenants.api.caller import Caller
from tenants.models import Tenant
from tenants.policy.roles import Action
from tenants.services import tenant_create, tenant_update

OPERATORS_SAY = {"is_active": "is active", "best_effort": "may use more than it has reserved"}


class TenantSerializer(serializers.ModelSerializer[Tenant]):
    class Meta:
        model = Tenant
        fields = ("id", "slug", "name", "is_active", "best_effort", "created_at", "updated_at")
        read_only_fields = ("id", "created_at", "updated_at")
        extra_kwargs: ClassVar[dict[str, Any]] = {"slug": {"required": False}}


class TenantFilter(django_filters.FilterSet):
    search = django_filters.CharFilter(field_name="name", lookup_expr="icontains", label="Part of the name.")

    class Meta:
        model = Tenant
        fields = ("slug", "is_active", "best_effort")


class TenantsViewSet(ApiViewSet[Tenant]):
    required: ClassVar = {
        "list": Action.TENANT_VIEW,
        "retrieve": Action.TENANT_VIEW,
        "create": Action.PLATFORM_OPERATE,
        "partial_update": Action.TENANT_MANAGE,
    }
    queryset = Tenant.objects.all()
    serializer_class = TenantSerializer
    filterset_class = TenantFilter
    ordering_fields = ("name", "slug", "created_at")
    lookup_url_kwarg = "tenant"

    def may(self, caller: Caller, action: Action) -> bool:
        if self.action in ("list", "create"):
            return self.action == "list" or caller.can(action)
        return caller.can(action, self.get_object())

    def get_queryset(self) -> QuerySet[Tenant]:
        """What the caller sees at all."""
        caller = self.caller
        rows = Tenant.objects.all()
        if caller.is_operator:
            return rows
        if caller.key is not None:
            return (
                rows.filter(pk=caller.key.tenant_id)
                if caller.can(Action.TENANT_VIEW, caller.key.tenant)
                else rows.none()
            )
        return rows.filter(memberships__user=caller.user)

    def get_object(self) -> Tenant:
        found = find_tenant(self.kwargs["tenant"])
        if not self.caller.can(Action.TENANT_VIEW, found):
            raise Http404(NO_TENANT)
        return found

    def list(self, request: Request) -> Response:
        """The tenants that you have a part in; for operators all of them."""
        return self.listed(self.get_queryset())

    def retrieve(self, request: Request, tenant: str) -> Response:
        """One tenant, by slug or id."""
        return self.shown(self.get_object())

    @extend_schema(responses={201: TenantSerializer})
    def create(self, request: Request) -> Response:
        """Make a tenant. For operators. Without a slug it is made from the name."""

        def make() -> Response:
            given = self.read(TenantSerializer)
            rights = {name: given.pop(name) for name in OPERATORS_SAY if name in given}
            made = tenant_create(actor=self.caller.actor, **given)
            if not all(rights.values()):
                tenant_update(tenant=made, actor=self.caller.actor, **rights)
            return self.shown(made, code=status.HTTP_201_CREATED)

        return self.created(make)

    def partial_update(self, request: Request, tenant: str) -> Response:
        """Change what is sent of a tenant. The keys of an inactive tenant are refused."""
        row = self.get_object()
        given = self.read(TenantSerializer, partial=True)
        for name, words in OPERATORS_SAY.items():
            if name in given and not self.caller.can(Action.PLATFORM_OPERATE):
                # What an operator has stopped is not for its owner to start again.
                raise exceptions.PermissionDenied(f"Operators decide whether a tenant {words}.")
        return self.changed(row, lambda: self.shown(tenant_update(tenant=row, actor=self.caller.actor, **given)))
