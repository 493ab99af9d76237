"""One clock for what is to begin when a request has run for a moment: most are over before."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from typing import Protocol

AFTER_S = 0.02
"""A request that is over before needs no abort watcher; a client that has left meanwhile is seen then."""


class Watched(Protocol):
    is_over: bool

    def watch(self) -> None: ...


class Watches:
    """Calls ``watch`` of each that was added and is not over ``AFTER_S`` to twice as long after."""

    def __init__(self) -> None:
        self._waiting: deque[tuple[float, Watched]] = deque()
        self._timer: asyncio.TimerHandle | None = None

    def add(self, watched: Watched) -> None:
        self._waiting.append((time.monotonic() + AFTER_S, watched))
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(AFTER_S, self._look)

    def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._waiting.clear()

    def _look(self) -> None:
        now = time.monotonic()
        waiting = self._waiting
        # Set before anything is called: whatever one of them raises, the others are looked at.
        self._timer = asyncio.get_running_loop().call_later(AFTER_S, self._look) if waiting else None
        while waiting and waiting[0][0] <= now:
            watched = waiting.popleft()[1]
            if not watched.is_over:
                watched.watch()
