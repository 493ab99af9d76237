"""From gateways' heartbeats to one sample per deployment: differences of cumulative counters, sums of the rest."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass

COUNTERS = ("offered_mu", "offered_requests", "refused", "completed", "reserved_mu", "lent_mu", "departed")
"""What a gateway counts since its start: per deployment, but who ``departed`` per replica."""

Counts = dict[str, float]
"""Counter name -> value."""

FORGET_S = 120.0
"""A gateway silent for so long is forgotten; a pause shorter than this loses no count."""
RECENT_S = 10.0
"""With a memory older than this nobody can say when a gateway that is new to it began to count."""


@dataclass(frozen=True, slots=True)
class GatewayCounts:
    """Cumulative counters of one gateway process by the id of a deployment or replica.

    ``started_at`` (UNIX s) tells restarts apart.
    """

    gateway: str
    started_at: float
    counts: Mapping[str, Mapping[str, float]]


@dataclass(frozen=True, slots=True)
class Seen:
    """What was last seen of a gateway, and when (UNIX s)."""

    at: float
    beat: GatewayCounts


@dataclass(frozen=True, slots=True)
class Memory:
    """What the observe loop carries from tick to tick. ``at``: UNIX time of the last tick."""

    at: float
    gateways: Mapping[str, Seen]


@dataclass(frozen=True, slots=True)
class Sample:
    """One second of a deployment. Offered, refused, completed, departed and used MU count since the sample before, the
    rest is ``at``. ``departed`` have left a replica however they ended, ``completed`` were served. Of the MU that were
    used, ``reserved_mu`` were inside reservations, ``lent_mu`` beyond.
    """

    at: float
    offered_mu: float = 0.0
    offered_requests: float = 0.0
    queue_mu: float = 0.0
    in_flight: int = 0
    in_flight_mu: float = 0.0
    refused: float = 0.0
    completed: float = 0.0
    departed: float = 0.0
    ready: int = 0
    capacity_mu_per_min: float = 0.0
    reserved_mu: float = 0.0
    lent_mu: float = 0.0

    def as_json(self) -> dict[str, float]:
        return asdict(self)


def differences(
    memory: Memory | None, beats: Iterable[GatewayCounts], *, now: float
) -> tuple[dict[str, Counts], Memory]:
    """How far the counters of each deployment and replica rose since ``memory``, over all gateways; the next memory.

    A restarted gateway counts from zero again. One that a recent memory does not know has just started: all that it
    counted is new. With no memory or an old one its counters only become the base line: a loops process that starts
    beside a gateway of last week must not take a week's load for one second's.
    """
    recent = memory is not None and now - memory.at <= RECENT_S
    known = {name: seen for name, seen in memory.gateways.items() if now - seen.at <= FORGET_S} if memory else {}
    rises: dict[str, Counts] = {}
    for beat in beats:
        seen = known.get(beat.gateway)
        same = seen is not None and seen.beat.started_at == beat.started_at
        if same or recent or seen is not None:
            base = seen.beat.counts if same and seen is not None else {}
            for deployment, counts in beat.counts.items():
                _add_rise(rises.setdefault(deployment, dict.fromkeys(COUNTERS, 0.0)), counts, base.get(deployment, {}))
        known[beat.gateway] = Seen(at=now, beat=beat)
    return rises, Memory(at=now, gateways=known)


def _add_rise(rise: Counts, counts: Mapping[str, float], base: Mapping[str, float]) -> None:
    for name in COUNTERS:
        rise[name] += max(0.0, counts.get(name, 0.0) - base.get(name, 0.0))


def minute_means(samples: Iterable[Mapping[str, float]], *, starts_at: float) -> tuple[float, float] | None:
    """What a deployment had and was offered in the minute from ``starts_at`` (UNIX s), as means in MU/min.

    ``samples`` as ``Sample.as_json``, in any order. None where nobody looked. A sample counts what came since the one
    before it, so offered is divided by the time that the samples tell of; capacity is the mean of the looks.
    """
    ordered = sorted(samples, key=lambda sample: sample["at"])
    have: list[float] = []
    offered_mu = covered_s = 0.0
    before: float | None = None
    for sample in ordered:
        gap_s = 0.0 if before is None else sample["at"] - before
        before = sample["at"]
        if not starts_at <= sample["at"] < starts_at + 60.0:
            continue
        have.append(sample.get("capacity_mu_per_min", 0.0))
        if gap_s > 0.0:
            offered_mu += sample.get("offered_mu", 0.0)
            covered_s += gap_s
    if not have:
        return None
    return sum(have) / len(have), offered_mu / covered_s * 60.0 if covered_s else 0.0
