"""Forms of selling: when and how much, by the calculator or directly, and what else can be said."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Collection
from typing import Any, TypeVar

from django import forms
from django.core.exceptions import ValidationError

from capacity.calculations import calculate
from capacity.models import Pool
from capacity.policy.calculator import LARGEST_MU_PER_MIN, Demand, Shape
from capacity.services import CannotSell
from penstock.web.operators.forms import PageForm
from tenants.models import Tenant

T = TypeVar("T")


class DayField(forms.DateField):
    """A day, as its first moment in UTC. Empty: None."""

    def __init__(self, **kwargs: Any) -> None:
        widget = forms.DateInput(attrs={"type": "date"}, format="%Y-%m-%d")
        super().__init__(required=False, widget=widget, **kwargs)

    def clean(self, value: Any) -> Any:
        day = super().clean(value)
        if day is None:
            return None
        if not 1970 <= day.year < 9999:
            raise ValidationError("Give a day between 1970 and 9998.")
        return datetime.datetime.combine(day, datetime.time(), tzinfo=datetime.UTC)


def rate_field(label: str, *, required: bool = False, help_text: str = "") -> forms.FloatField:
    field = forms.FloatField(
        label=label, required=required, min_value=0.0, max_value=LARGEST_MU_PER_MIN, help_text=help_text, step_size=None
    )
    field.widget.attrs["step"] = "any"
    return field


class TermsForm(PageForm):
    """What can be said beside how much and when."""

    burst_mu = rate_field("Burst (MU)", help_text="Empty: 10 s of the rate, and at least the largest request.")
    price = forms.DecimalField(
        label="Price", required=False, min_value=0, max_digits=14, decimal_places=6, help_text="Per MU/min and month."
    )
    currency = forms.CharField(label="Currency", required=False, max_length=3, help_text="Three letters, e.g. EUR.")


class OverrideForm(PageForm):
    override_reason = forms.CharField(
        label="Sell it although it does not fit, because",
        required=False,
        max_length=500,
        help_text="Kept in the audit; the reservation stays marked as overcommitted.",
    )


class ShapeForm(PageForm):
    """A typical request and its rate, or the MU/min themselves."""

    input_tokens = forms.IntegerField(label="Input tokens", required=False, min_value=0, max_value=10**9)
    cached_percent = forms.FloatField(label="Cached (%)", required=False, min_value=0, max_value=100)
    output_tokens = forms.IntegerField(label="Output tokens", required=False, min_value=0, max_value=10**9)
    units = forms.CharField(
        label="Units", required=False, max_length=200, help_text="Of modalities, e.g. image_token=600."
    )
    requests_per_min = rate_field("Requests a minute")
    mu_per_min = rate_field("MU/min", help_text="Empty: as the calculator says.")

    def clean_units(self) -> dict[str, float]:
        found: dict[str, float] = {}
        for part in str(self.cleaned_data["units"]).replace(",", " ").split():
            name, equals, number = part.partition("=")
            try:
                found[name] = float(number)
            except ValueError:
                equals = ""
            if not equals or not name or not 0 <= found[name] <= LARGEST_MU_PER_MIN:
                raise ValidationError("Write name=number, several of them with spaces between.")
        return found

    @property
    def shape(self) -> Shape:
        """What the fields say. Call it on a form that is valid."""
        given = self.cleaned_data
        return Shape(
            input_tokens=given.get("input_tokens") or 0,
            cached_share=(given.get("cached_percent") or 0.0) / 100.0,
            output_tokens=given.get("output_tokens") or 0,
            units=given.get("units") or {},
        )


def demand_of(form: ShapeForm, pool: Pool, now: datetime.datetime) -> Demand | None:
    """What the calculator says of a valid form: of the rate, or, where MU/min are given, how many requests they are.

    None where no request is described. Raises ValidationError for one that cannot be priced.
    """
    given, shape = form.cleaned_data, form.shape
    if not (shape.input_tokens or shape.output_tokens or shape.units):
        return None
    if mu := given.get("mu_per_min"):
        return calculate(pool, shape, now=now, mu_per_min=mu)
    return calculate(pool, shape, now=now, requests_per_min=given.get("requests_per_min") or 0.0)


def problems_of(form: ShapeForm, *, but: Collection[str] = ()) -> list[str]:
    """What is wrong with the fields that are filled in, ``but`` for some: while a form is typed, others are empty."""
    return [
        f"{form.fields[name].label}: {' '.join(map(str, errors))}"
        for name, errors in form.errors.items()
        if name in form.fields and name not in but and form.data.get(name)
    ]


class SellForm(ShapeForm, TermsForm, OverrideForm):
    pool = forms.ModelChoiceField(Pool.objects.order_by("name"), label="Pool", to_field_name="slug")
    tenant = forms.ModelChoiceField(Tenant.objects.order_by("name"), label="Tenant", to_field_name="slug")
    starts_at = DayField(label="From", help_text="Empty: now. Days begin in UTC.")
    ends_at = DayField(label="Until", help_text="Empty: until it is cancelled.")
    note = forms.CharField(label="Note", required=False, max_length=2000, widget=forms.Textarea(attrs={"rows": 2}))


class ChangeForm(TermsForm, OverrideForm):
    """Of a reservation that is there: filled with what it has."""

    mu_per_min = rate_field("MU/min", required=True)
    starts_at = DayField(label="From", help_text="Days begin in UTC.")
    ends_at = DayField(label="Until", help_text="Empty: until it is cancelled.")
    note = forms.CharField(label="Note", required=False, max_length=2000, widget=forms.Textarea(attrs={"rows": 2}))
    field_order = ("mu_per_min", "starts_at", "ends_at", "burst_mu", "price", "currency", "note", "override_reason")


class ApproveForm(TermsForm, OverrideForm):
    field_order = ("burst_mu", "price", "currency", "override_reason")


class RenewForm(OverrideForm):
    ends_at = DayField(label="Until", help_text="Empty: until it is cancelled. Days begin in UTC.")
    accepted_factor = forms.FloatField(widget=forms.HiddenInput, required=False)
    field_order = ("ends_at", "override_reason", "accepted_factor")


class ConvertForm(OverrideForm):
    accepted_factor = forms.FloatField(widget=forms.HiddenInput)


class ReasonForm(PageForm):
    reason = forms.CharField(label="Why", max_length=500, required=False, help_text="The tenant reads it.")


class RefuseForm(PageForm):
    reason = forms.CharField(label="Why", max_length=500, help_text="The tenant reads it.")


def fitting(call: Callable[[dict[str, Any]], T]) -> Callable[[dict[str, Any]], T]:
    """``call`` with what the ledger refuses as an error of the form, at the field that overrides it."""

    def tried(given: dict[str, Any]) -> T:
        try:
            return call(given)
        except CannotSell as error:
            raise ValidationError({"override_reason": str(error)}) from None

    return tried
