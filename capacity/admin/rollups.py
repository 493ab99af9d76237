"""Roll-ups of capacity, refusals and guarantees over time."""

from typing import Any

from django.contrib import admin
from django.db.models import OuterRef, QuerySet, Subquery
from django.http import HttpRequest

from capacity.models import AcceleratorRollup, GuaranteeHour, Pool, PoolRollup, RefusalRollup
from tenants.admin.base import HistoryAdmin, column
from tenants.admin.log import TenantIdFilter, with_tenant_name


def _with_pool_name(rows: QuerySet[Any]) -> QuerySet[Any]:
    names = Pool.everything.filter(pk=OuterRef("pool_id")).values("name")[:1]
    named: QuerySet[Any] = rows.annotate(pool_name=Subquery(names))
    return named


class _OfPool(HistoryAdmin):
    list_filter: Any = ("period",)
    date_hierarchy = "starts_at"

    def get_queryset(self, request: HttpRequest) -> QuerySet[Any]:
        return _with_pool_name(super().get_queryset(request))

    @column("Pool", ordering="pool_name")
    def pool_shown(self, row: Any) -> str:
        return row.pool_name or str(row.pool_id or "–")


@admin.register(PoolRollup)
class PoolRollupAdmin(_OfPool):
    list_display = ("starts_at", "period", "pool_shown", "have", "could", "offered", "minutes")


@admin.register(RefusalRollup)
class RefusalRollupAdmin(_OfPool):
    list_display = ("starts_at", "period", "tenant_shown", "pool_shown", "reason", "status", "requests")
    list_filter = ("period", "reason", TenantIdFilter)

    def get_queryset(self, request: HttpRequest) -> QuerySet[Any]:
        return with_tenant_name(super().get_queryset(request))

    @column("Tenant", ordering="tenant_name")
    def tenant_shown(self, row: Any) -> str:
        return row.tenant_name or str(row.tenant_id)


@admin.register(AcceleratorRollup)
class AcceleratorRollupAdmin(HistoryAdmin):
    list_display = ("starts_at", "period", "hardware_type", "have", "used", "sold", "minutes")
    list_filter = ("period", "hardware_type")
    list_select_related = ("hardware_type",)
    date_hierarchy = "starts_at"


@admin.register(GuaranteeHour)
class GuaranteeHourAdmin(HistoryAdmin):
    list_display = (
        "starts_at",
        "reservation",
        "minutes",
        "breach_minutes",
        "entitled_mu",
        "used_mu",
        "lent_mu",
        "throttled_mu",
        "slow_mu",
        "unserved_mu",
        "requests",
    )
    list_filter = ("reservation__pool", "reservation__tenant")
    list_select_related = ("reservation__pool", "reservation__tenant")
    date_hierarchy = "starts_at"
