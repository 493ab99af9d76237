"""The life of a calibration: every way through it ends, and its replica always comes back."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.policy.calibration import (
    UNDER_WAY,
    Candidate,
    Facts,
    Held,
    Limits,
    Step,
    choose,
    decide,
    is_held,
)

HELD = Held(is_marked=True, is_current=True, is_host_there=True, state="draining", in_flight=0, in_engine=0.0)
DRAINED = Facts("draining", 10.0, True, HELD)
MEASURING = Facts("measuring", 10.0, True, HELD, told="measuring")


def one(name: str, **fields: object) -> Candidate:
    return replace(Candidate(name, is_ready=True, is_current=True, is_host_active=True), **fields)  # type: ignore[arg-type]


# ------------------------------------------------------------------ which replica
def test_the_idlest_is_taken() -> None:
    found = choose(
        [one("a", in_flight_mu=3.0), one("b", in_flight_mu=1.0), one("c", in_flight_mu=2.0)], allow_outage=False
    )
    assert found.replica_id == "b"
    assert "2 others serve" in found.reason


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([], "no replica is ready"),
        ([one("a", is_ready=False)], "no replica is ready"),
        ([one("a", is_current=False), one("b", is_host_active=False)], "current revision"),
        ([one("a")], "only one replica is ready"),
        ([one("a"), one("b", is_ready=False)], "only one replica is ready"),
    ],
)
def test_what_cannot_be_taken_says_why(rows: list[Candidate], words: str) -> None:
    found = choose(rows, allow_outage=False)
    assert found.replica_id is None
    assert words in found.reason


def test_the_only_one_is_taken_with_leave() -> None:
    assert choose([one("a")], allow_outage=True).replica_id == "a"


CANDIDATES = st.lists(
    st.builds(
        Candidate,
        id=st.uuids().map(str),
        is_ready=st.booleans(),
        is_current=st.booleans(),
        is_host_active=st.booleans(),
        in_flight_mu=st.floats(0, 100),
    ),
    max_size=6,
)


@given(CANDIDATES, st.booleans())
def test_whoever_is_taken_is_able_and_leaves_another_one_serving(rows: list[Candidate], allow_outage: bool) -> None:
    found = choose(rows, allow_outage=allow_outage)
    ready = [row for row in rows if row.is_ready]
    if found.replica_id is None:
        able = [row for row in ready if row.is_current and row.is_host_active]
        assert not able or (len(ready) == 1 and not allow_outage)
        return
    (taken,) = [row for row in rows if row.id == found.replica_id]
    assert taken.is_ready
    assert taken.is_current
    assert taken.is_host_active
    assert allow_outage or len(ready) > 1


# ------------------------------------------------------------------ what comes next
FACTS = st.builds(
    Facts,
    state=st.sampled_from(["queued", "draining", "measuring", "fitted", "adopted", "failed", "cancelled"]),
    age_s=st.floats(0, 1e6),
    is_served=st.booleans(),
    held=st.none()
    | st.builds(
        Held,
        is_marked=st.booleans(),
        is_current=st.booleans(),
        is_host_there=st.booleans(),
        state=st.sampled_from(["pending", "starting", "ready", "draining", "stopping", "stopped", "failed"]),
        in_flight=st.none() | st.integers(0, 5),
        in_engine=st.none() | st.floats(0, 5),
    ),
    choice=st.none() | st.builds(lambda rows: choose(rows, allow_outage=True), CANDIDATES),
    told=st.sampled_from(["", "waiting", "measuring", "done", "failed"]),
    told_reason=st.text(max_size=20),
    told_age_s=st.floats(0, 1e6),
    waiting_s=st.floats(0, 1e6),
    others_ready=st.integers(0, 2),
    allow_outage=st.booleans(),
)


@given(FACTS)
def test_a_step_fits_the_state_and_says_why(facts: Facts) -> None:
    step = decide(facts)
    assert step.reason
    allowed = {
        "queued": {"wait", "take", "fail"},
        "draining": {"wait", "measure", "fail"},
        "measuring": {"wait", "fit", "fail"},
    }.get(facts.state, {"wait"})
    assert step.act in allowed
    if step.act in ("measure", "fit"):
        held = facts.held
        assert held is not None
        assert (held.is_marked, held.is_current, held.is_host_there, held.state) == (True, True, True, "draining")
    if step.act == "measure":
        assert facts.held is not None
        assert not facts.held.in_flight
        assert not facts.held.in_engine, "somebody's request would be measured"


@given(FACTS)
def test_nothing_is_under_way_for_ever(facts: Facts) -> None:
    """Whatever is seen, after the longest limit of its state each calibration that does not go on has failed."""
    late = replace(facts, age_s=1e7, told_age_s=1e7, waiting_s=1e7)
    step = decide(late)
    assert (step.act == "wait") == (late.state not in UNDER_WAY)


@given(FACTS, st.booleans())
def test_a_replica_is_held_only_while_its_own_calibration_needs_it(facts: Facts, own: bool) -> None:
    assert is_held(facts.state, is_its_replica=own) == (own and facts.state in ("draining", "measuring"))
    assert not is_held(None, is_its_replica=own)


@pytest.mark.parametrize(
    ("facts", "step"),
    [
        (replace(DRAINED, age_s=1.0), Step("wait", "gateways learn that the replica is out of rotation")),
        (DRAINED, Step("measure", "drained: no request in flight")),
        (replace(DRAINED, held=replace(HELD, in_flight=3)), Step("wait", "draining: 3 in flight")),
        (replace(DRAINED, held=replace(HELD, in_engine=2.0)), Step("wait", "draining: 2 in flight")),
        (
            replace(DRAINED, held=replace(HELD, in_flight=None, in_engine=None)),
            Step("wait", "draining: no gateway tells what is in flight"),
        ),
        (replace(DRAINED, held=replace(HELD, in_flight=None)), Step("measure", "drained: the engine has no request")),
        (replace(MEASURING, told="done"), Step("fit", "measured")),
        (replace(MEASURING, told="failed", told_reason="it answers 400"), Step("fail", "it answers 400")),
        (MEASURING, Step("wait", "being measured")),
        (replace(MEASURING, others_ready=0, allow_outage=True), Step("wait", "being measured")),
        (replace(MEASURING, others_ready=0, told="done"), Step("fit", "measured")),
    ],
)
def test_the_way_through(facts: Facts, step: Step) -> None:
    assert decide(facts) == step


@pytest.mark.parametrize(
    ("facts", "words"),
    [
        (replace(DRAINED, is_served=False), "stopped or removed"),
        (replace(DRAINED, held=None), "does not exist"),
        (replace(DRAINED, held=replace(HELD, state="failed")), "failed while it was out of rotation"),
        (replace(DRAINED, held=replace(HELD, state="stopping")), "somebody moved"),
        (replace(DRAINED, held=replace(HELD, is_marked=False)), "somebody moved"),
        (replace(DRAINED, held=replace(HELD, is_host_there=False)), "host"),
        (replace(DRAINED, held=replace(HELD, is_current=False)), "newer revision"),
        (replace(DRAINED, age_s=1e4, held=replace(HELD, in_flight=1)), "not drained"),
        (replace(DRAINED, others_ready=0), "no other replica serves"),
        (replace(MEASURING, others_ready=0), "no other replica serves"),
        (replace(MEASURING, told="", told_age_s=1e4), "is it up to date?"),
        (replace(MEASURING, told_age_s=1e4), "is it running?"),
        (replace(MEASURING, told="waiting", waiting_s=1e4), "not idle"),
        (replace(MEASURING, age_s=1e6), "smaller grid"),
        (Facts("queued", 1e4, True, choice=choose([], allow_outage=True)), "no replica is ready"),
    ],
)
def test_what_ends_it_is_told(facts: Facts, words: str) -> None:
    step = decide(facts)
    assert step.act == "fail"
    assert words in step.reason


def test_limits_can_be_longer_for_a_larger_order() -> None:
    long = replace(MEASURING, age_s=5 * 3600.0)
    assert decide(long).act == "fail"
    assert decide(long, Limits(measuring_s=6 * 3600.0)).act == "wait"
