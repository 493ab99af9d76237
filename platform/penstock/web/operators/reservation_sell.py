"""Sell: from a request's shape to MU/min, replicas and accelerators, with the ledger's answer while it is typed."""

from __future__ import annotations

import datetime
from dataclasses import dataclass
from typing import Any

from django.core.exceptions import ValidationError
from django.http import HttpResponse
from django.utils import timezone

from capacity.models import Pool
from capacity.policy.calculator import Demand
from capacity.policy.ledger import Answer, can_sell
from capacity.policy.stock import Term
from capacity.services import reservation_sell
from capacity.stocks import stock_of
from penstock.web.access import UserRequest
from penstock.web.operators.frame import done, form_page, is_part, part, show
from penstock.web.operators.reservation_forms import SellForm, demand_of, fitting, problems_of
from penstock.web.operators.reservations import CURRENT, path_of, plot_of
from tenants.models import Tenant

_TERMS = ("burst_mu", "price", "currency", "note", "override_reason")
_EXAMPLE = {"input_tokens": 1000, "output_tokens": 300, "requests_per_min": 10}


@dataclass(frozen=True)
class Offer:
    """What the fields come to: the calculator's numbers, the MU/min asked for, and the ledger's answer."""

    demand: Demand | None
    mu_per_min: float
    answer: Answer | None


@form_page
def sell(request: UserRequest) -> HttpResponse:
    """The form; with values in the address also the answer to them, and by POST the sale."""
    now = timezone.now()
    if request.method == "POST":
        form = SellForm(request.POST)
        made = form.attempt(fitting(lambda given: _sell(request, form, given, now)))
        if made is not None:
            text = f"{made.mu_per_min:,.6g} MU/min of {made.pool} are sold to {made.tenant}."
            return done(request, text, path_of(made))
        return _shown(request, form, now, status=400)
    given = request.GET.copy()
    if not given:
        first = Pool.objects.order_by("name").first()
        form = SellForm(initial={**_EXAMPLE, "pool": first.slug if first else None})
        return _shown(request, form, now)
    form = SellForm(given)
    if is_part(request):
        return part(request, "operators/sell_answer.html", _answered(form, now))
    form.is_valid()
    # To ask is no sale: nobody need be named yet.
    form.errors.pop("tenant", None)
    return _shown(request, form, now)


def _shown(request: UserRequest, form: SellForm, now: datetime.datetime, *, status: int = 200) -> HttpResponse:
    context = {
        "form": form,
        "has_pools": Pool.objects.exists(),
        "has_tenants": Tenant.objects.exists(),
        **(_answered(form, now) if form.is_bound else {}),
    }
    return show(request, "operators/sell.html", context, current=CURRENT, status=status)


def _sell(request: UserRequest, form: SellForm, given: dict[str, Any], now: datetime.datetime) -> Any:
    mu = given["mu_per_min"] or (demand_of(form, given["pool"], now) or _NOTHING).mu_per_min
    if not mu:
        raise ValidationError({"mu_per_min": "Give the MU/min, or a request and how many of it a minute."})
    return reservation_sell(
        tenant=given["tenant"],
        pool=given["pool"],
        mu_per_min=mu,
        starts_at=given["starts_at"],
        ends_at=given["ends_at"],
        actor=request.user,
        **{name: given[name] for name in _TERMS},
    )


_NOTHING = Demand(0.0, 0.0, 0.0, 0, 0)


def _answered(form: SellForm, now: datetime.datetime) -> dict[str, Any]:
    """What ``operators/sell_answer.html`` shows. A tenant need not be chosen yet."""
    form.is_valid()
    problems = problems_of(form, but=("tenant", "override_reason"))
    pool = form.cleaned_data.get("pool")
    if problems or pool is None:
        return {"problems": problems}
    try:
        demand = demand_of(form, pool, now)
    except ValidationError as error:
        return {"problems": error.messages}
    mu = form.cleaned_data.get("mu_per_min") or (demand.mu_per_min if demand else 0.0)
    stock = stock_of(pool, now=now)
    starts = max(form.cleaned_data.get("starts_at") or now, now)
    ends = form.cleaned_data.get("ends_at")
    if ends is not None and ends <= starts:
        return {"problems": ["Until: It must end after it starts, and after now."]}
    ask = (mu, starts.timestamp(), ends.timestamp() if ends else None)
    answer = can_sell(stock, Term("ask", *ask)) if mu > 0 else None
    return {
        "offer": Offer(demand, mu, answer),
        "offer_pool": pool,
        **plot_of(stock, now=now, ask=ask if mu > 0 else None),
    }
