"""The life of a calibration: which replica is taken, what happens next, and when it is given up. Level-triggered.

``decide`` looks at what is, never at what was asked last time: any loops process can take any tick, also after all of
them were away. Giving the replica back is a rule of its own (``is_held``): whatever ends a calibration, its replica
returns.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

State = Literal["queued", "draining", "measuring", "fitted", "adopted", "failed", "cancelled"]
Act = Literal["wait", "take", "measure", "fit", "fail"]
Told = Literal["", "waiting", "measuring", "done", "failed"]
"""What the agent says of the measurement; empty: nothing yet."""

UNDER_WAY: frozenset[State] = frozenset({"queued", "draining", "measuring"})


@dataclass(frozen=True, slots=True)
class Limits:
    """Seconds. ``settle_s``: gateways need it to learn that a replica drains; ``silent_s``: without a word of the agent
    on the measurement, e.g. while it restarts, or because it is too old to know how; ``waiting_s``: the agent may wait
    so long for the engine to be idle."""

    queued_s: float = 600.0
    settle_s: float = 2.0
    drain_s: float = 900.0
    silent_s: float = 180.0
    waiting_s: float = 300.0
    measuring_s: float = 4 * 3600.0


@dataclass(frozen=True, slots=True)
class Candidate:
    """A replica of the deployment that could be measured. ``in_flight_mu``: what it would have to finish first."""

    id: str
    is_ready: bool
    is_current: bool
    is_host_active: bool
    in_flight_mu: float = 0.0
    ready_at: float = 0.0


@dataclass(frozen=True, slots=True)
class Choice:
    """The replica to take out of rotation, or None and why nothing is taken, with what to do about it."""

    replica_id: str | None
    reason: str


@dataclass(frozen=True, slots=True)
class Held:
    """The replica that is out of rotation for a calibration. ``in_flight`` None: no gateway tells; ``in_engine``: what
    the engine says it has, None when it does not tell."""

    is_marked: bool
    is_current: bool
    is_host_there: bool
    state: str
    in_flight: int | None = 0
    in_engine: float | None = None


@dataclass(frozen=True, slots=True)
class Facts:
    """What is known of a calibration under way. Ages in seconds; ``held`` None: the replica does not exist any more.

    ``told_age_s`` counts from the last word of the agent on it, or from the begin of the state where there was none.
    ``others_ready``: replicas of the deployment that serve meanwhile; none must, where ``allow_outage``.
    """

    state: State
    age_s: float
    is_served: bool
    held: Held | None = None
    choice: Choice | None = None
    told: Told = ""
    told_reason: str = ""
    told_age_s: float = 0.0
    waiting_s: float = 0.0
    others_ready: int = 1
    allow_outage: bool = False


@dataclass(frozen=True, slots=True)
class Step:
    """What to do now, and why, in words for people."""

    act: Act
    reason: str


def choose(candidates: Iterable[Candidate], *, allow_outage: bool) -> Choice:
    """Which replica to measure: the idlest that serves the current revision on a host that takes work.

    The only one that is ready is taken only if an outage is allowed: clients get 503 while it is measured.
    """
    rows = list(candidates)
    ready = [one for one in rows if one.is_ready]
    able = [one for one in ready if one.is_current and one.is_host_active]
    if not ready:
        return Choice(None, "no replica is ready: start the deployment, and calibrate once it serves")
    if not able:
        return Choice(None, "no ready replica runs the current revision on an active host: wait for the roll-out")
    if len(ready) == 1 and not allow_outage:
        return Choice(
            None,
            "only one replica is ready, and clients would get 503 while it is measured: let another one start, or "
            "allow the outage",
        )
    idlest = min(able, key=lambda one: (one.in_flight_mu, -one.ready_at, one.id))
    others = len(ready) - 1
    serve = f"{others} other{'s' if others != 1 else ''} serve{'s' if others == 1 else ''}" if others else "none serves"
    return Choice(idlest.id, f"taken out of rotation to be measured; {serve} meanwhile")


def decide(facts: Facts, limits: Limits | None = None) -> Step:
    """The next step of a calibration. One that is over is left as it is."""
    limits = limits or Limits()
    if facts.state not in UNDER_WAY:
        return Step("wait", "it is over")
    if not facts.is_served:
        return Step("fail", "the deployment was stopped or removed meanwhile")
    if facts.state == "queued":
        return _queued(facts, limits)
    lost = _lost(facts.held)
    if lost:
        return Step("fail", lost)
    if facts.others_ready <= 0 and not facts.allow_outage and facts.told != "done":
        return Step("fail", "no other replica serves any more, so this one must: calibrate when two are ready")
    assert facts.held is not None  # noqa: S101 (for the type checker: `_lost` tells of None)
    if facts.state == "draining":
        return _draining(facts, facts.held, limits)
    return _measuring(facts, limits)


def is_held(calibration_state: State | None, *, is_its_replica: bool) -> bool:
    """Whether a replica stays out of rotation for the calibration that it is marked with (None: there is none)."""
    return calibration_state in ("draining", "measuring") and is_its_replica


def _lost(held: Held | None) -> str:
    """Why the replica cannot be measured any more; empty while it can."""
    if held is None:
        return "the replica does not exist any more"
    if held.state == "failed":
        return "the replica failed while it was out of rotation: its incident tells why"
    if held.state != "draining" or not held.is_marked:
        return f"somebody moved the replica meanwhile: it is {held.state}"
    if not held.is_host_there:
        return "its host is being drained, or is lost"
    if not held.is_current:
        return "a newer revision took over: calibrate that one"
    return ""


def _queued(facts: Facts, limits: Limits) -> Step:
    choice = facts.choice or Choice(None, "no replica is ready")
    if choice.replica_id is not None:
        return Step("take", choice.reason)
    if facts.age_s >= limits.queued_s:
        return Step("fail", choice.reason)
    return Step("wait", f"waiting for a replica: {choice.reason}")


def _draining(facts: Facts, held: Held, limits: Limits) -> Step:
    if facts.age_s < limits.settle_s:
        return Step("wait", "gateways learn that the replica is out of rotation")
    if held.in_flight is None:
        what = "no gateway tells what is in flight"
        # Without a gateway nobody sends: the engine's own word is enough.
        if held.in_engine == 0:
            return Step("measure", "drained: the engine has no request")
    else:
        what = f"{max(held.in_flight, int(held.in_engine or 0))} in flight"
        if held.in_flight <= 0 and not held.in_engine:
            return Step("measure", "drained: no request in flight")
    if facts.age_s >= limits.drain_s:
        return Step("fail", f"not drained after {limits.drain_s:g} s: {what}. Calibrate when fewer long requests run")
    return Step("wait", f"draining: {what}")


def _measuring(facts: Facts, limits: Limits) -> Step:
    if facts.told == "done":
        return Step("fit", "measured")
    if facts.told == "failed":
        return Step("fail", facts.told_reason or "the agent could not measure it")
    if facts.age_s >= limits.measuring_s:
        return Step("fail", f"not measured within {limits.measuring_s / 3600:g} h: take a smaller grid")
    if facts.told_age_s >= limits.silent_s:
        if not facts.told:
            return Step(
                "fail", f"the host's agent has not begun within {limits.silent_s:g} s: is it up to date? Update it"
            )
        return Step("fail", f"the host's agent has said nothing for {limits.silent_s:g} s: is it running?")
    if facts.told == "waiting" and facts.waiting_s >= limits.waiting_s:
        return Step("fail", facts.told_reason or f"the engine was not idle within {limits.waiting_s:g} s")
    return Step("wait", facts.told_reason or "being measured")
