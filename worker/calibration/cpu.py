"""CPU time of an engine's processes."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable

import psutil

_SCHEDULER_CLOCK = 2


def cpu_seconds(pids: Iterable[int]) -> dict[int, float]:
    """Return the CPU seconds each living process has used, all its threads and those that have ended included.

    By the process's own CPU clock in nanoseconds where the kernel lends it; else as the process table tells it, in
    hundredths of a second.
    """
    found = {}
    for pid in pids:
        try:
            # What clock_getcpuclockid(3) makes of a process number.
            found[pid] = time.clock_gettime((~pid << 3) | _SCHEDULER_CLOCK)
        except OSError:
            with contextlib.suppress(psutil.Error):
                times = psutil.Process(pid).cpu_times()
                found[pid] = times.user + times.system
    return found


def spent_seconds(before: dict[int, float], after: dict[int, float]) -> float | None:
    """Return what the processes of ``before`` have used since, with those begun meanwhile; None when one has ended:
    what it used is lost."""
    if before.keys() - after.keys():
        return None
    return sum(used - before.get(pid, 0.0) for pid, used in after.items())
