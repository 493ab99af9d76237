"""A tenant's reservations: what is guaranteed to it, what it has asked for, and a calculator to ask by."""

from __future__ import annotations

import datetime
from typing import Any
from uuid import UUID

from django import forms
from django.contrib import messages
from django.core.exceptions import ValidationError
from django.core.paginator import Paginator
from django.db.models import Q
from django.http import Http404, HttpResponse
from django.shortcuts import redirect, render
from django.utils import timezone
from django.views.decorators.http import require_GET, require_http_methods, require_POST

from capacity.calculations import calculate
from capacity.models import Pool, Reservation
from capacity.policy.calculator import Demand
from capacity.services import reservation_request, reservation_withdraw
from penstock.web.access import UserRequest
from penstock.web.dashboard_data import held_now
from penstock.web.operators.reservation_forms import DayField, ShapeForm
from penstock.web.tenant.place import Place, in_tenant, tenant_page
from tenants.models import Tenant
from tenants.policy.roles import Action

CURRENT = "tenant-reservations"
PER_PAGE = 25
State = Reservation.State
PILLS = {
    State.REQUESTED: "busy",
    State.DRAFT: "off",
    State.ACTIVE: "ok",
    State.ENDED: "off",
    State.CANCELLED: "off",
    State.REFUSED: "warn",
}
_EXAMPLE = {"input_tokens": 1000, "output_tokens": 300, "requests_per_min": 10}


class RequestForm(ShapeForm):
    pool = forms.ModelChoiceField(Pool.objects.none(), label="Pool", to_field_name="slug")
    starts_at = DayField(label="From", help_text="Empty: now. Days begin in UTC.")
    ends_at = DayField(label="Until", help_text="Empty: until it is cancelled.")
    note = forms.CharField(
        label="What it is for",
        required=False,
        max_length=2000,
        widget=forms.Textarea(attrs={"rows": 3}),
        help_text="The operator who decides reads it.",
    )

    def __init__(self, *args: Any, place: Place, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.fields["pool"].queryset = usable_pools(place.tenant)  # type: ignore[attr-defined]


def usable_pools(tenant: Tenant) -> Any:
    """The pools that the tenant may use, by name."""
    listed = Pool.tenants.through.objects.filter(tenant=tenant).values("pool")
    return Pool.objects.filter(Q(is_public=True) | Q(pk__in=listed)).order_by("name")


@require_GET
@in_tenant(Action.USAGE_VIEW)
def reservations(request: UserRequest, place: Place) -> HttpResponse:
    """What runs, with how much of it is used now; below it all that was promised and asked for."""
    own = Reservation.objects.filter(tenant=place.tenant).select_related("pool", "profile")
    page = Paginator(own.order_by("-starts_at", "-pk"), PER_PAGE).get_page(request.GET.get("page"))
    context = {
        "held": held_now(place.tenant, timezone.now()),
        "page": page,
        "rows": [(row, PILLS[State(row.state)]) for row in page.object_list],
        "waiting": own.filter(state=State.REQUESTED).count(),
    }
    return tenant_page(request, place, "tenant/reservations.html", context, current=CURRENT)


@require_http_methods(["GET", "HEAD", "POST"])
@in_tenant(Action.RESERVATION_REQUEST)
def reservation_new(request: UserRequest, place: Place) -> HttpResponse:
    """The form, with the calculator's answer while it is typed; a POST asks for it."""
    now = timezone.now()
    if request.method == "POST":
        form = RequestForm(request.POST, place=place)
        made = form.attempt(lambda given: _request(place, form, given, now))
        if made is not None:
            text = f"{made.mu_per_min:,.6g} MU/min of {made.pool} are asked for. An operator decides about it."
            messages.success(request, text)
            return redirect(CURRENT, place.tenant.slug)
        return _shown(request, place, form, now, status=400)
    if not request.GET:
        first = usable_pools(place.tenant).first()
        initial = {**_EXAMPLE, "pool": first.slug if first else None}
        return _shown(request, place, RequestForm(initial=initial, place=place), now)
    form = RequestForm(request.GET, place=place)
    if "HX-Request" in request.headers:
        response = render(request, "tenant/reservation_answer.html", _answered(form, now))
        response.headers["Cache-Control"] = "private, no-store"
        return response
    return _shown(request, place, form, now)


@require_POST
@in_tenant(Action.RESERVATION_REQUEST)
def reservation_end(request: UserRequest, place: Place, reservation_id: UUID) -> HttpResponse:
    """Take a request back that nobody has decided about."""
    row = Reservation.objects.filter(tenant=place.tenant, pk=reservation_id).first()
    if row is None:
        raise Http404("The tenant has no such reservation.")
    try:
        reservation_withdraw(reservation=row, actor=request.user)
    except ValidationError as error:
        messages.error(request, " ".join(error.messages))
    else:
        messages.success(request, "The request is taken back. To undo it, ask again.")
    return redirect(CURRENT, place.tenant.slug)


def _shown(
    request: UserRequest, place: Place, form: RequestForm, now: datetime.datetime, *, status: int = 200
) -> HttpResponse:
    context = {
        "form": form,
        "has_pools": usable_pools(place.tenant).exists(),
        **(_answered(form, now) if form.is_bound else {}),
    }
    return tenant_page(request, place, "tenant/reservation_new.html", context, current=CURRENT, status=status)


def _request(place: Place, form: RequestForm, given: dict[str, Any], now: datetime.datetime) -> Reservation:
    found = _demand(form, given["pool"], now)
    mu = given["mu_per_min"] or (found.mu_per_min if found else 0.0)
    if not mu:
        raise ValidationError({"mu_per_min": "Give the MU/min, or a request and how many of it a minute."})
    return reservation_request(
        tenant=place.tenant,
        pool=given["pool"],
        mu_per_min=mu,
        starts_at=given["starts_at"],
        ends_at=given["ends_at"],
        note=given["note"],
        actor=place.user,
    )


def _demand(form: RequestForm, pool: Pool, now: datetime.datetime) -> Demand | None:
    given, shape = form.cleaned_data, form.shape
    if not (shape.input_tokens or shape.output_tokens or shape.units):
        return None
    if mu := given.get("mu_per_min"):
        return calculate(pool, shape, now=now, mu_per_min=mu)
    return calculate(pool, shape, now=now, requests_per_min=given.get("requests_per_min") or 0.0)


def _answered(form: RequestForm, now: datetime.datetime) -> dict[str, Any]:
    """What ``tenant/reservation_answer.html`` shows."""
    form.is_valid()
    problems = [
        f"{form.fields[name].label}: {' '.join(map(str, errors))}"
        for name, errors in form.errors.items()
        if name in form.fields and form.data.get(name)
    ]
    pool = form.cleaned_data.get("pool")
    if problems or pool is None:
        return {"problems": problems}
    try:
        demand = _demand(form, pool, now)
    except ValidationError as error:
        return {"problems": error.messages}
    mu = form.cleaned_data.get("mu_per_min") or (demand.mu_per_min if demand else 0.0)
    return {"demand": demand, "mu_per_min": mu, "is_answered": True}
