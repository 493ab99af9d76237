"""The definition of the guarantee ledger, read by its letter over what clients have seen.

For every reservation and minute: *entitled* is what was promised; *used* what requests inside the reservation cost;
*lent* what of the rest best effort took; *throttled* requests inside it that were refused for want of room, *unserved*
such as failed or broke off, *slow* such as missed the time to the first token or per output token. A minute is in
breach when more than the tolerated share of its requests was throttled or unserved, or more than that was slow. A
request belongs to the minute in which it ended. One that was refused because the platform could not tell whether it was
inside (503, before it was estimated) counts as if it was, with no MU. Nothing here is the product's.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

MINUTE_S = 60


@dataclass(frozen=True)
class Seen:
    """One request as its client saw it, or a row of raw usage where that says more. UNIX seconds; None: never came."""

    tenant: str
    pool: str
    is_reserved: bool
    status: int
    is_whole: bool
    sent_at: float
    first_at: float | None
    ended_at: float
    output_tokens: int
    mu: float
    asked_mu: float

    @property
    def minute(self) -> int:
        return int(self.ended_at // MINUTE_S) * MINUTE_S

    @property
    def ttft_ms(self) -> float:
        return ((self.ended_at if self.first_at is None else self.first_at) - self.sent_at) * 1000

    @property
    def tpot_ms(self) -> float:
        if self.first_at is None or self.output_tokens < 2:
            return 0.0
        return (self.ended_at - self.first_at) * 1000 / (self.output_tokens - 1)

    def fate(self, ttft_ms: float, tpot_ms: float) -> str:
        if self.status in (429, 503):
            return "throttled"
        if self.status != 200 or not self.is_whole:
            return "unserved"
        return "slow" if self.ttft_ms > ttft_ms or self.tpot_ms > tpot_ms else "served"


@dataclass(frozen=True)
class Sold:
    """A reservation: UNIX seconds. ``gaps``: spans in which it was cancelled."""

    id: str
    tenant: str
    pool: str
    mu_per_min: float
    starts_at: float
    ends_at: float = float("inf")
    gaps: tuple[tuple[float, float], ...] = ()

    def entitled(self, minute: int) -> float:
        def inside(since: float, until: float) -> float:
            return max(0.0, min(until, minute + MINUTE_S) - max(since, minute))

        held = inside(self.starts_at, self.ends_at) - sum(inside(since, until) for since, until in self.gaps)
        return self.mu_per_min * held / MINUTE_S


@dataclass(frozen=True)
class Rule:
    """What a pool promises: milliseconds, and the share of requests that may miss it."""

    ttft_ms: float
    tpot_ms: float
    tolerated: float


@dataclass
class Judged:
    entitled_mu: float = 0.0
    used_mu: float = 0.0
    lent_mu: float = 0.0
    throttled_mu: float = 0.0
    slow_mu: float = 0.0
    unserved_mu: float = 0.0
    requests: int = 0
    throttled: int = 0
    slow: int = 0
    unserved: int = 0
    is_breach: bool = False


def ledger(
    seen: Sequence[Seen], sold: Iterable[Sold], rules: dict[str, Rule], minutes: Iterable[int]
) -> dict[tuple[str, int], Judged]:
    """What every minute (its first UNIX second) was for every reservation that promised something in it."""
    promises = list(sold)
    found: dict[tuple[str, int], Judged] = {}
    for minute in minutes:
        ended = [one for one in seen if one.minute == minute]
        rights = {one.id: one.entitled(minute) for one in promises}
        for pool in sorted({one.pool for one in promises}):
            here = [one for one in ended if one.pool == pool]
            borrowed = sum(one.mu for one in here if not one.is_reserved)
            of_pool = [one for one in promises if one.pool == pool and rights[one.id] > 0]
            owners = sorted({one.tenant for one in of_pool})
            own = {tenant: [one for one in here if one.is_reserved and one.tenant == tenant] for tenant in owners}
            right = {tenant: sum(rights[one.id] for one in of_pool if one.tenant == tenant) for tenant in owners}
            idle = {tenant: max(0.0, right[tenant] - sum(one.mu for one in own[tenant])) for tenant in owners}
            lent = min(borrowed, sum(idle.values()))
            for promise in of_pool:
                part = rights[promise.id] / right[promise.tenant]
                share = idle[promise.tenant] / sum(idle.values()) if lent else 0.0
                judged = _judged(own[promise.tenant], rules[pool], part)
                judged.entitled_mu, judged.lent_mu = rights[promise.id], lent * share * part
                found[(promise.id, minute)] = judged
    return found


def _judged(requests: Sequence[Seen], rule: Rule, part: float) -> Judged:
    by_fate: dict[str, list[Seen]] = {"throttled": [], "unserved": [], "slow": [], "served": []}
    for one in requests:
        by_fate[one.fate(rule.ttft_ms, rule.tpot_ms)].append(one)
    throttled, unserved, slow = (len(by_fate[name]) for name in ("throttled", "unserved", "slow"))
    missed = rule.tolerated * len(requests)
    return Judged(
        used_mu=part * sum(one.mu for one in requests),
        throttled_mu=part * sum(one.asked_mu for one in by_fate["throttled"]),
        unserved_mu=part * sum(one.asked_mu for one in by_fate["unserved"]),
        slow_mu=part * sum(one.mu for one in by_fate["slow"]),
        requests=len(requests),
        throttled=throttled,
        unserved=unserved,
        slow=slow,
        is_breach=throttled + unserved > missed or slow > missed,
    )


def credited(minutes: int, breaches: int, tiers: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """(attainment, share of the month's price given back): the lowest of ``tiers`` (below, share) that it missed."""
    attained = (minutes - breaches) / minutes if minutes else 1.0
    missed = [(below, share) for below, share in tiers if attained < below]
    return attained, min(missed)[1] if missed else 0.0
