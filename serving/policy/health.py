"""Is a replica alive, busy, or dead? Whom to ask, what an answer means, and how many may be killed for it.

An engine whose core hangs keeps answering ``/health`` and ``/metrics`` with 200, and an overloaded one answers nothing
in time: neither proves anything. What proves life is tokens. So a real completion is asked for at top priority, only
where none was seen lately; failures count only while no token moves anywhere; and *dead* takes two of them.

Progress is told by change, never by comparing clocks: a mark or counter that moved since the last look moved now.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

ProbeOutcome = Literal["ok", "busy", "rejected", "timeout", "refused", "server_error"]
"""``busy``: HTTP 503 or 429. ``rejected``: any other 4xx; the question was wrong (another model name or API) and
says nothing about the engine's core. ``server_error``: any other 5xx, a stream that ended in an error, or no token in
it. ``refused``: no connection, or it broke."""

Status = Literal["alive", "busy", "dead", "unknown"]


_SPARED_INTERVALS = 4
"""A replica that looks dead and is spared is asked again after so many intervals: it may have recovered."""
_STEPS = 3.0
"""So many of its longest steps an engine may take to answer a probe: one to end, one of its own, one to spare."""
_LONGEST_TIMEOUT_S = 300.0


@dataclass(frozen=True, slots=True)
class Config:
    """Seconds. ``probe_timeout_s`` must exceed what one engine step may take (``for_steps``), ``quiet_s`` is how long a
    real token keeps the probe away."""

    interval_s: float = 5.0
    quiet_s: float = 10.0
    stall_s: float = 5.0
    """Requests in flight and no token for this long: probe at once."""
    probe_timeout_s: float = 10.0
    confirm_after_s: float = 2.0
    """From a failed probe to the one that confirms it."""
    failures_to_die: int = 2
    busy_limit_s: float = 60.0
    """An engine that refuses for being busy while no token moves for this long is not busy but stuck."""
    fresh_s: float = 20.0
    """Evidence older than this says nothing about now."""

    def for_steps(self, step_s: float) -> Config:
        """The configuration for an engine whose longest step takes ``step_s``: an engine is not dead in a step."""
        timeout_s = max(self.probe_timeout_s, min(_LONGEST_TIMEOUT_S, _STEPS * step_s))
        return replace(self, probe_timeout_s=timeout_s, busy_limit_s=max(self.busy_limit_s, 2.0 * timeout_s))

    def detection_bound_s(self, tick_s: float) -> float:
        """Longest time from the freeze of an engine to the verdict, when probes and verdicts happen each ``tick_s``.

        The last token may have come just before the freeze, and each step waits for a tick.
        """
        first = max(self.quiet_s, self.interval_s, self.stall_s) + tick_s + self.probe_timeout_s
        confirmations = self.failures_to_die - 1
        return first + confirmations * (self.confirm_after_s + tick_s + self.probe_timeout_s) + tick_s


@dataclass(frozen=True, slots=True)
class Probe:
    """A finished probe. Times in UNIX seconds of the prober."""

    started_at: float
    ended_at: float
    outcome: ProbeOutcome
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Sighting:
    """What is known of a replica at one look; None and empty mean unknown.

    ``token_marks`` and ``success_marks``: gateway -> its ``last_token_at`` and ``last_success_at`` for the replica.
    ``in_flight`` requests over all gateways. ``generation_tokens`` and ``prompt_tokens`` are the engine's cumulative
    counters, ``process_start`` its own start time: it changes with a restart.
    """

    token_marks: Mapping[str, float] = field(default_factory=dict, hash=False)
    success_marks: Mapping[str, float] = field(default_factory=dict, hash=False)
    in_flight: int = 0
    generation_tokens: float | None = None
    prompt_tokens: float | None = None
    process_start: float | None = None


@dataclass(frozen=True, slots=True)
class Memory:
    """What is remembered of a replica between looks. Times in UNIX seconds of the loops.

    ``real_at``: last token or success of a real request, by the gateways. ``progressed_at``: last sign of life of any
    kind, the engine's own counters and answered probes included. ``failures``: failed probes since then, oldest first;
    ``busy_since``: first refusal for being busy since then. ``failed_at``: end of the last failed probe, forgiven or
    not. ``asked_at``: begin of a probe whose result is not known yet.
    """

    since: float | None = None
    looked_at: float | None = None
    token_marks: Mapping[str, float] = field(default_factory=dict, hash=False)
    success_marks: Mapping[str, float] = field(default_factory=dict, hash=False)
    generation_tokens: float | None = None
    prompt_tokens: float | None = None
    process_start: float | None = None
    in_flight: int = 0
    in_flight_since: float | None = None
    real_at: float | None = None
    progressed_at: float | None = None
    probed_at: float | None = None
    asked_at: float | None = None
    failed_at: float | None = None
    failures: tuple[Probe, ...] = ()
    busy_since: float | None = None

    def to_json(self) -> str:
        return json.dumps(asdict(self), separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str | bytes) -> Memory:
        """Return the memory in ``text``. Raises ValueError when it is none."""
        raw: Any = json.loads(text)
        if not isinstance(raw, dict):
            raise ValueError("a health memory must be a JSON object")
        known = {name: value for name, value in raw.items() if name in cls.__dataclass_fields__}
        known["failures"] = tuple(Probe(**probe) for probe in known.get("failures", ()))
        return cls(**known)


@dataclass(frozen=True, slots=True)
class Advice:
    """Whether to probe now, and why (not)."""

    is_due: bool
    reason: str


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a replica is, and why, in words for people."""

    status: Status
    reason: str


