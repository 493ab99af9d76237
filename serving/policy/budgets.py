"""Budgets: so many MU, or so much money, in a day or month of the calendar (UTC).

A budget is a bucket that does not drain. What holds of it at any time is what the books have of its period up to a
minute, and of each gateway: what it has ended since, by minute, and the estimates of what it still runs. All of these
are absolute, so they can be told again, and anybody who has lost them is told them anew. Once the books have a minute,
they alone count: what a lost gateway had under way ends in them as what it really used.
"""

from __future__ import annotations

import datetime
from typing import NamedTuple

MINUTE_S = 60


class Period(NamedTuple):
    """``name`` is its first day, as in ``20261126``; times in UNIX seconds."""

    name: str
    starts_at: float
    ends_at: float


def period_of(kind: str, at: float) -> Period:
    """The day or month (UTC) of a budget of ``kind`` that holds at ``at``."""
    day = datetime.datetime.fromtimestamp(at, datetime.UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    if kind.endswith("_per_month"):
        starts = day.replace(day=1)
        ends = (starts + datetime.timedelta(days=32)).replace(day=1)
    else:
        starts, ends = day, day + datetime.timedelta(days=1)
    return Period(f"{starts:%Y%m%d}", starts.timestamp(), ends.timestamp())


def day_ends_at(at: float) -> float:
    """The end of the UTC day: until then no budget's period ends."""
    return period_of("_per_day", at).ends_at


def minute_of(at: float) -> int:
    """The minute in which something ended, counted from 1970: that of its roll-up."""
    return int(at // MINUTE_S)


def fits(committed: float, amount: float, *, capacity: float) -> bool:
    """Whether ``amount`` may be taken on top of what is used, running and set aside. Nothing larger than the budget is,
    also where nothing was used yet.
    """
    return committed + amount <= capacity * (1 + 1e-9)
