"""Drift: an engine that becomes slower is found within minutes, and noise is not. Against a queue written out here."""

from __future__ import annotations

import json
import math
import random  # noqa: TID251

import pytest

from capacity.policy.cost import CostProfile
from capacity.policy.drift import Config, Curve, Level, Memory, Minute, Verdict, mean_of, observe

WITHIN_MINUTES = 15
"""Stated: an engine that is 30 % slower raises the alarm within a quarter of an hour of traffic."""

TIMES = CostProfile(version=0, base=2.0, alpha=0.02, beta=2.0, gamma=0.0, epsilon=0.0, cached_factor=0.1)
INPUT, OUTPUT = 500.0, 100.0
STEP_MS, PER_REQUEST_MS = 15.0, 1.5
"""The engine of these tests: a step takes 15 ms, and 1.5 ms for each request in it; a first token 60 ms and two."""


def times_at(rate_per_s: float, *, slow: float = 1.0, outputs: float = OUTPUT) -> tuple[float, float]:
    """Time to first token and per further token (ms) in equilibrium, by Little's law; ``slow`` stretches all of it."""
    inside = 0.0
    for _ in range(500):
        step = slow * (STEP_MS + PER_REQUEST_MS * inside)
        ttft = slow * 60.0 + 2 * step
        inside = min(200.0, rate_per_s * (ttft + outputs * step) / 1000.0)
    return ttft, step


def work_ms(inputs: float = INPUT, outputs: float = OUTPUT) -> float:
    return 2.0 + 0.02 * inputs + 2.0 * outputs


KNEE = 4.0
LEVELS = tuple(Level(60 * rate * work_ms(), *times_at(rate)) for rate in (0.2 * KNEE, 0.5 * KNEE, 0.75 * KNEE, KNEE))
CURVE = Curve(TIMES, LEVELS, prefill_ms=12.0, decode_ms=2.0, knee_ms_per_min=60 * KNEE * work_ms())


def minute(rate: float, *, slow: float = 1.0, noise: float = 0.0, seed: random.Random | None = None) -> Minute:
    ttft, tpot = times_at(rate, slow=slow)
    chance = seed or random.Random(0)
    ttft *= math.exp(chance.gauss(0, 2 * noise))
    tpot *= math.exp(chance.gauss(0, noise))
    requests = 60 * rate * math.exp(chance.gauss(0, noise))
    return Minute(
        replicas=1,
        seconds=60.0,
        requests=requests,
        input_tokens=requests * INPUT,
        cached_tokens=0.0,
        output_tokens=requests * OUTPUT,
        ttft_s=requests * ttft / 1000,
        ttft_count=requests,
        itl_s=requests * (OUTPUT - 1) * tpot / 1000,
        itl_count=requests * (OUTPUT - 1),
    )


def run(memory: Memory, minutes: int, rate: float, **fields: object) -> tuple[Memory, Verdict, int | None]:
    """The verdict after ``minutes``, and after how many the alarm was raised."""
    raised = None
    for index in range(minutes):
        memory, verdict = observe(memory, CURVE, minute(rate, **fields))  # type: ignore[arg-type]
        if verdict.alarm and raised is None:
            raised = index + 1
    return memory, verdict, raised


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("share", [0.1, 0.4, 0.8])
def test_an_engine_that_is_30_percent_slower_is_found_in_time(seed: int, share: float) -> None:
    chance = random.Random(seed)
    memory, _, early = run(Memory("c"), 60, share * KNEE, noise=0.08, seed=chance)
    assert early is None
    _, verdict, raised = run(memory, WITHIN_MINUTES, share * KNEE, slow=1.3, noise=0.08, seed=chance)
    assert raised is not None, verdict
    assert verdict.scales["tpot"] > 1.15
    assert "Calibrate again" in verdict.reason
    assert "too low" in verdict.reason


@pytest.mark.parametrize("seed", range(6))
def test_noise_raises_nothing_in_a_day(seed: int) -> None:
    chance = random.Random(seed)
    memory = Memory("c")
    for index in range(1440):
        # Load that comes and goes, and minutes that scatter by a tenth.
        rate = KNEE * (0.5 + 0.4 * math.sin(index / 90))
        memory, verdict = observe(memory, CURVE, minute(rate, noise=0.1, seed=chance))
        assert not verdict.alarm, (index, verdict)
    assert verdict.scales["tpot"] == pytest.approx(1.0, abs=0.1)


