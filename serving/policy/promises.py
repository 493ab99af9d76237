"""What refused clients were told: when to come again. What one was promised, no other gets.

A bucket's book holds its promises by the time they are due, each an amount set aside for whoever asked. A request that
nobody was promised is admitted iff it fits now and every promise still fits when it is due; else it is told the
earliest time at which that is so, and that becomes a promise. Whoever was promised is admitted when due, or earlier if
those before can spare it. A promise that is not claimed within ``HOLD_MS`` is forgotten.

A key may have many clients, and one client may ask many times without waiting: nobody can tell. So of each key a few
promises (``FIRM``) bind everybody. Those that it is given beyond that are **soft**: they bind the key alone. Its
clients are still told one time each, and others go before them. Whoever comes for a soft promise is admitted if all
that are firm still fit.

So with nothing but charges of what was estimated, a client that waits exactly as long as it was told is admitted,
whatever others ask meanwhile. What may break a promise is debt that settlements make, the loss of a gateway with its
lease, a limit that was lowered, somebody before it whose request comes again larger than it was promised, and somebody
late before it whose request is about as large as the limit: while the bucket is empty, nothing drains.

``lua/grants.lua`` does the same in the shared state; a property test keeps the two alike. Times are in milliseconds of
one clock, ``rate`` per millisecond, amounts in the limit's unit; ``level`` has leases in it.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Sequence
from typing import NamedTuple

from serving.policy import bucket

HOLD_MS = 3000.0
"""Clients come late: a whole second where they read no milliseconds, and what the network takes."""
MOST = 200
"""Promises per bucket. Beyond, clients are told a time that counts these, and nothing is set aside for them."""
FIRM = 20
"""Promises of a key that bind others: however often it asks without waiting, these wait for so many of its requests."""
LARGER = 1.25
"""A request that comes again may be estimated somewhat larger than before."""


class Promise(NamedTuple):
    """``amount`` for ``who`` (a key) at ``due_ms``; ``is_soft``: it binds nobody else."""

    due_ms: float
    amount: float
    who: str
    is_soft: bool = False

    def binds(self, who: str) -> bool:
        return not self.is_soft or self.who == who


Book = list[Promise]


def standing(book: Sequence[Promise], now_ms: float) -> Book:
    """The promises that still hold."""
    return [promise for promise in book if promise.due_ms + HOLD_MS > now_ms]


def admits(
    level: float, amount: float, who: str, book: Sequence[Promise], *, capacity: float, rate: float, now_ms: float
) -> tuple[bool, int]:
    """Whether ``amount`` may be admitted now, and the promise that it was made for: its place in ``book``, or -1."""
    if not bucket.fits(level, amount, capacity=capacity):
        return False, -1
    own = next((i for i, one in enumerate(book) if one.who == who and amount <= one.amount * LARGER), -1)
    ahead, at_ms = level + amount, now_ms
    for place, promise in enumerate(book):
        if place == own and not promise.is_soft:
            # Whoever takes what it was promised leaves those behind as they were.
            break
        if not promise.binds(who) or (promise.is_soft and place >= own >= 0):
            continue
        due_ms = max(now_ms, promise.due_ms)
        ahead = max(0.0, ahead - rate * (due_ms - at_ms))
        at_ms = due_ms
        if not bucket.fits(ahead, promise.amount, capacity=capacity):
            return False, -1
        ahead += promise.amount
    return True, own


def wait_ms(
    level: float, amount: float, who: str, book: Sequence[Promise], *, capacity: float, rate: float, now_ms: float
) -> float:
    """Milliseconds until ``amount`` fits, with all that binds ``who`` charged when it is due, and fits beside it."""
    if capacity <= 0.0 or rate <= 0.0:
        return bucket.WINDOW_MS
    book = [promise for promise in book if promise.binds(who)]
    # The level after each promise, with the time; and how much more could be in the bucket before it.
    after, spare = [(now_ms, level)], []
    for promise in book:
        at_ms, ahead = after[-1]
        due_ms = max(now_ms, promise.due_ms)
        ahead = max(0.0, ahead - rate * (due_ms - at_ms))
        spare.append(-ahead if promise.amount > capacity else capacity - ahead - promise.amount)
        after.append((due_ms, ahead + promise.amount))
    slack = capacity * 1e-9
    # From the last place forward, as long as all that come behind can spare it.
    found = len(book)
    while found > 0 and spare[found - 1] + slack >= amount:
        found -= 1
    for place in range(found, len(book) + 1):
        at_ms, ahead = after[place]
        excess = ahead if amount > capacity else ahead + amount - capacity
        free_ms = at_ms + max(0.0, excess) / rate
        if place == len(book) or free_ms <= after[place + 1][0]:
            return free_ms - now_ms
    raise AssertionError("behind the last promise there is always a place")


def promise(book: Book, made: Promise) -> None:
    """Set it aside, softly where its key has ``FIRM`` that are not; a full book drops its last soft one for one that is
    firm, and is left as it is where there is none."""
    if sum(one.who == made.who and not one.is_soft for one in book) >= FIRM:
        made = made._replace(is_soft=True)
    if len(book) >= MOST:
        last = next((place for place in reversed(range(len(book))) if book[place].is_soft), -1)
        if made.is_soft or last < 0:
            return
        del book[last]
    insort(book, made)
