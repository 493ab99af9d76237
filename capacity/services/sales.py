"""The moment of a sale: asked of the ledger, and written only if nothing that the answer was made of has changed."""

from __future__ import annotations

import datetime
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from django.core.exceptions import ValidationError
from django.db import transaction
from django.db.models import F

from capacity.models import Pool
from capacity.policy.ledger import Answer, can_sell
from capacity.policy.stock import Stock, Term
from capacity.stocks import stock_of

T = TypeVar("T")
TRIES = 3
"""So often a sale is decided without keeping anybody waiting; then it takes its turn."""


class CannotSell(Exception):
    """It does not fit by the pool's rules; ``answer`` says how much is missing, when and why."""

    def __init__(self, answer: Answer) -> None:
        super().__init__(answer.reason)
        self.answer = answer


class _Outdated(Exception):
    """Somebody sold, or changed what there is, since the answer was given."""


@dataclass(frozen=True)
class Sale:
    """What is asked of the ledger for ``pool``; ``instead_of`` is a promise that it replaces."""

    pool: Pool
    ask: Term
    instead_of: Term | None = None

    def answer(self, *, now: datetime.datetime) -> Answer:
        """What the ledger says now. Nothing is written."""
        return can_sell(stock_of(self.pool, now=now), self.ask, instead_of=self.instead_of)


def sell(sale: Sale, write: Callable[[Answer, Stock], T], *, now: datetime.datetime, is_override: bool) -> T:
    """``write`` with the ledger's answer and what it was made of, in a transaction that swaps the pool's version.

    Pools that want the same accelerators or memory are held at the versions they had, too: two pools cannot sell the
    same hosts at once. Where somebody else was faster, the ledger is asked again; after ``TRIES`` of that with all
    pools held, so that nobody can be. Raises CannotSell for what does not fit, unless ``is_override``, and
    ValidationError where the pool is removed.
    """
    for _ in range(TRIES):
        # Before the stock is read: whatever changes after that is found out.
        versions = dict(Pool.objects.values_list("pk", "version"))
        answer, stock = _asked(sale, versions, now=now, is_override=is_override)
        try:
            with transaction.atomic():
                _move_on(sale.pool, stock, versions, now=now)
                return write(answer, stock)
        except _Outdated:
            continue
    with transaction.atomic():
        versions = dict(Pool.objects.select_for_update(no_key=True).order_by("pk").values_list("pk", "version"))
        answer, stock = _asked(sale, versions, now=now, is_override=is_override)
        _move_on(sale.pool, stock, versions, now=now)
        return write(answer, stock)


def _asked(
    sale: Sale, versions: dict[uuid.UUID, int], *, now: datetime.datetime, is_override: bool
) -> tuple[Answer, Stock]:
    if sale.pool.pk not in versions:
        raise ValidationError({"pool": f"{sale.pool} has been removed."})
    stock = stock_of(sale.pool, now=now)
    answer = can_sell(stock, sale.ask, instead_of=sale.instead_of)
    if answer.verdict != "fits" and not is_override:
        raise CannotSell(answer)
    return answer, stock


def _move_on(pool: Pool, stock: Stock, versions: dict[uuid.UUID, int], *, now: datetime.datetime) -> None:
    """Swap the pool's version, and hold those of its rivals, all in one order. Raises _Outdated."""
    rivals = {uuid.UUID(other.id) for other in stock.others}
    for pk in sorted({pool.pk, *rivals}):
        rows = Pool.objects.filter(pk=pk, version=versions.get(pk, -1))
        if pk == pool.pk:
            if not rows.update(version=F("version") + 1, updated_at=now):
                raise _Outdated
        # Weaker than a lock of the whole row: what refers to a pool is written meanwhile.
        elif rows.select_for_update(no_key=True).values_list("pk", flat=True).first() is None:
            raise _Outdated
