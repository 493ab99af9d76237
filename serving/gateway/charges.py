"""What the limits and reservations of a request say of it on its receipt."""

from __future__ import annotations

from collections.abc import Iterable

from capacity.usage.lines import Charge
from serving.gateway.demands import Demand, Granted, Refused
from serving.gateway.records import LimitRecord
from serving.gateway.standing_headers import Book


def charged(book: Book, granted: Granted | None, passed: tuple[Charge, ...] = ()) -> tuple[Charge, ...]:
    """Of an admitted request: what it was charged to, and what is left there now; ``passed`` had no room for it."""
    if granted is None:
        return passed
    left = book.left
    made = [
        Charge(
            demand.limit.id,
            demand.limit.holder,
            demand.limit.kind,
            demand.limit.model,
            demand.limit.value,
            demand.amount,
            left(demand.limit),
        )
        for demand in granted.demands
    ]
    return (*made, *passed)


def in_the_way(refused: Refused, demands: Iterable[Demand]) -> Charge:
    """The limit that had no room for the request, of which it asked ``demands``."""
    limit = refused.limit
    asked = amount_asked(limit, demands)
    left = max(0.0, refused.remaining)
    return Charge(limit.id, limit.holder, limit.kind, limit.model, limit.value, asked, left, is_charged=False)


def no_allowance(bucket: LimitRecord, value: float, discount: float, room: float) -> Charge:
    """A reservation's allowance that had no room for what a request may take beyond its estimate: it was charged the
    most that it can take. ``bucket``: the reservation's."""
    name, left = f"{bucket.id}.allowance", max(0.0, room)
    return Charge(name, "allowance", bucket.kind, bucket.model, value, discount, left, is_charged=False)


def amount_asked(limit: LimitRecord, demands: Iterable[Demand]) -> float:
    """In the limit's unit."""
    return next((demand.amount for demand in demands if demand.limit is limit), 1.0)
