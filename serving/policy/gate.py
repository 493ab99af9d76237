"""When best-effort work may go to the replicas, and when the owner of a reservation takes back what was lent.

What makes others wait is prefill that was admitted and is not done: an engine finishes it whatever comes after, so
fairness is won before. The gate is open while some replica with a free slot has less than ``CHEAPEST_MS`` of it, and
all best-effort prefill together stays below ``BACKLOG_MS`` a replica. While owners of reservations send, as many
replicas stay clear of long prompts as their own need; while they do not, everything is lent. Times are milliseconds of
engine time.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

from capacity.policy.claw_back import BACKLOG_MS, CHEAPEST_MS, EXCHANGE_S, engine_ms
from serving.policy.routing import DECODE_SHARE, Candidate, wait_ms

KEPT_SLOTS = 8
"""Where something is reserved, one slot in so many is never lent: its owner finds room at once."""
CLEAR_LOAD = 0.2
"""Prefill of owners that a clear replica is to read, in seconds a second: seldom does one wait for another."""
REST_LOAD = 0.01
"""Prefill of owners, in seconds a second, below which they are taken for silent."""
USED_MS = 40.0
"""Prefill of owners that waits at a replica from which on it counts as used by them."""
WAY_MS = 180.0
"""An owner's first token that is expected later than this is worth that a long prompt makes way."""
WAY_PART = 0.8
"""If it comes in this part of the time then."""
WAYS = 3
"""How often a request makes way at most: an engine that keeps no prefixes reads it from the beginning each time."""
HOLD_S = 1.0
"""Nothing is lent for so long after an owner has found no room."""
_DUST_MU = 1e-6
"""Sums of floats drift by less."""

Obstacle = Literal["", "no_replica", "slots", "prefill", "turn", "owners", "backlog"]
"""What keeps the gate closed; empty: nothing."""

_WORDS: dict[Obstacle, str] = {
    "no_replica": "no replica is ready",
    "slots": "every replica has as many requests as it takes",
    "prefill": "every replica has prompts to read first",
    "turn": "gateways place long prompts one after the other",
    "owners": "the replicas that are free of long prompts are needed by what is reserved",
    "backlog": "best-effort prompts of this model already wait at the replicas",
}


class Look(NamedTuple):
    """``cheapest_ms``: pending prefill of the least busy replica that has a free slot, infinite without one;
    ``backlog_ms``: pending best-effort prefill of all."""

    obstacle: Obstacle
    cheapest_ms: float
    backlog_ms: float
    replicas: int

    @property
    def is_open(self) -> bool:
        return not self.obstacle

    @property
    def reason(self) -> str:
        return _WORDS.get(self.obstacle, "")


def look(
    candidates: Sequence[Candidate],
    *,
    prefill_mu: float,
    largest_prefill_mu: float = 0.0,
    is_reserved: bool = False,
    owned_mu_per_s: float = 0.0,
    ahead: Sequence[float] | None = (),
) -> Look:
    """Whether a best-effort request with ``prefill_mu`` may go to one of ``candidates`` now.

    ``largest_prefill_mu``: of the largest request that the deployment takes; the cap on the backlog is never below it.
    ``is_reserved``: whether somebody has a reservation of the pool, for whom slots are kept. ``owned_mu_per_s``: what
    prefill inside reservations came of late, for which replicas are kept clear. ``ahead`` are the prompts (MU) that go
    first at other gateways: a long one counts them as placed, since none sees at once what others do. None: that is not
    known yet; then it must wait where it could be too much.
    """
    cheapest, backlog, longest, replicas, clear, used, owned = math.inf, 0.0, 0.0, 0, 0, 0, 0.0
    for candidate in candidates:
        if not candidate.is_ready:
            continue
        replicas += 1
        load, ms = candidate.load, candidate.ms_per_mu
        backlog += load.lent_w * ms
        owned += load.w + load.d - load.lent_w - load.lent_d
        used += load.owed * ms >= USED_MS
        longest += ms
        kept = candidate.target_concurrency // KEPT_SLOTS if is_reserved else 0
        if load.n < candidate.target_concurrency - kept:
            pending = load.w * ms
            if pending < CHEAPEST_MS:
                clear += 1
            if pending < cheapest:
                cheapest = pending
    if not replicas:
        return Look("no_replica", cheapest, backlog, 0)
    if cheapest == math.inf:
        return Look("slots", cheapest, backlog, replicas)
    if cheapest >= CHEAPEST_MS:
        return Look("prefill", cheapest, backlog, replicas)
    mean_ms = longest / replicas
    own_ms = prefill_mu * mean_ms
    if own_ms >= CHEAPEST_MS:
        if ahead is None and (owned_mu_per_s > 0.0 or backlog > 0.0):
            return Look("turn", cheapest, backlog, replicas)
        before = [mu * mean_ms for mu in ahead or () if mu * mean_ms >= CHEAPEST_MS]
        clear -= len(before)
        backlog += sum(before)
    if owned_mu_per_s > 0.0 and cheapest + own_ms >= CHEAPEST_MS:
        owners_load = owned_mu_per_s * mean_ms / 1000
        is_at_rest = owned <= _DUST_MU and owners_load < REST_LOAD
        # Of a single replica nothing can be kept clear: there it waits until owners have been silent for a while.
        # Where more owners wait than on average, a long prompt would be in their way from the first moment. What other
        # gateways have sent is mostly read when it is heard of.
        if (
            used > owners_load
            or clear <= min(math.ceil(owners_load / CLEAR_LOAD), replicas - 1)
            or (replicas == 1 and not is_at_rest)
        ):
            return Look("owners", cheapest, backlog, replicas)
    cap = max(BACKLOG_MS * replicas, largest_prefill_mu * mean_ms)
    if backlog > 0.0 and backlog + own_ms > cap:
        return Look("backlog", cheapest, backlog, replicas)
    return Look("", cheapest, backlog, replicas)


