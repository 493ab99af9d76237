"""Decisions and incidents, as they were written."""

from django.contrib import admin

from serving.models import Incident, ScalingDecision
from tenants.admin.base import HistoryAdmin, column


@admin.register(ScalingDecision)
class ScalingDecisionAdmin(HistoryAdmin):
    list_display = ("at", "deployment_name", "change", "reason")
    list_filter = ("deployment_name",)
    search_fields = ("deployment_name", "reason")
    date_hierarchy = "at"

    @column("Replicas wanted", ordering="after")
    def change(self, row: ScalingDecision) -> str:
        return f"{row.before} → {row.after}" if row.before != row.after else f"{row.after}"


@admin.register(Incident)
class IncidentAdmin(HistoryAdmin):
    list_display = ("opened_at", "kind_shown", "deployment_name", "summary", "closed_at", "minutes")
    list_filter = ("kind", ("closed_at", admin.EmptyFieldListFilter), "deployment_name")
    search_fields = ("summary", "deployment_name", "replica_id")
    date_hierarchy = "opened_at"

    @column("Kind", ordering="kind", label="danger")
    def kind_shown(self, row: Incident) -> str:
        return row.get_kind_display()

    @column("Open for (min)")
    def minutes(self, row: Incident) -> str:
        return f"{(row.closed_at - row.opened_at).total_seconds() / 60:.1f}" if row.closed_at else "open"
