"""Models, pools, their prices and what is sold of them."""

from typing import Any

from django import forms
from django.contrib import admin
from django.db.models import Count, Q, QuerySet
from django.http import HttpRequest
from unfold.widgets import UnfoldAdminSelectWidget

from capacity.models import CostProfile, HardwareType, Model, Pool
from capacity.policy import cost
from capacity.services import (
    model_create,
    model_remove,
    model_update,
    pool_create,
    pool_remove,
    pool_tenants_set,
    pool_update,
    profile_add,
)
from tenants.admin.base import LookInline, ServiceAdmin, column, confirmed, operator_of


@admin.register(Model)
class ModelAdmin(ServiceAdmin):
    list_display = ("name", "artifact_kind", "artifact_value", "parameter_count", "context_tokens")
    list_filter = ("artifact_kind",)
    search_fields = ("name", "slug", "artifact_value")
    fields = ("name", "slug", "artifact_kind", "artifact_value", "artifact_revision", "parameters", "context_tokens")
    fields_on_add = fields
    readonly_fields = ("slug", "artifact_kind")
    actions = ("remove",)

    @column("Parameters (M)", ordering="parameters")
    def parameter_count(self, model: Model) -> str:
        return f"{model.parameters / 1e6:,.1f}" if model.parameters else "–"

    def create(self, request: HttpRequest, data: dict[str, Any]) -> Model:
        return model_create(actor=operator_of(request), **data)

    def change(self, request: HttpRequest, obj: Model, data: dict[str, Any]) -> None:
        model_update(model=obj, actor=operator_of(request), **data)

    @confirmed(question="Take away these models? Those that a pool sells are refused.", verb="Remove")
    def remove(self, request: HttpRequest, rows: list[Model]) -> int:
        return sum(model_remove(model=model, actor=operator_of(request)) for model in rows)


class ProfileInline(LookInline):
    """The pool's prices, newest first; a new one is added on its own page."""

    model = CostProfile
    fields = ("version", "effective_from", "calibrated", "alpha", "beta", "gamma", "epsilon", "replica_mu_per_min")
    readonly_fields = fields


class PoolForm(forms.ModelForm):  # type: ignore[type-arg]
    hardware_type = forms.ModelChoiceField(
        HardwareType.objects.all(),
        required=False,
        widget=UnfoldAdminSelectWidget,
        help_text="Reference hardware of the first price, an uncalibrated default from model size and hardware.",
    )

    class Meta:
        model = Pool
        fields = "__all__"  # noqa: DJ007 (the admin names the fields)

    def clean(self) -> dict[str, Any]:
        cleaned: dict[str, Any] = super().clean() or {}
        if self.instance._state.adding and not cleaned.get("hardware_type"):
            self.add_error("hardware_type", "A new pool needs the hardware its first price is for.")
        return cleaned


@admin.register(Pool)
class PoolAdmin(ServiceAdmin):
    form = PoolForm
    list_display = ("name", "model", "is_public", "deployment_count", "objectives", "oversell_factor", "keep_spare")
    list_filter = ("is_public", "keep_spare", "best_effort")
    list_select_related = ("model",)
    search_fields = ("name", "slug", "model__name")
    autocomplete_fields = ("model",)
    filter_horizontal = ("tenants",)
    fields = (
        "name",
        "slug",
        "model",
        "is_public",
        "tenants",
        "ttft_objective_ms",
        "tpot_objective_ms",
        "tolerable_wait_s",
        "slo_share",
        "oversell_factor",
        "keep_spare",
        "adopts_calibrations",
        "adoption_error_limit",
        "best_effort",
        "credit_tiers",
        "version",
    )
    fields_on_add = ("name", "slug", "model", "hardware_type", *fields[3:-1])
    readonly_fields = ("slug", "model", "version")
    inlines = (ProfileInline,)
    actions = ("remove",)

    @confirmed(
        question="Take away these pools? Those that a deployment serves, or of which something is sold, are refused.",
        verb="Remove",
    )
    def remove(self, request: HttpRequest, rows: list[Pool]) -> int:
        return sum(pool_remove(pool=pool, actor=operator_of(request)) for pool in rows)

    def get_queryset(self, request: HttpRequest) -> QuerySet[Pool]:
        rows: QuerySet[Pool] = super().get_queryset(request)
        return rows.annotate(deployment_total=Count("deployments", filter=Q(deployments__removed_at=None)))

    @column("Deployments", ordering="deployment_total")
    def deployment_count(self, pool: Any) -> int:
        return int(pool.deployment_total)

    @column("TTFT / TPOT (ms)", ordering="ttft_objective_ms")
    def objectives(self, pool: Pool) -> str:
        return f"{pool.ttft_objective_ms:,} / {pool.tpot_objective_ms:,}"

    def create(self, request: HttpRequest, data: dict[str, Any]) -> Pool:
        return pool_create(actor=operator_of(request), **data)

    def change(self, request: HttpRequest, obj: Pool, data: dict[str, Any]) -> None:
        tenants = data.pop("tenants", None)
        is_public = data.pop("is_public", None)
        data.pop("hardware_type", None)
        if tenants is not None or is_public is not None:
            pool_tenants_set(pool=obj, tenants=tenants, is_public=is_public, actor=operator_of(request))
        if data:
            pool_update(pool=obj, actor=operator_of(request), **data)


@admin.register(CostProfile)
class CostProfileAdmin(ServiceAdmin):
    """Never edited: a new version replaces the old one from a date."""

    can_change = False
    list_display = (
        "pool",
        "version",
        "effective_from",
        "withdrawn_at",
        "calibrated",
        "hardware_type",
        "prices",
        "supply",
    )
    list_filter = ("calibrated", "pool", "hardware_type")
    list_select_related = ("pool", "hardware_type")
    search_fields = ("pool__name", "notes")
    autocomplete_fields = ("pool", "hardware_type")
    fields = (
        "pool",
        "version",
        "hardware_type",
        "effective_from",
        "withdrawn_at",
        "calibrated",
        "base",
        "alpha",
        "beta",
        "gamma",
        "epsilon",
        "cached_factor",
        "modalities",
        "long_input_tiers",
        "replica_mu_per_min",
        "price_per_1000_mu",
        "notes",
    )
    fields_on_add = tuple(name for name in fields if name not in ("version", "withdrawn_at"))
    readonly_fields = ("version", "withdrawn_at")

    @column("MU / 1,000 input · output tokens")
    def prices(self, row: CostProfile) -> str:
        return f"{row.alpha * 1000:.3g} · {row.beta * 1000:.3g}"

    @column("MU/min per replica", ordering="replica_mu_per_min")
    def supply(self, row: CostProfile) -> str:
        return f"{row.replica_mu_per_min:g}"

    def create(self, request: HttpRequest, data: dict[str, Any]) -> CostProfile:
        about = {name: data.pop(name) for name in ("pool", "hardware_type", "effective_from", "notes")}
        about |= {name: data.pop(name) for name in ("replica_mu_per_min", "price_per_1000_mu")}
        profile = cost.CostProfile(version=1, **data)
        return profile_add(profile=profile, actor=operator_of(request), **about)
