"""The knee of a curve, the unit made of it, and the search that finds it: against curves whose knee is known."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from capacity.policy.cost import CostProfile, request_cost
from capacity.policy.knee import KneeError, find_knee, mix_cost, reference_profile, supply_mu_per_min
from capacity.policy.profiles import default_profile
from worker.calibration.search import CLOSE, HIGHEST_SHARE, next_rate
from worker.spec import LevelPoint, Shape, knee_bracket

MIX = (Shape(input_tokens=100, output_tokens=20), Shape(input_tokens=800, cached_tokens=256, output_tokens=60))
TIMES = CostProfile(version=0, base=1.0, alpha=0.01, beta=0.2, gamma=1e-4, epsilon=1e-6, cached_factor=0.1)


def level(rate: float, attained: float, *, requests: int = 200, **more: object) -> LevelPoint:
    values: dict[str, object] = {
        "rate_per_s": rate,
        "completed": round(rate * 10),
        "seconds": 10.0,
        "input_tokens": round(rate * 10) * 450,
        "cached_tokens": round(rate * 10) * 128,
        "output_tokens": round(rate * 10) * 40,
        "ttft_ms": {"p50": 100.0, "p95": 300.0, "p99": 400.0},
        "tpot_ms": {"p50": 20.0, "p95": 30.0, "p99": 40.0},
        "attained": attained,
        "requests": requests,
    }
    return LevelPoint(**(values | more))  # type: ignore[arg-type]


def find(levels: list[LevelPoint], **more: object) -> object:
    values: dict[str, object] = {"mix": MIX, "times": TIMES, "attained_share": 0.95, "max_concurrency": 64}
    return find_knee(levels, **(values | more))  # type: ignore[arg-type]


# --------------------------------------------------------------------- the curve
def test_the_knee_is_interpolated_between_the_last_kept_and_the_first_broken_level() -> None:
    knee = find_knee(
        [level(10, 1.0), level(12, 0.97), level(13, 0.93), level(20, 0.2)],
        mix=MIX, times=TIMES, attained_share=0.95, max_concurrency=64, saturation_per_s=20.0,
    )  # fmt: skip
    assert knee.rate_per_s == pytest.approx(12.5)
    assert knee.share == pytest.approx(0.625)
    assert not knee.is_lower_bound
    assert knee.warnings == ()
    assert knee.engine_ms_per_min == pytest.approx(60 * 12.5 * mix_cost(TIMES, MIX))


def test_a_level_that_holds_above_one_that_does_not_is_taken_for_luck() -> None:
    knee = find_knee(
        [level(10, 1.0), level(12, 0.9), level(14, 0.99), level(16, 0.1)],
        mix=MIX, times=TIMES, attained_share=0.95, max_concurrency=64,
    )  # fmt: skip
    assert 10 < knee.rate_per_s < 12


def test_of_a_rate_that_was_offered_twice_the_better_level_counts() -> None:
    assert knee_bracket([level(10, 0.5), level(10, 1.0), level(12, 0.3)], 0.95) == (level(10, 1.0), level(12, 0.3))


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.floats(0.5, 100.0), st.floats(0.0, 1.0)), min_size=1, max_size=12), st.floats(0.5, 0.99))
def test_the_knee_never_leaves_its_bracket(curve: list[tuple[float, float]], share: float) -> None:
    levels = [level(rate, attained) for rate, attained in curve]
    broken = [rate for rate, attained in curve if attained < share and all(a < share for r, a in curve if r == rate)]
    first_broken = min(broken, default=math.inf)
    below = [rate for rate, attained in curve if rate < first_broken]
    if not below:
        with pytest.raises(KneeError):
            find(levels, attained_share=share)
        return
    knee = find_knee(levels, mix=MIX, times=TIMES, attained_share=share, max_concurrency=64)
    assert max(below) <= knee.rate_per_s <= first_broken
    assert knee.is_lower_bound == (first_broken == math.inf)


def test_more_demanding_objectives_never_raise_the_knee() -> None:
    levels = [level(10, 1.0), level(12, 0.97), level(14, 0.9), level(16, 0.4)]
    rates = [
        find_knee(levels, mix=MIX, times=TIMES, attained_share=share, max_concurrency=64).rate_per_s
        for share in (0.5, 0.8, 0.9, 0.95, 0.98)
    ]
    assert rates == sorted(rates, reverse=True)


def test_an_unbroken_curve_gives_a_lower_bound_and_says_so() -> None:
    knee = find_knee([level(10, 1.0), level(20, 0.99)], mix=MIX, times=TIMES, attained_share=0.95, max_concurrency=64)
    assert (knee.rate_per_s, knee.is_lower_bound, knee.share) == (20, True, None)
    assert "at least what is shown" in knee.warnings[0]


def test_without_a_measured_saturation_the_most_that_was_completed_stands_for_it() -> None:
    levels = [level(10, 1.0), level(14, 0.3, completed=131)]
    knee = find_knee(levels, mix=MIX, times=TIMES, attained_share=0.95, max_concurrency=64)
    assert knee.saturation_per_s == pytest.approx(13.1)


@pytest.mark.parametrize(
    ("levels", "words"), [([], "No level of load"), ([level(2, 0.4), level(4, 0.1)], "at 2 requests/s only 40% keep")]
)
def test_no_knee_says_what_to_change(levels: list[LevelPoint], words: str) -> None:
    with pytest.raises(KneeError, match=words):
        find(levels)


def test_a_vague_or_thin_curve_is_said() -> None:
    wide = find_knee([level(10, 1.0), level(20, 0.0)], mix=MIX, times=TIMES, attained_share=0.95, max_concurrency=64)
    assert any("somewhere between 10 and 20" in each for each in wide.warnings)
    thin = find_knee(
        [level(10, 1.0, requests=30), level(10.5, 0.9)],
        mix=MIX, times=TIMES, attained_share=0.95, max_concurrency=64,
    )  # fmt: skip
    assert any("fewer than 50 requests" in each for each in thin.warnings)


def test_the_target_concurrency_is_littles_law_and_its_peaks() -> None:
    """10 requests/s that stay 100 ms + 39 × 20 ms each: 8.8 in the replica on average, 95 times in 100 at most 14."""
    levels = [level(10, 1.0), level(10.5, 0.0)]
    knee = find_knee(levels, mix=MIX, times=TIMES, attained_share=0.95, max_concurrency=64)
    assert knee.target_concurrency == 14
    few = find_knee(levels, mix=MIX, times=TIMES, attained_share=0.95, max_concurrency=6)
    assert few.target_concurrency == 6, "nobody measured more"


# --------------------------------------------------------------------- the unit
def test_a_reference_replica_supplies_100_mu_a_minute_at_its_knee() -> None:
    knee = find_knee([level(10, 1.0), level(12, 0.5)], mix=MIX, times=TIMES, attained_share=0.95, max_concurrency=64)
    profile = reference_profile(TIMES, knee, version=7)
    assert (profile.version, profile.calibrated) == (7, True)
    offered = 60 * knee.rate_per_s / 2
    priced = sum(
        offered
        * request_cost(
            profile,
            input_tokens=each.input_tokens,
            cached_tokens=each.cached_tokens,
            output_tokens=each.output_tokens,
        )
        for each in MIX
    )
    assert priced == pytest.approx(100.0)
    assert supply_mu_per_min(knee, profile, mix=MIX) == pytest.approx(100.0)
    assert profile.beta / profile.alpha == pytest.approx(TIMES.beta / TIMES.alpha)
    assert profile.cached_factor == TIMES.cached_factor


def test_other_hardware_supplies_what_it_keeps_up_with_in_reference_mu() -> None:
    knee = find_knee([level(10, 1.0), level(12, 0.5)], mix=MIX, times=TIMES, attained_share=0.95, max_concurrency=64)
    reference = reference_profile(TIMES, knee, version=1)
    slow = CostProfile(version=0, base=3.0, alpha=0.05, beta=0.3, gamma=2e-4, epsilon=2e-6, cached_factor=0.3)
    other = find_knee([level(5, 1.0), level(6, 0.5)], mix=MIX, times=slow, attained_share=0.95, max_concurrency=64)
    assert supply_mu_per_min(other, reference, mix=MIX) == pytest.approx(100 * other.rate_per_s / knee.rate_per_s)


def test_what_was_not_measured_comes_from_the_profile_before() -> None:
    knee = find_knee([level(10, 1.0), level(12, 0.5)], mix=MIX, times=TIMES, attained_share=0.95, max_concurrency=64)
    before = default_profile()
    made = reference_profile(TIMES, knee, version=2, previous=before)
    assert made.modalities.keys() == before.modalities.keys()
    for name, price in made.modalities.items():
        assert price / made.alpha == pytest.approx(before.modalities[name] / before.alpha)
    assert made.long_input_tiers == before.long_input_tiers


def test_requests_that_cost_nothing_make_no_unit() -> None:
    free = CostProfile(version=0, base=0.0, alpha=0.0, beta=0.0, gamma=0.0, epsilon=0.0, cached_factor=0.0)
    knee = find_knee([level(10, 1.0), level(12, 0.5)], mix=MIX, times=free, attained_share=0.95, max_concurrency=64)
    with pytest.raises(KneeError, match="cost nothing"):
        reference_profile(free, knee, version=1)
    with pytest.raises(ValueError, match="at least one shape"):
        mix_cost(TIMES, ())


# --------------------------------------------------------------------- the search
def attained_at(rate: float, knee: float, steepness: float) -> float:
    """A smooth curve that crosses 0.95 at ``knee``."""
    at = steepness * (rate / knee - 1.0) + math.log(0.05 / 0.95)
    return 1.0 / (1.0 + math.exp(min(at, 700.0)))


def searched(knee: float, saturation: float, steepness: float, most: int = 20) -> list[LevelPoint]:
    levels: list[LevelPoint] = []
    while True:
        rate = next_rate(levels, saturation_per_s=saturation, attained_share=0.95, max_levels=most)
        if rate is None:
            return levels
        levels.append(level(rate, attained_at(rate, knee, steepness)))


@settings(deadline=None)
@given(st.floats(0.1, 1.1), st.floats(0.01, 5000.0), st.floats(15.0, 200.0))
def test_search_and_judgement_find_the_knee_together(share: float, saturation: float, steepness: float) -> None:
    levels = searched(share * saturation, saturation, steepness)
    assert len(levels) < 20
    knee = find_knee(levels, mix=MIX, times=TIMES, attained_share=0.95, max_concurrency=64)
    assert knee.rate_per_s == pytest.approx(share * saturation, rel=CLOSE - 1.0)


@settings(deadline=None)
@given(st.lists(st.floats(0.0, 1.0), min_size=30, max_size=30), st.integers(1, 20))
def test_the_search_is_bounded_whatever_the_engine_does(attained: list[float], most: int) -> None:
    levels: list[LevelPoint] = []
    while (rate := next_rate(levels, saturation_per_s=50.0, attained_share=0.95, max_levels=most)) is not None:
        assert 0 < rate <= HIGHEST_SHARE * 50.0
        levels.append(level(rate, attained[len(levels)]))
    assert len(levels) <= most


def test_an_engine_that_keeps_everything_ends_the_search_above_saturation() -> None:
    levels: list[LevelPoint] = []
    while (rate := next_rate(levels, saturation_per_s=10.0, attained_share=0.95, max_levels=50)) is not None:
        levels.append(level(rate, 1.0))
    assert 10.0 < levels[-1].rate_per_s <= 16.0


def test_an_engine_that_keeps_nothing_ends_the_search_at_next_to_no_load() -> None:
    levels: list[LevelPoint] = []
    while (rate := next_rate(levels, saturation_per_s=10.0, attained_share=0.95, max_levels=50)) is not None:
        levels.append(level(rate, 0.0))
    assert levels[-1].rate_per_s < 0.5


def test_what_breaks_below_saturation_is_offered_again() -> None:
    """A hiccup of the host at 6/s: the second try holds, and the search goes on above it."""
    first = next_rate([], saturation_per_s=10.0, attained_share=0.95, max_levels=20)
    assert first is not None
    again = next_rate([level(first, 0.3)], saturation_per_s=10.0, attained_share=0.95, max_levels=20)
    assert again == first
    later = next_rate([level(first, 0.3), level(first, 1.0)], saturation_per_s=10.0, attained_share=0.95, max_levels=20)
    assert later is not None
    assert later > first


def test_an_engine_that_completes_nothing_is_not_searched() -> None:
    assert next_rate([], saturation_per_s=0.0, attained_share=0.95, max_levels=20) is None