def slack_mu(candidates: Sequence[Candidate]) -> float:
    """MU that the ready replicas can serve until gateways have heard of each other, there and back.

    So far one may run ahead of another's tenants: with less, replicas would wait for the news.
    """
    return sum(2000.0 * EXCHANGE_S / one.ms_per_mu for one in candidates if one.is_ready)


class Way(NamedTuple):
    """Where long best-effort prompts make way for an owner; ``replica`` is empty where they need not.

    Its first token is expected after ``now_ms``, or ``then_ms`` if they do.
    """

    replica: str
    now_ms: float
    then_ms: float

    @property
    def reason(self) -> str:
        if self.replica:
            return (
                f"a first token in {self.then_ms:.0f} ms, not {self.now_ms:.0f}, "
                "where long best-effort prompts make way"
            )
        return f"a first token in {self.now_ms:.0f} ms" if self.now_ms < math.inf else "no replica has room"


def way(candidates: Sequence[Candidate], prefill_mu: float) -> Way:
    """Where long best-effort prompts that are being read are put back for an owner's prompt of ``prefill_mu``.

    That is where its first token would otherwise come after more than ``WAY_MS``, and comes in ``WAY_PART`` of the time
    without them.
    """
    now, then, replica = math.inf, math.inf, ""
    for candidate in candidates:
        load, ms = candidate.load, candidate.ms_per_mu
        if not candidate.is_ready or load.n >= candidate.target_concurrency:
            continue
        own_ms = prefill_mu * ms
        now = min(now, own_ms + wait_ms(candidate, prefill_mu))
        if load.lent_w * ms >= CHEAPEST_MS:
            alone = own_ms + (load.w - load.lent_w + DECODE_SHARE * load.d) * ms
            if alone < then:
                then, replica = alone, candidate.id
    return Way(replica, now, then) if now > WAY_MS and then <= WAY_PART * now else Way("", now, now)


def supply_mu_per_s(candidates: Sequence[Candidate]) -> float:
    """MU/s that the ready replicas can serve."""
    return sum(1000.0 / one.ms_per_mu for one in candidates if one.is_ready)


def must_claw_back(pending_ms: float, *, ttft_objective_ms: float) -> bool:
    """Whether an owner who has found so much pending prefill at the replica it goes to is at risk of a late answer."""
    return pending_ms > max(CHEAPEST_MS, ttft_objective_ms / 2)


def is_long(prefill_mu: float, supply_mu_per_min: float) -> bool:
    """Whether so much prefill holds others up at a replica."""
    return engine_ms(prefill_mu, supply_mu_per_min) >= CHEAPEST_MS


def presumed_prefill_s(pending_ms: float) -> float:
    """Seconds after which a prompt with ``pending_ms`` to read, its own included, must have been read.

    Of an answer that comes in one piece nobody sees the first token. Decoding beside it takes its time, too: twice.
    """
    return 0.05 + 2.0 * pending_ms / 1000
