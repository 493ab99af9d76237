"""Whether places or hardware limit a replica: on an accelerator's measurements, and on curves whose truth is known."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from capacity.policy.concurrency import LEAST_GAIN, MOST_TIMES, TPOT_SHARE, SupplyLimit, kv_requests, supply_limit
from capacity.policy.cost import CostProfile
from capacity.policy.fit import fit_costs
from worker.spec import CostPoint, LevelPoint, Shape

RECORDED = json.loads(Path(__file__).with_name("h100.json").read_text())
MIX = msgspec.convert(RECORDED["mix"], tuple[Shape, ...])
LEVELS = msgspec.convert(RECORDED["at_32"]["levels"], list[LevelPoint])


def times_at(places: int) -> CostProfile:
    return fit_costs(msgspec.convert(RECORDED[f"at_{places}"]["points"], list[CostPoint])).times


def on_h100(levels: Sequence[LevelPoint] = LEVELS, **more: Any) -> SupplyLimit | None:
    values: dict[str, Any] = {"mix": MIX, "times": times_at(32), "attained_share": 0.95, "max_concurrency": 32}
    return supply_limit(levels, **(values | {"tpot_objective_ms": 50.0} | more))


# --------------------------------------------------------------------- an H100
def test_an_h100_with_32_places_is_limited_by_them_and_128_are_recommended() -> None:
    found = on_h100()
    assert found is not None
    assert (found.by, found.target_concurrency, found.recommended) == ("concurrency", 32, 128)
    assert "Raise it to 128 and calibrate again: about 1.5 times the supply" in found.text
    assert "all 32 places were taken at the knee, where a token took 15 of the 50 ms allowed" in found.text


def test_what_is_expected_of_an_h100_is_about_what_was_measured_with_128_places() -> None:
    """A closed form of the recorded grid at 128, summed here by hand: it saw none of the levels at 32."""
    found, times = on_h100(), times_at(128)
    assert found is not None
    mean_ms = sum(
        times.base
        + times.alpha * (one.input_tokens - one.cached_tokens)
        + times.epsilon * (one.input_tokens**2 - one.cached_tokens**2)
        + times.alpha * times.cached_factor * one.cached_tokens
        + times.beta * one.output_tokens
        + times.gamma * one.output_tokens * (one.input_tokens + one.output_tokens / 2)
        for one in MIX
    ) / len(MIX)
    expected_per_s = found.estimate[-1][1]
    assert 0.8 < expected_per_s / (1000.0 / mean_ms) < 1.0, "on the careful side, and not by much"
    assert 1.0 + LEAST_GAIN < found.factor < 1000.0 / mean_ms / 31.0


@pytest.mark.parametrize("more", [{"tpot_objective_ms": 20.0}, {"max_concurrency": 64}, {"tpot_objective_ms": 0.0}])
def test_nothing_is_said_of_objectives_that_are_nearly_broken_or_of_places_that_were_free(more: dict[str, Any]) -> None:
    assert on_h100(**more) is None


def test_memory_bounds_what_is_recommended_and_is_said_where_it_is_the_limit() -> None:
    per_request = sum(one.input_tokens + one.output_tokens for one in MIX) / len(MIX)
    assert kv_requests(MIX, round(600.5 * per_request)) == 600
    roomy = on_h100(kv_tokens=round(600.5 * per_request))
    assert roomy is not None
    assert (roomy.recommended, roomy.kv_requests) == (128, 600)
    bounded = on_h100(kv_tokens=round(80.5 * per_request))
    assert bounded is not None
    assert (bounded.by, bounded.recommended) == ("concurrency", 80)
    full = on_h100(kv_tokens=round(34.5 * per_request))
    assert full is not None
    assert (full.by, full.recommended, full.factor, full.estimate) == ("memory", None, 1.0, ())
    assert "holds about 34 such requests, so more places would not help" in full.text


def test_with_one_place_nobody_has_seen_requests_beside_each_other() -> None:
    assert on_h100(max_concurrency=1) is None


@pytest.mark.parametrize("levels", [[], LEVELS[:1], LEVELS[3:4], [LEVELS[0], LEVELS[3]]])
def test_without_a_trend_nobody_can_tell(levels: list[LevelPoint]) -> None:
    assert on_h100(levels) is None


def test_times_that_no_engine_has_say_nothing() -> None:
    odd = [msgspec.structs.replace(one, tpot_ms={"p50": 1e300, "p95": 1e308}) for one in LEVELS]
    assert on_h100(odd) is None


# --------------------------------------------------------------------- curves whose truth is known
CHAT = (Shape(input_tokens=64, output_tokens=40), Shape(input_tokens=128, output_tokens=20))
MEAN_OUTPUTS = 30.0
PLAIN = CostProfile(version=0, base=0.0, alpha=0.0, beta=1.0, gamma=0.0, epsilon=0.0, cached_factor=0.0)


def curve(
    fixed_s: float, each_s: float, most: float, parts: Sequence[float] = (0.5, 0.7, 0.9, 1.0)
) -> list[LevelPoint]:
    """Levels with ``most`` requests side by side at the last; one stays ``fixed_s`` + ``each_s`` · (n + 1), since it is
    there beside n others, all of it in 30 tokens after the first."""
    found = []
    for count in (part * most for part in parts):
        residence = fixed_s + each_s * (1.0 + count)
        token_ms = 1000.0 * residence / MEAN_OUTPUTS
        found.append(
            LevelPoint(
                rate_per_s=count / residence, completed=100, seconds=100 * residence / count, input_tokens=9600,
                cached_tokens=0, output_tokens=3100, ttft_ms={"p50": 0.0, "p95": 0.0},
                tpot_ms={"p50": token_ms, "p95": token_ms}, attained=1.0, requests=100,
            )
        )  # fmt: skip
    return found


@settings(max_examples=300, deadline=None)
@given(
    st.floats(0.0, 5.0), st.floats(0.0, 0.5), st.integers(2, 500), st.floats(1.0, 2000.0),
    st.one_of(st.none(), st.integers(1, 10**6)),
)  # fmt: skip
def test_what_is_recommended_is_more_than_there_was_and_keeps_the_objective(
    fixed_s: float, each_s: float, places: int, objective_ms: float, kv_tokens: int | None
) -> None:
    if fixed_s + each_s < 1e-3:
        return
    found = supply_limit(
        curve(fixed_s, each_s, places), mix=CHAT, times=PLAIN, attained_share=0.95, max_concurrency=places,
        tpot_objective_ms=objective_ms, kv_tokens=kv_tokens,
    )  # fmt: skip
    gained = 2 * (fixed_s + each_s * places) / (fixed_s + 2 * each_s * places)
    is_quick = 1000.0 * (fixed_s + 2 * each_s * places) / MEAN_OUTPUTS <= TPOT_SHARE * objective_ms
    if abs(gained - 1.0 - LEAST_GAIN) > 1e-6 and abs(gained - 1.0) > 1e-6:
        assert (found is not None) == (gained > 1.0 + LEAST_GAIN and is_quick)
    if found is None:
        return
    held = kv_requests(CHAT, kv_tokens)
    if found.recommended is None:
        assert found.by == "memory"
        assert held < 2 * places
        return
    assert places < found.recommended <= MOST_TIMES * places
    assert not held or found.recommended <= held
    residence = fixed_s + each_s * found.recommended
    assert 1000.0 * residence / MEAN_OUTPUTS <= TPOT_SHARE * objective_ms * (1 + 1e-6)
    truth = (found.recommended / residence) / (places / (fixed_s + each_s * places))
    assert found.factor == pytest.approx(truth, rel=1e-6)
    assert found.factor >= 1.0 + LEAST_GAIN
    assert [rate for _, rate in found.estimate] == sorted(rate for _, rate in found.estimate)
