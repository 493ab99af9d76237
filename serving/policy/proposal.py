"""What a new deployment runs on, proposed from the model's size and from what the hosts have; with the reason."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

_GIB = 1 << 30


@dataclass(frozen=True, slots=True)
class HardwareView:
    """A kind of hardware and what there is of it. ``memory_bytes`` of one accelerator, 0 where unknown.

    ``hosts`` counts those that take replicas; ``accelerators`` their healthy ones, ``free`` those that nobody holds.
    """

    slug: str
    name: str
    is_cpu: bool
    memory_bytes: int
    hosts: int
    accelerators: int = 0
    free: int = 0


@dataclass(frozen=True, slots=True)
class Proposal:
    """``slug`` of the hardware (None: there is none that takes replicas) and accelerators of one replica (0: CPU)."""

    slug: str | None
    accelerators: int
    reason: str


def propose_hardware(kinds: Iterable[HardwareView], *, weights_bytes: float, needs_accelerator: bool) -> Proposal:
    """Choose a kind of hardware. ``weights_bytes`` with the room beside the weights; 0: their size is not known.

    What needs no accelerator goes on a CPU where there is one. The rest goes on the freest of the accelerators of which
    the fewest are enough, and on a CPU only where nothing else is. Deterministic: equal ones by slug.
    """
    there = sorted((kind for kind in kinds if kind.hosts), key=lambda kind: kind.slug)
    if not there:
        return Proposal(None, 0, "no host takes replicas yet")
    cpus = [kind for kind in there if kind.is_cpu]
    cards = [kind for kind in there if not kind.is_cpu and kind.accelerators]
    if not needs_accelerator and (cpus or not cards):
        best = max(cpus or there, key=lambda kind: kind.hosts)
        return Proposal(best.slug, 0, f"it needs no accelerator; {_hosts(best)}")
    if not cards:
        best = max(there, key=lambda kind: kind.hosts)
        return Proposal(best.slug, 0, f"no host has an accelerator, so its engine runs on the CPU; {_hosts(best)}")
    if not needs_accelerator:
        best = max(cards, key=lambda kind: kind.free)
        return Proposal(best.slug, 0, f"it needs no accelerator; {_hosts(best)}")
    # max() keeps the first of equals, so the order of slugs holds.
    best = max(cards, key=lambda kind: (-_needed(kind, weights_bytes), kind.free, kind.accelerators))
    count = _needed(best, weights_bytes)
    have = f"{best.free} of {best.accelerators} accelerators of {_hosts(best)} are free"
    if best.free < count:
        have += ", so the first replica waits for room"
    if not weights_bytes:
        return Proposal(best.slug, 1, f"the model's size is not known, so one accelerator is assumed; {have}")
    size = f"weights with room beside them take {_gib(weights_bytes)}"
    if not best.memory_bytes:
        return Proposal(
            best.slug, count, f"{size}; how much an accelerator holds is not known, so one is assumed; {have}"
        )
    return Proposal(best.slug, count, f"{size}, and one holds {_gib(best.memory_bytes)}; {have}")


def _gib(count: float) -> str:
    size = count / _GIB
    return f"{size:.0f} GiB" if size >= 10 else f"{size:.1f} GiB"


def accelerators_needed(kind: HardwareView, *, weights_bytes: float, needs_accelerator: bool) -> int:
    """Accelerators of this kind that one replica takes, whether or not any host has them; 0: the CPU."""
    if kind.is_cpu or not needs_accelerator:
        return 0
    return _needed(kind, weights_bytes)


def _needed(kind: HardwareView, weights_bytes: float) -> int:
    """Accelerators that hold the weights: a power of two, as tensor parallelism wants it."""
    if not weights_bytes or not kind.memory_bytes:
        return 1
    return 1 << math.ceil(math.log2(max(1.0, weights_bytes / kind.memory_bytes)))


def _hosts(kind: HardwareView) -> str:
    return f"{kind.hosts} host{'s' if kind.hosts != 1 else ''} with {kind.name}"
