"""How long engines of this host needed to start, kept in ``learnt.json``: what a generous limit is differs by host."""

from __future__ import annotations

import contextlib
from pathlib import Path

import msgspec

from worker.files import write_atomic


class LearntStart:
    """``seconds``: the longest start, slowly forgotten, since the host may have been busy; 0 before the first."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / "learnt.json"
        try:
            self.seconds = float(msgspec.json.decode(self._path.read_bytes())["start_s"])
        except (OSError, KeyError, TypeError, ValueError):
            self.seconds = 0.0

    def learn(self, start_s: float) -> None:
        self.seconds = max(start_s, 0.8 * self.seconds + 0.2 * start_s)
        with contextlib.suppress(OSError):
            write_atomic(self._path, msgspec.json.encode({"start_s": self.seconds}))
