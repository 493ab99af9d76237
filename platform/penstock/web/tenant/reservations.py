"""A tenant's reservations: what is guaranteed to it, what it has asked for, and a calculator to ask by."""

from __future__ import annotations

import datetime
from typing import Any
from uuid import UUID

from django import forms
from django.contrib import messages
from django.core.exceptions import ValidationError
from django.core.paginator import Paginator
from django.http import Http404, HttpResponse
from django.shortcuts import redirect, render
from django.utils import timezone
from django.views.decorators.http import require_GET, require_http_methods, require_POST

from capacity.models import Pool, Reservation
from capacity.selectors import pools_usable
from capacity.services import reservation_request, reservation_withdraw
from penstock.web.access import UserRequest
from penstock.web.dashboard_data import held_now
from penstock.web.operators.reservation_forms import DayField, ShapeForm, demand_of, problems_of
from penstock.web.reservation_states import pill_of
from penstock.web.tenant.place import Place, in_tenant, tenant_page
from tenants.models import Tenant
from tenants.policy.roles import Action

CURRENT = "tenant-reservations"
PER_PAGE = 25
State = Reservation.State
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
    return pools_usable(tenant).order_by("name")


@require_GET
@in_tenant(Action.USAGE_VIEW)
def reservations(request: UserRequest, place: Place) -> HttpResponse:
    """What runs, with how much of it is used now; below it all that was promised and asked for."""
    own = Reservation.objects.filter(tenant=place.tenant).select_related("pool", "profile")
    page = Paginator(own.order_by("-starts_at", "-pk"), PER_PAGE).get_page(request.GET.get("page"))
    context = {
        "held": held_now(place.tenant, timezone.now()),
        "page": page,
        "rows": [(row, pill_of(row)) for row in page.object_list],
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
    found = demand_of(form, given["pool"], now)
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


def _answered(form: RequestForm, now: datetime.datetime) -> dict[str, Any]:
    """What ``tenant/reservation_answer.html`` shows."""
    form.is_valid()
    problems = problems_of(form)
    pool = form.cleaned_data.get("pool")
    if problems or pool is None:
        return {"problems": problems}
    try:
        demand = demand_of(form, pool, now)
    except ValidationError as error:
        return {"problems": error.messages}
    mu = form.cleaned_data.get("mu_per_min") or (demand.mu_per_min if demand else 0.0)
    return {"demand": demand, "mu_per_min": mu, "is_answered": True}
