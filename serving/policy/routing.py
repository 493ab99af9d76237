"""Which replica takes a request: filter, score, pick.

A policy is any function of the type ``RoutingPolicy``; the gateway knows only that type. ``least_mu`` is the first.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Literal, NamedTuple, Protocol


class ReplicaLoad(Protocol):
    """What a replica is doing now, own requests and the other gateways' beats together.

    ``n`` requests in flight, ``w`` pending prefill and ``d`` decode in flight, both in MU; ``lent_w`` and
    ``lent_d`` are the best-effort parts of them.
    """

    @property
    def n(self) -> int: ...

    @property
    def w(self) -> float: ...

    @property
    def d(self) -> float: ...

    @property
    def lent_w(self) -> float: ...

    @property
    def lent_d(self) -> float: ...


class Candidate:
    """A replica that may take a request. It lives on between decisions, and so does its ``load``: nothing is copied
    per request. ``is_suspect``: it has just failed a request here, so it is taken only when nothing else can.
    ``ms_per_mu``: engine milliseconds that an MU takes of it."""

    __slots__ = ("id", "is_ready", "is_suspect", "load", "ms_per_mu", "target_concurrency")

    def __init__(
        self,
        id: str,
        is_ready: bool,
        target_concurrency: int,
        load: ReplicaLoad,
        is_suspect: bool = False,
        ms_per_mu: float = 0.0,
    ) -> None:
        self.id = id
        self.is_ready = is_ready
        self.target_concurrency = target_concurrency
        self.load = load
        self.is_suspect = is_suspect
        self.ms_per_mu = ms_per_mu


class Load(NamedTuple):
    """What the request would add, in MU. ``workload`` groups requests that are likely to share prefixes.

    ``is_stream``: its first token will be seen; of others only the end is.
    """

    workload: str
    prefill_mu: float
    decode_mu: float
    is_stream: bool = True


class Decision(NamedTuple):
    """``dispatch`` to ``replica``, ``wait`` for a slot, or ``none``: no replica can serve this at all.

    Of ``candidates`` replicas ``able`` were ready and not tried before, and ``free`` of those below their target
    concurrency; the chosen one had ``mu`` in flight.
    """

    verdict: Literal["dispatch", "wait", "none"]
    replica: str
    candidates: int
    able: int
    free: int
    mu: float = 0.0

    @property
    def reason(self) -> str:
        if self.verdict == "dispatch":
            return f"fewest MU in flight: {self.mu:.3f} of {self.free} free"
        if self.verdict == "wait":
            return f"all {self.able} ready replicas are at their target concurrency"
        return f"no replica is ready, or all that are were tried, of {self.candidates}"


RoutingPolicy = Callable[[Sequence[Candidate], Load, Collection[str]], Decision]
"""(candidates, load, ids already tried) → decision."""


def least_mu(candidates: Sequence[Candidate], load: Load, tried: Collection[str] = ()) -> Decision:
    """Fewest MU in flight among ready replicas below their target concurrency; ties by fewest requests, then by id.

    MU are compared in millionths: sums of many floats must not decide between idle replicas.
    """
    able = free = 0
    best: Candidate | None = None
    least: tuple[bool, int, int, str] | None = None
    for candidate in candidates:
        if not candidate.is_ready or candidate.id in tried:
            continue
        able += 1
        seen = candidate.load
        requests = seen.n
        if requests >= candidate.target_concurrency:
            continue
        free += 1
        score = (candidate.is_suspect, round((seen.w + seen.d) * 1e6), requests, candidate.id)
        if least is None or score < least:
            best, least = candidate, score
    if best is None:
        return Decision("wait" if able else "none", "", len(candidates), able, free)
    return Decision("dispatch", best.id, len(candidates), able, free, best.load.w + best.load.d)
