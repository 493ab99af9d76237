"""Deployments, revisions and replicas."""

from typing import Any

from django import forms
from django.contrib import admin
from django.db.models import Count, Q, QuerySet
from django.http import HttpRequest
from unfold.widgets import UnfoldAdminIntegerFieldWidget, UnfoldAdminSelectWidget, UnfoldAdminTextareaWidget

from serving.models import Deployment, Replica, Revision
from serving.services import (
    deployment_create,
    deployment_disable,
    deployment_enable,
    deployment_remove,
    deployment_retry,
    deployment_update,
    revision_create,
)
from tenants.admin.base import HistoryAdmin, LookInline, ServiceAdmin, column, confirmed, operator_of

_STATE_COLOURS = {
    "Pending": "info",
    "Starting": "info",
    "Ready": "success",
    "Draining": "warning",
    "Stopping": "warning",
    "Stopped": "default",
    "Failed": "danger",
}


class RevisionInline(LookInline):
    model = Revision
    fields = ("number", "runtime", "target_concurrency", "is_current", "created_at")
    readonly_fields = fields


class ReplicaInline(LookInline):
    model = Replica
    fields = ("state", "reason", "host", "phase", "address", "ready_at")
    readonly_fields = fields

    def get_queryset(self, request: HttpRequest) -> QuerySet[Replica]:
        rows: QuerySet[Replica] = super().get_queryset(request).select_related("host", "deployment")
        return rows.exclude(state=Replica.State.STOPPED)


class DeploymentForm(forms.ModelForm):  # type: ignore[type-arg]
    runtime = forms.ChoiceField(
        choices=[("", "What fits the model's files"), *Revision.Runtime.choices],
        required=False,
        widget=UnfoldAdminSelectWidget,
        help_text="Of the first revision.",
    )
    options = forms.JSONField(
        required=False,
        widget=UnfoldAdminTextareaWidget,
        help_text="Runtime options of the first revision, as JSON.",
    )
    target_concurrency = forms.IntegerField(
        min_value=1,
        initial=16,
        required=False,
        widget=UnfoldAdminIntegerFieldWidget,
        help_text="Requests at once per replica.",
    )

    class Meta:
        model = Deployment
        fields = "__all__"  # noqa: DJ007 (the admin names the fields)
        help_texts = {"name": "What clients send as model. It cannot be changed."}


