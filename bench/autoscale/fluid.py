"""A fluid simulator in steps of one second: one queue, first in, first out, drained by the replicas that are ready.

A launched replica costs from its launch and serves after the cold start; a released one stops serving at once and costs
``DRAIN_S`` more. The wait of a second's requests ends when what was served reaches what had arrived by then.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bench.autoscale.traces import REPLICA_MU_PER_MIN, Trace
from capacity.policy.autoscale import Config, Observation, State, decide

DRAIN_S = 10
START_AT = 1_790_000_000.0
Series = NDArray[np.float64]


@dataclass(frozen=True)
class Score:
    """``cost`` in replica-seconds, ``late`` the share of requests that waited longer than tolerable."""

    cost: float
    late: float
    p99_wait_s: float
    launches_per_h: float
    mean_replicas: float


def waits(mu: Series, served: Series) -> Series:
    """Return how long the requests of each second wait, in seconds, from MU offered and MU served per second."""
    arrived, done = np.cumsum(mu), np.concatenate([[0.0], np.cumsum(served)])
    index: NDArray[np.intp] = np.clip(np.searchsorted(done, arrived - 1e-6), 1, len(done) - 1)
    gained = np.maximum(done[index] - done[index - 1], 1e-12)
    ended = index - 1 + np.clip((arrived - done[index - 1]) / gained, 0.0, 1.0)
    late: Series = np.maximum(0.0, ended - np.arange(1, len(mu) + 1))
    late[arrived > done[-1] + 1e-3] = np.inf
    return late


def serve(mu: Series, capacity: Series) -> Series:
    """Return MU served per second by a queue with ``capacity`` MU per second (Lindley's recursion)."""
    excess = np.cumsum(mu - capacity)
    backlog = excess - np.minimum(0.0, np.minimum.accumulate(excess))
    served: Series = mu - np.diff(backlog, prepend=0.0)
    return served


def late_share(trace: Trace, wait: Series, tolerable_s: float) -> float:
    requests = trace.requests[trace.warm_up_s :]
    return float(requests[wait[trace.warm_up_s :] > tolerable_s].sum() / max(1.0, requests.sum()))


def run_policy(
    trace: Trace, config: Config, *, policy: Callable[[Config, State, Observation], tuple[State, object]] = decide
) -> Score:
    """Drive the policy through the trace, second by second."""
    per_s, cold_s, tick = REPLICA_MU_PER_MIN / 60.0, round(config.cold_start_s), round(config.tick_s)
    mu, requests = trace.mu.tolist(), trace.requests.tolist()
    first = sum(mu[:300]) / len(mu[:300]) / per_s
    ready = min(config.max_replicas, max(config.min_replicas, math.ceil(first / 0.7)))
    starting: list[int] = []
    draining: list[int] = []
    backlog, launches, state = 0.0, 0, State()
    served, billed = np.zeros(len(mu)), np.zeros(len(mu))
    for t, offered in enumerate(mu):
        while starting and starting[0] <= t:
            starting.pop(0)
            ready += 1
        if t and t % tick == 0:
            seen = Observation(
                now=START_AT + t,
                replica_mu_per_min=REPLICA_MU_PER_MIN,
                ready=ready,
                starting=len(starting),
                queue_mu=backlog,
                offered_mu_per_min=sum(mu[t - tick : t]) * 60.0 / tick,
                requests=round(sum(requests[t - tick : t])),
            )
            state, decision = policy(config, state, seen)
            change = decision.replicas - ready - len(starting)  # type: ignore[attr-defined]
            if change > 0:
                starting += [t + cold_s] * change
                launches += t >= trace.warm_up_s
            for _ in range(-change):
                if starting:
                    starting.pop()
                else:
                    ready -= 1
                    draining.append(t + DRAIN_S)
        draining = [end for end in draining if end > t]
        backlog += offered
        served[t] = min(backlog, ready * per_s)
        backlog = max(0.0, backlog - served[t])
        billed[t] = ready + len(starting) + len(draining)
    return _score(trace, billed, waits(trace.mu, served), launches, config.tolerable_wait_s)


def _score(trace: Trace, billed: Series, wait: Series, launches: int, tolerable_s: float) -> Score:
    scored = slice(trace.warm_up_s, None)
    order = np.argsort(wait[scored])
    shares = np.cumsum(trace.requests[scored][order])
    p99 = float(wait[scored][order][np.searchsorted(shares, 0.99 * shares[-1])])
    return Score(
        cost=float(billed[scored].sum()),
        late=late_share(trace, wait, tolerable_s),
        p99_wait_s=p99,
        launches_per_h=3600.0 * launches / trace.scored_s,
        mean_replicas=float(billed[scored].mean()),
    )


# Bounds: what no policy, or one that knows the future, would cost. Replica-seconds over the scored part.


def static_peak(trace: Trace) -> float:
    """Replicas for the busiest minute, all the time."""
    minute = np.convolve(trace.mu[trace.warm_up_s :], np.ones(60), mode="valid").max()
    return float(np.ceil(minute / REPLICA_MU_PER_MIN - 1e-6) * trace.scored_s)


def cheapest_static(trace: Trace, config: Config) -> float:
    """Fewest constant replicas that keep the objective."""
    low, high = 1, 400
    while low < high:
        count = (low + high) // 2
        served = serve(trace.mu, np.full(len(trace.mu), count * REPLICA_MU_PER_MIN / 60.0))
        if late_share(trace, waits(trace.mu, served), config.tolerable_wait_s) <= config.slo_share:
            high = count
        else:
            low = count + 1
    return float(low * trace.scored_s)


def work_bound(trace: Trace) -> float:
    """The work alone, at full utilisation: no schedule costs less."""
    return float(trace.mu[trace.warm_up_s :].sum() * 60.0 / REPLICA_MU_PER_MIN)


def clairvoyant(trace: Trace, config: Config) -> float:
    """A schedule that knows the traffic and keeps the objective: an upper bound of the optimum.

    The least level that meets every deadline within the tolerable wait when held for that long; capped where bursts
    above it are a smaller share than may be late; gaps in a level are bridged where a restart would cost more. The
    cheapest of several bands and roundings, each verified against the queue; never worse than the cheapest static.
    """
    best = cheapest_static(trace, config)
    for band_s in (config.tolerable_wait_s, 2 * config.tolerable_wait_s, 4 * config.tolerable_wait_s):
        wanted = _least_levels(trace.mu, round(band_s))
        for spared in (0.0, 0.3, 0.6):
            levels = np.maximum(config.min_replicas, np.ceil(wanted - spared - 1e-6)).astype(int)
            low, high = 1, int(levels.max())
            if not _keeps(trace, config, levels):
                continue
            while low < high:
                cap = (low + high) // 2
                if _keeps(trace, config, _bridged(np.minimum(levels, cap), config)[0]):
                    high = cap
                else:
                    low = cap + 1
            for cap in (low, low + 1, low + 2):
                schedule, starts = _bridged(np.minimum(levels, cap), config, since=trace.warm_up_s)
                if _keeps(trace, config, schedule):
                    cost = schedule[trace.warm_up_s :].sum() + starts * (config.cold_start_s + DRAIN_S)
                    best = min(best, float(cost))
    return best


def _least_levels(mu: Series, band_s: int) -> Series:
    """Return replicas, fractional, that a look ahead of ``band_s`` demands: each deadline met, held until then."""
    per_s = REPLICA_MU_PER_MIN / 60.0
    due = np.concatenate([np.zeros(band_s), np.cumsum(mu)])[: len(mu)].tolist() + [float(mu.sum())] * band_s
    arrived = np.cumsum(mu).tolist()
    levels, done = np.zeros(len(mu)), 0.0
    for t in range(len(mu)):
        need = max((due[t + ahead] - done) / (ahead + 1) for ahead in range(band_s))
        levels[t] = max(0.0, need) / per_s
        done = min(arrived[t], done + max(0.0, need))
    return levels


def _keeps(trace: Trace, config: Config, levels: NDArray[np.int64]) -> bool:
    served = serve(trace.mu, levels.astype(np.float64) * (REPLICA_MU_PER_MIN / 60.0))
    return late_share(trace, waits(trace.mu, served), config.tolerable_wait_s) <= config.slo_share


def _bridged(levels: NDArray[np.int64], config: Config, *, since: int = 0) -> tuple[NDArray[np.int64], int]:
    """Fill gaps that are shorter than a restart costs; return the schedule and its starts after ``since``."""
    schedule, starts, gap = levels.copy(), 0, config.cold_start_s + DRAIN_S
    for level in range(config.min_replicas + 1, int(levels.max()) + 1):
        edges = np.diff((levels >= level).astype(np.int8), prepend=0, append=0)
        ups, downs = np.flatnonzero(edges == 1), np.flatnonzero(edges == -1)
        keep = ups[1:] - downs[:-1] <= gap
        for begin, end in zip(downs[:-1][keep], ups[1:][keep], strict=True):
            schedule[begin:end] = np.maximum(schedule[begin:end], level)
        starts += int((ups[1:][~keep] >= since).sum()) + int(ups[0] > since)
    return schedule, starts
