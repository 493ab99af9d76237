"""The life of a replica: which state may follow which, and what an agent's report makes of it.

The control plane's states (``Replica.State``) are coarser than the agent's phases (``worker.spec.ReplicaPhase``), and
carry intent: a phase only ever moves a replica along ``ALLOWED``, and an exit nobody asked for is a failure.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

State = Literal["pending", "starting", "ready", "draining", "stopping", "stopped", "failed"]
Phase = Literal["environment", "weights", "starting", "warming", "ready", "draining", "stopped", "failed"]
Intent = Literal["run", "drain", "stop"]

ALLOWED: Mapping[State, frozenset[State]] = {
    "pending": frozenset({"starting", "ready", "stopping", "stopped", "failed"}),
    "starting": frozenset({"ready", "stopping", "stopped", "failed"}),
    "ready": frozenset({"starting", "draining", "stopping", "stopped", "failed"}),
    "draining": frozenset({"ready", "stopping", "stopped", "failed"}),
    "stopping": frozenset({"stopped", "failed"}),
    "stopped": frozenset(),
    "failed": frozenset(),
}
"""State -> states that may follow. ``ready → starting``: the engine is being started again under the same replica.
Another try after a failure is another replica."""

LIVE: frozenset[State] = frozenset({"pending", "starting", "ready"})
"""States that count towards the desired number of replicas."""

_STARTING_WORDS: Mapping[str, str] = {
    "environment": "the engine's environment is being prepared",
    "weights": "the weights are being fetched",
    "starting": "the engine is starting",
    "warming": "the engine is warming up",
}


@dataclass(frozen=True, slots=True)
class Transition:
    """Where a replica goes from ``before``, and why, in words for people. ``state == before``: it stays."""

    before: State
    state: State
    reason: str

    @property
    def is_change(self) -> bool:
        return self.state != self.before


def is_allowed(before: State, after: State) -> bool:
    """Whether ``after`` may follow ``before``; staying is always allowed."""
    return before == after or after in ALLOWED[before]


def intent_of(state: State) -> Intent:
    """What the agent is ordered to do with a replica in ``state``."""
    if state in LIVE:
        return "run"
    return "drain" if state == "draining" else "stop"


def next_state(
    current: State,
    phase: Phase | None,
    intent: Intent,
    *,
    acknowledged: bool = True,
    detail: str = "",
    unreachable: str = "",
    in_flight: int | None = 0,
    in_engine: float | None = None,
    state_age_s: float = 0.0,
    drain_s: float = 30.0,
    held: bool = False,
) -> Transition:
    """Return the next state of a replica from what its agent sees and what is wanted of it.

    ``phase`` None: the agent's newest report does not list the replica. ``acknowledged``: that report is fresh and from
    an agent that has applied the orders naming this replica, so its absence means that it is gone. ``detail`` is the
    agent's own reason, ``unreachable`` why no gateway could reach the engine, if so.

    A drain ends when the gateways have nothing ``in_flight`` (None: no gateway tells) and the engine itself nothing
    running or waiting (``in_engine``, None: it does not tell), or ``drain_s`` after it began, ``state_age_s`` ago. Host
    loss is ``lose``.

    ``held``: it drains to be measured and comes back. Its engine is to run, and no report ends its drain.
    """
    if current in ("stopped", "failed"):
        return Transition(current, current, "it has ended")
    if phase is None and not acknowledged:
        return Transition(current, current, "the agent has not applied the orders yet")
    if held and current == "draining" and phase == "ready":
        return Transition(current, current, "out of rotation while it is measured")
    if intent == "run":
        return _while_running(current, phase, detail, unreachable)
    if phase in (None, "stopped"):
        return Transition(current, "stopped", "it never started" if current == "pending" else "the engine has stopped")
    if phase == "failed":
        return Transition(current, "stopped", f"the engine ended by itself{_because(detail)}")
    if intent == "drain":
        return _while_draining(current, in_flight, in_engine, state_age_s, drain_s)
    return Transition(current, "stopping", "the engine is being stopped")


def lose(current: State, *, why: str) -> Transition:
    """Return what becomes of a replica whose host is lost: nobody can say that it runs, so it has failed."""
    if current in ("stopped", "failed"):
        return Transition(current, current, "it has ended")
    if current == "pending":
        return Transition(current, current, "it is on no host yet")
    if current == "stopping":
        return Transition(current, "stopped", f"its host is lost while it was stopping: {why}")
    return Transition(current, "failed", f"its host is lost: {why}")


def _while_running(current: State, phase: Phase | None, detail: str, unreachable: str) -> Transition:
    if phase is None:
        if current == "pending":
            return Transition(current, current, "waiting for the agent to start it")
        return Transition(current, "failed", "the agent no longer knows of it; its engine is gone")
    if phase == "failed":
        return Transition(current, "failed", detail or "the engine failed; see its log")
    if phase == "stopped":
        return Transition(current, "failed", f"the engine stopped without being asked{_because(detail)}")
    if current == "stopping":
        return Transition(current, current, "a stop cannot be taken back")
    if phase == "ready" and unreachable and current in ("pending", "starting"):
        return Transition(current, "starting", unreachable)
    if phase == "ready":
        return Transition(
            current, "ready", "the engine answers" if current != "draining" else "the drain was cancelled"
        )
    if phase == "draining":
        return Transition(current, current, "the agent is leaving the drain")
    if current == "draining":
        return Transition(current, current, "waiting for the engine to be ready again")
    reason = _STARTING_WORDS[phase] + (f": {detail}" if detail else "")
    if current == "ready":
        reason = f"started again: {reason}"
    return Transition(current, "starting", reason)


def _while_draining(
    current: State, in_flight: int | None, in_engine: float | None, age_s: float, drain_s: float
) -> Transition:
    if current in ("pending", "starting"):
        return Transition(current, "stopping", "not needed any more before it served")
    if current == "ready":
        return Transition(current, "draining", "taken out of rotation; requests in flight finish")
    if current == "stopping":
        return Transition(current, current, "a stop cannot be taken back")
    if in_flight is not None and in_flight <= 0 and not in_engine:
        return Transition(current, "stopping", "drained: no request in flight")
    if in_flight is None:
        # Gateways that are cut off from the state stream on, and go on sending by their last snapshot.
        what = "no gateway tells what is in flight"
    else:
        what = f"{max(in_flight, math.ceil(in_engine or 0))} in flight"
    if age_s >= drain_s:
        return Transition(current, "stopping", f"drain limit of {drain_s:g} s reached: {what}")
    return Transition(current, current, f"draining: {what}, {max(0.0, drain_s - age_s):.0f} s left")


def _because(detail: str) -> str:
    return f": {detail}" if detail else ""
