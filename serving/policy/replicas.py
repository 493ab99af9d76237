"""How many replicas to start and which to let go: the reconcile loop's decision, level-triggered.

It looks at what is, never at what was asked last time, so that any loops process can take any tick.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

ReplicaState = Literal["pending", "starting", "ready"]
"""States that count towards what is wanted."""

EVICTED = "its host is being drained"
"""How each reason begins that a drain of the host gives to a replica."""


@dataclass(frozen=True, slots=True)
class Want:
    """What a deployment asks for. ``desired`` is the scale loop's; ``pinned`` overrules it; None means no pin."""

    enabled: bool
    minimum: int
    maximum: int
    desired: int
    pinned: int | None = None


@dataclass(frozen=True, slots=True)
class Alive:
    """A replica that serves or is on its way. ``in_flight_mu`` is what it would have to finish first.

    ``makes_room``: it is of an older revision and holds what a current one that found no host needs. ``evicted``: its
    host is being drained. ``held``: it is out of rotation to be measured, and comes back.
    """

    id: str
    state: ReplicaState
    is_current: bool
    placed: bool
    created_at: float
    in_flight_mu: float = 0.0
    makes_room: bool = False
    evicted: bool = False
    held: bool = False


@dataclass(frozen=True, slots=True)
class Failure:
    """A launch that failed or an engine that broke. ``served_s`` is how long it had been ready, 0 if never."""

    at: float
    reason: str
    served_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Patience:
    """Back-off: ``base_s`` doubles per failure in a row up to ``max_s``; ``limit`` failures in a row are the end.

    A replica that served for ``stable_s`` ends a row: its failure is the first of a new one. After ``forget_s`` a
    failure is forgotten, so that what healed by itself is found out without a person. The launches of a row span two
    minutes at least: an outage of half a minute is lived through.
    """

    base_s: float = 2.0
    max_s: float = 60.0
    limit: int = 8
    stable_s: float = 60.0
    forget_s: float = 3600.0
    room_s: float = 30.0
    """So long a replica of the current revision looks for a host before one of an older revision makes room."""


@dataclass(frozen=True, slots=True)
class Removal:
    """``drain``: it may be serving requests, take it out of the rotation first. Else stop it at once."""

    id: str
    drain: bool
    reason: str


@dataclass(frozen=True, slots=True)
class Plan:
    """``wait_until``: UNIX time of the next launch while backing off. ``gave_up``: no launch until somebody retries.

    ``kept`` says by id why an evicted replica serves on.
    """

    target: int
    create: int
    remove: tuple[Removal, ...]
    reason: str
    wait_until: float | None = None
    gave_up: bool = False
    kept: Mapping[str, str] = field(default_factory=dict, hash=False)


def target(want: Want) -> tuple[int, str]:
    """Replicas wanted now, and why."""
    if not want.enabled:
        return 0, "the deployment is disabled"
    if want.pinned is not None:
        return want.pinned, f"pinned at {want.pinned}"
    count = min(max(want.desired, want.minimum), want.maximum)
    return count, f"{count} wanted between {want.minimum} and {want.maximum}"


def failures_in_row(
    failures: Iterable[Failure], *, now: float, last_stable_at: float | None, patience: Patience
) -> list[Failure]:
    """The failures since the deployment last worked, oldest first.

    ``last_stable_at``: UNIX time at which some replica had last been ready for ``stable_s``, if any.
    """
    row: list[Failure] = []
    for failure in sorted(failures, key=lambda failure: failure.at):
        if now - failure.at > patience.forget_s or (last_stable_at is not None and failure.at < last_stable_at):
            continue
        row = [failure] if failure.served_s >= patience.stable_s else [*row, failure]
    return row


def plan(
    want: Want,
    alive: Sequence[Alive],
    failures: Iterable[Failure],
    *,
    now: float,
    last_stable_at: float | None = None,
    leaving: int = 0,
    patience: Patience | None = None,
) -> Plan:
    """Compare what is wanted with what is alive. ``now`` and all times are UNIX seconds.

    Replicas of an older revision stay until as many of the current one are ready, and are then drained one by one.
    Where both do not fit, one that serves makes room: the next only when the newer one in its place is ready, and while
    none is ``leaving`` (draining or stopping).

    What is evicted is replaced in the same way, but must go: a replacement that has found no host for ``room_s`` is not
    waited for.

    What is held is neither stopped nor replaced, and does not count as one that serves.
    """
    patience = patience or Patience()
    count, reason = target(want)
    held = [replica for replica in alive if replica.held]
    alive = [replica for replica in alive if not replica.held]
    current = [replica for replica in alive if replica.is_current and not replica.evicted]
    older = [replica for replica in alive if not replica.is_current and not replica.evicted]
    evicted = [replica for replica in alive if replica.evicted]
    keep = max(0, count - sum(replica.state == "ready" for replica in current))
    homeless = len(looking_for_room(current, now=now, patience=patience))
    serving_older = sum(replica.state == "ready" for replica in older)
    leave, stay = _evicted(evicted, keep=max(0, keep - serving_older), homeless=homeless, patience=patience)
    remove = [
        *_surplus(current, len(current) - count, f"{reason}, {len(current)} there"),
        *_outdated(older, keep=max(0, keep - len(stay))),
        *leave,
    ]
    if not remove and not leaving and homeless:
        remove = _giving_way(current, older, patience=patience)
    there = [*current, *(replica for replica in held if replica.is_current)]
    made = _launches(count, there, failures, reason, now=now, last_stable_at=last_stable_at, patience=patience)
    why = made.reason if made.gave_up or made.wait_until is not None else f"{len(stay)} to come"
    kept = {replica.id: f"{EVICTED}; it serves until its replacement is ready ({why})" for replica in stay}
    return replace(made, remove=tuple(remove), kept=kept)


