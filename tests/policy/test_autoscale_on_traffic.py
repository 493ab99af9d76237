"""The scaling policy on hours of made-up traffic in the benchmark's simulator; that simulator against a slow one."""

from __future__ import annotations

import gzip
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.autoscale.fluid import (
    REPLICA_MU_PER_MIN,
    cheapest_static,
    clairvoyant,
    run_policy,
    serve,
    static_peak,
    waits,
    work_bound,
)
from bench.autoscale.traces import PEAK_REPLICAS, Trace, load
from capacity.policy.autoscale import Config


def a_day(seed: int, *, hours: int = 8) -> Trace:
    """Two waves of 15 replicas at most, a noise of some percent, and a burst each hour."""
    draw = np.random.default_rng(seed)
    seconds = np.arange(hours * 3600)
    level = 8.0 - 6.0 * np.cos(seconds / len(seconds) * 4 * math.pi)
    level *= 1.0 + 0.1 * np.repeat(draw.normal(size=hours * 120), 30)
    for start in draw.integers(0, len(seconds) - 120, size=hours):
        level[start : start + 90] *= 1.3
    requests = draw.poisson(np.maximum(level, 0.1) * 2.0).astype(float)
    mu = requests * REPLICA_MU_PER_MIN / 60.0 / 2.0
    return Trace(f"day {seed}", requests, mu, warm_up_s=3600)


@pytest.mark.parametrize("cold_start_s", [10.0, 60.0, 180.0])
def test_a_day_keeps_its_objective_well_below_static_cost_with_few_launches(cold_start_s):
    trace, config = a_day(1), Config(min_replicas=1, max_replicas=60, cold_start_s=cold_start_s)
    score = run_policy(trace, config)
    assert score.late <= config.slo_share
    assert score.launches_per_h <= 10
    assert score.cost < 0.85 * cheapest_static(trace, config) <= 0.85 * static_peak(trace)


def test_the_policy_costs_at_most_a_third_more_than_knowing_the_future():
    trace, config = a_day(1), Config(min_replicas=1, max_replicas=60)
    bound = clairvoyant(trace, config)
    assert work_bound(trace) <= bound <= min(run_policy(trace, config).cost, cheapest_static(trace, config))
    assert run_policy(trace, config).cost < 1.33 * bound


@given(
    st.lists(st.floats(0, 50), min_size=1, max_size=60),
    st.lists(st.floats(0.1, 50), min_size=60, max_size=60),
)
@settings(max_examples=60, deadline=None)
def test_the_queue_and_its_waits_are_those_of_a_queue_followed_by_hand(offered, capacity):
    mu, capacity = np.array(offered), np.array(capacity[: len(offered)])
    served = serve(mu, capacity)
    backlog, queue, by_hand = 0.0, [], [math.inf] * len(offered)
    for t, amount in enumerate(offered):
        queue.append([t, amount])
        left = capacity[t]
        while queue and queue[0][1] <= left + 1e-6:
            left -= queue[0][1]
            by_hand[queue.pop(0)[0]] = t
        if queue:
            queue[0][1] -= left
        backlog = max(0.0, backlog + amount - capacity[t])
        assert served[: t + 1].sum() + backlog == pytest.approx(sum(offered[: t + 1]), abs=1e-5)
    for t, wait in enumerate(waits(mu, served)):
        if math.isinf(by_hand[t]) or math.isinf(wait):
            continue
        # The simulator places the end inside its second, the queue by hand at its end.
        assert by_hand[t] - t - 1 - 1e-3 <= wait <= by_hand[t] - t + 1e-3


def test_traces_are_read_from_series_and_from_requests(tmp_path):
    np.savez(tmp_path / "s.npz", n=np.ones(100), mu=np.ones(100), sf=10, meta='{"oracle_replica_s": {"60": 7.0}}')
    series = load(tmp_path / "s.npz")
    assert (series.warm_up_s, series.oracle, series.scored_s) == (10, {60: 7.0}, 90)
    rows = "arrival_s,input_tokens,output_tokens\n" + "".join(f"{t / 2},100,{t % 7}\n" for t in range(600))
    (tmp_path / "r.csv.gz").write_bytes(gzip.compress(rows.encode()))
    requests = load(tmp_path / "r.csv.gz")
    assert requests.requests.sum() == 600
    busiest = max(requests.mu[i : i + 60].sum() for i in range(len(requests.mu) - 59))
    assert busiest == pytest.approx(PEAK_REPLICAS * REPLICA_MU_PER_MIN)
    (tmp_path / "bad.csv").write_text("a,b\n1,2\n")
    with pytest.raises(ValueError, match="arrival_s"):
        load(tmp_path / "bad.csv")
    with pytest.raises(ValueError, match="npz"):
        load(tmp_path / "x.txt")
