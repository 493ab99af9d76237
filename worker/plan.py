"""The supervisor's decisions: from orders and what is seen of each replica to actions, each with its reason.

Pure: no clock, no process, no file. The supervisor looks, calls ``decide``, acts, and looks again; every action is safe
to repeat, so nothing depends on having seen a change happen.
"""

from __future__ import annotations

import signal
from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import Literal

import msgspec

from worker.spec import Progress, ReplicaOrder, ReplicaPhase
from worker.state import Prepared, ReplicaState

KILL_AGAIN_S = 5.0
"""A killed group that is still there (a process in an uninterruptible call) is signalled again after this."""
LEARNT_FACTOR = 4.0
LONGEST_START_S = 3600.0


class Act(StrEnum):
    """What the supervisor can do for a replica."""

    BEGIN = "begin"  # forget the past of this replica: a new attempt
    BUILD_ENVIRONMENT = "build environment"
    FETCH_WEIGHTS = "fetch weights"
    LAUNCH = "launch"
    WARM_UP = "warm up"
    KEEP_EVIDENCE = "keep evidence"
    TERMINATE = "terminate"  # SIGTERM to the group
    KILL = "kill"  # SIGKILL to the group
    CLEAR = "clear"  # the process group is gone: forget pid and plan
    FORGET = "forget"  # no order names it and nothing of it is left


class Seen(msgspec.Struct, frozen=True, kw_only=True):
    """What the supervisor sees of one replica now.

    ``process`` speaks of the launched process, ``has_members`` of its group: an engine core may outlive its server.
    """

    environment: Prepared
    weights: Prepared
    process: Literal["none", "alive", "gone"] = "none"
    has_members: bool = False
    exit_words: str = ""
    is_healthy: bool = False
    health_error: str = ""
    warm_up: Literal["idle", "running", "ok", "failed"] = "idle"
    warm_up_error: str = ""
    in_engine: float | None = None
    """Requests running or waiting in the engine, where its metrics tell."""
    refusal: str = ""
    """The runtime cannot do what the order asks, or the launch itself failed."""
    evidence_kept: bool = False


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """``start_slots``: engines between launch and ready at once. ``learnt_start_s``: longest start of this host."""

    start_slots: int
    learnt_start_s: float = 0.0


class Step(msgspec.Struct, frozen=True, kw_only=True):
    """The phase a replica is in after this look, why, and what to do now."""

    replica_id: str
    phase: ReplicaPhase
    reason: str
    acts: tuple[Act, ...] = ()


