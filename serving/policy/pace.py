"""How much of something comes a second, of late: an exponential mean over time."""

from __future__ import annotations

import math


class Pace:
    """Amounts a second over about ``over_s`` seconds. Times are seconds of one clock, and never go back."""

    __slots__ = ("_at", "_over_s", "_rate")

    def __init__(self, over_s: float) -> None:
        self._over_s = over_s
        self._rate = 0.0
        self._at = 0.0

    def add(self, amount: float, now: float) -> None:
        self._rate = self.now(now) + amount / self._over_s
        self._at = now

    def now(self, now: float) -> float:
        """Zero once what came is so long ago that it says nothing: six times ``over_s`` for a steady pace."""
        passed = max(0.0, now - self._at) / self._over_s
        return self._rate * math.exp(-passed) if passed < 6.0 else 0.0
