"""Did we keep our word? One minute of a tenant's reservations of a pool, judged from the requests that ended in it.

*Entitled* is what was promised for the minute. Only requests that the gateway admitted **within** a reservation (class
``reserved``) count; what exceeded it was best effort, and nobody promised it anything. Of each such request:

- **throttled**: admitted within the reservation, and refused all the same, because no replica could take it in time;
- **unserved**: broken off or failed by the platform (engine error or loss, gateway loss, timeout);
- **slow**: served, but the time to the first token or the time per output token missed the pool's objective. A long
  prompt may take as long as three times its own prefill on an idle replica. An answer in one piece may take what both
  objectives allow together.

A request that the client left is judged by what it had got so far, and one that the engine refused as wrong is the
client's. A minute is in **breach** when the share of requests that were throttled or unserved, or the share of those
that were slow, exceeds what the pool tolerates (its SLO share). *Lent* is what was not used and best effort took.
"""

from __future__ import annotations

import datetime
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

MINUTE = datetime.timedelta(minutes=1)
PREFILL_FACTOR = 3.0
"""A prompt's time to first token may be this many times its prefill on an idle replica."""

_THROTTLED = frozenset({429, 503, 529})
_FAILED = frozenset({"engine_error", "engine_lost", "gateway_lost", "timeout"})


class Objectives(NamedTuple):
    """Of a pool: milliseconds to the first token, per output token, and the share of requests that may miss them."""

    ttft_ms: float
    tpot_ms: float
    tolerated_share: float


class Ended(NamedTuple):
    """A request of class ``reserved`` that ended in the minute. Times in ms from its admission; None: never came.

    ``asked_mu``: its estimate, ``mu``: what it was charged. ``prefill_ms``: its own prefill on an idle replica.
    """

    asked_mu: float
    mu: float
    outcome: str
    status: int
    is_stream: bool
    first_byte_ms: float | None
    duration_ms: float
    output_tokens: int
    prefill_ms: float = 0.0


class Promise(NamedTuple):
    """A reservation as the minute sees it: ``mu_per_min`` from ``starts_at`` until ``ends_at`` (None: no end)."""

    id: str
    mu_per_min: float
    starts_at: datetime.datetime
    ends_at: datetime.datetime | None


@dataclass(frozen=True, slots=True)
class Minute:
    """What a minute was for one reservation. MU of the pool, requests as counts; ``reason`` says why it is a breach.

    Where a tenant has several reservations of the pool, what it used is theirs by their shares of what was promised;
    the requests are the same for all.
    """

    reservation: str
    entitled_mu: float
    used_mu: float
    lent_mu: float
    throttled_mu: float
    slow_mu: float
    unserved_mu: float
    requests: int
    throttled: int
    slow: int
    unserved: int
    is_breach: bool
    reason: str


def entitled(promise: Promise, minute: datetime.datetime) -> float:
    """MU promised for the minute that begins then: of a part of it, where the reservation begins or ends within."""
    begins = max(minute, promise.starts_at)
    ends = min(minute + MINUTE, promise.ends_at or minute + MINUTE)
    return promise.mu_per_min * max(0.0, (ends - begins) / MINUTE)


def judge(request: Ended, objectives: Objectives) -> str:
    """``throttled``, ``unserved``, ``slow``, ``fine``, or ``client`` for what the platform does not answer for."""
    if request.outcome == "refused":
        return "throttled" if request.status in _THROTTLED else "client"
    if request.outcome in _FAILED:
        return "unserved"
    allowed_ms = max(objectives.ttft_ms, PREFILL_FACTOR * request.prefill_ms)
    if not request.is_stream:
        total_ms = allowed_ms + objectives.tpot_ms * max(0, request.output_tokens - 1)
        # Who left before the answer came is judged by how long they had waited.
        return "slow" if request.duration_ms > total_ms else _unless_left(request)
    waited_ms = request.duration_ms if request.first_byte_ms is None else request.first_byte_ms
    if waited_ms > allowed_ms:
        return "slow"
    if request.first_byte_ms is None:
        return _unless_left(request)
    if request.output_tokens > 1:
        per_token_ms = (request.duration_ms - request.first_byte_ms) / (request.output_tokens - 1)
        return "slow" if per_token_ms > objectives.tpot_ms else "fine"
    return "fine"