def look(memory: Memory, seen: Sighting, *, now: float, config: Config | None = None) -> Memory:
    """Return ``memory`` with what was ``seen`` now. A mark or counter that moved is a sign of life: failures go."""
    fresh_s = (config or Config()).fresh_s
    if memory.process_start is not None and seen.process_start not in (None, memory.process_start):
        memory = Memory()
    is_real = _has_moved(memory.token_marks, seen.token_marks, now, fresh_s) or _has_moved(
        memory.success_marks, seen.success_marks, now, fresh_s
    )
    has_counted = _has_grown(memory.generation_tokens, seen.generation_tokens) or _has_grown(
        memory.prompt_tokens, seen.prompt_tokens
    )
    in_flight_since = None
    if seen.in_flight:
        in_flight_since = now if memory.in_flight_since is None else min(memory.in_flight_since, now)
    memory = replace(
        memory,
        since=now if memory.since is None else min(memory.since, now),
        looked_at=now,
        token_marks=dict(seen.token_marks),
        success_marks=dict(seen.success_marks),
        generation_tokens=_latest(memory.generation_tokens, seen.generation_tokens),
        prompt_tokens=_latest(memory.prompt_tokens, seen.prompt_tokens),
        process_start=_latest(memory.process_start, seen.process_start),
        in_flight=seen.in_flight,
        in_flight_since=in_flight_since,
        real_at=now if is_real else _not_after(memory.real_at, now),
        progressed_at=_not_after(memory.progressed_at, now),
        probed_at=_not_after(memory.probed_at, now),
        asked_at=_not_after(memory.asked_at, now),
        failed_at=_not_after(memory.failed_at, now),
    )
    return _alive_again(memory, now) if is_real or has_counted else memory


def asked(memory: Memory, *, now: float) -> Memory:
    """Return ``memory`` with a probe that begins now."""
    return replace(memory, asked_at=now, probed_at=now)


def record_probe(memory: Memory, probe: Probe) -> Memory:
    """Return ``memory`` with the result of a probe. Only an answer is a sign of life.

    A failure counts only when no token moved since the probe began.
    """
    memory = replace(memory, probed_at=probe.started_at, asked_at=None)
    if probe.outcome == "ok":
        return _alive_again(memory, probe.ended_at)
    if probe.outcome == "busy":
        return replace(memory, busy_since=memory.busy_since or probe.started_at)
    if probe.outcome == "rejected":
        return memory
    memory = replace(memory, failed_at=probe.ended_at)
    if _progressed_at(memory) >= probe.started_at:
        return memory
    return replace(memory, failures=(*memory.failures, probe)[-8:])


def should_probe(config: Config, memory: Memory, *, now: float) -> Advice:
    """Say whether the replica should be asked for a token now: one probe at a time.

    A probe whose result never came (its process died) is given up an interval after its time.
    """
    if memory.asked_at is not None and now - memory.asked_at <= config.probe_timeout_s + config.interval_s:
        return Advice(False, "a probe is under way")
    probed_s = math.inf if memory.probed_at is None else now - memory.probed_at
    if memory.failures:
        # The next one starts a moment after the last one ended, so that its timeout does not count as patience.
        ended_s = now - memory.failures[-1].ended_at
        if len(memory.failures) >= config.failures_to_die and ended_s < _SPARED_INTERVALS * config.interval_s:
            return Advice(False, "enough probes failed; the verdict is due")
        if ended_s < config.confirm_after_s:
            return Advice(False, "a probe failed just now; it is repeated in a moment")
        return Advice(True, f"to confirm a failed probe ({memory.failures[-1].outcome})")
    if memory.in_flight and memory.in_flight_since is not None:
        stalled_s = min(now - _progressed_at(memory), now - memory.in_flight_since)
        if stalled_s >= config.stall_s and probed_s >= min(config.stall_s, config.interval_s):
            return Advice(True, f"{memory.in_flight} in flight and no token for {stalled_s:.0f} s")
    quiet_s = math.inf if memory.real_at is None else now - memory.real_at
    if quiet_s < config.quiet_s:
        return Advice(False, f"a real token was seen {quiet_s:.0f} s ago")
    if probed_s < config.interval_s:
        return Advice(False, f"probed {probed_s:.0f} s ago")
    return Advice(True, "no real request lately")


