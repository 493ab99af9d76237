"""Pools: what is sold of which model, at what price, by which rules; and who may use it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from django.conf import settings
from django.core.exceptions import ValidationError
from django.db.models import Count, Prefetch, Q, QuerySet, Sum
from django.http import HttpResponse
from django.shortcuts import get_object_or_404
from django.urls import reverse
from django.utils import timezone

from capacity.models import CostProfile, Pool, Reservation
from capacity.selectors import claw_back_s, profiles_in_force, sold_mu_per_min
from capacity.services import pool_remove, pool_tenants_set, pool_update, profile_restore, profile_withdraw
from capacity.stocks import stock_of
from penstock.web.access import UserRequest
from penstock.web.operators.audit import rows_of
from penstock.web.operators.frame import act, ask, done, form_page, read_page, refused, show
from penstock.web.operators.lists import choice_of, listing, text_of
from penstock.web.operators.pool_forms import RulesForm, TenantsForm, rules_of, tenants_text
from penstock.web.operators.reservations import plot_of
from serving.models import Deployment, Replica
from tenants.models import AuditEntry
from tenants.needed import StillNeeded

CURRENT = "operators:pools"
OPEN_TO = {"all": "Open to every tenant", "some": "Open to those listed"}
_SORTS = {"name": "name", "model": "model__name", "made": "created_at"}
_NEWEST, _VERSIONS = 8, 20


@dataclass(frozen=True)
class Version:
    """A version of the price, with MU per 1,000 tokens."""

    row: CostProfile

    @property
    def input_mu(self) -> float:
        return 1000.0 * self.row.alpha

    @property
    def output_mu(self) -> float:
        return 1000.0 * self.row.beta


def find(slug: str) -> Pool:
    """The pool of this slug. Raises Http404."""
    return get_object_or_404(Pool.objects.select_related("model"), slug=slug)


def path_of(row: Pool) -> str:
    return reverse("operators:pool", args=[row.slug])


@read_page
def pools(request: UserRequest) -> HttpResponse:
    """The list, with what each has and has sold: a fixed number of queries for a page of them."""
    query, to = text_of(request, "q"), choice_of(request, "to", tuple(OPEN_TO))
    rows = _filtered(query, to)
    is_filtered = bool(query or to)
    found = listing(request, rows, sorts=_SORTS, default="name", is_filtered=is_filtered)
    now = timezone.now()
    page = list(found.rows)
    prices, sold, have = profiles_in_force(at=now), sold_mu_per_min(at=now), _have(page)
    context = {
        "list": found,
        "rows": [(row, prices.get(row.pk), sold.get(row.pk, 0.0), have.get(row.pk, 0.0)) for row in page],
        "query": query,
        "to": to,
        "choices": OPEN_TO.items(),
        "headline": headline(),
        "is_empty": not found.total and not is_filtered,
    }
    return show(request, "operators/pools.html", context, current=CURRENT)


def _filtered(query: str, to: str) -> QuerySet[Pool]:
    living = Prefetch("deployments", Deployment.objects.order_by("name"), to_attr="served_by")
    rows = Pool.objects.select_related("model").prefetch_related(living).annotate(listed=Count("tenants"))
    if query:
        rows = rows.filter(Q(name__icontains=query) | Q(slug__icontains=query) | Q(model__name__icontains=query))
    return rows.filter(is_public=to == "all") if to else rows


def _have(rows: list[Pool]) -> dict[UUID, float]:
    """MU/min of ready replicas by pool id."""
    ready = Replica.objects.filter(state=Replica.State.READY, deployment__pool__in=rows).order_by()
    summed = ready.values_list("deployment__pool").annotate(mu=Sum("supply_mu_per_min"))
    return dict(summed)


def headline() -> str:
    """The sentence that answers: how many are there, and which cannot be used as they are?"""
    total = Pool.objects.count()
    if not total:
        return "There is no pool yet, so there is nothing to sell."
    unserved = Pool.objects.exclude(pk__in=Deployment.objects.filter(is_enabled=True).values("pool")).count()
    text = f"{total} pool{'s' if total != 1 else ''}"
    if unserved:
        return f"{text}; nothing serves {unserved} of them." if total > 1 else f"{text}; nothing serves it."
    return f"{text}, each served by a deployment."


@read_page
def pool(request: UserRequest, pool: str) -> HttpResponse:
    """One pool: its objectives and rules, its prices, what serves it, what is sold of it, and what was done to it."""
    return shown(request, find(pool))


def shown(request: UserRequest, row: Pool, *, status: int = 200, **forms: Any) -> HttpResponse:
    """The page of a pool; ``forms`` replace those that are filled with what holds, with what was refused."""
    now = timezone.now()
    price = profiles_in_force(at=now).get(row.pk)
    sold = sold_mu_per_min(at=now).get(row.pk, 0.0)
    have = _have([row]).get(row.pk, 0.0)
    serving = list(Deployment.objects.filter(pool=row).order_by("name"))
    versions = CostProfile.objects.filter(pool=row).select_related("hardware_type").order_by("-version")
    acts = AuditEntry.objects.filter(object_id__in=[str(row.pk), *map(str, versions.values_list("pk", flat=True))])
    context = {
        "row": row,
        "price": price,
        "claw_back_s": claw_back_s(price, context_tokens=row.model.context_tokens) if price else None,
        "sold": sold,
        "have": have,
        "short": max(0.0, sold - have),
        "currency": settings.PENSTOCK_CURRENCY,
        "serving": serving,
        "is_served": any(one.is_enabled for one in serving),
        "versions": [Version(one) for one in versions[:_VERSIONS]],
        "older": max(0, versions.count() - _VERSIONS),
        "now": now,
        "asked": Reservation.objects.filter(pool=row, state=Reservation.State.REQUESTED).count(),
        "rules_form": RulesForm.of(row),
        "tenants_form": TenantsForm.of(row),
        "rows": rows_of(list(acts.order_by("-at", "-id")[:_NEWEST])),
        **(plot_of(stock_of(row, now=now), now=now) if price else {}),
        **forms,
    }
    return show(request, "operators/pool.html", context, current=CURRENT, status=status)


@act
def rules(request: UserRequest, pool: str) -> HttpResponse:
    """Other objectives or rules; they hold at once, for what is sold already, too."""
    row = find(pool)
    before = rules_of(row)
    form = RulesForm(request.POST)
    if form.attempt(lambda given: pool_update(pool=row, actor=request.user, **given)) is None:
        return shown(request, find(pool), status=400, rules_form=form)
    undo = reverse("operators:pool-rules", args=[pool])
    return done(request, f"The rules of {row.name} are saved.", path_of(row), undo=undo, fields=before)


@act
def tenants(request: UserRequest, pool: str) -> HttpResponse:
    """Say who may use it. Others' requests for its models are answered as if these did not exist."""
    row = find(pool)
    before = {"is_public": row.is_public, "tenants": tenants_text(row)}
    form = TenantsForm(request.POST)
    saved = form.attempt(lambda given: pool_tenants_set(pool=row, actor=request.user, **given) or True)
    if saved is None:
        return shown(request, find(pool), status=400, tenants_form=form)
    undo = reverse("operators:pool-tenants", args=[pool])
    who = "every tenant" if form.cleaned_data["is_public"] else "the tenants that it lists"
    return done(request, f"{row.name} is open to {who}.", path_of(row), undo=undo, fields=before)


