"""``/tenants/{tenant}/audit`` and, for operators, ``/audit``: who did what, newest first."""

from __future__ import annotations

from typing import ClassVar

import django_filters
from django.db.models import QuerySet
from django_filters.rest_framework import DjangoFilterBackend
from rest_framework import serializers
from rest_framework.request import Request
from rest_framework.response import Response

from tenants.api.base import ApiViewSet, TenantViewSet
from tenants.api.filters import MomentFilter
from tenants.api.pagination import Cursor
from tenants.models import AuditEntry
from tenants.policy.roles import Action


class AuditSerializer(serializers.ModelSerializer[AuditEntry]):
    before = serializers.DictField(read_only=True, help_text="Of a change only what differs.")
    after = serializers.DictField(read_only=True, help_text="Of a change only what differs.")

    class Meta:
        model = AuditEntry
        fields = (
            "id",
            "at",
            "actor_id",
            "actor",
            "tenant_id",
            "action",
            "object_type",
            "object_id",
            "object_name",
            "before",
            "after",
            "request_id",
        )
        read_only_fields = fields


class AuditFilter(django_filters.FilterSet):
    actor = django_filters.CharFilter(lookup_expr="iexact", label="E-mail address, or the name of the machinery.")
    since = MomentFilter(field_name="at", lookup_expr="gte", label="From this time on.")
    until = MomentFilter(field_name="at", lookup_expr="lt", label="Before this time.")

    class Meta:
        model = AuditEntry
        fields = ("action", "object_type", "object_id")


class PlatformAuditFilter(AuditFilter):
    tenant = django_filters.UUIDFilter(field_name="tenant_id", label="Id of a tenant.")


class AuditViewSet(TenantViewSet[AuditEntry]):
    required: ClassVar = {"list": Action.AUDIT_VIEW, "retrieve": Action.AUDIT_VIEW}
    queryset = AuditEntry.objects.none()
    serializer_class = AuditSerializer
    filterset_class = AuditFilter
    # No order but by time: a cursor needs one that never changes.
    filter_backends = (DjangoFilterBackend,)
    pagination_class = Cursor

    def get_queryset(self) -> QuerySet[AuditEntry]:
        return AuditEntry.objects.filter(tenant_id=self.tenant.pk)

    def list(self, request: Request, tenant: str) -> Response:
        """What was done in the tenant, by whom, newest first. ``next`` holds the address of the older entries."""
        return self.listed(self.get_queryset())

    def retrieve(self, request: Request, tenant: str, pk: str) -> Response:
        """One audit entry of the tenant."""
        return self.shown(self.get_object())


class PlatformAuditViewSet(ApiViewSet[AuditEntry]):
    required: ClassVar = {"list": Action.PLATFORM_VIEW, "retrieve": Action.PLATFORM_VIEW}
    queryset = AuditEntry.objects.all()
    serializer_class = AuditSerializer
    filterset_class = PlatformAuditFilter
    filter_backends = (DjangoFilterBackend,)
    pagination_class = Cursor

    def list(self, request: Request) -> Response:
        """What was done on the platform and in all tenants, newest first. For operators."""
        return self.listed(self.get_queryset())

    def retrieve(self, request: Request, pk: str) -> Response:
        """One audit entry. For operators."""
        return self.shown(self.get_object())
