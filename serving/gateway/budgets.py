"""What one gateway process keeps of one budget's period: told to the state absolutely, so it can be told again."""

from __future__ import annotations

import time
from typing import Any

from serving.gateway.limits import LEASED_SHARE, Limit
from serving.gateway.records import LimitRecord
from serving.policy import budgets

_AGAIN_S = 20.0
"""What has ended is told again until the books have it: their word comes with the answer."""
_KEPT_S = 86_400.0
"""The state keeps a period for so long after its end: requests of it may still run."""


class Budget(Limit):
    """``running``: estimates of requests under way, ``open`` of them. ``ended``: what others used, by minute, as far as
    the books did not have it when the state last answered; up to the minute ``until`` they have ``base``.
    """

    __slots__ = ("base", "ended", "open", "running", "until")

    def _begin(self, record: LimitRecord) -> None:
        super()._begin(record)
        self.running = 0.0
        self.open = 0
        self.ended: dict[int, float] = {}
        self.base, self.until = 0.0, 0

    @property
    def key(self) -> str:
        return f"penstock:budget:{self.record.id}"

    @property
    def is_holding(self) -> bool:
        # Once the period is over, nobody asks for what has ended in it.
        return bool(self.running or (self.ended and time.time() < self.record.ends_at))

    @property
    def own(self) -> float:
        """What this gateway's requests use and have used, that the books do not have."""
        return self.running + sum(self.ended.values())

    def note(self, amount: float) -> None:
        super().note(amount)
        self.open += 1
        self.running += amount

    def spend(self, estimated: float, actual: float, at: float) -> None:
        """A request has ended, at ``at`` in UNIX seconds. What ends in another period counts in that, by the books."""
        self.open = max(0, self.open - 1)
        # What rounding leaves of the last one is nothing that runs: it would be told for ever.
        self.running = max(0.0, self.running - estimated) if self.open else 0.0
        if actual > 0.0 and at < self.record.ends_at:
            minute = budgets.minute_of(at)
            self.ended[minute] = self.ended.get(minute, 0.0) + actual

    def is_due(self, now: float) -> bool:
        return self.is_holding and now - self.reported_at > _AGAIN_S

    def is_forgettable(self, now: float, after_s: float) -> bool:
        return not self.is_holding and super().is_forgettable(now, after_s)

    def report(self, is_asked: bool, gateways: int) -> list[Any]:
        self.reported_at = time.monotonic()
        self._is_under_way = True
        wanted = 0.0
        if is_asked or self.is_idle or self.taken == 0.0:
            self.lease = 0.0
        if not self.is_central(gateways) and self.taken > 0.0:
            wanted = min(max(2 * self.taken, 4 * self.typical), self.record.value * LEASED_SHARE / gateways)
            wanted = max(0.0, wanted - self.lease)
        self.taken = 0.0
        kept_ms = (self.record.ends_at - time.time() + _KEPT_S) * 1000
        minutes = [[minute, amount] for minute, amount in self.ended.items()]
        told = [self.running, self.lease, wanted, minutes, self.base, self.until, max(1000.0, kept_ms)]
        return ["b", self.record.value, *told]

    def booked(self, base: float, until: int) -> None:
        """The books have ``base`` of the period up to the minute ``until``."""
        self.base, self.until = base, until
        for minute in [minute for minute in self.ended if minute < until]:
            del self.ended[minute]
