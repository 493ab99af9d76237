"""Budgets on chosen times: never more than there is, and exact in the end, whatever is lost on the way.

What is true is kept by the test itself: what every request really used, and what each that runs was estimated at.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import Any

import pytest

from serving.gateway.budgets import Budget
from serving.gateway.records import LimitRecord
from serving.gateway.state import script
from tests.gateway.state.test_grants_script import BEGIN_MS, Arbiter

KEY = "penstock:budget:l"
CAPACITY = 5_000.0
RECORD = LimitRecord(id="l", kind="mu_per_month", value=CAPACITY, ends_at=4e9)


@pytest.fixture(scope="module")
def arbiter(valkey_url: str) -> Any:
    made = Arbiter(valkey_url)
    yield made
    made.client.close()


@dataclass
class World:
    """Gateways with what they run, the arbiter, and the books, which come a minute and more behind."""

    arbiter: Arbiter
    rng: random.Random
    now: float = BEGIN_MS
    gateways: dict[str, Budget] = field(default_factory=dict)
    running: dict[str, list[float]] = field(default_factory=dict)
    ended: list[tuple[int, float]] = field(default_factory=list)
    """Minute and amount of all that has ended, as the books will have it."""
    by_lease: int = 0

    def add(self) -> str:
        name = f"g{self.rng.random()}"
        self.gateways[name], self.running[name] = Budget(RECORD), []
        return name

    @property
    def truth(self) -> float:
        return sum(amount for _, amount in self.ended) + sum(map(sum, self.running.values()))

    def exchange(self, name: str, amount: float | None = None) -> float:
        """Report, and ask for ``amount``; what the arbiter takes for committed."""
        limit = self.gateways[name]
        entry = limit.report(amount is not None, len(self.gateways))
        answer = self.arbiter.exchange(self.now, name, entry, [] if amount is None else [[[1, amount]]], key=KEY)
        level, _, given, own, base, until = answer[4][0]
        limit.reported(level, given, 0.0, own=own)
        limit.booked(base, until)
        if amount is not None and answer[5][0] == 0:
            limit.note(amount)
            self.running[name].append(amount)
        return float(level)

    def request(self, name: str, amount: float) -> None:
        limit = self.gateways[name]
        if limit.lease >= amount:
            limit.take(amount)
            self.running[name].append(amount)
            self.by_lease += 1
        else:
            self.exchange(name, amount)

    def end(self, name: str) -> None:
        if self.running[name]:
            estimate = self.running[name].pop(self.rng.randrange(len(self.running[name])))
            actual = estimate * self.rng.choice((0.0, 0.3, 1.0))
            self.gateways[name].spend(estimate, actual, self.now / 1000)
            self.ended.append((int(self.now // 60_000), actual))

    def kill(self, name: str) -> None:
        """What it ran ends in the books as what was seen of it, at the time of its death."""
        del self.gateways[name]
        lost = self.running.pop(name)
        self.ended += [(int(self.now // 60_000), estimate * self.rng.random()) for estimate in lost]

    def close_books(self, until: int | None = None) -> None:
        until = int(self.now // 60_000) - 1 if until is None else until
        base = sum(amount for minute, amount in self.ended if minute < until)
        close = self.arbiter.client.register_script(script("budgets").text)
        close(keys=[KEY], args=[repr(base), until, 10_000_000_000])

    def lose_state(self) -> None:
        """Begun anew and empty: in its grace all gateways that are left report, and the loops tell what the books have.

        What a lost gateway ran is in no book yet: the test closes that minute before anything is granted.
        """
        self.arbiter.clear()
        self.close_books()
        for name in self.gateways:
            self.exchange(name)


@pytest.mark.parametrize("seed", range(25))
def test_nothing_leaks_and_nothing_is_counted_twice(arbiter: Arbiter, seed: int) -> None:
    rng = random.Random(seed)
    print("seed", seed)
    arbiter.clear()
    world = World(arbiter, rng)
    for _ in range(3):
        world.add()
    killed_at, peak = -1.0, 0.0
    for step in range(1200):
        world.now += rng.expovariate(1 / 400)
        name = rng.choice(list(world.gateways))
        action = rng.random()
        if action < 0.55:
            world.request(name, float(rng.randrange(1, 60)))
        elif action < 0.75:
            world.exchange(name)
        elif action < 0.96:
            world.end(name)
        elif action < 0.975:
            world.close_books()
        elif action < 0.985:
            world.kill(name)
            killed_at = world.now
            world.add()
        elif action < 0.99 and world.now - killed_at > 180_000:
            world.lose_state()
        assert world.truth <= CAPACITY * (1 + 1e-6), f"step {step}: {world.truth}"
        peak = max(peak, world.truth)
    assert peak > 0.85 * CAPACITY, "the test must reach the end of the budget"
    assert world.by_lease > 50
    for name in world.gateways:
        while world.running[name]:
            world.end(name)
        world.exchange(name)
    world.now += 10_000
    world.close_books(int(world.now // 60_000) + 3)
    world.now += 240_000
    for name in world.gateways:
        level = world.exchange(name)
        world.gateways[name].taken = 0.0
    level = world.exchange(next(iter(world.gateways)))
    leases = sum(limit.lease for limit in world.gateways.values())
    assert level - leases == pytest.approx(world.truth, abs=1e-6)


def test_a_lost_gateways_requests_end_as_what_they_used(arbiter: Arbiter) -> None:
    arbiter.clear()
    world = World(arbiter, random.Random(1))
    first, second = world.add(), world.add()
    world.exchange(first, 5000.0)
    assert world.exchange(second) == 5000.0
    world.running[first].clear()
    del world.gateways[first]
    world.ended.append((int(world.now // 60_000), 300.0))
    world.now += 10_000
    assert world.exchange(second) == 5000.0, "until the books tell, all that it asked for counts"
    world.now += 180_000
    world.close_books()
    assert world.exchange(second) == 300.0


def test_each_period_begins_with_nothing(arbiter: Arbiter) -> None:
    november = RECORD.held_as(pool="p", now=1_795_000_000.0)
    december = RECORD.held_as(pool="p", now=1_795_000_000.0 + 30 * 86_400)
    assert (november.id, december.id) == ("l.p.20261101", "l.p.20261201")
    assert november.ends_at == 1_796_083_200.0
    budget = Budget(november)
    budget.note(10.0)
    budget.note(5.0)
    budget.spend(10.0, 7.0, november.ends_at - 1)
    budget.spend(5.0, 4.0, november.ends_at + 1)
    assert budget.own == 7.0, "what ends in the next period counts in that"


def test_nothing_runs_when_all_have_ended_whatever_their_sums_rounded_to() -> None:
    limit = Budget(RECORD)
    amounts = [0.1, 0.2, 0.3, 0.7]
    for amount in amounts:
        limit.note(amount)
    for amount in amounts:
        limit.spend(amount, 0.0, 1.0)
    assert (limit.running, limit.is_holding) == (0.0, False)
    assert limit.is_forgettable(1e9, 120.0)
