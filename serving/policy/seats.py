"""The line for the seats of a concurrency limit: who was refused is told when its turn is, and then goes first.

Nobody knows when a request will end. But what the last ones took tells how often a seat comes free, so a refused
request is told when as many will have as were promised before it, and its own. Seats are not kept empty for that:
others take what is free and nobody waits for. Whoever comes when it was told, or later, and finds none, waits **in
line** for the next (at most ``LINE_S``), and meanwhile nobody passes it that was not told an earlier time. A place to
which nobody comes is forgotten ``promises.HOLD_MS`` after it was due. Places are a key's: of two of its clients either
may take one.

``lua/grants.lua`` does the same in the shared state; a property test keeps the two alike. Times are milliseconds of one
clock. ``free`` are seats that nobody has, also no gateway's lease.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from typing import NamedTuple

from serving.policy.promises import HOLD_MS

LINE_S = 30.0
"""How long a request may wait in line: less than proxies wait for an answer."""
ALIVE_MS = 1000.0
"""Whoever waits in line says so again and again: who has not for so long is gone."""
MOST = 200
"""Places at once, of those who are due first. Others are told a time that counts these, and have none."""
KEPT = 64.0
"""Ends that the pace remembers, about."""
MARGIN = 1.1
"""Turns are a little further apart than seats come free: else the line would grow whenever chance is against it."""
SOONEST_MS = 150.0
"""What gateways take to tell of an end."""


class Turn(NamedTuple):
    """A place of ``who`` (a key) from ``due_ms`` on, kept until ``until_ms``. ``ask``: which request has come for it;
    empty: none yet. ``waits``: it waits for a seat of this limit, and not for something else alone."""

    due_ms: float
    until_ms: float
    who: str
    ask: str = ""
    waits: bool = False


class Pace(NamedTuple):
    """``work``: milliseconds × requests that ran, of about the last ``ends``. ``running`` since ``at_ms``."""

    at_ms: float = 0.0
    running: int = 0
    work: float = 0.0
    ends: float = 0.0


Book = list[Turn]


def paced(pace: Pace, now_ms: float, *, ended: int) -> Pace:
    """The pace at ``now_ms``, by when ``ended`` more have ended."""
    work = pace.work + pace.running * max(0.0, now_ms - pace.at_ms)
    ends = pace.ends + ended
    if ends > KEPT:
        work, ends = work * KEPT / ends, KEPT
    return Pace(now_ms, pace.running, work, ends)


def standing(book: Sequence[Turn], now_ms: float) -> Book:
    """The places that are still kept."""
    return [turn for turn in book if turn.until_ms > now_ms]


def place_of(book: Sequence[Turn], who: str, ask: str, now_ms: float) -> int:
    """Where the request ``ask`` of ``who`` stands in ``book``: in line, or the first place of its key whose turn has
    come and for which no other request waits; -1: nowhere. A request that comes before uses up no place: it may be
    another one of the same key."""
    if not who:
        return -1
    free = -1
    for place, turn in enumerate(book):
        if turn.who == who:
            if turn.ask == ask:
                return place
            if free < 0 and not turn.ask and turn.due_ms <= now_ms:
                free = place
    return free


def admits(free: int, book: Sequence[Turn], place: int, *, now_ms: float) -> bool:
    """Whether a seat is free for the request at ``place``: beside those before it who wait for one."""
    before = book if place < 0 else book[:place]
    return free >= 1 + sum(turn.waits and turn.due_ms <= now_ms for turn in before)


def wait_ms(free: int, book: Sequence[Turn], pace: Pace, *, capacity: float, now_ms: float) -> float | None:
    """Milliseconds until a seat is expected for one more; None while nothing has ended yet.

    It comes behind all who have a place but such as are due so late that one more before them changes nothing: whom
    another limit lets come again only in an hour.
    """
    if pace.ends < 1.0 or capacity < 1.0:
        return None
    step = MARGIN * pace.work / pace.ends / capacity

    def comes(place: int) -> float:
        return step * max(1, place + 1 - max(0, free)) + SOONEST_MS

    place = len(book)
    while place and book[place - 1].due_ms - now_ms >= comes(place):
        place -= 1
    return max(comes(place), book[place - 1].due_ms - now_ms) if place else comes(place)


def promise(book: Book, who: str, due_ms: float) -> None:
    """A place for ``who`` at ``due_ms``; in a full book the last makes way for it, if that is due later and nobody has
    come for it."""
    if len(book) >= MOST:
        if book[-1].due_ms <= due_ms or book[-1].ask:
            return
        del book[-1]
    place = bisect_right(book, due_ms, key=lambda turn: turn.due_ms)
    book.insert(place, Turn(due_ms, due_ms + HOLD_MS, who))
