"""What was done, and what the gateways must be told."""

from typing import Any

from django.contrib import admin
from django.db.models import OuterRef, QuerySet, Subquery
from django.http import HttpRequest

from tenants.admin.base import HistoryAdmin, column
from tenants.models import AuditEntry, Change, Lease, Tenant


class TenantIdFilter(admin.SimpleListFilter):
    """By the tenant whose id the row holds."""

    title = "tenant"
    parameter_name = "tenant"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        return [(str(pk), name) for pk, name in Tenant.objects.values_list("pk", "name")[:200]]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        return queryset.filter(tenant_id=self.value()) if self.value() else queryset


def with_tenant_name(rows: QuerySet[Any]) -> QuerySet[Any]:
    """``rows``, which hold a ``tenant_id``, with ``tenant_name`` beside it: no query per row."""
    name = Tenant.objects.filter(pk=OuterRef("tenant_id")).values("name")[:1]
    named: QuerySet[Any] = rows.annotate(tenant_name=Subquery(name))
    return named


@admin.register(AuditEntry)
class AuditEntryAdmin(HistoryAdmin):
    list_display = ("at", "actor", "action", "object_name", "object_type", "tenant_shown")
    list_filter = ("action", TenantIdFilter)
    search_fields = ("actor", "object_name", "object_id", "action")
    date_hierarchy = "at"

    def get_queryset(self, request: HttpRequest) -> QuerySet[AuditEntry]:
        return with_tenant_name(super().get_queryset(request))

    @column("Tenant", ordering="tenant_name")
    def tenant_shown(self, entry: Any) -> str:
        return entry.tenant_name or "–"


@admin.register(Change)
class ChangeAdmin(HistoryAdmin):
    list_display = ("id", "kind", "object_id", "at", "version")
    list_filter = ("kind",)
    search_fields = ("object_id",)


@admin.register(Lease)
class LeaseAdmin(HistoryAdmin):
    list_display = ("name", "holder", "until")
    search_fields = ("name",)
