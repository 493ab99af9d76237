"""When best-effort work may pass, against the rule written out plainly."""

from __future__ import annotations

import math
from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.policy import gate
from serving.policy.routing import Candidate

MS = 372.0
"""Engine milliseconds of an MU where a replica supplies 100 MU/min at a knee of 0.62."""


class Busy(NamedTuple):
    n: int = 0
    w: float = 0.0
    d: float = 0.0
    lent_w: float = 0.0
    lent_d: float = 0.0

    @property
    def owed(self) -> float:
        return self.w - self.lent_w


def replica(name: str, load: Busy, *, target: int = 16, ready: bool = True, ms: float = MS) -> Candidate:
    return Candidate(name, ready, target, load, False, ms)


def at(ms: float) -> float:
    """MU that take so many milliseconds."""
    return ms / MS


def test_an_idle_deployment_takes_anything() -> None:
    assert gate.look([replica("a", Busy())], prefill_mu=at(60_000)).is_open


def test_the_least_busy_replica_decides() -> None:
    busy, idle = replica("a", Busy(1, at(5_000))), replica("b", Busy(1, at(149)))
    assert gate.look([busy, idle], prefill_mu=1.0).is_open
    full = replica("b", Busy(16, 0.0))
    seen = gate.look([busy, full], prefill_mu=1.0)
    assert seen.obstacle == "prefill"
    assert seen.cheapest_ms == pytest.approx(5_000), "one without a free slot takes nothing"
    assert gate.look([full], prefill_mu=1.0).obstacle == "slots"
    assert gate.look([replica("c", Busy(), ready=False)], prefill_mu=1.0).obstacle == "no_replica"
    assert gate.look([], prefill_mu=1.0).reason == "no replica is ready"


def test_best_effort_prefill_is_capped_over_all_replicas() -> None:
    field = [replica("a", Busy(2, at(3_900), 0.0, at(3_900))), replica("b", Busy())]
    assert gate.look(field, prefill_mu=at(100)).is_open
    assert gate.look(field, prefill_mu=at(101)).obstacle == "backlog"
    reserved = [replica("a", Busy(2, at(3_900), 0.0, 0.0)), replica("b", Busy())]
    assert gate.look(reserved, prefill_mu=at(3_000)).is_open, "what is reserved does not count"


def test_the_cap_is_never_below_the_largest_request() -> None:
    field = [replica("a", Busy(1, at(100), 0.0, at(100)))]
    assert gate.look(field, prefill_mu=at(9_000)).obstacle == "backlog"
    assert gate.look(field, prefill_mu=at(9_000), largest_prefill_mu=at(9_100)).is_open
    assert gate.look(field, prefill_mu=at(9_001), largest_prefill_mu=at(9_100)).obstacle == "backlog"
    assert gate.look([replica("a", Busy())], prefill_mu=at(9_000)).is_open, "alone, it passes whatever it is"


def test_where_something_is_reserved_slots_are_kept() -> None:
    field = [replica("a", Busy(14), target=16)]
    assert gate.look(field, prefill_mu=0.1).is_open
    assert gate.look(field, prefill_mu=0.1, is_reserved=True).obstacle == "slots"
    assert gate.look([replica("a", Busy(6), target=7)], prefill_mu=0.1, is_reserved=True).is_open


def test_while_owners_send_replicas_stay_clear_of_long_prompts() -> None:
    field = [replica(f"r{n}", Busy()) for n in range(4)]
    owned = at(200.0)

    def look(prefill_ms: float, owned_mu_per_s: float = owned) -> gate.Obstacle:
        return gate.look(field, prefill_mu=at(prefill_ms), is_reserved=True, owned_mu_per_s=owned_mu_per_s).obstacle

    assert look(5_000.0) == ""
    for busy in field[:3]:
        busy.load = Busy(1, at(1_000.0), 0.0, at(1_000.0))
    assert look(149.0) == "", "one that is short leaves its replica clear"
    assert look(150.0) == "owners"
    assert look(150.0, 0.0) == "", "while no owner sends, everything is lent"
    field[2].load = Busy()
    assert look(150.0) == ""
    assert look(150.0, 1.01 * owned) == "owners", "as many as their load needs"
    field[0].load = field[1].load = Busy()
    assert look(150.0, 100 * owned) == "", "but one"


