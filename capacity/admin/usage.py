"""Usage records, roll-ups, watermarks and what the books refused."""

from typing import Any

from django.contrib import admin
from django.db.models import QuerySet
from django.http import HttpRequest

from capacity.models import (
    BooksState,
    GuaranteeDay,
    GuaranteeMinute,
    QuarantinedUsage,
    UsageAnchor,
    UsageChain,
    UsageRecord,
    UsageRollup,
    Watermark,
)
from capacity.usage.books import watermark_close
from capacity.usage.writer import quarantine_dismiss, quarantine_retry
from tenants.admin.base import HistoryAdmin, column, confirmed, operator_of
from tenants.admin.log import TenantIdFilter, with_tenant_name


@admin.register(UsageRecord)
class UsageRecordAdmin(HistoryAdmin):
    list_display = (
        "ended_at",
        "tenant_shown",
        "model",
        "outcome_shown",
        "status",
        "tokens",
        "mu",
        "ttft_ms",
        "duration_ms",
    )
    list_filter = ("outcome", TenantIdFilter, "model", "service_class", "lower_bound")
    search_fields = ("id", "client_request_id", "key_id", "replica_id")
    search_help_text = "Request id, the client's request id, key id or replica id"
    date_hierarchy = "ended_at"

    def get_queryset(self, request: HttpRequest) -> QuerySet[UsageRecord]:
        return with_tenant_name(super().get_queryset(request))

    @column("Tenant", ordering="tenant_name")
    def tenant_shown(self, record: Any) -> str:
        return record.tenant_name or str(record.tenant_id)

    @column(
        "Outcome",
        ordering="outcome",
        label={
            "completed": "success",
            "client_closed": "info",
            "gateway_lost": "warning",
            "refused": "warning",
            "timeout": "danger",
            "engine_error": "danger",
            "engine_lost": "danger",
        },
    )
    def outcome_shown(self, record: UsageRecord) -> str:
        return record.outcome

    @column("Tokens in (cached) → out")
    def tokens(self, record: UsageRecord) -> str:
        bound = "≥ " if record.lower_bound else ""
        return f"{record.input_tokens:,} ({record.cached_tokens:,}) → {bound}{record.output_tokens:,}"

    @column("MU (estimated)", ordering="actual_mu")
    def mu(self, record: UsageRecord) -> str:
        return f"{record.actual_mu:.4g} ({record.estimated_mu:.4g})"

    @column("TTFT (ms)")
    def ttft_ms(self, record: UsageRecord) -> str:
        if record.first_byte_at is None or not record.stream:
            return "–"
        return f"{(record.first_byte_at - record.admitted_at).total_seconds() * 1000:,.0f}"

    @column("Duration (ms)")
    def duration_ms(self, record: UsageRecord) -> str:
        return f"{(record.ended_at - record.admitted_at).total_seconds() * 1000:,.0f}"


@admin.register(UsageRollup)
class UsageRollupAdmin(HistoryAdmin):
    list_display = ("starts_at", "period", "tenant_shown", "requests", "failed", "tokens", "mu_shown", "is_final")
    list_filter = ("period", "is_final", TenantIdFilter, "service_class")
    date_hierarchy = "starts_at"

    def get_queryset(self, request: HttpRequest) -> QuerySet[UsageRollup]:
        return with_tenant_name(super().get_queryset(request))

    @column("Tenant", ordering="tenant_name")
    def tenant_shown(self, row: Any) -> str:
        return row.tenant_name or str(row.tenant_id)

    @column("Tokens in (cached) → out")
    def tokens(self, row: UsageRollup) -> str:
        return f"{row.input_tokens:,} ({row.cached_tokens:,}) → {row.output_tokens:,}"

    @column("MU", ordering="mu")
    def mu_shown(self, row: UsageRollup) -> str:
        return f"{row.mu:,.4g}"


@admin.register(Watermark)
class WatermarkAdmin(HistoryAdmin):
    list_display = ("segment", "gateway", "sequence", "at", "is_closed", "updated_at")
    list_filter = ("is_closed",)
    search_fields = ("segment", "gateway")
    actions = ("close",)

    @confirmed(
        question="Wait no longer for these segments? What they may still hold is lost to the books. Only for a gateway "
        "whose disk is gone.",
        verb="Close segment",
    )
    def close(self, request: HttpRequest, rows: list[Watermark]) -> int:
        return sum(watermark_close(segment=mark.segment, actor=operator_of(request)) for mark in rows)


@admin.register(QuarantinedUsage)
class QuarantinedUsageAdmin(HistoryAdmin):
    list_display = ("at", "record_id", "gateway", "segment", "reason", "resolved_at", "resolution")
    list_filter = (("resolved_at", admin.EmptyFieldListFilter), "gateway")
    search_fields = ("record_id", "segment", "reason")
    actions = ("retry", "dismiss")

    @confirmed(question="Try to book these requests again?", verb="Book again")
    def retry(self, request: HttpRequest, rows: list[QuarantinedUsage]) -> int:
        return sum(quarantine_retry(item=item, actor=operator_of(request)) for item in rows)

    @confirmed(question="Leave these requests out of the books for good?", verb="Dismiss")
    def dismiss(self, request: HttpRequest, rows: list[QuarantinedUsage]) -> int:
        actor = operator_of(request)
        return sum(quarantine_dismiss(item=item, why=f"by {actor.email}", actor=actor) for item in rows)


@admin.register(BooksState)
class BooksStateAdmin(HistoryAdmin):
    list_display = ("__str__", "final_until", "deleted_until", "invoiced_until", "late_records", "last_late_at")


@admin.register(UsageAnchor)
class UsageAnchorAdmin(HistoryAdmin):
    list_display = ("day", "tenant_shown", "sequence", "hash", "at", "is_deleted")
    list_filter = (TenantIdFilter, "is_deleted")
    date_hierarchy = "day"

    def get_queryset(self, request: HttpRequest) -> QuerySet[UsageAnchor]:
        return with_tenant_name(super().get_queryset(request))

    @column("Tenant", ordering="tenant_name")
    def tenant_shown(self, row: Any) -> str:
        return row.tenant_name or str(row.tenant_id)


@admin.register(UsageChain)
class UsageChainAdmin(HistoryAdmin):
    list_display = ("tenant_shown", "sequence", "hash")
    list_filter = (TenantIdFilter,)

    def get_queryset(self, request: HttpRequest) -> QuerySet[UsageChain]:
        return with_tenant_name(super().get_queryset(request))

    @column("Tenant", ordering="tenant_name")
    def tenant_shown(self, row: Any) -> str:
        return row.tenant_name or str(row.tenant_id)


_JUDGED = ("entitled_mu", "used_mu", "lent_mu", "throttled_mu", "slow_mu", "unserved_mu", "requests")


@admin.register(GuaranteeMinute)
class GuaranteeMinuteAdmin(HistoryAdmin):
    list_display = ("starts_at", "reservation", *_JUDGED, "is_breach", "reason")
    list_filter = ("is_breach", "reservation__pool", "reservation__tenant")
    list_select_related = ("reservation__pool", "reservation__tenant")
    date_hierarchy = "starts_at"


@admin.register(GuaranteeDay)
class GuaranteeDayAdmin(HistoryAdmin):
    list_display = ("day", "reservation", "minutes", "breach_minutes", *_JUDGED)
    list_filter = ("reservation__pool", "reservation__tenant")
    list_select_related = ("reservation__pool", "reservation__tenant")
    date_hierarchy = "day"
