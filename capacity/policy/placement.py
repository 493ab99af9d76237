"""On which host a replica goes: filter, score, pick. Every host that was passed over says why."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

FRESH_REPORT_S = 10.0
"""A host whose agent has been silent for longer gets nothing new: ten reports were missed."""

_GIB = 1 << 30


@dataclass(frozen=True, slots=True)
class AcceleratorView:
    """One accelerator: ``taken`` when a replica holds it. Sizes in bytes."""

    index: int
    memory_bytes: int
    is_healthy: bool = True
    taken: bool = False


@dataclass(frozen=True, slots=True)
class HostView:
    """What is known of a host.

    ``report_age_s`` None: its agent has never reported. ``memory_available_bytes`` as reported;
    ``memory_committed_bytes`` is promised to replicas placed there that have not loaded yet, so that two placements in
    one tick do not share the same gigabytes. ``replicas`` counts all that occupy it, ``peers`` those of the same
    deployment, ``starting`` those on their way up.
    """

    id: str
    name: str
    state: str
    report_age_s: float | None
    cores: float
    memory_available_bytes: int
    memory_committed_bytes: int = 0
    accelerators: tuple[AcceleratorView, ...] = ()
    replicas: int = 0
    peers: int = 0
    starting: int = 0
    labels: Mapping[str, str] = field(default_factory=dict, hash=False)


@dataclass(frozen=True, slots=True)
class Need:
    """What a replica needs: ``accelerators`` 0 means the CPU. Bytes of host and of each accelerator's memory."""

    accelerators: int = 0
    memory_bytes: int = 0
    accelerator_memory_bytes: int = 0
    labels: Mapping[str, str] = field(default_factory=dict, hash=False)


@dataclass(frozen=True, slots=True)
class Placement:
    """The host chosen (None: none fits), its accelerators, the reason, and why each other host was not taken."""

    host_id: str | None
    accelerators: tuple[int, ...]
    reason: str
    rejected: Mapping[str, str]


def place(need: Need, hosts: Iterable[HostView]) -> Placement:
    """Choose a host. Deterministic: equal hosts are taken by name.

    Filter: active, fresh report, labels, free memory, enough free healthy accelerators. Score, in this order: fewest
    peers (a lost host takes as little of a deployment as possible), fewest engines starting (starts are CPU-bound and
    slow each other down), fewest accelerators left over (large gaps stay whole), fewest replicas per core, most memory.
    """
    rejected: dict[str, str] = {}
    fitting: list[HostView] = []
    for host in hosts:
        why_not = _misfit(need, host)
        if why_not:
            rejected[host.name] = why_not
        else:
            fitting.append(host)
    if not fitting:
        whole = "; ".join(f"{name}: {why}" for name, why in sorted(rejected.items())) or "no host has joined"
        return Placement(None, (), f"no host fits ({whole})", rejected)
    best, *others = sorted(fitting, key=lambda host: _score(need, host))
    for host in others:
        rejected[host.name] = _compared(host, best)
    accelerators = tuple(a.index for a in _free(need, best)[: need.accelerators])
    device = f"accelerators {', '.join(map(str, accelerators))}" if accelerators else "CPU"
    reason = f"{best.name}: {device}, {best.peers} of the same deployment there, {best.starting} starting"
    return Placement(best.id, accelerators, reason, rejected)


def _free(need: Need, host: HostView) -> list[AcceleratorView]:
    """Usable accelerators, smallest sufficient memory first, then by index: neighbours are often better connected."""
    usable = [
        a for a in host.accelerators if a.is_healthy and not a.taken and a.memory_bytes >= need.accelerator_memory_bytes
    ]
    return sorted(usable, key=lambda a: (a.memory_bytes, a.index))


def _misfit(need: Need, host: HostView) -> str:
    if host.state != "active":
        return f"it is {host.state}"
    if host.report_age_s is None:
        return "its agent has never reported"
    if host.report_age_s > FRESH_REPORT_S:
        return f"its agent has been silent for {host.report_age_s:.0f} s"
    for label, value in need.labels.items():
        if host.labels.get(label) != value:
            return f"label {label} is not {value}"
    free_bytes = host.memory_available_bytes - host.memory_committed_bytes
    if free_bytes < need.memory_bytes:
        return f"{max(0, free_bytes) / _GIB:.1f} GiB of memory free, {need.memory_bytes / _GIB:.1f} GiB needed"
    free = len(_free(need, host))
    if free < need.accelerators:
        return f"{free} suitable accelerators free, {need.accelerators} needed"
    return ""


def _score(need: Need, host: HostView) -> tuple[int, int, int, float, int, str]:
    left_over = len(_free(need, host)) - need.accelerators
    # An engine on the CPU would slow the feeding of accelerators: CPU replicas avoid hosts that have some free.
    gap = left_over if need.accelerators else len(host.accelerators)
    free_bytes = host.memory_available_bytes - host.memory_committed_bytes
    return (host.peers, host.starting, gap, host.replicas / max(host.cores, 1.0), -free_bytes, host.name)


def _compared(host: HostView, best: HostView) -> str:
    if host.peers > best.peers:
        return f"{host.peers} of the same deployment there already"
    if host.starting > best.starting:
        return f"{host.starting} engines are starting there"
    return f"it fits, {best.name} has more room"
