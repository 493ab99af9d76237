"""Which replica takes a request: filter, score, pick.

A policy is any function of the type ``RoutingPolicy``; the gateway knows only that type. ``least_wait`` is the first.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Sequence
from operator import itemgetter
from typing import Literal, NamedTuple, Protocol

from capacity.policy.claw_back import CHEAPEST_MS

LENT_MS = 80.0
LENT_SLOWS = 1.0
"""What an owner's short prompt waits for best effort at most, and by what part of its own reading it is slowed down:
the engine takes it first, and reads some of a long one in each step, beside it."""
DECODE_SHARE = 0.025
"""Part of the decode in flight by which a prompt is held up."""
EQUAL_MS = 10.0
EQUAL_REQUESTS = 1
"""Replicas whose waits differ by less, and their requests by no more, are equal."""


class ReplicaLoad(Protocol):
    """What a replica is doing now, own requests and the other gateways' beats together.

    ``n`` requests in flight, ``w`` pending prefill and ``d`` decode in flight, both in MU; ``lent_w`` and
    ``lent_d`` are the best-effort parts of them. ``owed``: the part of ``w`` that owners have sent through this
    gateway.
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

    @property
    def owed(self) -> float: ...


class Candidate:
    """A replica that may take a request. It lives on between decisions, and so does its ``load``: nothing is copied
    per request. ``is_suspect``: it has just failed a request here, so it is taken only when nothing else can.
    ``ms_per_mu``: engine milliseconds that an MU takes of it. ``turn``: see ``turns``."""

    __slots__ = ("id", "is_ready", "is_suspect", "load", "ms_per_mu", "target_concurrency", "turn")

    def __init__(
        self,
        id: str,
        is_ready: bool,
        target_concurrency: int,
        load: ReplicaLoad,
        is_suspect: bool = False,
        ms_per_mu: float = 0.0,
        turn: int = 0,
    ) -> None:
        self.id = id
        self.is_ready = is_ready
        self.target_concurrency = target_concurrency
        self.load = load
        self.is_suspect = is_suspect
        self.ms_per_mu = ms_per_mu
        self.turn = turn


class Load(NamedTuple):
    """What the request would add, in MU. ``workload`` groups requests that are likely to share prefixes.

    ``is_stream``: its first token will be seen; of others only the end is. ``is_lent``: it is best effort. ``home``:
    the replica that has read a part of the prompt, if one has.
    """

    workload: str
    prefill_mu: float
    decode_mu: float
    is_stream: bool = True
    is_lent: bool = False
    home: str = ""


class Decision(NamedTuple):
    """``dispatch`` to ``replica``, ``wait`` for a slot, or ``none``: no replica can serve this at all.

    Of ``candidates`` replicas ``able`` were ready and not tried before, and ``free`` of those below their target
    concurrency. At the chosen one the prompt waits for ``wait_ms``, as far as loads tell; ``clearest_ms`` is the
    pending prefill of the free replica that has the least.
    """

    verdict: Literal["dispatch", "wait", "none"]
    replica: str
    candidates: int
    able: int
    free: int
    wait_ms: float = 0.0
    clearest_ms: float = 0.0

    @property
    def reason(self) -> str:
        if self.verdict == "dispatch":
            return f"least to wait for: {self.wait_ms:.0f} ms, of {self.free} free"
        if self.verdict == "wait":
            return f"all {self.able} ready replicas are at their target concurrency"
        return f"no replica is ready, or all that are were tried, of {self.candidates}"


RoutingPolicy = Callable[[Sequence[Candidate], Load, Collection[str]], Decision]
"""(candidates, load, ids already tried) → decision."""


def turns(replicas: Iterable[str], *, gateway: int, gateways: int) -> dict[str, int]:
    """In which order the gateway (counted from 0) of so many takes replicas that are equal to it.

    Each begins at another one, as far apart as there are replicas for. What others have placed is seen up to 0.2 s
    late: in one order all of them would send what comes meanwhile to the same replica.
    """
    ids = sorted(replicas)
    first = gateway * len(ids) // gateways
    return {id: (place - first) % len(ids) for place, id in enumerate(ids)}


def least_wait(candidates: Sequence[Candidate], load: Load, tried: Collection[str] = ()) -> Decision:
    """Where the prompt is read soonest, among ready replicas below their target concurrency.

    It waits for what is to be read before it, and a little for answers in flight, in engine time. An owner's short one
    waits for best effort no longer than ``LENT_MS`` and a part of its own: beside a long prompt it is read sooner than
    behind several others. Of replicas that are equal (``EQUAL_MS``, ``EQUAL_REQUESTS``) the one that has read some of
    the prompt is taken (``Load.home``), else the gateway's own turn decides, then fewest requests, then the id: waits
    alone would send all short prompts to one replica, as long as each is read before the next comes.
    """
    able = free = 0
    clearest = math.inf
    sound: list[tuple[float, Candidate]] = []
    suspects: list[tuple[float, Candidate]] = []
    for candidate in candidates:
        if not candidate.is_ready or candidate.id in tried:
            continue
        able += 1
        seen = candidate.load
        if seen.n >= candidate.target_concurrency:
            continue
        free += 1
        ms = candidate.ms_per_mu
        all_ms = seen.w * ms
        if all_ms < clearest:
            clearest = all_ms
        waits = all_ms + DECODE_SHARE * ms * seen.d if load.is_lent else wait_ms(candidate, load.prefill_mu)
        (suspects if candidate.is_suspect else sound).append((waits, candidate))
    among = sound or suspects
    if not among:
        return Decision("wait" if able else "none", "", len(candidates), able, free)
    limit = min(among, key=_wait)[0] + EQUAL_MS
    equal = [one for one in among if one[0] <= limit]
    fewest = min(one[1].load.n for one in equal) + EQUAL_REQUESTS
    near = [one for one in equal if one[1].load.n <= fewest]
    waits, chosen = min(near, key=_order)
    if load.home and load.home != chosen.id:
        waits, chosen = next((one for one in near if one[1].id == load.home), (waits, chosen))
    return Decision("dispatch", chosen.id, len(candidates), able, free, waits, clearest)


def wait_ms(candidate: Candidate, prefill_mu: float) -> float:
    """Engine milliseconds that an owner's prompt of ``prefill_mu`` waits at a replica, besides its own reading."""
    seen, ms = candidate.load, candidate.ms_per_mu
    lent_ms, own_ms = seen.lent_w * ms, prefill_mu * ms
    waits = seen.w * ms + DECODE_SHARE * ms * seen.d
    if own_ms < CHEAPEST_MS and lent_ms > LENT_MS + LENT_SLOWS * own_ms:
        waits += LENT_MS + LENT_SLOWS * own_ms - lent_ms
    return waits


_wait = itemgetter(0)


def _order(one: tuple[float, Candidate]) -> tuple[int, int, str]:
    candidate = one[1]
    return candidate.turn, candidate.load.n, candidate.id
