"""The order between tenants over several gateways that hear of each other late, with books of the test's own."""

from __future__ import annotations

import itertools

import msgspec
from hypothesis import example, given, settings
from hypothesis import strategies as st

from bench.fairness import scenarios
from bench.fairness.world import jain
from serving.policy.fairness import FairQueue, Told

TENANTS = ("a", "b", "c")
COSTS = st.fixed_dictionaries({tenant: st.floats(0.05, 20.0) for tenant in TENANTS})
PLACES = st.fixed_dictionaries({tenant: st.sets(st.integers(0, 2), min_size=1) for tenant in TENANTS})


PLACED = ("one at the first, two at the second", "short at the first, 50 times as long at both")


class House:
    """Gateways with a queue each. A tenant has two requests waiting, at all times, wherever it sends."""

    def __init__(self, gateways: int, places: dict[str, set[int]], costs: dict[str, float], slack: float = 0.0) -> None:
        self.queues: dict[str, FairQueue[None]] = {f"g{n}": FairQueue() for n in range(gateways)}
        self.costs = costs
        self.slack = slack
        self.served = dict.fromkeys(places, 0.0)
        for tenant, where in places.items():
            for n in where:
                for _ in range(2):
                    self.queues[f"g{n}"].join(tenant, None, costs[tenant])

    def exchange(self, *names: str) -> None:
        """As beats do it: everybody's words are JSON, and come to everybody else among ``names`` (empty: all)."""
        told = {name: self.queues[name].tell() for name in names or self.queues}
        wire = {name: msgspec.json.encode(word) for name, word in told.items() if word is not None}
        for name in told:
            others = {other: msgspec.json.decode(raw, type=Told) for other, raw in wire.items() if other != name}
            self.queues[name].hear(others)

    def serve(self, name: str) -> bool:
        queue = self.queues[name]
        turn = queue.take(lambda _: True, slack=self.slack)
        if turn is not None:
            self.served[turn.tenant] += turn.mu
            queue.join(turn.tenant, None, turn.mu)
        return turn is not None

    @property
    def apart(self) -> float:
        return max(self.served.values()) - min(self.served.values())


@given(PLACES, COSTS, st.floats(0.0, 5.0), st.integers(1, 4), st.randoms(use_true_random=False))
@settings(max_examples=60, deadline=None)
def test_tenants_who_wait_differ_by_two_requests_the_slack_and_what_nobody_has_heard_of(
    places: dict[str, set[int]], costs: dict[str, float], slack: float, steps: int, dice: object
) -> None:
    house = House(3, places, costs, slack)
    house.exchange()
    most = max(costs.values())
    for _ in range(40):
        for _ in range(steps):
            house.serve(dice.choice(list(house.queues)))  # type: ignore[attr-defined]
        assert house.apart <= 2 * most + slack + steps * most + 1e-6
        house.exchange()


@given(PLACES, COSTS, st.floats(0.0, 5.0))
@settings(max_examples=30, deadline=None)
def test_somebody_is_always_served(places: dict[str, set[int]], costs: dict[str, float], slack: float) -> None:
    """Gateways that each wait for another's tenants would wait for ever."""
    house = House(3, places, costs, slack)
    for _ in range(50):
        house.exchange()
        house.exchange()
        assert any(house.serve(name) for name in house.queues)


@given(
    st.lists(
        st.tuples(st.sampled_from(TENANTS), st.sampled_from([1.0, 2.0, 3.0]), st.sampled_from([0.0, 5.0, 7.0, 10.0])),
        min_size=2,
        max_size=4,
    )
)
@example([("a", 1.0, 10.0), ("a", 2.0, 5.0), ("b", 1.0, 7.0)])
def test_all_gateways_agree_who_is_the_first_of_those_who_wait(first: list[tuple[str, float, float]]) -> None:
    """Each has a tenant's request of some moment; exactly one of them finds nobody before its own. Also where they do
    not have one counter for a tenant: where it had not waited, what it was served elsewhere is not on it."""
    queues = {f"g{n}": FairQueue[None]() for n in range(len(first))}
    turns = {
        name: queue.join(tenant, None, 1.0, prefill_mu=0.5, since=since)
        for (name, queue), (tenant, since, _) in zip(queues.items(), first, strict=True)
    }

    def exchange() -> None:
        told = {name: queue.tell() for name, queue in queues.items()}
        for name, queue in queues.items():
            queue.hear({other: word for other, word in told.items() if word is not None and other != name})

    exchange()
    for queue, (tenant, _, counter) in zip(queues.values(), first, strict=True):
        queue._counters[tenant] = counter
    exchange()
    ahead = {name: queue.ahead(turns[name], name=name) for name, queue in queues.items()}
    assert sorted(len(found) for found in ahead.values()) == list(range(len(first)))
    assert all(mu == 0.5 for found in ahead.values() for mu in found)


def test_what_really_was_used_counts_at_other_gateways_too() -> None:
    house = House(2, {"a": {0, 1}, "b": {1}}, {"a": 1.0, "b": 1.0})
    house.exchange()
    house.queues["g0"].settle("a", 7.0)
    house.exchange()
    assert [house.queues[name].counter("a") for name in ("g0", "g1")] == [7.0, 7.0]
    house.queues["g0"].settle("a", -3.0)
    house.exchange()
    house.exchange()
    assert [house.queues[name].counter("a") for name in ("g0", "g1")] == [4.0, 4.0]
    for _ in range(4):
        assert house.serve("g1")
    assert house.served == {"a": 0.0, "b": 4.0}