def _unless_left(request: Ended) -> str:
    return "client" if request.outcome == "client_closed" else "fine"


def judge_minute(
    *,
    minute: datetime.datetime,
    promises: Sequence[Promise],
    requests: Iterable[Ended],
    objectives: Objectives,
    lent_mu: float = 0.0,
) -> list[Minute]:
    """One tenant's reservations of one pool in the minute that begins then, in the order of ``promises``.

    ``requests`` ended in it. ``lent_mu``: what others took of these reservations together (``lent``).
    """
    sums = {"throttled": [0.0, 0.0], "unserved": [0.0, 0.0], "slow": [0.0, 0.0], "fine": [0.0, 0.0]}
    used: list[float] = []
    for request in requests:
        used.append(request.mu)
        if (verdict := judge(request, objectives)) != "client":
            sums[verdict][0] += 1
            sums[verdict][1] += request.mu if verdict == "slow" else request.asked_mu
    count = int(sum(number for number, _ in sums.values()))
    throttled, unserved, slow = (int(sums[name][0]) for name in ("throttled", "unserved", "slow"))
    reasons = _reasons(count, throttled, unserved, slow, objectives)
    rights = [entitled(promise, minute) for promise in promises]
    whole = math.fsum(rights)
    used_mu = math.fsum(used)
    found = []
    for promise, right in zip(promises, rights, strict=True):
        share = right / whole if whole else 0.0
        found.append(
            Minute(
                reservation=promise.id,
                entitled_mu=right,
                used_mu=used_mu * share,
                lent_mu=lent_mu * share,
                throttled_mu=sums["throttled"][1] * share,
                slow_mu=sums["slow"][1] * share,
                unserved_mu=sums["unserved"][1] * share,
                requests=count,
                throttled=throttled,
                slow=slow,
                unserved=unserved,
                is_breach=bool(reasons) and right > 0.0,
                reason="; ".join(reasons) if right > 0.0 else "",
            )
        )
    return found


def _reasons(count: int, throttled: int, unserved: int, slow: int, objectives: Objectives) -> list[str]:
    if not count:
        return []
    found = []
    tolerated = objectives.tolerated_share
    if throttled + unserved > tolerated * count:
        parts = [f"{number} {word}" for number, word in ((throttled, "throttled"), (unserved, "unserved")) if number]
        found.append(f"{' and '.join(parts)} of {count} requests")
    if slow > tolerated * count:
        found.append(
            f"{slow} of {count} requests slower than {objectives.ttft_ms:g} ms to the first token or "
            f"{objectives.tpot_ms:g} ms per token"
        )
    return [f"{text} (tolerated: {tolerated:.3g})" for text in found]


def lent(unused: Sequence[float], best_effort_mu: float) -> list[float]:
    """How much of each tenant's ``unused`` MU best effort has taken of a pool in a minute, by their shares of it."""
    free = math.fsum(unused)
    if free <= 0.0:
        return [0.0] * len(unused)
    taken = min(free, max(0.0, best_effort_mu))
    return [taken * one / free for one in unused]


DEFAULT_CREDITS: tuple[tuple[float, float], ...] = ((0.999, 0.0), (0.99, 0.1), (0.95, 0.25), (0.0, 1.0))
"""Pairs (attainment from, share of the month's price that is credited): the first that is reached counts."""


def attainment(*, minutes: int, breaches: int) -> float:
    """Share of a reservation's minutes in which the promise was kept; 1 where it had none. 0..1."""
    return 1.0 if minutes <= 0 else 1.0 - breaches / minutes


def credit(attained: float, tiers: Sequence[tuple[float, float]] = DEFAULT_CREDITS) -> float:
    """Share of the month's price to give back, 0..1."""
    for reached, share in tiers:
        if attained >= reached:
            return share
    return 1.0
