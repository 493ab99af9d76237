"""Who takes an answer's tokens from a simulated engine, and hears from the gateway that it must stop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from serving.gateway.dispatch import Claim, Lent
from serving.gateway.placement import OnWay
from serving.policy import gate
from worker.simulated.scheduler import Sequence as Answer

PROGRESS_S = 1.0


class Taker:
    """Who takes an answer's tokens. ``on_progress`` hears once a second how many there are."""

    def __init__(self, on_progress: Callable[[int], None]) -> None:
        loop = self._loop = asyncio.get_running_loop()
        self._on_progress = on_progress
        self._told_at = loop.time()
        self._tokens = 0
        self.first: asyncio.Future[None] = loop.create_future()
        self.last: asyncio.Future[None] = loop.create_future()
        self.is_cut = self.has_left = False
        self.home = ""
        self.ways = 0

    def cut(self) -> None:
        """An owner needs the place."""
        self.is_cut = True
        for awaited in (self.first, self.last):
            if not awaited.done():
                awaited.set_result(None)

    @property
    def on_way(self) -> OnWay | None:
        """What is called when it is to leave its replica; None when it has done that often enough."""
        return self.leave if self.ways < gate.WAYS else None

    def leave(self, replica: str, reason: str) -> None:
        """An owner is to be read first."""
        self.home, self.has_left = replica, True
        self.ways += 1
        if not self.first.done():
            self.first.set_result(None)

    def begin_anew(self, claim: Claim) -> Claim:
        """Ask for a place again; the claim with which."""
        self.has_left = False
        self.first, self.last = self._loop.create_future(), self._loop.create_future()
        return claim._replace(home=self.home) if isinstance(claim, Lent) else claim

    def emit(self, sequence: Answer, token: int, reason: str | None) -> None:
        self._tokens += 1
        if self._loop.time() - self._told_at >= PROGRESS_S:
            self._told_at = self._loop.time()
            self._on_progress(self._tokens)
        if not self.first.done():
            self.first.set_result(None)
        if reason and not self.last.done():
            self.last.set_result(None)

    def flush(self) -> None:
        """Nothing is kept back."""
