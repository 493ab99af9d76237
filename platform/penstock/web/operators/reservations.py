"""Reservations: what is sold and asked for, and one of them."""

from __future__ import annotations

import datetime
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from django.db.models import Q
from django.http import HttpResponse
from django.shortcuts import get_object_or_404
from django.urls import reverse
from django.utils import timezone

from capacity.models import Pool, Reservation
from capacity.policy.ledger import Answer, Piece, can_sell, outlook
from capacity.policy.stock import Stock
from capacity.promises import conversion_of
from capacity.services.promising import sale_of
from capacity.stocks import stock_of
from penstock.web.access import UserRequest
from penstock.web.operators.audit import rows_of
from penstock.web.operators.frame import read_page, show
from penstock.web.operators.lists import choice_of, listing, text_of
from penstock.web.reservation_states import pill_of
from penstock.web.sales_plot import SalesPlot, horizon, sales_plot
from tenants.models import AuditEntry

CURRENT = "operators:reservations"
State = Reservation.State
_SORTS = {"starts": "starts_at", "ends": "ends_at", "tenant": "tenant__name", "pool": "pool__name", "mu": "mu_per_min"}
_NEWEST, _WAITING = 8, 20


@dataclass(frozen=True)
class Row:
    """A reservation in a list."""

    row: Reservation

    @property
    def pill(self) -> str:
        return pill_of(self.row)


@dataclass(frozen=True)
class PlotRow:
    """A piece of the calendar for the table."""

    piece: Piece
    starts_at: datetime.datetime
    ends_at: datetime.datetime | None


def plot_of(
    stock: Stock, *, now: datetime.datetime, ask: tuple[float, float, float | None] | None = None
) -> dict[str, Any]:
    """The calendar of a pool, for ``operators/sales_plot.html``; ``ask`` as ``sales_plot`` takes it."""
    since = now.timestamp()
    moments = [moment for term in stock.pool.sold for moment in (term.starts_at, term.ends_at)]
    until = horizon([*moments, *(ask[1:] if ask else ())], now=since)
    plot: SalesPlot = sales_plot(outlook(stock, since=since, until=until), since=since, until=until, ask=ask)
    rows = [PlotRow(one, _moment(one.starts_at), _moment(one.ends_at) if one.ends_at else None) for one in plot.rows]
    return {"plot": plot, "plot_rows": rows, "plot_of": stock.pool.name}


def _moment(at: float) -> datetime.datetime:
    return datetime.datetime.fromtimestamp(at, datetime.UTC)


@read_page
def reservations(request: UserRequest) -> HttpResponse:
    """The list; above it what waits for a decision, and the calendar of the pool that is chosen."""
    now = timezone.now()
    query, state = text_of(request, "q"), choice_of(request, "state", State.values)
    pools = list(Pool.objects.order_by("name"))
    chosen = choice_of(request, "pool", [pool.slug for pool in pools])
    rows = Reservation.objects.select_related("tenant", "pool", "profile")
    waiting = list(rows.filter(state=State.REQUESTED).order_by("created_at")[: _WAITING + 1])
    if query:
        rows = rows.filter(
            Q(tenant__name__icontains=query) | Q(tenant__slug__icontains=query) | Q(note__icontains=query)
        )
    if state:
        rows = rows.filter(state=state)
    if chosen:
        rows = rows.filter(pool__slug=chosen)
    is_filtered = bool(query or state or chosen)
    found = listing(request, rows, sorts=_SORTS, default="-starts", is_filtered=is_filtered)
    sold_pools = set(Reservation.objects.filter(state__in=Reservation.PROMISED).values_list("pool__slug", flat=True))
    shown = next((p for p in pools if p.slug == chosen), None) or next((p for p in pools if p.slug in sold_pools), None)
    context = {
        "list": found,
        "rows": [Row(row) for row in found.rows],
        "waiting": waiting[:_WAITING],
        "has_more_waiting": len(waiting) > _WAITING,
        "query": query,
        "state": state,
        "states": State.choices,
        "pools": pools,
        "pool": chosen,
        "shown_pool": shown,
        "headline": _headline(now),
        "is_empty": not found.total and not is_filtered,
        **(plot_of(stock_of(shown, now=now), now=now) if shown else {}),
    }
    return show(request, "operators/reservations.html", context, current=CURRENT)


def _headline(now: datetime.datetime) -> str:
    """The sentence that answers: what is sold, and does anybody wait?"""
    running = Reservation.objects.filter(state__in=Reservation.PROMISED)
    active = running.filter(starts_at__lte=now).count()
    later = running.filter(starts_at__gt=now).count()
    asked = Reservation.objects.filter(state=State.REQUESTED).count()
    if not (active or later or asked):
        return "Nothing is sold: every request is served best-effort, as long as there is room."
    parts = [f"{active} reservation{'s' if active != 1 else ''} run{'s' if active == 1 else ''}"]
    if later:
        parts.append(f"{later} start{'s' if later == 1 else ''} later")
    if asked:
        parts.append(f"{asked} wait{'s' if asked == 1 else ''} for a decision")
    return f"{', '.join(parts)}."


def find(reservation_id: UUID) -> Reservation:
    """The reservation of this id. Raises Http404."""
    rows = Reservation.objects.select_related("tenant", "pool__model", "profile", "renews")
    return get_object_or_404(rows, pk=reservation_id)


def path_of(row: Reservation) -> str:
    return reverse("operators:reservation", args=[row.pk])


@read_page
def reservation(request: UserRequest, reservation_id: UUID) -> HttpResponse:
    """One: what was promised, for how much, how it stands in its pool's calendar, and what was done with it."""
    row, now = find(reservation_id), timezone.now()
    is_open = row.is_promised or row.state == State.REQUESTED
    stock = stock_of(row.pool, now=now)
    price, conversion = conversion_of(row, at=now)
    entries = AuditEntry.objects.filter(object_type="capacity.reservation", object_id=str(row.pk))
    ask = None
    if row.state == State.REQUESTED:
        ask = (row.mu_per_min, max(row.starts_at, now).timestamp(), row.ends_at.timestamp() if row.ends_at else None)
    context = {
        "r": row,
        "pill": pill_of(row),
        "followers": row.renewals.exclude(state__in=(State.CANCELLED, State.REFUSED)),
        "answer": answer_for(row, stock, now=now) if row.state == State.REQUESTED else None,
        "price": price,
        "conversion": conversion if is_open and conversion.basis != "same" else None,
        "converted": row.mu_per_min * conversion.factor,
        "rows": rows_of(list(entries.order_by("-at", "-id")[:_NEWEST])),
        "can_restore": row.state in (State.CANCELLED, State.REFUSED) and (row.ends_at is None or row.ends_at > now),
        **(plot_of(stock, now=now, ask=ask) if is_open else {}),
    }
    return show(request, "operators/reservation.html", context, current=CURRENT)


def answer_for(row: Reservation, stock: Stock, *, now: datetime.datetime) -> Answer | None:
    """What the ledger says of a request now; None where its time is over."""
    if row.ends_at is not None and row.ends_at <= now:
        return None
    row.starts_at = max(row.starts_at, now)
    return can_sell(stock, sale_of(row, now=now).ask)