def judge(config: Config, memory: Memory, *, now: float) -> Verdict:
    """Say what the replica is. Never dead while a token moved after the first of the failed probes.

    Failed probes condemn only after a ``look`` that is younger than they are.
    """
    sign = _progressed_at(memory)
    age = "never" if sign == -math.inf else f"{max(0.0, now - sign):.0f} s ago"
    failures = memory.failures
    if len(failures) >= config.failures_to_die:
        looked_at = -math.inf if memory.looked_at is None else memory.looked_at
        if sum(probe.ended_at <= looked_at for probe in failures) < config.failures_to_die:
            # Tokens that moved during the last probe would be seen by the next look only.
            return Verdict(
                "unknown", f"{len(failures)} probes failed; tokens are looked at once more; last token {age}"
            )
        outcomes = ", ".join(_worded(probe) for probe in failures[-config.failures_to_die :])
        return Verdict("dead", f"{len(failures)} probes in a row failed ({outcomes}); last token {age}")
    if memory.busy_since is not None:
        stuck_s = now - max(memory.busy_since, sign)
        if stuck_s >= config.busy_limit_s:
            return Verdict("dead", f"it has refused for being busy for {stuck_s:.0f} s while no token moved")
        return Verdict("busy", f"it refuses more work; last token {age}")
    if failures:
        return Verdict("unknown", f"a probe failed ({_worded(failures[-1])}), to be confirmed; last token {age}")
    if now - sign > config.fresh_s:
        return Verdict("unknown", f"no sign of life yet: last token {age}")
    if memory.failed_at is not None and now - memory.failed_at <= config.fresh_s:
        return Verdict("busy", f"slow: a probe failed, but tokens have moved since, last {age}")
    return Verdict("alive", f"last token {age}")


@dataclass(frozen=True, slots=True)
class Budget:
    """Who may be killed now, and why the others are spared for the moment."""

    condemned: tuple[str, ...]
    spared: Mapping[str, str]


def restart_budget(
    dead: Sequence[str],
    *,
    replicas: int,
    being_replaced: int,
    killed_at: Sequence[float],
    now: float,
    share: float = 0.2,
    per_window: int = 3,
    window_s: float = 600.0,
) -> Budget:
    """Return which of the ``dead`` replicas of one deployment may be killed now, worst first as given.

    At most ``max(1, share · replicas)`` at once, those ``being_replaced`` included, and ``per_window`` in ``window_s``:
    when many look dead together the fault is likelier outside them, and killing caches and streams makes it worse. The
    only replica may always be killed. Processes that ended by themselves need no budget.
    """
    if replicas <= 1:
        return Budget(tuple(dead), {})
    at_once = max(1, math.floor(share * replicas)) - being_replaced
    recent = sum(1 for at in killed_at if 0 <= now - at < window_s)
    left = per_window - recent
    allowed = max(0, min(at_once, left))
    if left <= at_once:
        why = f"{recent} replicas were killed in the last {window_s / 60:g} min, {per_window} is the limit"
    else:
        why = f"at most {max(1, math.floor(share * replicas))} of {replicas} replicas are replaced at once"
    return Budget(tuple(dead[:allowed]), dict.fromkeys(dead[allowed:], why))


def _alive_again(memory: Memory, at: float) -> Memory:
    return replace(memory, progressed_at=at, failures=(), busy_since=None)


def _progressed_at(memory: Memory) -> float:
    return -math.inf if memory.progressed_at is None else memory.progressed_at


def _has_moved(before: Mapping[str, float], after: Mapping[str, float], now: float, fresh_s: float) -> bool:
    """Whether a mark moved; one of a gateway not heard before counts when it is recent by its own clock."""
    return any(
        mark > before[gateway] if gateway in before else mark > 0 and abs(now - mark) <= fresh_s
        for gateway, mark in after.items()
    )


def _has_grown(before: float | None, after: float | None) -> bool:
    return before is not None and after is not None and after > before


def _latest(before: float | None, after: float | None) -> float | None:
    return before if after is None else after


def _not_after(at: float | None, now: float) -> float | None:
    """A time remembered from before the clock was set back would hide a hang until the clock has caught up."""
    return None if at is None else min(at, now)


def _worded(probe: Probe) -> str:
    words = {
        "timeout": f"no token in {probe.ended_at - probe.started_at:.0f} s",
        "refused": "connection refused or broken",
        "server_error": "server error",
    }
    return words.get(probe.outcome, probe.outcome) + (f": {probe.detail}" if probe.detail else "")
