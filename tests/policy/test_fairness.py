"""The order between tenants against its promises, with an oracle that keeps books of its own."""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.policy.fairness import FairQueue

TENANTS = ("a", "b", "c", "d")
COSTS = st.floats(min_value=0.01, max_value=50.0)
REQUESTS = st.lists(st.tuples(st.sampled_from(TENANTS), COSTS), min_size=1, max_size=80)


def jain(shares: list[float]) -> float:
    return sum(shares) ** 2 / (len(shares) * sum(share * share for share in shares))


def fits_all(_: object) -> bool:
    return True


@given(REQUESTS)
def test_everyone_is_served_once_and_a_tenants_requests_in_the_order_they_came(
    requests: list[tuple[str, float]],
) -> None:
    queue: FairQueue[int] = FairQueue()
    for number, (tenant, mu) in enumerate(requests):
        queue.join(tenant, number, mu)
    assert queue.size == len(requests)
    assert math.isclose(queue.mu, sum(mu for _, mu in requests))
    served: dict[str, list[int]] = defaultdict(list)
    while turn := queue.take(fits_all):
        served[turn.tenant].append(turn.item)
    assert sorted(n for numbers in served.values() for n in numbers) == list(range(len(requests)))
    assert all(numbers == sorted(numbers) for numbers in served.values())
    assert (queue.size, queue.mu) == (0, 0.0)


@given(st.dictionaries(st.sampled_from(TENANTS), COSTS, min_size=2), st.integers(20, 200))
def test_tenants_who_always_wait_differ_by_two_requests_at_most(costs: dict[str, float], rounds: int) -> None:
    queue: FairQueue[int] = FairQueue()
    for tenant, mu in costs.items():
        queue.join(tenant, 0, mu)
        queue.join(tenant, 1, mu)
    served = dict.fromkeys(costs, 0.0)
    for number in range(rounds):
        turn = queue.take(fits_all)
        assert turn is not None
        served[turn.tenant] += turn.mu
        queue.join(turn.tenant, number + 2, turn.mu)
        assert max(served.values()) - min(served.values()) <= 2 * max(costs.values()) + 1e-6


def test_prompts_that_differ_fifty_times_get_equal_mu() -> None:
    queue: FairQueue[None] = FairQueue()
    served = {"short": 0.0, "long": 0.0}
    for tenant, mu in (("short", 0.2), ("long", 10.0)):
        for _ in range(3):
            queue.join(tenant, None, mu)
    for _ in range(2_000):
        turn = queue.take(fits_all)
        assert turn is not None
        served[turn.tenant] += turn.mu
        queue.join(turn.tenant, None, turn.mu)
    assert jain(list(served.values())) > 0.99


def test_being_away_earns_no_credit() -> None:
    queue: FairQueue[str] = FairQueue()
    for _ in range(100):
        queue.serve("busy", 10.0)
    queue.join("busy", "old", 1.0)
    queue.join("new", "new", 1.0)
    assert queue.counter("new") == queue.counter("busy") == 1000.0
    order = []
    for _ in range(6):
        turn = queue.take(fits_all)
        assert turn is not None
        order.append(turn.tenant)
        queue.join(turn.tenant, "more", 1.0)
    assert sorted(order[:2]) == sorted(order[2:4]) == sorted(order[4:]) == ["busy", "new"]


def test_who_comes_when_nobody_waits_is_lifted_to_who_left_last() -> None:
    queue: FairQueue[str] = FairQueue()
    queue.serve("one", 5.0)
    queue.serve("two", 1.0)
    assert queue.counter("two") == 6.0
    queue.join("three", "x", 1.0)
    assert queue.counter("three") == 6.0
    queue.join("one", "y", 1.0)
    assert queue.counter("one") == 6.0, "to the smallest of those who wait"


def test_what_a_request_really_cost_counts() -> None:
    queue: FairQueue[str] = FairQueue()
    queue.serve("a", 5.0)
    queue.settle("a", -4.0)
    assert queue.counter("a") == 1.0
    queue.settle("a", -9.0)
    assert queue.counter("a") == 0.0
    queue.settle("unknown", 1.0)
    assert queue.counter("unknown") == 0.0


def test_one_that_does_not_fit_is_overtaken_by_no_more_than_it_costs() -> None:
    queue: FairQueue[str] = FairQueue()
    queue.join("large", "large", 10.0)
    for _ in range(30):
        queue.join("small", "small", 1.0)
    overtaken = 0
    while queue.take(lambda item: item != "large"):
        overtaken += 1
    assert overtaken == 10, "until the others have been served as much as it costs"
    turn = queue.take(fits_all)
    assert turn is not None
    assert turn.tenant == "large"
    assert queue.take(fits_all) is not None


