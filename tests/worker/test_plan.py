"""The supervisor's decisions, without processes: orders, what is remembered and what is seen go in."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.worker.conftest import order
from worker.plan import (
    Act,
    Limits,
    Seen,
    Step,
    decide,
    decide_one,
    exit_words,
    start_limit_s,
    start_progress,
    start_slots,
)
from worker.processes import Launched
from worker.runtimes.base import LaunchPlan, Readiness
from worker.spec import Progress, ReplicaOrder
from worker.state import MISSING, Prepared, ReplicaState

NOW = 1_000.0
READY = Prepared(state="ready", path=Path("/envs/x"))
PLAN = LaunchPlan(
    argv=("engine",),
    env={},
    host="127.0.0.1",
    port=20_000,
    readiness=Readiness(
        health_path="/health", warm_up_path="/v1/completions", warm_up_body={}, start_limit_s=100, warm_up_limit_s=30
    ),
    stop_grace_s=10.0,
)


def state(phase: str = "environment", *, running: bool = False, **changes: Any) -> ReplicaState:
    values: dict[str, Any] = {
        "replica_id": "r",
        "deployment_name": "d",
        "runtime": "vllm",
        "attempt": 0,
        "since": NOW - 5,
    }
    values |= {"phase": phase}
    if running:
        values |= {"plan": PLAN, "process": Launched(pid=100, started=NOW - 50), "launched_at": NOW - 50}
    return ReplicaState(**(values | changes))


def seen(**changes: Any) -> Seen:
    return Seen(**({"environment": READY, "weights": READY} | changes))


def alive(**changes: Any) -> Seen:
    return seen(**({"process": "alive", "has_members": True} | changes))


def gone(**changes: Any) -> Seen:
    return seen(**({"process": "gone", "has_members": False} | changes))


def one(ordered: ReplicaOrder, known: ReplicaState | None, look: Seen, *, slot: bool = True, learnt: float = 0) -> Step:
    return decide_one(ordered, known, look, has_slot=slot, waits_for="", learnt_start_s=learnt, now=NOW)


RUN, STOP, DRAIN = order("r"), order("r", intent="stop"), order("r", intent="drain")


# --------------------------------------------------------------------- on the way up
def test_a_new_replica_begins() -> None:
    assert one(RUN, None, seen()).acts == (Act.BEGIN,)


@pytest.mark.parametrize(
    ("environment", "weights", "phase", "acts"),
    [
        (MISSING, MISSING, "environment", (Act.BUILD_ENVIRONMENT,)),
        (Prepared(state="working", progress=Progress(step="x")), MISSING, "environment", ()),
        (READY, MISSING, "weights", (Act.FETCH_WEIGHTS,)),
        (READY, Prepared(state="working"), "weights", ()),
        (READY, READY, "starting", (Act.LAUNCH,)),
    ],
)
def test_it_prepares_before_it_launches(
    environment: Prepared, weights: Prepared, phase: str, acts: tuple[Act, ...]
) -> None:
    step = one(RUN, state(), seen(environment=environment, weights=weights))
    assert (step.phase, step.acts) == (phase, acts)


@pytest.mark.parametrize("field", ["environment", "weights"])
def test_failed_preparation_fails_the_replica_with_its_words(field: str) -> None:
    step = one(RUN, state(), seen(**{field: Prepared(state="failed", error="The disk is full.")}))
    assert (step.phase, step.reason, step.acts) == ("failed", "The disk is full.", ())


def test_a_refusal_is_said_before_anything_is_prepared() -> None:
    step = one(RUN, state(), seen(environment=MISSING, refusal="option x: remove it"))
    assert (step.phase, step.reason, step.acts) == ("failed", "option x: remove it", ())


def test_starting_warming_ready() -> None:
    assert one(RUN, state("starting", running=True), alive()).phase == "starting"
    warming = one(RUN, state("starting", running=True), alive(is_healthy=True))
    assert (warming.phase, warming.acts) == ("warming", (Act.WARM_UP,))
    assert one(RUN, state("warming", running=True), alive(is_healthy=True, warm_up="running")).acts == ()
    assert one(RUN, state("warming", running=True), alive(is_healthy=True, warm_up="ok")).phase == "ready"


def test_health_alone_never_makes_an_engine_ready() -> None:
    for warm_up in ("idle", "running", "failed"):
        step = one(RUN, state("starting", running=True), alive(is_healthy=True, warm_up=warm_up))
        assert step.phase == "warming"


def test_a_start_has_a_limit_which_the_host_teaches() -> None:
    late = state("starting", running=True, launched_at=NOW - 101)
    step = one(RUN, late, alive(health_error="does not listen yet or any more"))
    assert (step.phase, step.acts) == ("failed", (Act.KEEP_EVIDENCE,))
    assert "Not healthy 100 s after its launch" in step.reason
    assert "See replicas/r/engine.log in the agent's folder" in step.reason
    assert one(RUN, late, alive(), learnt=30).phase == "starting"
    assert start_limit_s(100, 30) == 120
    assert start_limit_s(100, 10) == 100
    assert start_limit_s(100, 5000) == 3600


def test_progress_of_a_start_is_what_the_host_taught_and_never_whole() -> None:
    assert start_progress(10, 0).share is None
    assert start_progress(10, 40).share == 0.25
    assert start_progress(400, 40).share == 0.95


def test_a_warm_up_has_a_limit() -> None:
    late = state("warming", running=True, since=NOW - 31)
    step = one(RUN, late, alive(is_healthy=True, warm_up="failed", warm_up_error="answered 500: boom"))
    assert (step.phase, step.acts) == ("failed", (Act.KEEP_EVIDENCE,))
    assert "answered 500: boom" in step.reason


# --------------------------------------------------------------------- staggered starts
def test_only_as_many_engines_start_at_once_as_the_cores_allow() -> None:
    assert [start_slots(cores) for cores in (0.5, 1, 2, 3.9, 4, 16)] == [1, 1, 1, 1, 2, 8]
    orders = [order(f"r{i}") for i in range(4)]
    states = {o.replica_id: state(replica_id=o.replica_id) for o in orders}
    states["r0"] = state("warming", running=True, replica_id="r0")
    looks = {o.replica_id: seen() for o in orders} | {"r0": alive()}
    steps = decide(orders, states, looks, limits=Limits(start_slots=2), now=NOW)
    assert [Act.LAUNCH in step.acts for step in steps] == [False, True, False, False]
    assert steps[2].reason.startswith("waits for its turn")


def test_light_engines_neither_take_nor_await_a_turn() -> None:
    light = Prepared(state="ready")
    orders = [order("l1"), order("v"), order("l2")]
    states = {o.replica_id: state(replica_id=o.replica_id) for o in orders}
    states["l0"] = state("starting", running=True, replica_id="l0", is_light=True)
    orders.insert(0, order("l0"))
    looks = {"l0": alive(environment=light), "l1": seen(environment=light), "v": seen(), "l2": seen(environment=light)}
    steps = decide(orders, states, looks, limits=Limits(start_slots=1), now=NOW)
    assert [s.replica_id for s in steps if Act.LAUNCH in s.acts] == ["l1", "v", "l2"]


# --------------------------------------------------------------------- exits
@pytest.mark.parametrize("code", [0, 1, -9, None])
def test_an_exit_nobody_asked_for_is_a_failure_whatever_its_code(code: int | None) -> None:
    step = one(RUN, state("ready", running=True, exit_code=code), gone())
    assert (step.phase, step.acts) == ("failed", (Act.CLEAR,))


def test_what_an_engine_leaves_behind_is_killed() -> None:
    step = one(RUN, state("ready", running=True, exit_code=0), gone(has_members=True))
    assert (step.phase, step.acts) == ("failed", (Act.KILL,))


def test_words_for_exits() -> None:
    assert exit_words(0)[0] == " with code 0"
    assert exit_words(-9)[0] == " by SIGKILL"
    assert "memory" in exit_words(-9)[1]
    assert "instruction" in exit_words(-4)[1]
    assert exit_words(None)[0] == ""


def test_a_failed_replica_stays_failed_until_its_attempt_rises() -> None:
    failed = state("failed", reason="boom")
    assert one(RUN, failed, seen()) == Step(replica_id="r", phase="failed", reason="boom")
    assert one(order("r", attempt=1), failed, seen()).acts == (Act.BEGIN,)


def test_a_failed_engine_that_still_lives_is_killed_after_its_evidence() -> None:
    failed = state("failed", running=True, reason="boom")
    assert one(RUN, failed, alive()).acts == (Act.KEEP_EVIDENCE,)
    assert one(RUN, failed, alive(evidence_kept=True)).acts == (Act.KILL,)
    failed.kill_sent_at = NOW - 1
    assert one(RUN, failed, alive(evidence_kept=True)).acts == ()
    failed.kill_sent_at = NOW - 6
    assert one(order("r", attempt=1), failed, alive(evidence_kept=True)).acts == (Act.KILL,), (
        "ends before it begins anew"
    )
    assert one(RUN, failed, gone()).acts == (Act.CLEAR,)


# --------------------------------------------------------------------- accelerators
def on(replica_id: str, *accelerators: int, **changes: Any) -> ReplicaOrder:
    return order(replica_id, accelerators=accelerators, **changes)


def decide_all(orders: list[ReplicaOrder], states: list[ReplicaState], looks: dict[str, Seen]) -> dict[str, Step]:
    known = {each.replica_id: each for each in states}
    steps = decide(orders, known, looks, limits=Limits(start_slots=8), now=NOW)
    assert len({each.replica_id for each in steps}) == len(steps)
    return {each.replica_id: each for each in steps}


@pytest.mark.parametrize("phase", ["failed", "draining", "ready", "starting"])
def test_an_accelerator_is_not_handed_on_while_its_holder_has_processes(phase: str) -> None:
    old = state(phase, running=True, replica_id="old", accelerators=(0, 1))
    new = state("starting", replica_id="new")
    for look in (alive(evidence_kept=True), gone(has_members=True), gone()):
        for orders in ([on("new", 1)], [on("old", 0, 1, intent="stop"), on("new", 1)], [on("new", 1), on("old", 0, 1)]):
            step = decide_all(orders, [old, new], {"old": look, "new": seen()})["new"]
            assert (step.phase, step.acts) == ("starting", ())
            assert step.reason == "waits for accelerator 1 to be freed by replica old"
    assert decide_all([on("new", 2)], [old, new], {"old": alive(), "new": seen()})["new"].acts == (Act.LAUNCH,)
    old.process = None
    step = decide_all([on("new", 1)], [old, new], {"old": seen(), "new": seen()})["new"]
    assert step.acts == (Act.LAUNCH,), "its group is gone and cleared"


def test_one_look_launches_one_replica_on_an_accelerator() -> None:
    states = [state("starting", replica_id=each) for each in ("a", "b", "c")]
    steps = decide_all([on("a", 0), on("b", 0), on("c", 1)], states, {each: seen() for each in ("a", "b", "c")})
    assert [steps[each].acts for each in ("a", "b", "c")] == [(Act.LAUNCH,), (), (Act.LAUNCH,)]
    assert steps["b"].reason == "waits for accelerator 0 to be freed by replica a"


def test_waiting_for_an_accelerator_prepares_meanwhile_and_takes_no_turn() -> None:
    old = state("failed", running=True, replica_id="old", accelerators=(0,))
    states = [old, state("environment", replica_id="new"), state("starting", replica_id="other")]
    orders = [on("new", 0), order("other")]
    looks = {"old": alive(), "new": seen(environment=MISSING), "other": seen()}
    assert decide_all(orders, states, looks)["new"].acts == (Act.BUILD_ENVIRONMENT,)
    looks["new"] = seen()
    steps = decide(orders, {each.replica_id: each for each in states}, looks, limits=Limits(start_slots=1), now=NOW)
    assert {each.replica_id: each.acts for each in steps}["other"] == (Act.LAUNCH,)


def test_nothing_is_decided_for_what_could_not_be_looked_at() -> None:
    states = [state("ready", running=True, replica_id="odd", accelerators=(0,)), state(replica_id="r")]
    for orders in ([on("odd", 0), on("r", 0)], [on("r", 0)]):
        steps = decide_all(orders, states, {"r": seen()})
        assert set(steps) == {"r"}
        assert steps["r"].reason.startswith("waits for accelerator 0"), "it still holds what it holds"


# --------------------------------------------------------------------- drain and stop
def test_drain_never_signals() -> None:
    for phase in ("starting", "warming", "ready", "draining"):
        step = one(DRAIN, state(phase, running=True), alive(is_healthy=True, warm_up="ok", in_engine=3))
        assert not {Act.TERMINATE, Act.KILL} & set(step.acts)
    assert one(DRAIN, state("ready", running=True), alive(in_engine=3)).reason == "3 requests in the engine"
    assert one(DRAIN, state("draining", running=True), alive(in_engine=0)).reason == "idle"
    past = one(DRAIN, state("draining", running=True, since=NOW - 31), alive(in_engine=2))
    assert past.reason == "drain limit of 30 s passed; 2 requests in the engine"
    assert one(RUN, state("draining", running=True), alive(is_healthy=True)).phase == "ready"


def test_nothing_is_launched_to_be_drained() -> None:
    step = one(DRAIN, state("environment"), seen())
    assert (step.phase, step.acts) == ("stopped", ())


def test_stop_asks_then_kills() -> None:
    running = state("ready", running=True)
    asked = one(STOP, running, alive())
    assert (asked.phase, asked.acts) == ("draining", (Act.TERMINATE,))
    running.term_sent_at = NOW - 9
    assert one(STOP, running, alive()).acts == ()
    running.term_sent_at = NOW - 11
    assert one(STOP, running, alive()).acts == (Act.KILL,)
    assert one(STOP, running, gone(has_members=True)).acts == (Act.KILL,), "the group counts, not its leader"
    done = one(STOP, running, gone())
    assert (done.phase, done.acts) == ("stopped", (Act.CLEAR,))


def test_kill_keeps_evidence_then_kills_without_asking() -> None:
    kill = order("r", intent="stop", kill=True, evidence=True)
    running = state("ready", running=True)
    assert one(kill, running, alive()).acts == (Act.KEEP_EVIDENCE,)
    assert one(kill, running, alive(evidence_kept=True)).acts == (Act.KILL,)


def test_stop_then_run_ends_first_and_begins_anew() -> None:
    ending = state("draining", running=True, term_sent_at=NOW - 1)
    assert one(RUN, ending, alive()).acts == ()
    assert one(RUN, ending, gone()).acts == (Act.BEGIN,)
    assert one(RUN, state("stopped"), seen()).acts == (Act.BEGIN,)


def test_what_no_order_names_is_ended_and_forgotten() -> None:
    look = {"r": alive()}
    steps = decide([], {"r": state("ready", running=True)}, look, limits=Limits(start_slots=1), now=NOW)
    assert steps[0].acts == (Act.TERMINATE,)
    steps = decide([], {"r": state("stopped")}, {"r": seen()}, limits=Limits(start_slots=1), now=NOW)
    assert steps[0].acts == (Act.FORGET,)


# --------------------------------------------------------------------- for all
PHASES = st.sampled_from(["environment", "weights", "starting", "warming", "ready", "draining", "stopped", "failed"])
PIECES = st.sampled_from([MISSING, READY, Prepared(state="working"), Prepared(state="failed", error="e")])


@given(
    phase=PHASES,
    running=st.booleans(),
    process=st.sampled_from(["alive", "gone"]),
    has_members=st.booleans(),
    intent=st.sampled_from(["run", "drain", "stop"]),
    kill=st.booleans(),
    attempt=st.integers(0, 1),
    environment=PIECES,
    weights=PIECES,
    is_healthy=st.booleans(),
    warm_up=st.sampled_from(["idle", "running", "ok", "failed"]),
    term=st.none() | st.floats(NOW - 100, NOW),
    killed=st.none() | st.floats(NOW - 100, NOW),
    kept=st.booleans(),
)
def test_every_decision_is_safe(
    phase: str, running: bool, process: str, has_members: bool, intent: str, kill: bool, attempt: int,
    environment: Prepared, weights: Prepared, is_healthy: bool, warm_up: str, term: float | None,
    killed: float | None, kept: bool,
) -> None:  # fmt: skip
    is_alive = running and process == "alive"
    look = seen(
        environment=environment, weights=weights, process=process if running else "none",
        has_members=running and (has_members or is_alive), is_healthy=is_healthy, warm_up=warm_up, evidence_kept=kept,
    )  # fmt: skip
    known = state(phase, running=running, term_sent_at=term, kill_sent_at=killed)
    step = one(order("r", intent=intent, kill=kill, attempt=attempt), known, look)
    assert step.reason or phase == "failed" or phase == "stopped"
    if Act.LAUNCH in step.acts:
        assert not running, "never two engines for one replica"
        assert intent == "run"
        assert environment.state == weights.state == "ready"
    if Act.BEGIN in step.acts or Act.CLEAR in step.acts:
        assert not look.has_members, "a living group is never forgotten"
    if Act.TERMINATE in step.acts:
        assert intent == "stop" or term is not None or killed is not None or phase == "stopped"
    if Act.KILL in step.acts:
        assert look.has_members
        if intent == "run" and phase in ("starting", "warming", "ready") and term is None and killed is None:
            assert not is_alive, "a living engine that is wanted is not killed without a verdict"
