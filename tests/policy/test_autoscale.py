"""The SLO-budget policy: bounds, speed, patience, memory. Driven tick by tick on a virtual clock."""

import json
import math
from dataclasses import asdict, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from capacity.policy.autoscale import Config, Decision, Observation, State, decide, promise_short, replica_supply

T0 = 1_790_000_000.0
SUPPLY = 100.0
C = Config(min_replicas=1, max_replicas=50)


def seen(now: float, offered: float, ready: int, *, starting: int = 0, queue: float = 0.0, **more) -> Observation:
    fields = {"replica_mu_per_min": SUPPLY, "requests": math.ceil(offered / 12)} | more
    return Observation(now=now, ready=ready, starting=starting, queue_mu=queue, offered_mu_per_min=offered, **fields)


def run(
    config: Config, rates: list[float], *, ready: int = 1, state: State | None = None, start: float = T0, **more
) -> tuple[State, list[Decision]]:
    """Follow every decision at once: a fleet without cold start and without queue."""
    state, decisions = state or State(), []
    for i, rate in enumerate(rates):
        state, decision = decide(config, state, seen(start + 5 * i, rate, ready, **more))
        ready = decision.replicas
        decisions.append(decision)
    return state, decisions


rates = st.lists(st.floats(0, 5000), min_size=1, max_size=120)


@given(rates, st.integers(0, 5), st.integers(0, 20), st.integers(0, 30), st.floats(0, 500))
@settings(max_examples=60, deadline=None)
def test_it_never_leaves_its_bounds(offered, low, span, ready, queue):
    config = Config(min_replicas=low, max_replicas=low + span, grace_s=60.0, idle_s=30.0)
    _, decisions = run(config, offered, ready=ready, queue=queue)
    assert all(low <= d.replicas <= low + span for d in decisions)


@given(rates, st.integers(0, 5), st.integers(0, 20), st.integers(0, 30), st.integers(0, 30))
@settings(max_examples=60, deadline=None)
def test_it_never_falls_below_what_is_sold_nor_above_its_maximum(offered, low, span, ready, sold):
    config = Config(
        min_replicas=low,
        max_replicas=low + span,
        grace_s=60.0,
        idle_s=30.0,
        provisioned_replicas=sold,
        provisioned_for="what is sold",
    )
    _, decisions = run(config, offered, ready=ready)
    assert all(min(low + span, max(low, sold)) <= d.replicas <= low + span for d in decisions)
    short = sold > low + span
    assert promise_short(config) == max(0, sold - low - span)
    assert all((f"what is sold needs {sold}, {sold - low - span} more" in d.reason) == short for d in decisions)


def test_what_is_sold_stays_warm_without_a_request_and_the_reason_says_so():
    config = Config(
        min_replicas=0, max_replicas=8, idle_s=30.0, provisioned_replicas=3, provisioned_for="250 MU/min sold"
    )
    _, decisions = run(config, [0.0] * 100, ready=0)
    assert {d.replicas for d in decisions} == {3}
    assert decisions[-1].kind == "promise"
    assert decisions[-1].reason.endswith("0 wanted, held at 3 for 250 MU/min sold")
    assert decisions[-1].inputs["config"]["provisioned_replicas"] == 3
    _, busy = run(config, [500.0] * 100, ready=3)
    assert busy[-1].replicas > 3


def test_a_pin_below_what_is_sold_is_told():
    config = Config(min_replicas=0, max_replicas=8, pinned_replicas=1, provisioned_replicas=3, provisioned_for="it")
    _, (decision,) = run(config, [0.0])
    assert (decision.replicas, promise_short(config)) == (1, 2)
    assert "it needs 3, 2 more than there may be" in decision.reason


@given(rates, st.integers(1, 9))
@settings(max_examples=40, deadline=None)
def test_a_pin_is_kept_and_what_would_be_needed_is_still_shown(offered, pin):
    _, decisions = run(replace(C, pinned_replicas=pin), offered)
    assert {d.replicas for d in decisions} == {pin}
    assert {d.kind for d in decisions} == {"pin"}
    assert all("needed" in d.reason for d in decisions)


def average(rates: list[float], i: int) -> float:
    """Mean of the last 45 s of rates at tick ``i``."""
    window = rates[max(0, i - 8) : i + 1]
    return sum(window) / len(window)


@pytest.mark.parametrize("cold_start_s", [10, 60, 180])
def test_a_step_is_answered_within_one_tick_of_the_average_crossing(cold_start_s):
    offered = [100.0] * 100 + [1000.0] * 20
    _, decisions = run(replace(C, cold_start_s=cold_start_s), offered, ready=2)
    for i in range(100, 120):
        crossing = average(offered, i) / SUPPLY - 0.5
        assert decisions[i].replicas >= math.floor(crossing), i
    assert decisions[119].replicas >= 10
    first_up = next(i for i in range(100, 120) if decisions[i].replicas > decisions[99].replicas)
    assert first_up - 100 <= 3


