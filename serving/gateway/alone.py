"""What one gateway allows while no state answers: its share of every limit (``docs/protocols.md``, *Grants*)."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from serving.gateway.budgets import Budget
from serving.gateway.limits import FRESH_MS, Limit
from serving.policy import bucket, budgets, promises
from serving.policy.bucket import Bucket
from serving.policy.promises import Promise


class Place(NamedTuple):
    """This gateway among ``gateways`` (0: nobody knows how many, so it has no share), and its ``rank`` in an order that
    all of them know. Without one the rank is ``gateways``: no part of a remainder.
    """

    gateways: int
    rank: int

    @property
    def is_known(self) -> bool:
        return self.gateways > 0

    def part(self, value: int) -> int:
        """Its part of ``value`` seats: parts add up to it exactly, the first in order get the remainder."""
        share, remainder = divmod(value, self.gateways)
        return share + (1 if self.rank < remainder else 0)


class Alone:
    """One time without the state, since ``since`` (monotonic seconds). ``limits``: those that may be known of."""

    def __init__(self, place: Place, since: float, limits: Iterable[Limit] = ()) -> None:
        self.since = since
        self.closes_at = float("inf")
        """From then on the state is asked: what is admitted here later could not be told before others are granted."""
        self.place = place
        self._shares: dict[Limit, Share] = {}
        self._budgets: dict[Limit, float] = {}
        # Now, not when they are first asked for: what the state says in a grace does not have the others' seats yet.
        self._seats = {
            limit: seats(int(limit.record.value), place, own=limit.known_own, committed=limit.known_level)
            for limit in limits
            if limit.is_concurrency and limit.known_at_ms and since * 1000 - limit.known_at_ms < FRESH_MS
        }

    def decide(
        self, wanted: Sequence[tuple[Limit, float]], now_ms: float, who: str = ""
    ) -> tuple[Limit, float, float] | None:
        """Admit all of it (None) or nothing: the limit in the way, milliseconds to wait, and what remains.

        ``who`` is promised the time that it is told, unless empty. ``place`` must be known.
        """
        shares = []
        for limit, amount in wanted:
            if limit.is_concurrency:
                room = self._seats_of(limit) - limit.held
                if amount > room:
                    return limit, 1000.0, max(0.0, room)
            elif isinstance(limit, Budget):
                left = self._budget_of(limit) - limit.own
                if not budgets.fits(0.0, amount, capacity=left):
                    return limit, (limit.record.ends_at - time.time()) * 1000, max(0.0, left)
            else:
                shares.append((self._share_of(limit, now_ms), amount))
        in_the_way = [share for share, amount in shares if not share.admits(amount, who, now_ms)]
        if in_the_way:
            wait_ms = max(share.wait_ms(amount, who, now_ms) for share, amount in shares)
            if who:
                for share, amount in shares:
                    share.promise(Promise(now_ms + wait_ms, amount, who))
            return in_the_way[0].limit, max(1.0, wait_ms), in_the_way[0].remaining(now_ms)
        for limit, amount in wanted:
            if limit.is_concurrency:
                limit.held += int(amount)
            elif limit.is_budget:
                limit.note(amount)
        for share, amount in shares:
            share.admit(amount, who, now_ms)
        return None

    def left(self, limit: Limit, now_ms: float) -> float:
        """What is left of this gateway's part. ``place`` must be known."""
        if limit.is_concurrency:
            return max(0.0, self._seats_of(limit) - limit.held)
        if isinstance(limit, Budget):
            return max(0.0, self._budget_of(limit) - limit.own)
        return self._share_of(limit, now_ms).remaining(now_ms)

    def settle(self, limit: Limit, difference: float, charged_at_ms: float, now_ms: float) -> bool:
        """Settle a charge made alone; False when it was made in an earlier time alone, and the state knows of it."""
        share = self._shares.get(limit)
        if share is None or charged_at_ms < self.since * 1000:
            return False
        share.settle(difference, charged_at_ms, now_ms)
        return True

    def debts(self, now_ms: float) -> Iterator[tuple[Limit, float]]:
        """What the state is still to be told; it is not said again."""
        for limit, share in self._shares.items():
            debt = share.told(now_ms)
            if debt > 0.0:
                yield limit, debt

    def _share_of(self, limit: Limit, now_ms: float) -> Share:
        share = self._shares.get(limit)
        if share is None:
            share = self._shares[limit] = Share(limit, self.place.gateways, now_ms)
        return share

    def _seats_of(self, limit: Limit) -> int:
        allowed = self._seats.get(limit)
        if allowed is None:
            allowed = self._seats[limit] = self.place.part(int(limit.record.value))
        return allowed

    def _budget_of(self, limit: Budget) -> float:
        """What this gateway's requests may use and have used in all: of what was left as far as is known, its part, and
        what is set aside for it already."""
        allowed = self._budgets.get(limit)
        if allowed is None:
            left = limit.record.value - (limit.known_level if limit.known_at_ms else 0.0)
            allowed = self._budgets[limit] = limit.own + limit.lease + max(0.0, left) / self.place.gateways
            limit.lease = 0.0
        return allowed


