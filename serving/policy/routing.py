"""Which replica takes a request: filter, score, pick.

A policy is any function of the type ``RoutingPolicy``; the gateway knows only that type. ``least_mu`` is the first.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Literal, NamedTuple


class Candidate(NamedTuple):
    """A replica as the gateway sees it now, own requests and the other gateways' beats together.

    ``requests`` in flight, ``pending_prefill_mu`` (W) and ``decode_mu`` (D) in MU; ``is_suspect``: it has just failed
    a request here, so it is taken only when nothing else can.
    """

    id: str
    is_ready: bool
    target_concurrency: int
    requests: int
    pending_prefill_mu: float
    decode_mu: float
    is_suspect: bool = False


class Load(NamedTuple):
    """What the request would add, in MU. ``workload`` groups requests that are likely to share prefixes."""

    workload: str
    prefill_mu: float
    decode_mu: float


class Decision(NamedTuple):
    """``dispatch`` to ``replica``, ``wait`` for a slot, or ``none``: no replica can serve this at all."""

    verdict: Literal["dispatch", "wait", "none"]
    replica: str
    reason: str


RoutingPolicy = Callable[[Sequence[Candidate], Load, Collection[str]], Decision]
"""(candidates, load, ids already tried) → decision."""


def least_mu(candidates: Sequence[Candidate], load: Load, tried: Collection[str] = ()) -> Decision:
    """Fewest MU in flight among ready replicas below their target concurrency; ties by fewest requests, then by id.

    MU are compared in millionths: sums of many floats must not decide between idle replicas.
    """
    able = [c for c in candidates if c.is_ready and c.id not in tried]
    if not able:
        what = "every ready replica was tried" if tried else "no ready replica"
        return Decision("none", "", f"{what} of {len(candidates)}")
    free = [c for c in able if c.requests < c.target_concurrency]
    if not free:
        return Decision("wait", "", f"all {len(able)} ready replicas are at their target concurrency")
    best = min(free, key=_score)
    return Decision(
        "dispatch", best.id, f"fewest MU in flight: {best.pending_prefill_mu + best.decode_mu:.3f} of {len(free)} free"
    )


def _score(c: Candidate) -> tuple[bool, int, int, str]:
    return c.is_suspect, round((c.pending_prefill_mu + c.decode_mu) * 1e6), c.requests, c.id
