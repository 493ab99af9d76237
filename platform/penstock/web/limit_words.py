"""What pages say of two limits of one kind, where the smaller holds."""

from __future__ import annotations

from dataclasses import dataclass

from django.conf import settings

from capacity.models import BooksState, Pool
from penstock.budgets import spent
from tenants.models import Limit
from tenants.policy.limits import BUDGETS

_WHOSE = {Limit.SetBy.OPERATOR: "operator's limit", Limit.SetBy.TENANT: "tenant's own limit"}


def whose(limit: Limit) -> str:
    return _WHOSE[Limit.SetBy(limit.set_by)]


_NEARLY = 0.9
"""From this share on a budget is shown to run out."""


@dataclass(frozen=True)
class Used:
    """What is used of a budget's present period; ``pool`` is empty where its budget is one for all pools."""

    pool: str
    amount: float
    value: int
    """The budget itself."""

    @property
    def share(self) -> float:
        return self.amount / self.value

    @property
    def meter(self) -> str:
        return "warn" if self.share >= _NEARLY else "used"


def budgets_told(limits: list[Limit]) -> list[Limit]:
    """``limits`` (all of those that they speak of), each budget with ``used``, the largest first, as the books have it:
    they come a minute or two behind. Those of money name their ``unit``."""
    found = [limit for limit in limits if limit.kind in BUDGETS]
    for limit in found:
        limit.unit = settings.PENSTOCK_CURRENCY if limit.kind.startswith("money_") else ""
    books = BooksState.objects.filter(pk=1).first()
    if not found or books is None or books.final_until is None:
        return limits
    rows = list(spent(found, books.final_until))
    pools = Pool.objects.filter(pk__in={row.pool for row in rows if row.pool}).values_list("pk", "name")
    names = {str(pk): name for pk, name in pools}
    for limit in found:
        of = [
            Used(names.get(row.pool, ""), row.amount, limit.value)
            for row in rows
            if row.limit == limit.holding.lasting.pk
        ]
        of.sort(key=lambda one: -one.amount)
        limit.used = of
    return limits


def held_instead(limit: Limit) -> str:
    """A sentence of the other one, where that one holds; else empty. Starts with a space."""
    other = limit.holding.in_force
    return "" if other.pk == limit.pk else f" The {whose(other)} beside it, {other.value:,}, holds: the smaller does."


def left_over(limit: Limit) -> str:
    """What holds once ``limit`` is removed, as a sentence; empty where nothing does. Starts with a space."""
    held = limit.holding
    other = next((one for one in (held.operators, held.tenants) if one is not None and one.pk != limit.pk), None)
    return f" The {whose(other)}, {other.value:,}, still holds." if other is not None else ""
