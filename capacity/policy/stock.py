"""What there is to sell: hosts, what runs on them, what is promised of each pool, how many replicas all that allows.

A pool's replicas are counted by a placement that can really be carried out: what runs stays where it is, what other
pools have promised and have not started yet is placed first, then the pool's own deployments are filled up to their
maximum. A cleverer placement might now and then find room for more; none of what is counted here is missing.

Everything counts in MU/min of a pool's price in force; times are UNIX seconds, and a term without an end has None.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from capacity.policy.placement import Need

SLACK = 1e-9
"""Relative: sums of promises are sums of floating-point numbers."""


@dataclass(frozen=True, slots=True)
class Term:
    """MU/min promised from ``starts_at`` until ``ends_at``. Raises ValueError for what is no promise."""

    id: str
    mu_per_min: float
    starts_at: float
    ends_at: float | None = None

    def __post_init__(self) -> None:
        if not 0.0 < self.mu_per_min < math.inf:
            raise ValueError(f"a promise is of more than 0 MU/min, got {self.mu_per_min}")
        if self.ends_at is not None and self.ends_at <= self.starts_at:
            raise ValueError(f"a promise ends after it starts, got {self.starts_at} to {self.ends_at}")

    def at(self, moment: float) -> float:
        """MU/min that it promises at ``moment``: its start is in it, its end is not."""
        holds = self.starts_at <= moment and (self.ends_at is None or moment < self.ends_at)
        return self.mu_per_min if holds else 0.0


@dataclass(frozen=True, slots=True)
class HostStock:
    """A host. ``why_not``: why nothing new goes on it, empty where something does; sizes in bytes.

    ``free``: memory of each healthy accelerator that no replica holds; ``held``: how many of the others each deployment
    holds, by its name; ``memory_bytes`` is free and promised to nobody.
    """

    id: str
    name: str
    hardware: str
    why_not: str = ""
    free: tuple[int, ...] = ()
    held: Mapping[str, int] = field(default_factory=dict, hash=False)
    memory_bytes: int = 0
    labels: Mapping[str, str] = field(default_factory=dict, hash=False)


@dataclass(frozen=True, slots=True)
class DeploymentStock:
    """What serves a pool. ``supply``: MU/min of one replica by hardware; ``on``: the host of each replica there now.

    Replicas that are lost or on their way out are not in ``on``, and hold nothing.
    """

    id: str
    name: str
    need: Need
    supply: Mapping[str, float]
    min_replicas: int
    max_replicas: int
    on: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class PoolStock:
    """A pool with its rules, what serves it, and what of it is promised."""

    id: str
    name: str
    oversell_factor: float = 1.0
    keep_spare: bool = True
    deployments: tuple[DeploymentStock, ...] = ()
    sold: tuple[Term, ...] = ()


@dataclass(frozen=True, slots=True)
class Stock:
    """All that a decision about ``pool`` is made of; ``others`` may want the same accelerators and memory.

    ``notes`` say what of it nobody has measured.
    """

    pool: PoolStock
    hosts: tuple[HostStock, ...] = ()
    others: tuple[PoolStock, ...] = ()
    notes: tuple[str, ...] = ()


def provisioned_replicas(
    sold_mu_per_min: float, *, supply_mu_per_min: float, oversell_factor: float, keep_spare: bool
) -> int:
    """Replicas that must run so that what is sold is warm: none where nothing is, and one more where N−1 holds.

    Where more is sold than had on purpose, not all of it is asked for at once: the factor divides. Raises ValueError
    unless supply is positive and the factor at least 1.
    """
    if supply_mu_per_min <= 0.0 or oversell_factor < 1.0:
        raise ValueError("a replica supplies more than 0 MU/min, and the oversell factor is at least 1")
    if sold_mu_per_min <= 0.0:
        return 0
    return math.ceil(sold_mu_per_min / (oversell_factor * supply_mu_per_min) - SLACK) + int(keep_spare)


def shares(deployments: Sequence[DeploymentStock]) -> list[float]:
    """Which part of a pool's promises each of its deployments must keep warm: by what it can supply at most."""
    most = [one.max_replicas * max(one.supply.values(), default=0.0) for one in deployments]
    total = sum(most)
    return [part / total if total else 0.0 for part in most]


