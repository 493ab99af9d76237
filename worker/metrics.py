"""Reading an engine's Prometheus text: Penstock's names out, the engine's names in. Pure."""

from __future__ import annotations

import math
import re

from worker.runtimes.base import MetricTable

_INFO_LABEL = re.compile(r'(?P<name>\w+)="(?P<value>[^"]*)"')
_LARGEST = ("kv_usage", "process_start_seconds")
"""Of several series (one per engine core) the largest counts; every other metric is their sum."""


def read_metrics(text: str, table: MetricTable) -> dict[str, float]:
    """Return Penstock's metrics found in ``text``. Metrics the engine does not have are absent, not zero.

    Series of one name are summed over their labels (cores, finish reasons), except for ``_LARGEST``.
    """
    wanted = {engine_name for names in table.values() for engine_name in names}
    seen: dict[str, list[float]] = {}
    for line in text.split("\n"):
        if not line or line[0] == "#":
            continue
        name, rest = _split_name(line)
        if name in wanted:
            # After the labels come the value and, optionally, a timestamp.
            try:
                value = float(rest.split()[0])
            except (IndexError, ValueError):
                continue
            if math.isfinite(value):
                seen.setdefault(name, []).append(value)
    found = {}
    for ours, names in table.items():
        for name in names:
            if name in seen:
                found[ours] = max(seen[name]) if ours in _LARGEST else sum(seen[name])
                break
    return found


def read_info(text: str, metric: str) -> dict[str, str]:
    """Return the labels of an info metric, empty when it is absent."""
    for line in text.split("\n"):
        if line.startswith(metric + "{"):
            return {found["name"]: found["value"] for found in _INFO_LABEL.finditer(line)}
    return {}


def _split_name(line: str) -> tuple[str, str]:
    brace = line.find("{")
    if brace == -1:
        name, _, rest = line.partition(" ")
        return name, rest
    # Label values may contain anything but an unescaped quote; the last brace ends the labels.
    return line[:brace], line[line.rfind("}") + 1 :]