@given(rates, st.integers(2, 30))
@settings(max_examples=40, deadline=None)
def test_nothing_is_released_in_the_grace_period(offered, ready):
    _, decisions = run(C, offered[:180], ready=ready)
    fleet = [ready, *(d.replicas for d in decisions)]
    assert fleet == sorted(fleet)


def test_after_the_grace_period_idle_replicas_go_slowly_and_down_to_the_minimum():
    offered = [1000.0] * 200 + [50.0] * 3000
    _, decisions = run(C, offered, ready=10)
    replicas = [d.replicas for d in decisions]
    assert replicas[199] >= 10
    assert replicas[200 + 4] >= replicas[199], "a dip of 20 s releases nothing"
    assert replicas[200 + 12] >= 9, "60 s of low load release next to nothing"
    assert replicas[200 + 60] >= 5, "half of the recent peak stays"
    assert replicas[-1] <= 2
    assert "envelope" in next(d.reason for d in decisions if d.kind == "release")


def test_a_demo_may_shorten_the_grace_period():
    _, decisions = run(replace(C, grace_s=60.0), [20.0] * 30, ready=6)
    assert all(d.replicas == 6 for d in decisions[:11])
    assert "first 1 min" in decisions[5].reason
    assert decisions[29].replicas < 6


@given(rates, st.floats(0, 2000), st.integers(1, 20), st.integers(0, 5), st.floats(0, 300))
@settings(max_examples=60, deadline=None)
def test_more_demand_never_means_fewer_replicas(offered, extra, ready, starting, queue):
    """From one and the same past, before anything of the future is learnt from it."""
    state, _ = run(C, offered)
    now = T0 + 5 * len(offered)
    base = seen(now, 500.0, ready, starting=starting, queue=queue)
    # Sigma is learnt from demand too: a return to what was usual may narrow it, so the past is held to be unknown.
    state = replace(state, variance=None, errors=0, samples=state.samples[-9:])
    _, less = decide(C, state, base)
    _, more = decide(C, state, replace(base, offered_mu_per_min=500.0 + extra))
    _, queued = decide(C, state, replace(base, queue_mu=queue + extra))
    if less.kind != "grace" and more.kind != "grace":
        assert more.replicas >= less.replicas
    assert more.need >= less.need - 1e-9
    if queued.is_late == less.is_late:
        assert queued.need >= less.need - 1e-9


@given(rates)
@settings(max_examples=30, deadline=None)
def test_it_is_deterministic_and_survives_a_round_trip_through_json(offered):
    straight, decisions = run(C, offered)
    state, ready = State(), 1
    for i, rate in enumerate(offered):
        state = State.from_json(state.to_json())
        state, decision = decide(C, state, seen(T0 + 5 * i, rate, ready))
        ready = decision.replicas
        assert decision == decisions[i]
    assert state == straight
    json.dumps(decision.inputs)


def test_the_state_stays_small():
    state, _ = run(replace(C, cold_start_s=180.0), [float(i % 700) for i in range(400)])
    assert len(state.to_json()) < 8000


def test_a_state_of_another_version_of_the_code_is_read_as_far_as_it_is_known():
    assert State.from_json('{"z": 1.0, "of_the_future": 3}') == State(z=1.0)
    with pytest.raises(ValueError, match="object"):
        State.from_json("[]")
    with pytest.raises(ValueError, match="Expecting value"):
        State.from_json("nonsense")


@pytest.mark.parametrize("jump_s", [-86_400, -3600, -7, 3600, 86_400])
def test_a_clock_that_jumps_neither_breaks_it_nor_releases_anything_at_once(jump_s):
    state, decisions = run(C, [800.0] * 400)
    before = decisions[-1].replicas
    state, after = run(C, [800.0] * 10, ready=before, state=state, start=T0 + 2000 + jump_s)
    assert all(before - 1 <= d.replicas <= before + 1 for d in after)
    # The clock is set right again.
    _, later = run(C, [800.0] * 400, ready=before, state=state, start=T0 + 2050)
    assert all(before - 1 <= d.replicas <= before + 1 for d in later)


def test_missed_ticks_are_made_up_for():
    """One observation after a minute of silence counts as a minute of it."""
    state, _ = run(C, [100.0] * 60, ready=2)
    _, decision = decide(C, state, seen(T0 + 5 * 59 + 60, 900.0, 2))
    assert decision.demand == pytest.approx(9.0)


