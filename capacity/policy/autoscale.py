"""How many replicas a deployment needs: the SLO-budget policy.

The objective allows a share of requests to wait longer than they should; this policy spends that share deliberately
instead of keeping a fixed margin. Each tick:

- ``demand``: MU/min offered in the last ``window_s`` (priced at admission: unlike utilisation it cannot saturate);
- ``sigma``: root mean square of how far demand moved over one cold start plus the window, remembered for
  ``sigma_memory_s``. The cold start enters here; nothing is forecast;
- ``z``: integral controller on the objective. A tick whose arrivals would wait longer than tolerable adds ``gain``,
  every tick with requests takes ``gain · spend · slo_share`` away, so the share of late ticks converges on ``spend`` of
  the budget, for any traffic;
- ``queue help``: the queue over ``drain_s``, only while it would still mean too long a wait when a launch made now is
  ready;
- ``need = demand + z·sigma + queue help``. An envelope jumps up with need and relaxes slowly, slower when launches are
  frequent; a floor guards against traffic that vanishes and returns at once.

Up to ``round(need)``, down to ``ceil(envelope + deadband)``; nothing is released during ``grace_s``. The constants were
fitted on public traces; ±30 % of any of them moves the mean cost by less than a point, except ``spend``.

Never below ``provisioned_replicas``, what is sold: guaranteed capacity is warm before anybody asks for it.

State is kept in MU/min rather than replicas, so that it stays true when the supply of a replica is measured anew.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, Literal

Kind = Literal["steady", "demand", "queue", "release", "grace", "limit", "promise", "pin", "wake", "idle"]

_MAX_MISSED_TICKS = 720
"""After an hour without ticks the past is as good as unknown; more of them would only cost time."""


@dataclass(frozen=True, slots=True)
class Config:
    """Inputs and constants. The first block belongs to the deployment and its pool, the rest are the policy's.

    ``pinned_replicas`` switches scaling off. ``profile_version``: MU of another version are another unit, memory is
    dropped when it changes. ``min_replicas`` 0 allows scale to zero after ``idle_s`` without a request.
    ``provisioned_replicas`` must run for what is sold (``capacity.policy.stock.provisioned_replicas``), as far as the
    maximum allows; ``provisioned_for`` says in words what that is.
    Raises ValueError for values that contradict each other.
    """

    cold_start_s: float = 60.0
    tolerable_wait_s: float = 5.0
    slo_share: float = 0.01
    min_replicas: int = 1
    max_replicas: int = 1
    pinned_replicas: int | None = None
    profile_version: int = 0
    provisioned_replicas: int = 0
    provisioned_for: str = ""

    tick_s: float = 5.0
    window_s: float = 45.0
    spend: float = 0.75
    gain: float = 0.012
    z_start: float = 1.5
    z_min: float = -1.0
    z_max: float = 3.0
    sigma_memory_s: float = 7200.0
    sigma_unknown: float = 0.2
    """Sigma as a share of demand until enough of the past is known."""
    drain_s: float = 60.0
    release_s: float = 120.0
    release_per_cold_start: float = 2.0
    calm_launches_per_h: float = 5.0
    deadband: float = 0.2
    grace_s: float = 900.0
    floor_share: float = 0.5
    floor_memory_min: int = 120
    idle_s: float = 900.0

    def __post_init__(self) -> None:
        if not 0 <= self.min_replicas <= self.max_replicas:
            raise ValueError(f"need 0 ≤ min_replicas ≤ max_replicas, got {self.min_replicas} and {self.max_replicas}")
        if self.provisioned_replicas < 0:
            raise ValueError(f"provisioned_replicas cannot be negative, got {self.provisioned_replicas}")
        if self.tick_s <= 0 or self.window_s <= 0 or self.tolerable_wait_s <= 0 or self.cold_start_s < 0:
            raise ValueError("tick_s, window_s and tolerable_wait_s must be positive, cold_start_s not negative")
        if not 0.0 < self.slo_share < 1.0:
            raise ValueError(f"slo_share must lie between 0 and 1, got {self.slo_share}")


@dataclass(frozen=True, slots=True)
class Observation:
    """What was seen at ``now`` (UNIX seconds).

    ``replica_mu_per_min``: what one replica supplies (``replica_supply``). ``ready`` replicas serve, ``starting`` will
    (pending ones included); draining ones are in neither. ``queue_mu`` was admitted and waits for a replica.
    ``offered_mu_per_min`` and ``requests`` are the rate and the number offered since the last tick, refused ones too.
    """

    now: float
    replica_mu_per_min: float
    ready: int
    starting: int
    queue_mu: float
    offered_mu_per_min: float
    requests: int

    def __post_init__(self) -> None:
        if self.replica_mu_per_min <= 0:
            raise ValueError(f"a replica must supply more than 0 MU/min, got {self.replica_mu_per_min}")
        if min(self.ready, self.starting, self.queue_mu, self.offered_mu_per_min, self.requests) < 0:
            raise ValueError("counts, queue and rate cannot be negative")


@dataclass(frozen=True, slots=True)
class State:
    """Memory between ticks. Rates in MU/min, times in UNIX seconds; ``peaks`` holds (minute, highest demand in it)."""

    profile_version: int = 0
    started_at: float | None = None
    last_at: float | None = None
    last_request_at: float | None = None
    samples: tuple[float, ...] = ()
    z: float | None = None
    variance: float | None = None
    errors: int = 0
    envelope: float = 0.0
    launches_per_h: float = 0.0
    peaks: tuple[tuple[int, float], ...] = ()

    def to_json(self) -> str:
        return json.dumps(asdict(self), separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str | bytes) -> State:
        """Return the state in ``text``. Fields of other versions are ignored. Raises ValueError when it is no state."""
        raw = json.loads(text)
        if not isinstance(raw, dict):
            raise ValueError("a policy state must be a JSON object")
        known = {name: raw[name] for name in (f.name for f in fields(cls)) if name in raw}
        known["samples"] = tuple(float(value) for value in known.get("samples", ()))
        known["peaks"] = tuple((int(minute), float(peak)) for minute, peak in known.get("peaks", ()))
        return cls(**known)


@dataclass(frozen=True, slots=True)
class Decision:
    """How many replicas, why (``kind`` for machines, ``reason`` for people), and every number it was made of."""

    replicas: int
    kind: Kind
    reason: str
    need: float
    demand: float
    margin: float
    queue_help: float
    is_late: bool
    inputs: dict[str, Any] = field(default_factory=dict, hash=False)


def decide(config: Config, state: State, seen: Observation) -> tuple[State, Decision]:
    """Return the memory for the next tick and the number of replicas wanted now. Called every ``tick_s``.

    Missed ticks are made up for from the rate observed; a clock that jumps backwards restarts the grace period at
    most. ``demand``, ``margin``, ``queue_help`` and ``need`` of the decision are in replicas.
    """
    c, supply = config, seen.replica_mu_per_min
    state = _rebased(c, state, seen)
    per_s = supply / 60.0
    have = seen.ready + seen.starting
    state, demand, sigma = _learn_demand(c, state, seen)
    is_late = seen.queue_mu > c.tolerable_wait_s * max(seen.ready, 1e-9) * per_s
    z = c.z_start if state.z is None else state.z
    if seen.requests > 0:
        z += c.gain * ((1.0 if is_late else 0.0) - c.spend * c.slo_share)
    z = min(c.z_max, max(c.z_min, z))
    margin = z * sigma
    left_mu = seen.queue_mu + (demand - (seen.ready + 0.5 * seen.starting) * supply) / 60.0 * c.cold_start_s
    is_stuck = left_mu > c.tolerable_wait_s * have * per_s
    queue_help = seen.queue_mu * 60.0 / c.drain_s if is_stuck else 0.0
    need = max(0.0, demand + margin + queue_help)

    launches = state.launches_per_h * (1.0 - c.tick_s / 3600.0)
    busy = max(1.0, launches / c.calm_launches_per_h)
    tau_s = (c.release_s + c.release_per_cold_start * c.cold_start_s) * busy
    envelope = max(need, state.envelope - (state.envelope - need) * min(1.0, c.tick_s / tau_s))
    floor = c.floor_share * max(peak for _, peak in state.peaks)
    up = math.ceil(need / supply - 0.5 - 1e-9)
    down = max(up, math.ceil(max(envelope, floor) / supply + c.deadband - 1e-9))
    want, kind = _choose(c, state, seen, up=up, down=down, by_queue=queue_help > max(margin, 0.0))
    limited, kind = _limit(c, want, kind)
    if limited > have and c.pinned_replicas is None:
        launches += 1.0
    after = replace(state, last_at=seen.now, z=z, envelope=envelope, launches_per_h=launches)
    numbers = {
        "demand": demand / supply,
        "sigma": sigma / supply,
        "z": z,
        "margin": margin / supply,
        "queue_help": queue_help / supply,
        "need": need / supply,
        "envelope": envelope / supply,
        "floor": floor / supply,
        "launches_per_h": launches,
    }
    decision = Decision(
        replicas=limited,
        kind=kind,
        reason=_explain(kind, have, limited, want, numbers, c, seen) + _explain_short(c),
        need=need / supply,
        demand=demand / supply,
        margin=margin / supply,
        queue_help=queue_help / supply,
        is_late=is_late,
        inputs={"config": _echo(c), "observation": _echo(seen), "results": numbers},
    )
    return after, decision


def _echo(values: Config | Observation) -> dict[str, Any]:
    """Fields by name. Flat, so without the deep copies of ``asdict``: this runs for every deployment each tick."""
    return {f.name: getattr(values, f.name) for f in fields(values)}


def replica_supply(
    *, knee_mu_per_min: float, target_concurrency: int, mean_request_mu: float | None, mean_residence_s: float | None
) -> float:
    """Return what one replica supplies, in MU/min: ``min(knee, 60 · target_concurrency · mean MU / mean residence)``.

    The knee is what its hardware sustains; the second term is what passes through its slots at the residence time
    (dispatch to last token) seen lately. Without a measured mean the knee alone counts. Raises ValueError unless knee
    and concurrency are positive.
    """
    if knee_mu_per_min <= 0 or target_concurrency < 1:
        raise ValueError("a replica needs a positive knee and a target concurrency of at least 1")
    if not mean_request_mu or not mean_residence_s:
        return knee_mu_per_min
    return min(knee_mu_per_min, 60.0 * target_concurrency * mean_request_mu / mean_residence_s)


def _rebased(c: Config, state: State, seen: Observation) -> State:
    """Forget what another cost profile counted, and times that lie in the future of a clock that was set back."""
    if state.profile_version != c.profile_version or state.started_at is None:
        state = State(profile_version=c.profile_version, started_at=seen.now - c.tick_s)
    minute = int(seen.now // 60)
    last_request_at = seen.now if seen.requests else state.last_request_at
    return replace(
        state,
        started_at=None if state.started_at is None else min(state.started_at, seen.now),
        last_at=None if state.last_at is None else min(state.last_at, seen.now),
        last_request_at=None if last_request_at is None else min(last_request_at, seen.now),
        peaks=tuple((min(at, minute), peak) for at, peak in state.peaks),
    )


def _learn_demand(c: Config, state: State, seen: Observation) -> tuple[State, float, float]:
    """Return the state with this tick's samples, demand and sigma, both in MU/min."""
    window = max(1, round(c.window_s / c.tick_s))
    lag = max(1, round((c.cold_start_s + c.window_s) / c.tick_s))
    elapsed = c.tick_s if state.last_at is None else seen.now - state.last_at
    ticks = min(_MAX_MISSED_TICKS, max(1, round(elapsed / c.tick_s)))
    samples = (*state.samples, *(seen.offered_mu_per_min for _ in range(ticks)))[-(window + lag) :]
    recent = samples[-window:]
    demand = sum(recent) / len(recent)
    variance, errors = state.variance, state.errors
    if len(samples) == window + lag:
        moved = (demand - sum(samples[:window]) / window) ** 2
        errors += 1
        # A plain mean first, an exponential one once the memory is full.
        weight = max(c.tick_s / c.sigma_memory_s, 1.0 / errors)
        variance = moved if variance is None else variance + (moved - variance) * weight
    sigma = c.sigma_unknown * demand if variance is None else math.sqrt(variance)
    minute = int(seen.now // 60)
    highest = max([demand, *(peak for at, peak in state.peaks if at == minute)])
    kept = tuple((at, peak) for at, peak in state.peaks if minute - c.floor_memory_min <= at < minute)
    learned = replace(state, samples=samples, variance=variance, errors=errors, peaks=(*kept, (minute, highest)))
    return learned, demand, sigma


def _choose(c: Config, state: State, seen: Observation, *, up: int, down: int, by_queue: bool) -> tuple[int, Kind]:
    have = seen.ready + seen.starting
    started = seen.now if state.started_at is None else state.started_at
    last_request = started if state.last_request_at is None else state.last_request_at
    if c.min_replicas == 0:
        is_waiting = seen.requests > 0 or seen.queue_mu > 0
        if have == 0:
            return (max(1, up), "wake") if is_waiting else (0, "idle")
        if not is_waiting and seen.now - last_request >= c.idle_s:
            return 0, "idle"
        up, down = max(1, up), max(1, down)
    if up > have:
        return up, "queue" if by_queue else "demand"
    if down < have:
        return (have, "grace") if seen.now - started < c.grace_s else (down, "release")
    return have, "steady"


def _limit(c: Config, want: int, kind: Kind) -> tuple[int, Kind]:
    if c.pinned_replicas is not None:
        return c.pinned_replicas, "pin"
    limited = min(c.max_replicas, max(c.min_replicas, c.provisioned_replicas, want))
    if limited == want:
        return limited, kind
    return limited, "promise" if want < limited and c.provisioned_replicas > c.min_replicas else "limit"


def promise_short(config: Config) -> int:
    """How many replicas fewer than what is sold needs the deployment may have: its maximum, or its pin, is too low."""
    most = config.max_replicas if config.pinned_replicas is None else config.pinned_replicas
    return max(0, config.provisioned_replicas - most)


def _explain(kind: Kind, have: int, limited: int, want: int, n: dict[str, float], c: Config, seen: Observation) -> str:
    parts = f"demand {n['demand']:.2f} {'−' if n['margin'] < 0 else '+'} margin {abs(n['margin']):.2f}"
    if n["queue_help"] > 0:
        parts += f" + queue {n['queue_help']:.2f}"
    needed = f"{parts} = {n['need']:.2f} replicas needed"
    if kind == "pin":
        return f"pinned to {limited}; {needed}"
    if kind == "limit":
        bound = f"maximum {c.max_replicas}" if limited < want else f"minimum {c.min_replicas}"
        return f"{needed}, {want} wanted, held at the {bound}"
    if kind == "promise":
        return f"{needed}, {want} wanted, held at {limited} for {c.provisioned_for}"
    if kind == "demand":
        return f"{needed}, {have} there: {limited - have} more"
    if kind == "queue":
        return f"{seen.queue_mu:.1f} MU queue for too long; {needed}, {have} there: {limited - have} more"
    if kind == "release":
        return (
            f"{needed}; its slow envelope {max(n['envelope'], n['floor']):.2f} allows {limited}: {have - limited} less"
        )
    if kind == "grace":
        return f"{needed}; nothing is released in the first {c.grace_s / 60:g} min"
    if kind == "wake":
        return f"a request waits and no replica runs; {needed}"
    if kind == "idle":
        return "scaled to zero" if have == 0 else f"no request for {c.idle_s:g} s: to zero"
    return f"{needed}, {have} there"


def _explain_short(c: Config) -> str:
    missing = promise_short(c)
    return f"; {c.provisioned_for} needs {c.provisioned_replicas}, {missing} more than there may be" if missing else ""
