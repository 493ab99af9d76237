"""How much of something comes a second, of late: exponential means over time, and over the time that counts."""

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


class Flow:
    """Amounts a second that leave a line while somebody waits in it, over about ``over_s`` seconds of such time.

    What a line takes while nobody waits says nothing of how fast it moves. Times are seconds of one clock, and never go
    back. After ``forgotten_s`` without anybody what was is forgotten.
    """

    __slots__ = ("_at", "_forgotten_s", "_is_waiting", "_over_s", "_time", "_work")

    def __init__(self, over_s: float, forgotten_s: float) -> None:
        self._over_s = over_s
        self._forgotten_s = forgotten_s
        self._is_waiting = False
        self._at = 0.0
        self._work = self._time = 0.0

    def note(self, is_waiting: bool, now: float) -> None:
        """Whether somebody waits from ``now`` on."""
        if is_waiting and not self._is_waiting and now - self._at > self._forgotten_s:
            self._work = self._time = 0.0
        self._advance(now)
        self._is_waiting = is_waiting

    def add(self, amount: float, now: float) -> None:
        """Something has left the line."""
        self._advance(now)
        self._work += amount

    def now(self, now: float, *, presumed: float, for_s: float = 1.0) -> float:
        """Amounts a second; the first ``for_s`` seconds are taken to have brought ``presumed``."""
        self._advance(now)
        return (self._work + presumed * for_s) / (self._time + for_s)

    def _advance(self, now: float) -> None:
        if self._is_waiting:
            passed = max(0.0, now - self._at)
            kept = math.exp(-passed / self._over_s)
            self._work *= kept
            self._time = self._time * kept + self._over_s * (1.0 - kept)
        self._at = now
