"""What is promised of pools, in the unit of the price in force: reads for the ledger, the scale loop and pages."""

from __future__ import annotations

import datetime
import uuid
from collections.abc import Collection
from functools import lru_cache

from django.db.models import Q, QuerySet

from capacity.models import CostProfile, Reservation, UsageRecord
from capacity.policy import cost
from capacity.policy.calculator import Shape
from capacity.policy.conversion import Conversion, convert
from capacity.policy.stock import Term
from capacity.selectors import profile_in_force, profiles_in_force
from capacity.usage.reads import terms_of

_USED_FOR = datetime.timedelta(days=7)
_USED_MOST = 1000


def promised(*, at: datetime.datetime, pool_ids: Collection[uuid.UUID] | None = None) -> QuerySet[Reservation]:
    """What is sold and not over at ``at``, begun or not; of some pools, or of all."""
    rows = Reservation.objects.filter(Q(ends_at=None) | Q(ends_at__gt=at), state__in=Reservation.PROMISED)
    return rows if pool_ids is None else rows.filter(pool__in=pool_ids)


def terms_sold(
    *, at: datetime.datetime, pool_ids: Collection[uuid.UUID] | None = None
) -> dict[uuid.UUID, tuple[Term, ...]]:
    """What ``promised`` finds, by pool id, in MU/min of each pool's price in force: two queries."""
    prices = profiles_in_force(at=at)
    found: dict[uuid.UUID, list[Term]] = {}
    rows = promised(at=at, pool_ids=pool_ids).select_related("profile").order_by("starts_at", "pk")
    for row in rows:
        found.setdefault(row.pool_id, []).append(term_of(row, prices.get(row.pool_id)))
    return {pool_id: tuple(terms) for pool_id, terms in found.items()}


def term_of(row: Reservation, price: CostProfile | None, *, mu_per_min: float | None = None) -> Term:
    """The reservation, or one of ``mu_per_min`` like it, as the ledger counts it: in MU/min of ``price``."""
    mu = row.mu_per_min if mu_per_min is None else mu_per_min
    if price is not None and price.pk != row.profile_id:
        mu *= _standard(terms_of(row.profile), terms_of(price))
    return Term(str(row.pk), mu, row.starts_at.timestamp(), row.ends_at.timestamp() if row.ends_at else None)


@lru_cache(maxsize=1024)
def _standard(old: cost.CostProfile, new: cost.CostProfile) -> float:
    return convert(old, new).factor


def conversion_of(row: Reservation, *, at: datetime.datetime) -> tuple[CostProfile, Conversion]:
    """The pool's price in force, and what an MU of the reservation's own version is worth in it.

    By the tenant's last requests to the pool (7 days, 1,000 of them), or by standard ones. A pool without a price in
    force keeps the reservation's.
    """
    price = profile_in_force(pool_id=row.pool_id, at=at) or row.profile
    if price.pk == row.profile_id:
        return price, Conversion(1.0, "same")
    used = UsageRecord.objects.filter(
        tenant_id=row.tenant_id, pool_id=row.pool_id, ended_at__gt=at - _USED_FOR, ended_at__lte=at, outcome="completed"
    ).order_by("-ended_at")
    shapes = [
        Shape(given, cached / given if given else 0.0, output, units)
        for given, cached, output, units in used.values_list("input_tokens", "cached_tokens", "output_tokens", "units")[
            :_USED_MOST
        ]
    ]
    return price, convert(terms_of(row.profile), terms_of(price), shapes)