def _launches(
    count: int,
    current: Sequence[Alive],
    failures: Iterable[Failure],
    reason: str,
    *,
    now: float,
    last_stable_at: float | None,
    patience: Patience,
) -> Plan:
    """What to start, or why nothing is started now; it removes nothing."""
    missing = count - len(current)
    if missing <= 0:
        return Plan(target=count, create=0, remove=(), reason=reason)
    row = failures_in_row(failures, now=now, last_stable_at=last_stable_at, patience=patience)
    if len(row) >= patience.limit:
        text = (
            f"{len(row)} launches failed in a row, the last: {row[-1].reason or 'no reason given'}. "
            f"Fix the cause and press retry; the next try by itself is {patience.forget_s / 60:g} min after the first"
        )
        return Plan(target=count, create=0, remove=(), reason=text, gave_up=True)
    wait_until = row[-1].at + backoff_s(len(row), patience) if row else None
    if wait_until is not None and now < wait_until:
        text = f"next launch in {wait_until - now:.0f} s after {len(row)} failure(s)"
        return Plan(target=count, create=0, remove=(), reason=text, wait_until=wait_until)
    # After a failure one launch at a time shows whether the cause is gone.
    create = 1 if len(row) > 1 else missing
    return Plan(target=count, create=create, remove=(), reason=f"{reason}, {len(current)} there")


def backoff_s(failures: int, patience: Patience) -> float:
    """Seconds to wait after the given number of failures in a row; a first failure is answered at once."""
    if failures <= 1:
        return 0.0
    return min(patience.max_s, patience.base_s * 2.0 ** (failures - 2))


def looking_for_room(alive: Iterable[Alive], *, now: float, patience: Patience) -> list[Alive]:
    """The replicas of the current revision that have found no host for long."""
    return [
        replica
        for replica in alive
        if replica.is_current
        and replica.state == "pending"
        and not replica.placed
        and now - replica.created_at >= patience.room_s
    ]


def _giving_way(current: Sequence[Alive], older: Sequence[Alive], *, patience: Patience) -> list[Removal]:
    if any(replica.placed and replica.state != "ready" for replica in current):
        return []
    reason = f"makes room for a newer revision, which has found no host for {patience.room_s:g} s"
    able = [replica for replica in older if replica.makes_room and replica.state == "ready"]
    idlest = sorted(able, key=lambda replica: (replica.in_flight_mu, replica.created_at))[:1]
    return [Removal(id=replica.id, drain=True, reason=reason) for replica in idlest]


def _surplus(replicas: Sequence[Alive], excess: int, reason: str) -> list[Removal]:
    """Least loss first: not placed, then not ready (newest first), then fewest MU in flight, newest first."""
    if excess <= 0:
        return []
    order = {"pending": 0, "starting": 1, "ready": 2}
    ranked = sorted(replicas, key=lambda r: (r.placed, order[r.state], r.in_flight_mu, -r.created_at))
    return [Removal(id=replica.id, drain=replica.state == "ready", reason=reason) for replica in ranked[:excess]]


def _outdated(replicas: Sequence[Alive], *, keep: int) -> list[Removal]:
    """Older revisions: what does not serve goes at once, what serves when newer replicas have taken over."""
    reason = "replaced by a newer revision"
    ready = sorted((r for r in replicas if r.state == "ready"), key=lambda r: (r.in_flight_mu, r.created_at))
    gone = [Removal(id=r.id, drain=False, reason=reason) for r in replicas if r.state != "ready"]
    return gone + [Removal(id=r.id, drain=True, reason=reason) for r in ready[: max(0, len(ready) - keep)]]


def _evicted(
    replicas: Sequence[Alive], *, keep: int, homeless: int, patience: Patience
) -> tuple[list[Removal], list[Alive]]:
    """Who leaves a host that is being drained, and who serves on: ``keep``, but none for a replacement without a host.

    What does not serve goes at once, then the idlest.
    """
    ready = sorted((r for r in replicas if r.state == "ready"), key=lambda r: (r.in_flight_mu, r.created_at))
    gone = [
        Removal(id=r.id, drain=False, reason=f"{EVICTED}, and it did not serve yet")
        for r in replicas
        if r.state != "ready"
    ]
    replaced, leaving = max(0, len(ready) - keep), max(0, len(ready) - max(0, keep - homeless))
    reasons = [f"{EVICTED}; enough others serve"] * replaced
    reasons += [f"{EVICTED}; no other host has had room for its replacement for {patience.room_s:g} s"] * leaving
    leave = [
        Removal(id=replica.id, drain=True, reason=reason)
        for replica, reason in zip(ready[:leaving], reasons, strict=False)
    ]
    return gone + leave, ready[leaving:]
