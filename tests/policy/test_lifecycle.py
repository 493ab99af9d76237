"""The replica's state machine: its table, and what reports make of a replica."""

import itertools
from typing import get_args

import pytest

from serving.models import Replica
from serving.policy import lifecycle
from serving.policy.lifecycle import ALLOWED, Intent, Phase, State, intent_of, is_allowed, lose, next_state
from worker import spec

STATES: tuple[State, ...] = get_args(State)
PHASES: tuple[Phase | None, ...] = (*get_args(Phase), None)
INTENTS: tuple[Intent, ...] = get_args(Intent)


def test_the_words_are_those_of_the_model_and_of_the_agent():
    assert set(STATES) == set(ALLOWED) == set(Replica.State.values)
    assert set(get_args(Phase)) == set(get_args(spec.ReplicaPhase))
    assert set(INTENTS) == set(get_args(spec.Intent))


@pytest.mark.parametrize("acknowledged", [True, False])
def test_no_report_ever_leads_to_a_forbidden_transition(acknowledged):
    for state, phase, intent in itertools.product(STATES, PHASES, INTENTS):
        for in_flight, age in ((0, 0.0), (3, 0.0), (3, 99.0)):
            step = next_state(
                state, phase, intent, acknowledged=acknowledged, in_flight=in_flight, state_age_s=age, drain_s=30
            )
            assert is_allowed(state, step.state), (state, phase, intent, step)
            assert step.reason
    for state in STATES:
        assert is_allowed(state, lose(state, why="silent").state)


def test_a_start_walks_through_the_phases_into_rotation():
    state: State = "pending"
    seen = []
    for phase in ("environment", "weights", "starting", "warming", "ready", "ready"):
        step = next_state(state, phase, intent_of(state))
        seen.append(step.state)
        state = step.state
    assert seen == ["starting"] * 4 + ["ready"] * 2
    assert not step.is_change


def test_a_release_drains_before_it_stops():
    assert next_state("ready", "ready", "drain").state == "draining"
    waiting = next_state("draining", "draining", "drain", in_flight=2, state_age_s=10, drain_s=30)
    assert (waiting.state, waiting.is_change) == ("draining", False)
    assert "2 in flight, 20 s left" in waiting.reason
    assert next_state("draining", "draining", "drain", in_flight=0, state_age_s=10).state == "stopping"
    assert next_state("draining", "draining", "drain", in_flight=2, state_age_s=30).state == "stopping"
    assert next_state("stopping", "ready", "stop").state == "stopping"
    assert next_state("stopping", "stopped", "stop").state == "stopped"
    assert next_state("stopping", None, "stop").state == "stopped"


def test_a_drain_waits_while_the_engine_itself_is_at_work():
    def drain(**seen):
        return next_state("draining", "draining", "drain", state_age_s=5, drain_s=30, **seen)

    assert drain(in_flight=0, in_engine=2.0).state == "draining"
    assert "2 in flight" in drain(in_flight=0, in_engine=2.0).reason
    assert drain(in_flight=0, in_engine=0.0).state == "stopping"
    assert drain(in_flight=0, in_engine=None).state == "stopping"
    assert drain(in_flight=1, in_engine=0.0).state == "draining"


@pytest.mark.parametrize("in_engine", [None, 0.0, 3.0])
def test_without_a_gateway_nobody_knows_and_a_drain_takes_its_whole_time(in_engine):
    def drain(age_s):
        return next_state(
            "draining", "draining", "drain", in_flight=None, in_engine=in_engine, state_age_s=age_s, drain_s=30
        )

    assert drain(29.9).state == "draining"
    assert "no gateway tells" in drain(29.9).reason
    assert drain(30.0).state == "stopping"


def test_what_is_measured_drains_until_it_is_given_back():
    stays = next_state("draining", "ready", "run", held=True)
    assert (stays.is_change, stays.reason) == (False, "out of rotation while it is measured")
    assert next_state("draining", "failed", "run", held=True).state == "failed"
    assert next_state("draining", None, "run", held=True).state == "failed"
    assert next_state("draining", "ready", "run").state == "ready"


def test_a_drain_can_be_taken_back_but_a_stop_cannot():
    assert next_state("draining", "ready", "run").state == "ready"
    assert next_state("stopping", "ready", "run").state == "stopping"
    assert next_state("stopping", "ready", "drain").state == "stopping"


@pytest.mark.parametrize("state", ["starting", "ready"])
def test_an_exit_nobody_asked_for_is_a_failure_whatever_the_exit_code(state):
    stopped = next_state(state, "stopped", "run", detail="exit code 0")
    assert stopped.state == "failed"
    assert "without being asked: exit code 0" in stopped.reason
    assert next_state(state, "failed", "run", detail="out of memory").reason == "out of memory"
    assert next_state(state, None, "run").state == "failed"


def test_an_exit_while_stopping_is_a_stop():
    assert next_state("stopping", "failed", "stop", detail="exit code 1").state == "stopped"
    assert next_state("draining", "stopped", "drain").state == "stopped"


def test_silence_before_the_orders_arrived_says_nothing():
    for state in ("pending", "starting", "ready", "draining", "stopping"):
        assert not next_state(state, None, intent_of(state), acknowledged=False).is_change


def test_what_was_never_started_stops_at_once():
    assert next_state("pending", None, "stop").state == "stopped"
    assert next_state("pending", None, "run").state == "pending"


def test_an_engine_that_no_gateway_reaches_is_not_ready_and_says_why():
    for state in ("pending", "starting"):
        step = next_state(state, "ready", "run", unreachable="it listens on loopback of gpu-2")
        assert (step.state, step.reason) == ("starting", "it listens on loopback of gpu-2")
    assert next_state("ready", "ready", "run", unreachable="x").state == "ready"
    assert next_state("starting", "failed", "run", unreachable="x").state == "failed"


def test_a_lost_host_fails_what_was_placed_on_it():
    assert lose("ready", why="silent for 30 s").state == "failed"
    assert "silent for 30 s" in lose("starting", why="silent for 30 s").reason
    assert lose("stopping", why="x").state == "stopped"
    assert not lose("pending", why="x").is_change


def test_an_engine_that_starts_again_leaves_rotation():
    assert next_state("ready", "starting", "run").state == "starting"


def test_every_state_is_reachable_and_only_two_are_ends():
    reachable = {"pending"}
    for _ in STATES:
        reachable |= {after for before in reachable for after in ALLOWED[before]}
    assert reachable == set(STATES)
    assert {state for state in STATES if intent_of(state) == "run"} == lifecycle.LIVE
    assert [state for state in STATES if not ALLOWED[state]] == ["stopped", "failed"]