def test_no_long_prompt_begins_while_more_owners_wait_than_on_average() -> None:
    field = [replica(f"r{n}", Busy()) for n in range(10)]

    def look(prefill_ms: float, owned_ms_per_s: float) -> gate.Obstacle:
        return gate.look(field, prefill_mu=at(prefill_ms), is_reserved=True, owned_mu_per_s=at(owned_ms_per_s)).obstacle

    field[0].load = Busy(1, at(40.0))
    assert look(150.0, 300.0) == "owners", "the engine has 0.3 s of theirs to read in a second, and now one waits"
    assert look(149.0, 300.0) == ""
    assert look(150.0, 1_010.0) == "", "one on average"
    field[1].load = Busy(1, at(40.0))
    assert look(150.0, 1_010.0) == "owners"
    field[0].load = Busy(1, at(39.0))
    field[1].load = Busy(1, at(40.0), 0.0, at(40.0))
    assert look(150.0, 300.0) == "", "what is nearly read, or lent, is not waited for"


def test_a_long_prompt_makes_way_for_an_owner_who_would_be_read_much_sooner() -> None:
    def way(waits_ms: float, own_ms: float, lent_ms: float = 2_000.0, beside_ms: float = 0.0) -> str:
        there = Busy(2, at(beside_ms + lent_ms), 0.0, at(lent_ms))
        return gate.way([replica("a", Busy(2, at(waits_ms))), replica("b", there)], at(own_ms)).replica

    assert way(90.0, 91.0) == "b"
    assert way(90.0, 89.0) == "", "180 ms are soon enough"
    assert way(200.0, 40.0) == "", "80 ms beside it, and 40 more: it need not"
    assert way(200.0, 60.0) == "b", "80 ms, twice its own 60: 200"
    assert way(200.0, 60.0, lent_ms=149.0) == "", "what is short is read soon"
    assert way(90.0, 100.0, beside_ms=53.0) == ""
    assert way(90.0, 100.0, beside_ms=51.0) == "b", "four fifths of the time"
    assert way(30.0, 1_000.0) == "", "it is its own prompt that takes so long"


def test_nothing_makes_way_where_the_owner_could_not_go() -> None:
    there = Busy(2, at(2_000.0), 0.0, at(2_000.0))
    waits = replica("a", Busy(2, at(300.0)))
    assert gate.way([waits, replica("b", there)], at(100.0)).replica == "b"
    assert gate.way([waits, replica("b", there, target=2)], at(100.0)).replica == ""
    assert gate.way([waits, replica("b", there, ready=False)], at(100.0)).replica == ""
    assert gate.way([], at(100.0)).replica == ""


def test_whether_one_makes_way_is_said_with_its_reason() -> None:
    there = Busy(2, at(2_000.0), 0.0, at(2_000.0))
    found = gate.way([replica("a", Busy(2, at(120.0))), replica("b", there)], at(100.0))
    assert found.reason == "a first token in 100 ms, not 220, where long best-effort prompts make way"
    assert gate.way([replica("a", Busy())], at(100.0)).reason == "a first token in 100 ms"
    assert gate.way([], at(100.0)).reason == "no replica has room"


