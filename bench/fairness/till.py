"""Reservations over several gateways without a server: the product's decision before buckets of its arithmetic."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from capacity.policy.cost import CostProfile
from serving.gateway.demands import Demand, Granted, Refused
from serving.gateway.errors import ApiError
from serving.gateway.records import LimitRecord, ProfileRecord, ReservationRecord
from serving.gateway.standing import Asked, Desk, Share, charge
from serving.policy import allowance, bucket, classes
from serving.policy.allowance import Unsettled
from serving.policy.bucket import Bucket

T = TypeVar("T")


def share_of(name: str, mu_per_min: float, profile: CostProfile, *, slot_mu: float, largest_mu: float = 0.0) -> Share:
    """A reservation that holds 10 s of its rate, or ``largest_mu``."""
    record = ReservationRecord(
        id=name,
        tenant=name,
        pool="p",
        mu_per_min=mu_per_min,
        burst_mu=mu_per_min / 6,
        starts_at=0.0,
        profile=ProfileRecord(version=1, base=0, alpha=0, beta=0, gamma=0, epsilon=0, cached_factor=0),
    )
    own = classes.bucket_of(record, largest_mu=largest_mu)
    return Share(record, own, allowance.allowance_mu(mu_per_min, own.value), profile, slot_mu)


class Till:
    """Buckets of limits, exact over ``gateways``; ``clock`` gives milliseconds."""

    def __init__(self, clock: Callable[[], float], gateways: int = 1) -> None:
        self._clock = clock
        self._buckets: dict[str, Bucket] = {}
        self.desks = [Desk(self._take, self._acquire, _refuse, Unsettled()) for _ in range(gateways)]
        self._told: list[dict[str, float]] = [{} for _ in self.desks]
        self.beat()

    def beat(self) -> None:
        """Gateways hear what the others held a beat ago."""
        told, self._told = self._told, [desk.unsettled.tell() for desk in self.desks]
        for number, desk in enumerate(self.desks):
            held: dict[str, float] = {}
            for one in told[:number] + told[number + 1 :]:
                for name, mu in one.items():
                    held[name] = held.get(name, 0.0) + mu
            desk.unsettled.hear(held, len(self.desks))

    def level(self, limit: LimitRecord) -> float:
        now_ms = self._clock()
        rate = bucket.rate_per_ms(limit.value, limit.window_ms)
        found = self._buckets[limit.id] = bucket.drained(
            self._buckets.get(limit.id, Bucket()), rate=rate, now_ms=now_ms
        )
        return found.level

    def charge(self, share: Share, mu: float, most_mu: float, *, at: int = 0) -> Asked:
        """As the gateway ``at`` decides it."""
        return _now(charge(share, (), mu, most_mu, "key", "", desk=self.desks[at]))

    def overrun(self, granted: Granted, limit: LimitRecord, used: float) -> None:
        """As ``Grants.overrun``."""
        made = []
        for demand in granted.demands:
            is_beyond = demand.limit is limit and used > demand.amount
            if is_beyond:
                self._add(limit, used - demand.amount)
            made.append(Demand(limit, used) if is_beyond else demand)
        granted.demands = tuple(made)

    def settle(self, granted: Granted, mu: float) -> None:
        """As ``Grants.settle``."""
        if granted.hold is not None:
            granted.hold.release()
        for demand in granted.demands:
            difference = mu - demand.amount
            self.level(demand.limit)
            if difference > 0.0:
                self._add(demand.limit, difference)
            else:
                self._buckets[demand.limit.id] = bucket.refunded(
                    self._buckets[demand.limit.id], -difference, charged_at_ms=granted.charged_at_ms
                )

    def _take(self, demands: tuple[Demand, ...]) -> Granted | None:
        if self._obstacle(demands) is not None:
            return None
        for demand in demands:
            self._add(demand.limit, demand.amount)
        return Granted(demands, charged_at_ms=self._clock())

    async def _acquire(self, demands: tuple[Demand, ...], who: str) -> Granted | Refused:
        found = self._obstacle(demands)
        assert found is not None, "what fits is taken at once"
        limit, amount = found
        level = self.level(limit)
        wait_ms = max(0.0, level + amount - limit.value) / bucket.rate_per_ms(limit.value, limit.window_ms)
        return Refused(limit, wait_ms / 1000, limit.value - level)

    def _obstacle(self, demands: tuple[Demand, ...]) -> tuple[LimitRecord, float] | None:
        for demand in demands:
            if not bucket.fits(self.level(demand.limit), demand.amount, capacity=demand.limit.value):
                return demand.limit, demand.amount
        return None

    def _add(self, limit: LimitRecord, amount: float) -> None:
        self.level(limit)
        self._buckets[limit.id] = bucket.charged(self._buckets[limit.id], amount)


def _refuse(refused: Refused, demands: tuple[Demand, ...]) -> ApiError:
    raise AssertionError("there are no plain limits here")


def _now(work: Coroutine[Any, Any, T]) -> T:
    """The result of what never waits."""
    try:
        work.send(None)
    except StopIteration as done:
        found: T = done.value
        return found
    raise AssertionError("nothing here waits")
