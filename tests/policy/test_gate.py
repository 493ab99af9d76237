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