def seats(capacity: int, place: Place, *, own: float, committed: float) -> int:
    """Seats of this gateway while alone, of which it had ``own`` and all together ``committed``.

    Those it had, and of the free ones its part, but up to an equal share of the limit only: others to whom the limit
    was not worth a word lately know nothing of it, and take an equal share. Of more than ``capacity`` (it was lowered)
    it keeps the same portion as everybody.
    """
    if committed > capacity:
        return int(own * capacity / committed)
    return max(int(own), min(int(own) + place.part(int(capacity - committed)), place.part(capacity)))


class Share:
    """A limit's bucket while no state answers: the gateway's part of the rate, starting from what is known.

    With one gateway the last known level is right. With several it is right only while fresh: older, the others may
    have used the rest, so the bucket starts full and only the share of the rate is given out.
    """

    def __init__(self, limit: Limit, gateways: int, now_ms: float) -> None:
        self.limit = limit
        value = limit.record.value
        self.capacity = value / gateways
        window_ms = limit.record.window_ms
        self._rate = bucket.rate_per_ms(self.capacity, window_ms)
        age_ms = now_ms - limit.known_at_ms
        known = max(0.0, limit.known_level - bucket.rate_per_ms(value, window_ms) * age_ms) / gateways
        is_known = limit.known_at_ms > 0.0 and (gateways == 1 or age_ms < FRESH_MS)
        self._initial = known if is_known else self.capacity
        self._from_ms = now_ms
        self._bucket = Bucket(level=self._initial, at_ms=now_ms)
        self._book: promises.Book = []

    def admits(self, amount: float, who: str, now_ms: float) -> bool:
        return self._admits(amount, who, now_ms)[0]

    def wait_ms(self, amount: float, who: str, now_ms: float) -> float:
        """0 when ``amount`` fits now, and into all that is promised."""
        self._drain(now_ms)
        return promises.wait_ms(
            self._bucket.level, amount, who, self._book, capacity=self.capacity, rate=self._rate, now_ms=now_ms
        )

    def promise(self, made: Promise) -> None:
        promises.promise(self._book, made)

    def admit(self, amount: float, who: str, now_ms: float) -> None:
        """Charge it, and keep the promise that it was made for."""
        _, own = self._admits(amount, who, now_ms)
        if own >= 0:
            del self._book[own]
        self._bucket = bucket.charged(self._bucket, amount)

    def _admits(self, amount: float, who: str, now_ms: float) -> tuple[bool, int]:
        self._drain(now_ms)
        self._book = promises.standing(self._book, now_ms)
        return promises.admits(
            self._bucket.level, amount, who, self._book, capacity=self.capacity, rate=self._rate, now_ms=now_ms
        )

    def remaining(self, now_ms: float) -> float:
        self._drain(now_ms)
        return max(0.0, self.capacity - self._bucket.level)

    def settle(self, difference: float, charged_at_ms: float, now_ms: float) -> None:
        self._drain(now_ms)
        if difference > 0.0:
            self._bucket = bucket.charged(self._bucket, difference)
        else:
            self._bucket = bucket.refunded(self._bucket, -difference, charged_at_ms=charged_at_ms)

    def told(self, now_ms: float) -> float:
        """What the state must be told: how much higher the level is than if nothing had been admitted since the last
        word of it.
        """
        self._drain(now_ms)
        idle = max(0.0, self._initial - self._rate * (now_ms - self._from_ms))
        self._initial, self._from_ms = self._bucket.level, now_ms
        return max(0.0, self._bucket.level - idle)

    def _drain(self, now_ms: float) -> None:
        self._bucket = bucket.drained(self._bucket, rate=self._rate, now_ms=now_ms)