def start_slots(cores: float) -> int:
    """How many engines may start at once: starting is CPU-bound, n at once on few cores only make all of them late."""
    return max(1, int(cores) // 2)


def start_limit_s(plan_limit_s: float, learnt_start_s: float) -> float:
    """How long a start may take here: the runtime's own limit, or a multiple of what this host needed before."""
    return min(LONGEST_START_S, max(plan_limit_s, LEARNT_FACTOR * learnt_start_s))


def start_progress(elapsed_s: float, learnt_start_s: float) -> Progress:
    """How far a start is, by what this host needed before; no share before it has learnt, never a whole one."""
    share = min(0.95, max(0.0, elapsed_s) / learnt_start_s) if learnt_start_s > 0 else None
    return Progress(step="load engine", share=None if share is None else round(share, 2), detail=f"{elapsed_s:.0f} s")


def exit_words(code: int | None) -> tuple[str, str]:
    """Return how a process ended, and what to think of it when its log says nothing. Code 0 is no good sign."""
    if code is None:
        return "", "Nobody saw it end; its log does not say why."
    if code >= 0:
        return f" with code {code}", "Its log does not say why."
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = f"signal {-code}"
    hints = {
        "SIGKILL": "It was killed from outside, often by the kernel when memory runs out: see the kernel's log.",
        "SIGILL": "The processor lacks an instruction that the engine was built for.",
    }
    return f" by {name}", hints.get(name, "Its log does not say why.")


def decide(
    orders: Sequence[ReplicaOrder],
    states: Mapping[str, ReplicaState],
    seen: Mapping[str, Seen],
    *,
    limits: Limits,
    now: float,
) -> list[Step]:
    """Return one step per replica that is ordered or known, ordered ones first in the order of the orders.

    One that is not in ``seen`` could not be looked at: nothing is decided for it. Starts are staggered: engines that
    take long to start (those with an environment of their own) share ``limits.start_slots``. An accelerator belongs to
    the replica that was launched on it until that one's process group is gone, whatever the orders say.
    """
    busy = sum(1 for state in states.values() if _is_starting(state) and not state.is_light)
    free = limits.start_slots - busy
    held = {index: state.replica_id for state in states.values() if state.process for index in state.accelerators}
    steps = []
    for order in orders:
        if order.replica_id not in seen:
            continue
        step = decide_one(order, states.get(order.replica_id), seen[order.replica_id], has_slot=free > 0,
                          waits_for=_taken(order, held), learnt_start_s=limits.learnt_start_s, now=now)  # fmt: skip
        if Act.LAUNCH in step.acts:
            free -= 0 if _is_light(seen[order.replica_id]) else 1
            held |= dict.fromkeys(order.accelerators, order.replica_id)
        steps.append(step)
    ordered = {order.replica_id for order in orders}
    for replica_id, state in states.items():
        if replica_id in seen and replica_id not in ordered:
            steps.append(_stop(None, state, seen[replica_id], now))
    return steps


def _taken(order: ReplicaOrder, held: Mapping[int, str]) -> str:
    """Which of the order's accelerators another replica holds, in words; empty when none."""
    for index in order.accelerators:
        if held.get(index, order.replica_id) != order.replica_id:
            return f"accelerator {index} to be freed by replica {held[index]}"
    return ""


def decide_one(
    order: ReplicaOrder,
    state: ReplicaState | None,
    seen: Seen,
    *,
    has_slot: bool,
    waits_for: str,
    learnt_start_s: float,
    now: float,
) -> Step:
    """Decide for one ordered replica. ``state`` None: it was never seen before. ``waits_for``: what bars its launch."""
    if order.intent == "stop":
        return _stop(order, state, seen, now)
    if state is None:
        return Step(replica_id=order.replica_id, phase="environment", reason="ordered", acts=(Act.BEGIN,))
    if state.phase == "failed":
        return _failed(order, state, seen, now)
    if state.phase == "stopped" or state.term_sent_at is not None or state.kill_sent_at is not None:
        return _restart(order, state, seen, now)
    if state.process is None:
        return _prepare(order, state, seen, has_slot, waits_for)
    if seen.process == "gone":
        return _exited(state, seen, now)
    return _watch(order, state, seen, learnt_start_s, now)


def _is_starting(state: ReplicaState) -> bool:
    return state.process is not None and state.phase in ("starting", "warming")


def _is_light(seen: Seen) -> bool:
    """An engine of the agent's own interpreter starts in about a second: it neither takes nor awaits a turn."""
    return seen.environment.path is None


def _step(state: ReplicaState, phase: ReplicaPhase, reason: str, *acts: Act) -> Step:
    return Step(replica_id=state.replica_id, phase=phase, reason=reason, acts=acts)


def _kill_again(state: ReplicaState, now: float) -> tuple[Act, ...]:
    if state.kill_sent_at is None or now - state.kill_sent_at >= KILL_AGAIN_S:
        return (Act.KILL,)
    return ()


def _failed(order: ReplicaOrder, state: ReplicaState, seen: Seen, now: float) -> Step:
    """A failed replica stays failed, and dead, until the control plane raises its attempt."""
    if seen.process == "alive" or seen.has_members:
        acts = () if seen.evidence_kept else (Act.KEEP_EVIDENCE,)
        return _step(state, "failed", state.reason, *(acts or _kill_again(state, now)))
    clear = (Act.CLEAR,) if state.process is not None else ()
    if order.attempt > state.attempt:
        return _step(state, "environment", f"tried again, attempt {order.attempt}", *clear, Act.BEGIN)
    return _step(state, "failed", state.reason, *clear)


def _restart(order: ReplicaOrder, state: ReplicaState, seen: Seen, now: float) -> Step:
    """Ordered to run (again) although it is stopped or being stopped: let it end, then begin anew."""
    if seen.process == "alive" or seen.has_members:
        ending = _stop(order, state, seen, now)
        return _step(state, ending.phase, f"starts again once it has ended; {ending.reason}", *ending.acts)
    if order.intent == "drain":
        clear = (Act.CLEAR,) if state.process is not None else ()
        return _step(state, "stopped", state.reason or "nothing to drain", *clear)
    return _step(state, "environment", "ordered to run again", Act.BEGIN)


def _prepare(order: ReplicaOrder, state: ReplicaState, seen: Seen, has_slot: bool, waits_for: str) -> Step:
    if order.intent == "drain":
        return _step(state, "stopped", "drained before it was launched")
    if seen.refusal:
        return _step(state, "failed", seen.refusal)
    if seen.environment.state != "ready":
        if seen.environment.state == "failed":
            return _step(state, "failed", seen.environment.error)
        acts = (Act.BUILD_ENVIRONMENT,) if seen.environment.state == "missing" else ()
        return _step(state, "environment", "its engine environment is being built", *acts)
    if seen.weights.state != "ready":
        if seen.weights.state == "failed":
            return _step(state, "failed", seen.weights.error)
        acts = (Act.FETCH_WEIGHTS,) if seen.weights.state == "missing" else ()
        return _step(state, "weights", "its weights are being fetched", *acts)
    if waits_for:
        return _step(state, "starting", f"waits for {waits_for}")
    if not has_slot and not _is_light(seen):
        return _step(state, "starting", "waits for its turn: other engines of this host are starting")
    return _step(state, "starting", "launched", Act.LAUNCH)


def _exited(state: ReplicaState, seen: Seen, now: float) -> Step:
    """Whatever the exit code: nobody asked for it, so it failed. What is left of the group goes, too."""
    how, hint = exit_words(state.exit_code)
    doing = {"starting": "while it started", "warming": "while it warmed up"}.get(state.phase, "while it served")
    reason = f"The engine ended{how} {doing}. {seen.exit_words or hint}"
    leftovers = _kill_again(state, now) if seen.has_members else (Act.CLEAR,)
    return _step(state, "failed", reason, *leftovers)


def _watch(order: ReplicaOrder, state: ReplicaState, seen: Seen, learnt_start_s: float, now: float) -> Step:
    if state.phase in ("ready", "draining"):
        return _serving(order, state, seen, now)
    plan = state.plan
    if plan is None:
        return _step(state, "failed", "Its launch plan was lost: retry.", Act.KEEP_EVIDENCE)
    launched_at = state.launched_at if state.launched_at is not None else now
    limit_s = start_limit_s(plan.readiness.start_limit_s, learnt_start_s)
    if state.phase != "warming" and not seen.is_healthy:
        if now - launched_at > limit_s:
            told = f" ({seen.health_error})" if seen.health_error else ""
            log = f"replicas/{state.replica_id}/engine.log in the agent's folder"
            hint = seen.exit_words or f"See {log}; a slower host needs a higher start_limit_s."
            reason = f"Not healthy {limit_s:.0f} s after its launch{told}. {hint}"
            return _step(state, "failed", reason, Act.KEEP_EVIDENCE)
        return _step(state, "starting", "loading")
    if seen.warm_up == "ok":
        return _step(state, "ready", "serving")
    warming_since = state.since if state.phase == "warming" else now
    if now - warming_since > plan.readiness.warm_up_limit_s:
        told = seen.warm_up_error or "no answer"
        reason = f"Healthy, but a first request did not succeed within {plan.readiness.warm_up_limit_s:.0f} s: {told}"
        return _step(state, "failed", reason, Act.KEEP_EVIDENCE)
    acts = () if seen.warm_up == "running" else (Act.WARM_UP,)
    return _step(state, "warming", seen.warm_up_error or "first request", *acts)


def _serving(order: ReplicaOrder, state: ReplicaState, seen: Seen, now: float) -> Step:
    if order.intent == "drain":
        since = state.since if state.phase == "draining" else now
        left = "" if seen.in_engine is None else f"{seen.in_engine:.0f} requests in the engine"
        if seen.in_engine == 0:
            return _step(state, "draining", "idle")
        if now - since > order.drain_s:
            return _step(state, "draining", f"drain limit of {order.drain_s:.0f} s passed; {left}".rstrip("; "))
        return _step(state, "draining", left or "drains")
    return _step(state, "ready", "serving" if seen.is_healthy or not seen.health_error else seen.health_error)


def _stop(order: ReplicaOrder | None, state: ReplicaState | None, seen: Seen, now: float) -> Step:
    """End a replica on purpose: evidence if asked for, SIGTERM, after a bound SIGKILL, each to the whole group."""
    if state is None:
        # Named only to be stopped: say so, that the control plane may forget it.
        replica_id = order.replica_id if order is not None else ""
        return Step(replica_id=replica_id, phase="stopped", reason="was not running", acts=(Act.BEGIN,))
    why = "stopped by order" if order is not None else "no order names it"
    if seen.process != "alive" and not seen.has_members:
        if order is None:
            return _step(state, "stopped", why, Act.FORGET)
        clear = (Act.CLEAR,) if state.process is not None else ()
        return _step(state, "stopped", _stopped_reason(state, why), *clear)
    phase: ReplicaPhase = "failed" if state.phase == "failed" else "draining"
    if order is not None and (order.evidence or order.kill) and not seen.evidence_kept:
        return _step(state, phase, "evidence is being kept", Act.KEEP_EVIDENCE)
    if (order is not None and order.kill) or state.kill_sent_at is not None:
        return _step(state, phase, "killed as a group", *_kill_again(state, now))
    if state.term_sent_at is None:
        return _step(state, phase, f"{why}: asked to end", Act.TERMINATE)
    grace_s = state.plan.stop_grace_s if state.plan is not None else 10.0
    if now - state.term_sent_at > grace_s:
        return _step(state, phase, f"did not end within {grace_s:.0f} s: killed as a group", Act.KILL)
    return _step(state, phase, f"{why}: asked to end", *())


def _stopped_reason(state: ReplicaState, why: str) -> str:
    if state.phase == "stopped" and state.reason:
        return state.reason
    if state.phase == "failed":
        return f"stopped after a failure: {state.reason}"
    if state.kill_sent_at is not None:
        return "killed by order" if state.term_sent_at is None else "killed: it did not end when asked to"
    return why
