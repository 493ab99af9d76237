"""Invoices as they were issued, and what they are made of. Issuing is done on the operators' pages."""

from typing import Any

from django.contrib import admin
from django.db.models import QuerySet
from django.http import HttpRequest

from capacity.models import BilledDay, Invoice, LateUsage
from tenants.admin.base import HistoryAdmin, column
from tenants.admin.log import TenantIdFilter, with_tenant_name


@admin.register(Invoice)
class InvoiceAdmin(HistoryAdmin):
    list_display = ("__str__", "tenant", "month", "kind", "totals_shown", "issued_at", "issued_by", "hash")
    list_filter = ("kind", "tenant")
    list_select_related = ("tenant",)
    search_fields = ("number", "hash")
    date_hierarchy = "month"

    @column("Totals")
    def totals_shown(self, row: Invoice) -> str:
        return ", ".join(f"{total:,} {currency}" for currency, total in row.totals.items())


@admin.register(BilledDay)
class BilledDayAdmin(HistoryAdmin):
    list_display = ("day", "tenant_shown", "model", "profile_version", "service_class", "requests", "mu_shown")
    list_filter = (TenantIdFilter, "service_class")
    date_hierarchy = "day"

    def get_queryset(self, request: HttpRequest) -> QuerySet[BilledDay]:
        return with_tenant_name(super().get_queryset(request))

    @column("Tenant", ordering="tenant_name")
    def tenant_shown(self, row: Any) -> str:
        return row.tenant_name or str(row.tenant_id)

    @column("MU")
    def mu_shown(self, row: BilledDay) -> str:
        return f"{row.mu:,.9f}".rstrip("0").rstrip(".")


@admin.register(LateUsage)
class LateUsageAdmin(HistoryAdmin):
    list_display = ("month", "tenant_shown", "at")
    list_filter = (TenantIdFilter,)

    def get_queryset(self, request: HttpRequest) -> QuerySet[LateUsage]:
        return with_tenant_name(super().get_queryset(request))

    @column("Tenant", ordering="tenant_name")
    def tenant_shown(self, row: Any) -> str:
        return row.tenant_name or str(row.tenant_id)
