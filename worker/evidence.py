"""What is kept of an engine before it is killed: its last words, its last metrics, what its processes were doing."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import psutil

from worker.files import read_tail
from worker.watch import EngineView

CPU_SAMPLE_S = 0.3


def process_states(pids: Iterable[int], *, sample_s: float = CPU_SAMPLE_S) -> list[dict[str, Any]]:
    """Return state, CPU share (1.0 = one core), threads and memory of each process. Blocks for ``sample_s``.

    A frozen engine core shows as ``stopped`` or ``disk-sleep``, a spinning one by its CPU share.
    """
    processes = []
    for pid in pids:
        with contextlib.suppress(psutil.Error):
            process = psutil.Process(pid)
            process.cpu_percent()
            processes.append(process)
    time.sleep(sample_s if processes else 0)
    states = []
    for process in processes:
        with contextlib.suppress(psutil.Error):
            states.append(
                {
                    "pid": process.pid,
                    # A name may be any bytes; a report is UTF-8, and one it cannot hold would keep all reports back.
                    "name": process.name().encode("utf-8", "replace").decode(),
                    "status": process.status(),
                    "cpu": round(process.cpu_percent() / 100, 3),
                    "threads": process.num_threads(),
                    "rss_bytes": process.memory_info().rss,
                    "started": process.create_time(),
                }
            )
    return states


def gather(*, pids: Iterable[int], log: Path, view: EngineView | None, now: float) -> dict[str, Any]:
    """Return the evidence of one engine, ready for JSON. Blocks shortly; call it beside the event loop."""
    found: dict[str, Any] = {"at": now, "log_tail": read_tail(log), "processes": process_states(pids)}
    if view is not None:
        found["metrics"] = dict(view.metrics)
        found["metrics_at"] = view.metrics_at
        found["health"] = {"status": view.health_status, "ms": view.health_ms, "error": view.health_error}
    return found
