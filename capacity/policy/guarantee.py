"""Did we keep our word? One minute of a tenant's reservations of a pool, judged from the requests that ended in it.

*Entitled* is what was promised for the minute. Only requests that the gateway admitted **within** a reservation (class
``reserved``) count; what exceeded it was best effort, and nobody promised it anything. Of each such request:

- **throttled**: admitted within the reservation, and refused all the same, because no replica could take it in time; or
  refused because nobody could tell whether it lay within the reservation (``UNTOLD``), which counts as if it did, with
  no MU: such a request is not estimated;
- **unserved**: broken off or failed by the platform (engine error or loss, gateway loss, timeout);
- **slow**: served, but the time to the first token or the time per output token missed the pool's objective. A long
  prompt may take as long as three times its own prefill on an idle replica. An answer in one piece may take what both
  objectives allow together.

A request that the client left is judged by what it had got so far, and so is one whose time ran out while the client
did not read; one that the engine refused as wrong is the client's. Time in which a client does not read what is there
for it counts against nobody. A minute is in **breach** when the share of requests that were throttled or unserved, or
the share of those that were slow, exceeds what the pool tolerates (its SLO share). *Lent* is what was not used and best
effort took.
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

HELD_MS = 1000.0
"""A client that did not read for so long may have let its own time run out."""

UNTOLD = ("limits_unavailable", "journal_unavailable")
"""Why the platform refuses a request that it could neither admit nor find beyond its reservation."""

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
    ``held_ms``: how long after its first byte the client did not read what was there for it.
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
    held_ms: float = 0.0


class Promise(NamedTuple):
    """A reservation as the minute sees it: ``mu_per_min`` from ``starts_at`` until ``ends_at`` (None: no end).

    ``gaps``: spans in which it was cancelled, one after the other. They promise nothing, although it was restored.
    """

    id: str
    mu_per_min: float
    starts_at: datetime.datetime
    ends_at: datetime.datetime | None
    gaps: tuple[tuple[datetime.datetime, datetime.datetime], ...] = ()


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
    held = max(0.0, (ends - begins) / MINUTE)
    for since, until in promise.gaps:
        held -= max(0.0, (min(ends, until) - max(begins, since)) / MINUTE)
    # What is left of many parts may be no more than what they were rounded by.
    return promise.mu_per_min * held if held > 1e-9 else 0.0


def judge(request: Ended, objectives: Objectives) -> str:
    """``throttled``, ``unserved``, ``slow``, ``fine``, or ``client`` for what the platform does not answer for."""
    if request.outcome == "refused":
        return "throttled" if request.status in _THROTTLED else "client"
    if request.outcome in _FAILED and not (request.outcome == "timeout" and request.held_ms >= HELD_MS):
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
        answer_ms = max(0.0, request.duration_ms - request.first_byte_ms - request.held_ms)
        per_token_ms = answer_ms / (request.output_tokens - 1)
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
    untold: int = 0,
) -> list[Minute]:
    """One tenant's reservations of one pool in the minute that begins then, in the order of ``promises``.

    ``requests`` ended in it. ``lent_mu``: what others took of these reservations together (``lent``). ``untold``: how
    many requests were refused for a reason of ``UNTOLD``.
    """
    sums = {"throttled": [float(untold), 0.0], "unserved": [0.0, 0.0], "slow": [0.0, 0.0], "fine": [0.0, 0.0]}
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


CreditTiers = Sequence[Sequence[float]]
"""Pairs (attainment below which it counts, share of the month's price that is credited), both 0..1, the mildest first.
None: nothing is ever credited."""
DEFAULT_CREDIT_TIERS: CreditTiers = ((0.999, 0.1), (0.99, 0.25), (0.95, 1.0))
MOST_TIERS = 10


def attainment(*, minutes: int, breaches: int) -> float:
    """Share of a reservation's minutes in which the promise was kept; 1 where it had none. 0..1."""
    return 1.0 if minutes <= 0 else 1.0 - breaches / minutes


def credit(attained: float, tiers: CreditTiers) -> float:
    """Share of the month's price to give back, 0..1: that of the last of ``tiers`` that ``attained`` lies below."""
    share = 0.0
    for below, credited in tiers:
        if attained < below:
            share = credited
    return share


def words_of_tiers(tiers: CreditTiers) -> str:
    """``tiers`` as people read them."""
    if not tiers:
        return "nothing is credited"
    (first, *others) = [(f"{100 * share:g} %", f"below {100 * below:g} %") for below, share in tiers]
    words = [f"{first[0]} of the month's price {first[1]} of minutes kept", *(" ".join(one) for one in others)]
    return ", ".join(words)


def fault_of_tiers(tiers: object) -> str:
    """Why ``tiers`` are no ``CreditTiers``, for people; empty where they are."""
    if not isinstance(tiers, list | tuple) or not all(isinstance(one, list | tuple) and len(one) == 2 for one in tiers):
        return "Give pairs [attainment below, share credited], e.g. [[0.999, 0.1], [0.99, 0.25]]; none: no credit."
    if len(tiers) > MOST_TIERS:
        return f"Give at most {MOST_TIERS} pairs."
    if not all(_is_share(number) for one in tiers for number in one):
        return "Attainments and shares lie above 0, and not above 1: 0.999 is 99.9 %."
    levels, shares = [one[0] for one in tiers], [one[1] for one in tiers]
    if levels != sorted(set(levels), reverse=True):
        return "Each attainment must lie below the one before: the mildest breach comes first."
    if shares != sorted(set(shares)):
        return "Each share must be more than the one before: a worse month gives back more."
    return ""


def _is_share(number: object) -> bool:
    return isinstance(number, int | float) and not isinstance(number, bool) and 0.0 < number <= 1.0
