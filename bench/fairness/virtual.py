"""An event loop whose clock jumps from timer to timer: minutes of waiting take no time, and repeat exactly.

And what the shared state does with beats, without a server.
"""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Coroutine, Sequence
from typing import Any, TypeVar

from serving.gateway.state import LIFETIME_MS, Argument, Script, StateUnavailable

T = TypeVar("T")


class _Selector(selectors.DefaultSelector):  # type: ignore[misc,valid-type]
    """Whoever waits for time gets it at once."""

    loop: VirtualLoop

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is None:
            raise RuntimeError("everybody waits, and for nothing that time would bring")
        self.loop.clock_s += timeout
        return super().select(0)  # type: ignore[no-any-return]


class VirtualLoop(asyncio.SelectorEventLoop):
    """``clock_s`` is its time: seconds since it was made."""

    def __init__(self) -> None:
        self.clock_s = 0.0
        selector = _Selector()
        selector.loop = self
        super().__init__(selector)

    def time(self) -> float:
        return self.clock_s


def run(work: Coroutine[Any, Any, T]) -> T:
    """Run ``work`` to its end on a clock of its own."""
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(work)


class Board:
    """What gateways tell each other, as ``beat.lua`` keeps it: what is not renewed in time vanishes."""

    def __init__(self) -> None:
        self._is_away = False
        self._beats: dict[str, tuple[bytes, float]] = {}

    def leave(self) -> None:
        """Answer nobody from now on."""
        self._is_away = True

    def begin_anew(self) -> None:
        """Answer again, and know nothing."""
        self._is_away = False
        self._beats.clear()

    async def run(self, lua: Script, keys: Sequence[str], args: Sequence[Argument]) -> Any:
        """A gateway's beat, and everybody else's. Raises StateUnavailable."""
        if self._is_away:
            raise StateUnavailable("the board is away")
        now = asyncio.get_running_loop().time()
        name, beat = args[:2]
        self._beats[str(name)] = (bytes(beat), now)  # type: ignore[arg-type]
        oldest = now - LIFETIME_MS / 1000
        return b"board.1", [kept for other, (kept, at) in self._beats.items() if other != name and at >= oldest]

    async def call(self, *command: Argument) -> Any:
        """Nothing else is asked of it."""

    def note_epoch(self, epoch: bytes | str) -> None:
        """It has one."""