def test_late_ticks_raise_the_margin_and_clean_ones_lower_it_slowly():
    state, _ = run(C, [300.0] * 60, ready=4)
    calm = state.z
    late, _ = run(C, [300.0] * 12, ready=4, state=state, start=T0 + 300, queue=400.0)
    assert late.z == pytest.approx(calm + 12 * 0.012 * (1 - 0.75 * 0.01))
    clean, _ = run(C, [300.0] * 720, ready=9, state=late, start=T0 + 360)
    assert clean.z == pytest.approx(late.z - 720 * 0.012 * 0.75 * 0.01)


def test_without_requests_the_budget_is_neither_spent_nor_saved():
    state, _ = run(C, [300.0] * 60, ready=4)
    idle, _ = run(C, [0.0] * 60, ready=4, state=state, start=T0 + 300)
    assert idle.z == state.z


def test_a_queue_that_would_outlive_a_launch_is_helped_and_one_that_would_not_is_not():
    state, _ = run(C, [300.0] * 60, ready=4)
    _, helped = decide(C, state, seen(T0 + 300, 300.0, 4, queue=400.0))
    assert helped.kind == "queue"
    assert helped.queue_help == pytest.approx(4.0)
    assert "400.0 MU queue" in helped.reason
    _, patient = decide(C, state, seen(T0 + 300, 300.0, 4, queue=90.0))
    assert patient.queue_help == 0.0


def test_another_profile_version_is_another_unit_and_starts_anew():
    state, _ = run(C, [800.0] * 400)
    state, decision = decide(replace(C, profile_version=2), state, seen(T0 + 2000, 10.0, 9))
    assert decision.kind == "grace"
    assert decision.demand == pytest.approx(0.1)
    assert state.profile_version == 2


def test_twice_the_supply_halves_the_replicas_with_the_same_memory():
    state, _ = run(C, [800.0] * 400)
    _, one = decide(C, state, seen(T0 + 2000, 800.0, 1))
    _, two = decide(C, state, seen(T0 + 2000, 800.0, 1, replica_mu_per_min=2 * SUPPLY))
    assert one.need == pytest.approx(2 * two.need)


def test_scale_to_zero_only_where_asked_after_idling_and_back_at_the_first_request():
    config = Config(min_replicas=0, max_replicas=3, idle_s=60.0, grace_s=0.0)
    _, decisions = run(config, [5.0] * 10 + [0.0] * 30)
    assert all(d.replicas >= 1 for d in decisions[:21])
    assert decisions[-1].replicas == 0
    assert decisions[-1].reason == "scaled to zero"
    _, woken = decide(config, State(), seen(T0, 0.0, 0, queue=0.01, requests=1))
    assert (woken.replicas, woken.kind) == (1, "wake")
    _, floor = run(replace(config, min_replicas=1), [0.0] * 300)
    assert {d.replicas for d in floor} == {1}


def test_the_maximum_is_named_when_it_holds_demand_back():
    _, decisions = run(replace(C, max_replicas=3), [1000.0] * 20)
    assert decisions[-1].kind == "limit"
    assert "held at the maximum 3" in decisions[-1].reason


def test_a_decision_echoes_everything_it_was_made_of():
    observation = seen(T0, 300.0, 2)
    _, decision = decide(C, State(), observation)
    assert decision.inputs["config"] == asdict(C)
    assert decision.inputs["observation"] == asdict(observation)
    results = decision.inputs["results"]
    assert results["need"] == pytest.approx(results["demand"] + results["margin"] + results["queue_help"])


def test_supply_is_bound_by_the_knee_or_by_the_slots():
    def supply(**means):
        return replica_supply(knee_mu_per_min=100.0, target_concurrency=8, **means)

    assert supply(mean_request_mu=None, mean_residence_s=None) == 100.0
    assert supply(mean_request_mu=0.1, mean_residence_s=2.0) == pytest.approx(60 * 8 * 0.1 / 2.0)
    assert supply(mean_request_mu=10.0, mean_residence_s=2.0) == 100.0
    with pytest.raises(ValueError, match="knee"):
        replica_supply(knee_mu_per_min=0.0, target_concurrency=8, mean_request_mu=None, mean_residence_s=None)


@pytest.mark.parametrize(
    "bad", [{"min_replicas": 3, "max_replicas": 2}, {"tick_s": 0}, {"slo_share": 0.0}, {"tolerable_wait_s": 0}]
)
def test_contradicting_configuration_is_refused(bad):
    with pytest.raises(ValueError, match=r"must|need"):
        Config(**bad)
    with pytest.raises(ValueError, match=r"supply|negative"):
        seen(T0, 10.0, -1)
