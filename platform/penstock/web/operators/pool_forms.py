"""Forms of a pool: its objectives and rules, and who may use it."""

from __future__ import annotations

from typing import Any, Self

from django import forms
from django.core.exceptions import ValidationError

from capacity.models import Pool
from penstock.web.operators.forms import PageForm
from tenants.models import Tenant

_LARGEST = 2**31 - 1


class RulesForm(PageForm):
    name = forms.CharField(label="Name", max_length=120)
    ttft_objective_ms = forms.IntegerField(
        label="TTFT objective, ms",
        min_value=1,
        max_value=_LARGEST,
        help_text="To the first token. The knee of a calibration and the guarantee ledger keep to it.",
    )
    tpot_objective_ms = forms.IntegerField(
        label="TPOT objective, ms", min_value=1, max_value=_LARGEST, help_text="Per output token after the first."
    )
    tolerable_wait_s = forms.FloatField(
        label="Tolerable wait, s", help_text="A request may wait this long for admission."
    )
    slo_share = forms.FloatField(
        label="Share beyond the objectives",
        help_text="Of requests, 0 to 1: more in a minute is a breach; the scale loop keeps waits within it.",
    )
    oversell_factor = forms.FloatField(
        label="Oversell factor", help_text="MU/min sold per MU/min had. 1: no more than there is."
    )
    adoption_error_limit = forms.FloatField(
        label="Adopt calibrations up to",
        help_text="Mean relative error, 0 to 1. For those that are adopted by themselves.",
    )
    keep_spare = forms.BooleanField(
        label="Keep one replica spare (N−1)", required=False, help_text="What is sold is kept with one replica lost."
    )
    best_effort = forms.BooleanField(
        label="Lend what is not used",
        required=False,
        help_text="As best effort. Off: requests beyond reservations are refused.",
    )
    adopts_calibrations = forms.BooleanField(
        label="Adopt calibrations by themselves",
        required=False,
        help_text="Where errors are small enough, and fit, load and what was measured before agree; else they wait.",
    )

    @classmethod
    def of(cls, row: Pool) -> Self:
        return cls(initial=rules_of(row))


def rules_of(row: Pool) -> dict[str, Any]:
    """What the form of rules is filled with."""
    return {name: getattr(row, name) for name in RulesForm.base_fields}


class TenantsForm(PageForm):
    is_public = forms.BooleanField(label="Every tenant may use it", required=False)
    tenants = forms.CharField(
        label="Tenants that may use it otherwise",
        required=False,
        widget=forms.Textarea(attrs={"rows": 3, "spellcheck": "false", "class": "in mono"}),
        help_text="Their slugs, one a line.",
    )

    @classmethod
    def of(cls, row: Pool) -> Self:
        return cls(initial={"is_public": row.is_public, "tenants": tenants_text(row)})

    def clean_tenants(self) -> list[Tenant]:
        """The tenants of these slugs. Refuses one that there is not."""
        slugs = list(dict.fromkeys(self.cleaned_data["tenants"].replace(",", " ").split()))
        found = {row.slug: row for row in Tenant.objects.filter(slug__in=slugs)}
        unknown = [slug for slug in slugs if slug not in found]
        if unknown:
            raise ValidationError(f"There is no tenant {', '.join(unknown)[:200]}: give slugs, one a line.")
        return [found[slug] for slug in slugs]


def tenants_text(row: Pool) -> str:
    """The slugs of those listed, one a line."""
    return "\n".join(row.tenants.order_by("slug").values_list("slug", flat=True))