def test_whoever_stands_aside_elsewhere_is_in_nobodys_way() -> None:
    house = House(2, {"a": {0}, "b": {1}}, {"a": 5.0, "b": 1.0})
    assert house.queues["g0"].take(lambda _: None) is None
    house.exchange()
    assert all(house.serve("g1") for _ in range(50))


def test_a_request_that_need_not_wait_lets_those_go_first_who_were_served_less_elsewhere() -> None:
    house = House(1, {"a": {0}}, {"a": 2.0})
    house.queues["g1"] = FairQueue()
    house.queues["g1"].serve("b", 10.0)
    house.exchange()
    passes = house.queues["g1"]
    assert not passes.may_pass("b", 1.0, slack=8.0)
    assert passes.may_pass("b", 1.0, slack=9.0)
    assert passes.may_pass("a", 50.0, slack=0.0), "nobody is in its own way"
    assert passes.may_pass("new", 50.0, slack=0.0), "whose turn it is as much"


def test_who_begins_to_wait_is_lifted_to_those_who_wait_elsewhere() -> None:
    house = House(2, {"a": {0}}, {"a": 1.0})
    for _ in range(100):
        house.serve("g0")
    house.exchange()
    assert house.queues["g0"].counter("a") == 100.0
    house.queues["g1"].join("new", None, 1.0)
    assert house.queues["g1"].counter("new") == 100.0


def test_whoever_was_served_alone_elsewhere_owes_nobody() -> None:
    busy: FairQueue[None] = FairQueue()
    for _ in range(100):
        busy.serve("a", 10.0)
    idle: FairQueue[None] = FairQueue()
    word = busy.tell()
    assert word is not None
    idle.hear({"busy": word})
    idle.join("b", None, 1.0)
    assert idle.counter("b") == 1_000.0


@given(st.integers(1, 40), st.integers(1, 40))
def test_gateways_that_were_apart_begin_from_the_same(first: int, second: int) -> None:
    """What each has served meanwhile earns nobody credit: from then on shares are equal again."""
    house = House(2, {"a": {0}, "b": {1}}, {"a": 1.0, "b": 1.0})
    house.exchange()
    for name in house.queues:
        house.exchange(name)
    for name, count in (("g0", first), ("g1", second)):
        for _ in range(count):
            house.serve(name)
    house.served = dict.fromkeys(house.served, 0.0)
    for _, name in zip(range(60), itertools.cycle(house.queues), strict=False):
        house.exchange()
        house.exchange()
        house.serve(name)
    assert house.apart <= 3.0
    assert sum(house.served.values()) >= 55.0


def test_a_gateway_that_is_gone_is_in_nobodys_way() -> None:
    house = House(2, {"a": {0}, "b": {1}}, {"a": 1.0, "b": 1.0})
    house.exchange()
    house.queues["g1"].hear({})
    assert all(house.serve("g1") for _ in range(20))
    del house.queues["g0"]
    house.queues["g2"] = FairQueue()
    house.queues["g2"].join("a", None, 1.0)
    house.exchange()
    house.exchange()
    assert house.queues["g2"].counter("a") == house.queues["g1"].counter("b") == 20.0


def test_equal_tenants_get_equal_mu_wherever_their_clients_are() -> None:
    """The gateways' own queues, gate and exchange before simulated engines, on a virtual clock."""
    one = scenarios.across(scenarios.PLACED[PLACED[0]], replicas=2, seconds=25.0, gateways=1)
    for name in PLACED:
        two = scenarios.across(scenarios.PLACED[name], replicas=2, seconds=25.0, gateways=2)
        assert two.index >= 0.95, name
        assert two.index == jain(list(two.mu))
        assert two.mu_per_min > 0.9 * one.mu_per_min, f"{name}: replicas waited for news"


def test_tenants_get_equal_mu_again_after_the_state_was_away() -> None:
    """Alone, each gateway keeps its own order; met again, what was served meanwhile is forgotten on both sides."""
    placed = scenarios.PLACED["one at the first, two at the second"]
    apart = scenarios.across(placed, replicas=2, seconds=40.0, away=(8.0, 18.0), since=22.0)
    assert apart.index >= 0.95


def test_of_a_tenants_requests_those_that_have_come_again_elsewhere_go_first() -> None:
    """Once the others have said so twice: what they said once may be served by now."""
    old, new = FairQueue[str](), FairQueue[str]()
    old.join("a", "old", 1.0, since=10.0)
    new.join("a", "new", 1.0, since=20.0)
    other = new.join("b", "other", 1.0, since=20.0)

    new.come_again = {"old": {"a"}}

    def hear() -> None:
        word = old.tell()
        new.hear({} if word is None else {"old": word})

    hear()
    hear()
    assert new.take(lambda _: True) == other, "no other tenant waits for it"
    assert new.take(lambda _: True) is None
    old.take(lambda _: True)
    hear()
    found = new.take(lambda _: True)
    assert found is not None
    assert found.item == "new"


def test_a_request_that_came_almost_when_another_did_waits_for_none() -> None:
    first, second = FairQueue[str](), FairQueue[str]()
    second.come_again = {"first": {"a"}}
    first.join("a", "first", 1.0, since=10.0)
    second.join("a", "second", 1.0, since=10.4)
    for _ in range(2):
        word = first.tell()
        assert word is not None
        second.hear({"first": word})
    assert second.take(lambda _: True) is not None