@admin.register(Deployment)
class DeploymentAdmin(ServiceAdmin):
    form = DeploymentForm
    list_display = ("name", "pool", "is_enabled", "replica_states", "bounds", "pinned_replicas", "cold_start")
    list_filter = ("is_enabled", "pool")
    list_select_related = ("pool",)
    search_fields = ("name", "pool__name")
    autocomplete_fields = ("pool",)
    fields = (
        "name",
        "pool",
        "is_enabled",
        "min_replicas",
        "max_replicas",
        "pinned_replicas",
        "desired_replicas",
        "cold_start_s",
        "retry_attempt",
        "created_at",
    )
    fields_on_add = (
        "name",
        "pool",
        "runtime",
        "options",
        "target_concurrency",
        "min_replicas",
        "max_replicas",
        "pinned_replicas",
        "cold_start_s",
    )
    readonly_fields = ("name", "pool", "is_enabled", "desired_replicas", "retry_attempt", "created_at")
    inlines = (RevisionInline, ReplicaInline)
    actions = ("retry", "disable", "enable", "remove")

    def get_queryset(self, request: HttpRequest) -> QuerySet[Deployment]:
        rows: QuerySet[Deployment] = super().get_queryset(request)
        state = Replica.State
        return rows.annotate(
            ready_total=Count("replicas", filter=Q(replicas__state=state.READY)),
            starting_total=Count("replicas", filter=Q(replicas__state__in=(state.PENDING, state.STARTING))),
            failed_total=Count("replicas", filter=Q(replicas__state=state.FAILED)),
        )

    @column("Ready / wanted (starting, failed)", ordering="ready_total")
    def replica_states(self, row: Any) -> str:
        return f"{row.ready_total} / {row.desired_replicas} ({row.starting_total}, {row.failed_total})"

    @column("Replicas min–max", ordering="max_replicas")
    def bounds(self, row: Deployment) -> str:
        return f"{row.min_replicas}–{row.max_replicas}"

    @column("Cold start (s)", ordering="cold_start_s")
    def cold_start(self, row: Deployment) -> str:
        return f"{row.cold_start_s:,.0f}"

    def create(self, request: HttpRequest, data: dict[str, Any]) -> Deployment:
        given = {name: value for name, value in data.items() if value is not None and (name, value) != ("runtime", "")}
        return deployment_create(actor=operator_of(request), **given)

    def change(self, request: HttpRequest, obj: Deployment, data: dict[str, Any]) -> None:
        own = {name: value for name, value in data.items() if name in self.fields}
        if own:
            deployment_update(deployment=obj, actor=operator_of(request), **own)

    @confirmed(
        question="Take these deployments away? Clients get 404 for them, their names are free, their history stays. "
        "Those with replicas that have not ended are refused: disable them first.",
        verb="Remove",
    )
    def remove(self, request: HttpRequest, rows: list[Deployment]) -> int:
        return sum(deployment_remove(deployment=one, actor=operator_of(request)) for one in rows)

    @confirmed(question="Start the failed replicas of these deployments again?", verb="Retry")
    def retry(self, request: HttpRequest, rows: list[Deployment]) -> int:
        for row in rows:
            deployment_retry(deployment=row, actor=operator_of(request))
        return len(rows)

    @confirmed(question="Stop serving these? Their replicas drain and stop; clients get 503.", verb="Disable")
    def disable(self, request: HttpRequest, rows: list[Deployment]) -> int:
        return sum(deployment_disable(deployment=row, actor=operator_of(request)) for row in rows)

    @confirmed(question="Serve these again?", verb="Enable")
    def enable(self, request: HttpRequest, rows: list[Deployment]) -> int:
        return sum(deployment_enable(deployment=row, actor=operator_of(request)) for row in rows)


@admin.register(Revision)
class RevisionAdmin(ServiceAdmin):
    """Never edited: a new revision takes over, and replicas of the old one are replaced."""

    can_change = False
    list_display = ("deployment", "number", "runtime", "target_concurrency", "is_current", "created_at")
    list_filter = ("runtime", "is_current", "deployment")
    list_select_related = ("deployment",)
    search_fields = ("deployment__name",)
    autocomplete_fields = ("deployment",)
    fields = (
        "deployment",
        "number",
        "runtime",
        "runtime_reason",
        "options",
        "target_concurrency",
        "is_current",
        "created_at",
    )
    fields_on_add = ("deployment", "runtime", "options", "target_concurrency")
    readonly_fields = ("number", "runtime_reason", "is_current", "created_at")

    def create(self, request: HttpRequest, data: dict[str, Any]) -> Revision:
        return revision_create(actor=operator_of(request), **data)


@admin.register(Replica)
class ReplicaAdmin(HistoryAdmin):
    list_display = ("__str__", "state_shown", "reason", "host", "revision_number", "supply", "state_since", "pid")
    list_filter = ("state", "deployment", "host")
    list_select_related = ("deployment", "host", "revision")
    search_fields = ("id", "deployment__name", "host__name", "reason")
    date_hierarchy = "created_at"

    @column("State", ordering="state", label=_STATE_COLOURS)
    def state_shown(self, row: Replica) -> str:
        return row.get_state_display()

    @column("Revision", ordering="revision__number")
    def revision_number(self, row: Replica) -> str:
        return f"r{row.revision.number} {row.revision.get_runtime_display()}"

    @column("Supply (MU/min)", ordering="supply_mu_per_min")
    def supply(self, row: Replica) -> str:
        return f"{row.supply_mu_per_min:g}"