@act
def withdraw(request: UserRequest, pool: str, version: int) -> HttpResponse:
    """Take back a price that is not in force yet."""
    undo = reverse("operators:price-restore", args=[pool, version])
    return _price_act(request, pool, version, profile_withdraw, "is withdrawn", undo=undo)


@act
def restore(request: UserRequest, pool: str, version: int) -> HttpResponse:
    """Undo ``withdraw``."""
    return _price_act(request, pool, version, profile_restore, "comes into force after all")


def _price_act(
    request: UserRequest, pool: str, version: int, change: Callable[..., CostProfile], became: str, *, undo: str = ""
) -> HttpResponse:
    row = find(pool)
    price = get_object_or_404(CostProfile, pool=row, version=version)
    try:
        change(profile=price, actor=request.user)
    except ValidationError as error:
        return refused(request, error, path_of(row))
    return done(request, f"Version {version} of the price of {row.name} {became}.", path_of(row), undo=undo)


@form_page
def remove(request: UserRequest, pool: str) -> HttpResponse:
    """Take the pool away; refused while something serves it or is sold of it."""
    row = find(pool)
    refusal = None
    if request.method == "POST":
        try:
            pool_remove(pool=row, actor=request.user)
        except StillNeeded as error:
            refusal = error
        else:
            return done(request, f"{row.name} is removed; its history stays.", reverse("operators:pools"))
    return ask(
        request,
        title=f"Remove {row.name}?",
        effects=(
            "Nothing more can be sold of it. Its usage, prices and reservations stay to be read.",
            "Its slug is free for another pool. It does not come back: make a new one.",
        ),
        verb=f"Remove {row.name}",
        back=path_of(row),
        of=row.name,
        current=CURRENT,
        refusal=refusal,
    )