class _Room:
    """What is left of a host while replicas are placed on it."""

    def __init__(self, host: HostStock) -> None:
        self.host = host
        self.free = sorted(host.free)
        self.memory_bytes = host.memory_bytes

    def take(self, need: Need, most: int) -> int:
        """Place up to ``most`` replicas, each on the smallest accelerators that suffice; how many found room."""
        if self.host.why_not or any(self.host.labels.get(name) != value for name, value in need.labels.items()):
            return 0
        if need.memory_bytes > 0:
            most = min(most, self.memory_bytes // need.memory_bytes)
        if need.accelerators > 0:
            fitting = [size for size in self.free if size >= need.accelerator_memory_bytes]
            most = min(most, len(fitting) // need.accelerators)
            first = len(self.free) - len(fitting)
            del self.free[first : first + max(0, most) * need.accelerators]
        most = max(0, most)
        self.memory_bytes -= most * need.memory_bytes
        return most


@dataclass(slots=True)
class Filled:
    """How many replicas of the pool can run: ``groups`` of (MU/min of each, how many)."""

    groups: list[tuple[float, int]]
    accelerators: int
    limits: tuple[str, ...]


class Wanted(NamedTuple):
    """What a deployment must have: ``replicas`` beside those that run now, and ``mu_per_min`` of all together.

    ``keep_spare``: also with the largest of them lost.
    """

    replicas: int
    mu_per_min: float
    keep_spare: bool


def fill(stock: Stock, wanted: Sequence[Sequence[Wanted]]) -> Filled:
    """How many replicas of the pool can run while each other pool has what it must (``still_wanted``) of its own."""
    rooms = [_Room(host) for host in stock.hosts]
    kinds = {host.id: host.hardware for host in stock.hosts}
    for other, each in zip(stock.others, wanted, strict=True):
        for deployment, wants in zip(other.deployments, each, strict=True):
            _place_wanted(rooms, deployment, wants, kinds)
    groups: list[tuple[float, int]] = []
    limits: list[str] = []
    accelerators = 0
    for deployment in stock.pool.deployments:
        there = [deployment.supply.get(kinds.get(host, ""), 0.0) for host in deployment.on]
        # Of more than its maximum, the scale loop stops some: those that supply least are not counted on.
        kept = sorted(there, reverse=True)[: deployment.max_replicas]
        new = list(_placed(rooms, deployment, deployment.max_replicas - len(kept)))
        groups += [(mu, 1) for mu in kept] + [(mu, count) for mu, count in new]
        count = len(kept) + sum(n for _, n in new)
        accelerators += count * deployment.need.accelerators
        limits.append(_limit(deployment, count))
        if count < deployment.max_replicas:
            limits += [why for host in stock.hosts if (why := _in_the_way(host, deployment, stock.pool))]
    if not stock.pool.deployments:
        limits.append(f"nothing serves {stock.pool.name}")
    return Filled(groups, accelerators, tuple(dict.fromkeys(limits)))


def _placed(rooms: Sequence[_Room], deployment: DeploymentStock, count: int) -> Iterator[tuple[float, int]]:
    """Place up to ``count`` replicas, first where one supplies most: (MU/min of each, how many) by host."""
    for room in _by_supply(rooms, deployment):
        supply = deployment.supply.get(room.host.hardware, 0.0)
        if count <= 0 or supply <= 0.0:
            return
        found = room.take(deployment.need, count)
        count -= found
        if found:
            yield supply, found


def _by_supply(rooms: Sequence[_Room], deployment: DeploymentStock) -> list[_Room]:
    return sorted(rooms, key=lambda room: (-deployment.supply.get(room.host.hardware, 0.0), room.host.name))


def _place_wanted(rooms: Sequence[_Room], deployment: DeploymentStock, wants: Wanted, kinds: Mapping[str, str]) -> None:
    """Place what a deployment must have, as far as there is room: what slower hardware supplies takes more of it."""
    there = [deployment.supply.get(kinds.get(host, ""), 0.0) for host in deployment.on]
    left = deployment.max_replicas - len(there)
    have = sorted(there, reverse=True)[: deployment.max_replicas]
    total, largest, replicas = sum(have), max(have, default=0.0), wants.replicas
    for room in _by_supply(rooms, deployment):
        supply = deployment.supply.get(room.host.hardware, 0.0)
        missing = wants.mu_per_min - total + (largest if wants.keep_spare else 0.0)
        count = replicas
        if wants.mu_per_min > 0.0 and missing > SLACK * wants.mu_per_min:
            # The first that is larger than all before it becomes the spare one.
            missing += max(0.0, supply - largest) if wants.keep_spare else 0.0
            count = max(count, math.ceil(missing / supply - SLACK) if supply > 0.0 else 0)
        if left <= 0 or supply <= 0.0 or count <= 0:
            return
        found = room.take(deployment.need, min(count, left))
        left, replicas, total = left - found, replicas - found, total + found * supply
        largest = max(largest, supply) if found else largest


def still_wanted(pool: PoolStock, moment: float) -> tuple[Wanted, ...]:
    """What ``pool`` must have of each deployment at ``moment``."""
    sold = sum(term.at(moment) for term in pool.sold)
    return tuple(
        Wanted(
            max(0, min(deployment.min_replicas, deployment.max_replicas) - len(deployment.on)),
            sold * share / pool.oversell_factor,
            pool.keep_spare,
        )
        for deployment, share in zip(pool.deployments, shares(pool.deployments), strict=True)
    )


def _limit(deployment: DeploymentStock, count: int) -> str:
    if count >= deployment.max_replicas:
        return f"{deployment.name} runs at most {many(deployment.max_replicas, 'replica')}"
    return f"hosts have room for {count} of {deployment.name}'s {many(deployment.max_replicas, 'replica')}"


def _in_the_way(host: HostStock, deployment: DeploymentStock, pool: PoolStock) -> str:
    """What of a host cannot be had, in words; empty where all of it can, or none of it would help."""
    if host.why_not:
        return f"{host.name}: {host.why_not}"
    for name, value in deployment.need.labels.items():
        if host.labels.get(name) != value:
            return f"{host.name}: label {name} is not {value}"
    own = {one.name for one in pool.deployments}
    held = {name: count for name, count in sorted(host.held.items()) if name not in own and count}
    if deployment.need.accelerators and held:
        return f"{host.name}: " + ", ".join(f"{name} holds {many(n, 'accelerator')}" for name, n in held.items())
    return ""


def many(number: int, one: str) -> str:
    return f"{number} {one}{'s' if number != 1 else ''}"