def test_one_long_pause_is_no_drift() -> None:
    memory, _, _ = run(Memory("c"), 30, 2.0)
    memory, verdict = observe(memory, CURVE, minute(2.0, slow=20.0))
    assert not verdict.alarm
    memory, verdict, raised = run(memory, 30, 2.0)
    assert raised is None


def test_an_alarm_ends_when_the_engine_is_as_before_and_does_not_flutter() -> None:
    memory, verdict, raised = run(Memory("c"), 40, 2.0, slow=1.3)
    assert verdict.alarm
    changes = 0
    for _ in range(60):
        memory, verdict = observe(memory, CURVE, minute(2.0))
        changes += verdict.change
    assert (verdict.alarm, changes) == (False, 1)
    # Between the two bounds nothing changes, from either side.
    _, _, raised = run(memory, 60, 2.0, slow=1.08)
    assert raised is None


def test_an_engine_that_is_much_faster_is_told_too() -> None:
    _, verdict, raised = run(Memory("c"), 30, 2.0, slow=0.7)
    assert raised is not None
    assert "too high" in verdict.reason


def test_without_enough_to_go_by_nothing_is_said() -> None:
    memory, verdict = observe(Memory("c"), CURVE, minute(0.0001))
    assert (verdict.alarm, memory.channels, verdict.scales) == (False, {}, {})
    assert "nothing can be said yet" in verdict.reason
    # Beyond the knee requests queue: their times say nothing of the engine.
    memory, _ = observe(Memory("c"), CURVE, minute(1.5 * KNEE))
    assert memory.channels == {}
    # A calibration without a curve predicts nothing.
    memory, _ = observe(Memory("c"), Curve(TIMES, (), 1.0, 1.0, 1.0), minute(2.0))
    assert memory.channels == {}


def test_memory_survives_as_json_and_only_for_its_own_calibration() -> None:
    memory, _, _ = run(Memory("c"), 40, 2.0, slow=1.3)
    stored = json.loads(json.dumps(memory.as_json()))
    assert Memory.of(stored, calibration="c") == memory
    assert Memory.of(stored, calibration="other") == Memory("other")
    for odd in (None, {}, [], {"calibration": "c"}, {"calibration": "c", "channels": 3, "alarm": 1}):
        assert Memory.of(odd, calibration="c") == Memory("c")


def test_longer_contexts_are_no_drift() -> None:
    """A token that attends to a longer context takes longer, as the calibration's γ says."""
    times = CostProfile(version=0, base=2.0, alpha=0.02, beta=2.0, gamma=0.004, epsilon=0.0, cached_factor=0.1)
    short = 2.0 + 0.004 * (500 + 50)
    long = 2.0 + 0.004 * (1500 + 50)
    curve = Curve(times, (Level(1e4, 100.0, 20.0), Level(1e5, 100.0, 20.0)), 12.0, short, 1e6)
    memory = Memory("c")
    for _ in range(30):
        seen = Minute(1, 60.0, 60, 60 * 1500.0, 0.0, 60 * 100.0, 6.0, 0, 5940 * 0.02 * long / short, 5940)
        memory, verdict = observe(memory, curve, seen)
    assert verdict.scales["tpot"] == pytest.approx(1.0, rel=1e-6)


def test_the_mean_of_what_is_spread_lies_above_its_median() -> None:
    assert mean_of({"p50": 100.0, "p95": 100.0}) == 100.0
    assert mean_of({}) == 0.0
    chance = random.Random(1)
    drawn = sorted(100.0 * math.exp(chance.gauss(0, 0.4)) for _ in range(20000))
    found = mean_of({"p50": drawn[10000], "p95": drawn[19000]})
    assert found == pytest.approx(sum(drawn) / len(drawn), rel=0.03)


def test_evidence_is_needed_before_an_alarm() -> None:
    config = Config()
    _, _, raised = run(Memory("c"), 30, 2.0, slow=2.0)
    assert raised is not None
    assert raised >= config.least_minutes + config.hold_minutes - 1
