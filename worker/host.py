"""Facts of this host: usable cores and memory under a container's limits, load, processor."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec
import psutil

CGROUP = Path("/sys/fs/cgroup")


class HostState(msgspec.Struct, frozen=True, kw_only=True):
    """``cores`` may be fractional under a CPU quota; memory in bytes."""

    cores: float
    memory_bytes: int
    memory_available_bytes: int
    load_1m: float
    cpu_model: str


def cpu_quota(cgroup: Path, own: str) -> float | None:
    """Return the CPU quota in cores that holds for control group ``own`` (``/proc/self/cgroup`` text), or None.

    Version 2 (``cpu.max``) is checked from the own group up to the root, since any of them may limit; version 1 as
    mounted in containers (``cpu/cpu.cfs_quota_us``).
    """
    quotas = []
    for folder in _own_folders(cgroup, own):
        try:
            quota, period = (folder / "cpu.max").read_text().split()
            if quota != "max":
                quotas.append(int(quota) / int(period))
        except (OSError, ValueError):
            continue
    try:
        quota_us = int((cgroup / "cpu" / "cpu.cfs_quota_us").read_text())
        if quota_us > 0:
            quotas.append(quota_us / int((cgroup / "cpu" / "cpu.cfs_period_us").read_text()))
    except (OSError, ValueError):
        pass
    return min(quotas, default=None)


def memory_limit(cgroup: Path, own: str) -> int | None:
    """Return the memory limit in bytes that holds for control group ``own``, or None."""
    limits = []
    candidates = [folder / "memory.max" for folder in _own_folders(cgroup, own)]
    for path in [*candidates, cgroup / "memory" / "memory.limit_in_bytes"]:
        try:
            text = path.read_text().strip()
            # Version 1 writes "no limit" as a number near 2**63.
            if text != "max" and int(text) < 1 << 60:
                limits.append(int(text))
        except (OSError, ValueError):
            continue
    return min(limits, default=None)


def _own_folders(cgroup: Path, own: str) -> list[Path]:
    path = next((line.split("::", 1)[1] for line in own.splitlines() if line.startswith("0::")), "/")
    folder = cgroup / path.strip("/")
    inside = [folder, *folder.parents]
    return [each for each in inside if each == cgroup or cgroup in each.parents]


def usable_cores(*, affinity: int, quota: float | None) -> float:
    """Cores a process may keep busy: its affinity, capped by the quota."""
    return float(affinity) if quota is None else max(0.1, min(float(affinity), quota))


def read_host(cgroup: Path = CGROUP) -> HostState:
    """Return the facts of this host now."""
    try:
        own = Path("/proc/self/cgroup").read_text()
    except OSError:
        own = ""
    memory = psutil.virtual_memory()
    limit = memory_limit(cgroup, own)
    total = min(memory.total, limit) if limit else memory.total
    return HostState(
        cores=usable_cores(affinity=len(os.sched_getaffinity(0)), quota=cpu_quota(cgroup, own)),
        memory_bytes=total,
        memory_available_bytes=min(memory.available, total),
        load_1m=os.getloadavg()[0],
        cpu_model=cpu_model(),
    )


def cpu_model(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """Return the processor's name, or an empty string where the kernel does not tell."""
    try:
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return ""