def test_long_prompts_that_go_first_at_other_gateways_count_as_placed() -> None:
    field = [replica(name, Busy()) for name in "abc"]

    def look(prefill_ms: float, ahead: list[float] | None, owned_mu_per_s: float = at(100.0)) -> gate.Obstacle:
        prompts = None if ahead is None else [at(ms) for ms in ahead]
        return gate.look(
            field, prefill_mu=at(prefill_ms), is_reserved=True, owned_mu_per_s=owned_mu_per_s, ahead=prompts
        ).obstacle

    assert look(1_000.0, []) == ""
    assert look(1_000.0, [1_000.0]) == ""
    assert look(1_000.0, [1_000.0, 1_000.0]) == "owners", "one replica stays clear"
    assert look(1_000.0, [100.0] * 20) == "", "short ones take nobody's place"
    assert look(100.0, [1_000.0] * 3) == "", "and do not wait for long ones"
    assert look(1_000.0, [2_500.0, 2_500.0], 0.0) == "", "where owners do not send, all is lent"
    assert look(1_000.0, [3_000.0, 3_000.0], 0.0) == "backlog"
    assert look(1_000.0, None) == "turn"
    assert look(100.0, None) == ""
    assert look(1_000.0, None, 0.0) == "", "where nothing waits, it need not know"
    field[0] = replica("a", Busy(1, at(500.0), 0.0, at(500.0)))
    assert look(1_000.0, None, 0.0) == "turn"


def test_a_single_replica_takes_long_prompts_when_owners_have_been_silent_for_a_while() -> None:
    field = [replica("a", Busy(1, 0.0, at(50.0), 0.0, 0.0))]
    assert gate.look(field, prefill_mu=at(150.0), owned_mu_per_s=at(9.0)).obstacle == "owners", "one is served"
    assert gate.look(field, prefill_mu=at(140.0), owned_mu_per_s=at(300.0)).is_open, "short ones pass"
    field[0].load = Busy(1, 0.0, at(50.0), 0.0, at(50.0))
    assert gate.look(field, prefill_mu=at(150.0), owned_mu_per_s=at(9.0)).is_open, "what is lent is no owner's"
    assert gate.look(field, prefill_mu=at(150.0), owned_mu_per_s=at(11.0)).obstacle == "owners"


LOADS = st.builds(
    lambda n, w, share: Busy(n, w, 0.0, share * w), st.integers(0, 20), st.floats(0.0, 20.0), st.floats(0.0, 1.0)
)
FIELDS = st.lists(
    st.builds(
        lambda load, target, ready, ms: Candidate("x", ready, target, load, False, ms),
        LOADS,
        st.integers(1, 20),
        st.booleans(),
        st.floats(1.0, 1_000.0),
    ),
    max_size=6,
)


@given(FIELDS, st.floats(0.0, 50.0), st.floats(0.0, 50.0), st.booleans())
def test_the_gate_does_as_it_says(field: list[Candidate], mu: float, largest: float, is_reserved: bool) -> None:
    ready = [c for c in field if c.is_ready]
    pending = [
        c.load.w * c.ms_per_mu
        for c in ready
        if c.load.n < c.target_concurrency - (c.target_concurrency // 8 if is_reserved else 0)
    ]
    backlog = sum(c.load.lent_w * c.ms_per_mu for c in ready)
    mean = sum(c.ms_per_mu for c in ready) / len(ready) if ready else math.nan
    is_open = bool(pending) and min(pending) < 150.0
    if is_open and backlog > 0.0:
        is_open = backlog + mu * mean <= max(2_000.0 * len(ready), largest * mean)
    seen = gate.look(field, prefill_mu=mu, largest_prefill_mu=largest, is_reserved=is_reserved)
    assert seen.is_open == is_open
    assert bool(seen.reason) != seen.is_open
    assert seen.replicas == len(ready)


@given(FIELDS, st.floats(0.0, 50.0), st.floats(0.0, 20.0))
def test_more_work_never_opens_the_gate(field: list[Candidate], mu: float, more: float) -> None:
    before = gate.look(field, prefill_mu=mu)
    for candidate in field:
        load = candidate.load
        candidate.load = Busy(load.n, load.w + more, load.d, load.lent_w + more)
    if not before.is_open:
        assert not gate.look(field, prefill_mu=mu).is_open


def test_an_owner_at_risk_of_a_late_answer_takes_back_what_was_lent() -> None:
    assert not gate.must_claw_back(500.0, ttft_objective_ms=1_000.0)
    assert gate.must_claw_back(501.0, ttft_objective_ms=1_000.0)
    assert not gate.must_claw_back(149.0, ttft_objective_ms=100.0), "what the gate lets in is no risk"
