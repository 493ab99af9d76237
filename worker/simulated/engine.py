"""The engine core in real time: it runs the scheduler's steps, hands out tokens, and breaks when told to."""

from __future__ import annotations

import asyncio
import os
import signal
from typing import Literal, Protocol

import msgspec

from worker.simulated.metrics import Metrics
from worker.simulated.profile import EngineProfile
from worker.simulated.scheduler import Output, Scheduler, Sequence

FaultMode = Literal["none", "hang", "slow", "error_done", "crash", "refuse"]

_MAX_LAG_S = 0.25
"""A core that was kept from running catches up with at most this much engine time."""
_BURST_S = 0.005
"""Steps shorter than the loop's own resolution run together for at most this long before others get a turn."""


class Fault(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What goes wrong, and when.

    ``hang``: the core stops, HTTP, ``/health`` and ``/metrics`` go on. ``slow``: steps take ``factor`` times as long.
    ``crash``: SIGKILL of the own process. These begin once the engine has made ``after_tokens`` more tokens.
    ``error_done``: each request fails at its own ``after_tokens``-th token, a stream with an error event and [DONE].
    ``refuse``: new requests get 503 as from a full queue.
    """

    mode: FaultMode = "none"
    after_tokens: int = 0
    factor: float = 10.0


class Owner(Protocol):
    """Who takes the tokens of a sequence: ``emit`` for each, then ``flush`` once per step."""

    def emit(self, sequence: Sequence, token: int, reason: str | None) -> None: ...

    def flush(self) -> None: ...


class Engine:
    """Runs steps while there is work. ``speed``: engine seconds per second of the wall clock."""

    def __init__(self, profile: EngineProfile, *, speed: float = 1.0, is_priority: bool = True) -> None:
        self.profile = profile
        self.speed = speed
        self.core = Scheduler(profile, is_priority=is_priority)
        self.metrics = Metrics()
        self.fault = Fault()
        self._fault_from = 0
        self._wake = asyncio.Event()

    def now(self) -> float:
        """Seconds of the event loop's clock."""
        return asyncio.get_running_loop().time()

    def submit(self, sequence: Sequence) -> None:
        self.core.add(sequence, self.now())
        self._wake.set()

    def end(self, sequence: Sequence, reason: str) -> None:
        """Take a sequence out at once: aborted, stopped by a stop string, or failed."""
        self.core.end(sequence, reason)
        if not self._is_frozen():
            self.metrics.observe_load(self.core)

    def break_by(self, fault: Fault) -> None:
        """Switch to ``fault``; its tokens are counted from now."""
        self.fault = fault
        self._fault_from = self.core.counters.generation_tokens
        self._wake.set()

    async def run(self) -> None:
        """Run steps for ever."""
        clock = burst_from = self.now()
        while True:
            self._crash_if_due()
            if self._is_frozen() or not self.core.has_work:
                self._wake.clear()
                await self._wake.wait()
                clock = burst_from = max(clock, self.now())
                continue
            step = self.core.begin(self.now())
            if step is None:
                raise RuntimeError("sequences wait, but no step can be planned")
            clock = max(clock, self.now() - _MAX_LAG_S) + step.duration_ms * self._slowness() / 1000 / self.speed
            if clock > self.now():
                await asyncio.sleep(clock - self.now())
                burst_from = self.now()
            elif self.now() - burst_from > _BURST_S:
                await asyncio.sleep(0)
                burst_from = self.now()
            while self._is_frozen():
                self._wake.clear()
                await self._wake.wait()
            now = self.now()
            self._hand_out(self.core.finish(step, now), now)
            self.metrics.observe_load(self.core)

    def _hand_out(self, outputs: list[Output], now: float) -> None:
        owners: dict[int, Owner] = {}
        for sequence, token, reason in outputs:
            self.metrics.observe_token(sequence, now, is_last=reason is not None)
            owner: Owner = sequence.owner
            owner.emit(sequence, token, reason)
            owners[id(owner)] = owner
        for owner in owners.values():
            owner.flush()

    def _is_due(self, mode: FaultMode) -> bool:
        made = self.core.counters.generation_tokens - self._fault_from
        return self.fault.mode == mode and made >= self.fault.after_tokens

    def _is_frozen(self) -> bool:
        return self._is_due("hang")

    def _slowness(self) -> float:
        return self.fault.factor if self._is_due("slow") else 1.0

    def _crash_if_due(self) -> None:
        if self._is_due("crash"):
            os.kill(os.getpid(), signal.SIGKILL)