def test_one_that_stands_aside_is_in_nobodys_way() -> None:
    queue: FairQueue[str] = FairQueue()
    queue.join("large", "large", 10.0)
    for _ in range(30):
        queue.join("small", "small", 1.0)
    passed = 0
    while queue.take(lambda item: None if item == "large" else True):
        passed += 1
    assert passed == 30
    turn = queue.take(fits_all)
    assert turn is not None
    assert turn.tenant == "large"


@given(REQUESTS, st.randoms(use_true_random=False), st.floats(0.0, 1.0))
@settings(max_examples=60)
def test_whoever_does_not_fit_is_never_starved(requests: list[tuple[str, float]], random: object, share: float) -> None:
    """Whatever fits when: nobody's counter runs away from one that waits by more than the two requests cost."""
    queue: FairQueue[int] = FairQueue()
    for number, (tenant, mu) in enumerate(requests):
        queue.join(tenant, number, mu)
    most = max(mu for _, mu in requests)
    while queue.size:
        blocked = {number for number in range(len(requests)) if random.random() < share}  # type: ignore[attr-defined]
        queue.take(lambda number, blocked=blocked: number not in blocked)  # type: ignore[misc]
        waiting = {turn.tenant for turn in queue}
        for tenant in waiting:
            ahead = max(queue.counter(other) for other in waiting) - queue.counter(tenant)
            assert ahead <= 2 * most + 1e-6
        if share == 1.0:
            break


@dataclass
class Books:
    """What the queue must say, worked out the slow way."""

    waiting: list[tuple[str, int, float]] = field(default_factory=list)


@given(st.lists(st.tuples(st.sampled_from(["join", "leave", "take"]), st.sampled_from(TENANTS), COSTS), max_size=80))
def test_who_leaves_is_gone_and_costs_nothing(steps: list[tuple[str, str, float]]) -> None:
    queue: FairQueue[int] = FairQueue()
    books, turns = Books(), {}
    for number, (what, tenant, mu) in enumerate(steps):
        if what == "join":
            turns[number] = queue.join(tenant, number, mu)
            books.waiting.append((tenant, number, mu))
        elif what == "leave" and books.waiting:
            gone = books.waiting.pop(len(books.waiting) // 2)
            before = queue.counter(gone[0])
            assert queue.leave(turns[gone[1]])
            assert not queue.leave(turns[gone[1]])
            assert queue.counter(gone[0]) == before
        elif what == "take" and books.waiting:
            turn = queue.take(fits_all)
            assert turn is not None
            first = next(entry for entry in books.waiting if entry[0] == turn.tenant)
            assert first[1] == turn.item
            books.waiting.remove(first)
        assert queue.size == len(books.waiting)
        assert math.isclose(queue.mu, sum(mu for _, _, mu in books.waiting), abs_tol=1e-6)
        assert sorted(turn.item for turn in queue) == sorted(number for _, number, _ in books.waiting)


def test_counters_of_tenants_who_are_gone_are_bounded() -> None:
    queue: FairQueue[int] = FairQueue(remembered=10)
    queue.join("waits", 0, 1.0)
    queue.take(fits_all)
    for number in range(1_000):
        queue.serve(f"t{number}", 1.0)
    assert len(queue._counters) <= 21
    assert queue.counter("t999") == 1_001.0
    assert queue.take(fits_all) is None


def test_whoever_begins_to_wait_is_not_forgotten_for_those_who_were_served_more() -> None:
    queue: FairQueue[int] = FairQueue(remembered=1)
    for number in range(3):
        queue.serve(f"t{number}", 1.0)
    queue.settle("t2", -3.0)
    queue.join("new", 0, 1.0)
    turn = queue.take(fits_all)
    assert turn is not None
    assert turn.tenant == "new"


@pytest.mark.parametrize("tenants", [2, 5, 17])
def test_equal_tenants_get_equal_shares(tenants: int) -> None:
    queue: FairQueue[int] = FairQueue()
    names = [f"t{n:02}" for n in range(tenants)]
    served = dict.fromkeys(names, 0)
    for name in names:
        queue.join(name, 0, 1.0)
    for _ in range(100 * tenants):
        turn = queue.take(fits_all)
        assert turn is not None
        served[turn.tenant] += 1
        queue.join(turn.tenant, 0, 1.0)
    assert set(served.values()) == {100}


def test_what_comes_back_from_where_it_was_goes_before_its_tenants_others() -> None:
    queue: FairQueue[str] = FairQueue()
    queue.join("t", "first", 1.0)
    assert queue.take(lambda _: True) is not None
    queue.join("t", "second", 1.0)
    queue.settle("t", -1.0)
    queue.join("t", "first", 1.0, at=0)
    assert queue.counter("t") == 0.0
    taken = [queue.take(lambda _: True) for _ in range(2)]
    assert [turn.item for turn in taken if turn is not None] == ["first", "second"]
