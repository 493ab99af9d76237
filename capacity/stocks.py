"""Who knows what there is to sell of a pool: hosts and prices are known here, what serves it only in a higher app."""

from __future__ import annotations

import datetime
from typing import Protocol

from capacity.models import Pool
from capacity.policy.stock import Stock


class Source(Protocol):
    def __call__(self, pool: Pool, *, now: datetime.datetime) -> Stock: ...


sources: list[Source] = []
"""A higher app puts its own here when it starts; the last one is asked."""


def stock_of(pool: Pool, *, now: datetime.datetime) -> Stock:
    """What there is to sell of ``pool`` at ``now``. Raises LookupError where no app has said how to find out."""
    if not sources:
        raise LookupError("no app says what serves a pool: penstock does, in its AppConfig")
    return sources[-1](pool, now=now)
