"""The fit of engine times: true coefficients come back, disturbed repeats do not, and it says what it lacks."""

from __future__ import annotations

import dataclasses
import random  # noqa: TID251
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from capacity.policy import fit
from capacity.policy.cost import CostProfile, request_breakdown
from capacity.policy.fit import FitError, combine_repeats, fit_costs
from capacity.policy.grid import cost_grid
from capacity.policy.knee import mix_cost
from capacity.policy.profiles import CACHED_FACTOR
from worker.spec import CostPoint, Shape

GRID = cost_grid(8192, size="thorough")


def formula(truth: dict[str, float], shape: Shape) -> float:
    """The price as the design writes it, in its own words: no function of the product."""
    n, c, o = shape.input_tokens, shape.cached_tokens, shape.output_tokens
    prefill = truth["alpha"] * (n - c) + truth["epsilon"] * (n**2 - c**2) + truth["alpha"] * truth["factor"] * c
    return truth["base"] + prefill + truth["beta"] * o + truth["gamma"] * o * (n + o / 2)


def measured(
    truth: dict[str, float], *, noise: float = 0.0, seed: int = 0, shapes: tuple[Shape, ...] = GRID, repeats: int = 3
) -> list[CostPoint]:
    dice = random.Random(seed)
    return [
        CostPoint(
            shape=shape,
            engine_ms=tuple(formula(truth, shape) * max(0.2, dice.gauss(1.0, noise)) for _ in range(repeats)),
            input_tokens=float(shape.input_tokens),
            cached_tokens=float(shape.cached_tokens),
            output_tokens=float(shape.output_tokens),
        )
        for shape in shapes
    ]


TRUTHS = st.fixed_dictionaries(
    {
        "base": st.floats(0.2, 5.0),
        "alpha": st.floats(0.005, 0.05),
        "beta": st.floats(0.05, 1.0),
        "gamma": st.floats(2e-5, 2e-4),
        "epsilon": st.floats(1e-6, 1e-5),
        "factor": st.floats(0.0, 1.0),
    }
)


def off(times: CostProfile, truth: dict[str, float]) -> dict[str, float]:
    """Relative errors of the coefficients; the factor's is absolute."""
    names = ("base", "alpha", "beta", "gamma", "epsilon")
    found = {name: getattr(times, name) / truth[name] - 1.0 for name in names}
    return found | {"factor": times.cached_factor - truth["factor"]}


# --------------------------------------------------------------------- recovery
@settings(max_examples=60, deadline=None)
@given(TRUTHS)
def test_without_noise_the_truth_comes_back(truth: dict[str, float]) -> None:
    found = fit_costs(measured(truth))
    # A cached factor too small to show is dropped, and the other terms bear what it explained.
    assert max(map(abs, off(found.times, truth).values())) < 0.03, (truth, found.dropped)
    assert found.max_error < 0.01
    assert found.r2 > 0.9999


@settings(max_examples=60, deadline=None)
@given(TRUTHS, st.integers(0, 2**32))
def test_under_noise_what_is_off_is_what_it_calls_uncertain(truth: dict[str, float], seed: int) -> None:
    found = fit_costs(measured(truth, noise=0.02, seed=seed))
    errors = off(found.times, truth)
    dropped = {each.term for each in found.dropped}
    for name in {"base", "alpha", "beta", "gamma", "epsilon"} - dropped:
        assert abs(errors[name]) < max(0.05, 6 * found.uncertainty[name]), (name, truth, found)
    # Whatever the coefficients, the price of a request is what counts: also of shapes that were never measured.
    for shape in (Shape(input_tokens=300, output_tokens=100), Shape(input_tokens=5000, output_tokens=40)):
        assert mix_cost(found.times, (shape,)) == pytest.approx(formula(truth, shape), rel=0.05)


@settings(max_examples=30, deadline=None)
@given(TRUTHS)
def test_a_fit_that_knows_no_gamma_does_not_recover(truth: dict[str, float]) -> None:
    """The checks above can fail: this mutant of the fit does not pass them."""

    def without_gamma(profile: CostProfile, **tokens: Any) -> Any:
        return dataclasses.replace(request_breakdown(profile, **tokens), decode_attention=0.0)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fit, "request_breakdown", without_gamma)
        found = fit_costs(measured(truth))
    assert found.times.gamma == 0.0
    assert max(map(abs, off(found.times, truth).values())) > 0.05
    assert "gamma" in {each.term for each in found.dropped}


@given(TRUTHS, st.floats(0.1, 10.0))
@settings(max_examples=20, deadline=None)
def test_a_slower_engine_has_the_same_prices_in_proportion(truth: dict[str, float], factor: float) -> None:
    points = measured(truth, noise=0.01)
    slower = [
        CostPoint(
            shape=each.shape, engine_ms=tuple(ms * factor for ms in each.engine_ms), cached_tokens=each.cached_tokens
        )
        for each in points
    ]
    one, other = fit_costs(points).times, fit_costs(slower).times
    for name in ("base", "alpha", "beta", "gamma", "epsilon"):
        assert getattr(other, name) == pytest.approx(factor * getattr(one, name), rel=1e-6, abs=1e-12)
    assert other.cached_factor == pytest.approx(one.cached_factor, abs=1e-6)


# --------------------------------------------------------------------- terms
PLAIN = {"base": 1.0, "alpha": 0.01, "beta": 0.2, "gamma": 1e-4, "epsilon": 2e-6, "factor": 0.1}


@pytest.mark.parametrize("term", ["base", "beta", "gamma", "epsilon"])
def test_a_term_that_explains_nothing_is_dropped_with_a_reason(term: str) -> None:
    found = fit_costs(measured(PLAIN | {term: 0.0}, noise=0.01))
    assert getattr(found.times, term) == pytest.approx(0.0, abs=PLAIN[term] / 20)
    reasons = {each.term: each.reason for each in found.dropped}
    assert term in reasons
    assert "not negative" in reasons[term] or "noise" in reasons[term]


DISTURBED = {
    (16, 0, 1): 5.19, (16, 0, 64): 66.65, (76, 0, 1): 4.54, (76, 0, 64): 61.62, (365, 0, 1): 9.57, (365, 0, 64): 54.67,
    (1740, 0, 1): 36.60, (1740, 0, 64): 94.63, (365, 128, 1): 6.76, (365, 256, 1): 4.37, (1740, 768, 1): 26.64,
    (1740, 1664, 1): 12.65,
}  # fmt: skip
"""(input, cached, output) tokens: milliseconds of CPU of a real engine, on a host that had other work to do, too."""


def test_what_grows_with_the_square_does_not_stand_without_what_grows_with_the_length() -> None:
    """Between few disturbed points a square fits about as well as a line, and would give short prompts away."""
    points = [
        CostPoint(shape=Shape(input_tokens=n, cached_tokens=c, output_tokens=o), engine_ms=(ms,), cached_tokens=c)
        for (n, c, o), ms in DISTURBED.items()
    ]
    found = fit_costs(points)
    assert found.times.alpha == pytest.approx((36.60 - 4.54) / (1740 - 76), rel=0.15), "as from the longest and a short"
    assert {each.term for each in found.dropped} == {"gamma", "epsilon"}
    assert 0.0 < found.times.cached_factor < 1.0


def test_an_engine_that_reads_in_squares_alone_is_priced_so() -> None:
    found = fit_costs(measured(PLAIN | {"alpha": 0.0, "factor": 0.0}, noise=0.01))
    assert found.times.epsilon == pytest.approx(PLAIN["epsilon"], rel=0.05)
    assert found.times.alpha == pytest.approx(0.0, abs=PLAIN["alpha"] / 20)


def test_cached_tokens_that_cost_nothing_have_factor_zero() -> None:
    found = fit_costs(measured(PLAIN | {"factor": 0.0}, noise=0.01))
    assert found.times.cached_factor < 0.02


def test_cached_tokens_that_look_dearer_than_computed_ones_cost_as_much() -> None:
    found = fit_costs(measured(PLAIN | {"factor": 1.3}))
    assert found.times.cached_factor == 1.0
    assert found.times.alpha > 0


def test_without_cached_shapes_the_factor_is_the_default_and_it_says_so() -> None:
    grid = cost_grid(8192, size="medium", prefix_caching=False)
    found = fit_costs(measured(PLAIN, shapes=grid))
    assert found.times.cached_factor == CACHED_FACTOR
    assert "cached_unknown" in {each.code for each in found.warnings}
    assert {each.term: each.reason for each in found.dropped}["cached"] == "no shape had cached tokens"
    assert fit_costs(measured(PLAIN, shapes=grid), default_cached_factor=0.3).times.cached_factor == 0.3


def test_a_grid_of_one_length_says_which_terms_it_cannot_tell_apart() -> None:
    shapes = tuple(Shape(input_tokens=each, output_tokens=16) for each in (16, 64, 256, 1024, 2048, 4096))
    found = fit_costs(measured(PLAIN, shapes=shapes))
    reasons = {each.term: each.reason for each in found.dropped}
    assert "does not tell it apart" in reasons["beta"]
    assert any(each.code == "collinear" and "beta" in each.text for each in found.warnings)
    assert found.mean_error < 0.01, "what it can tell it still fits"


# --------------------------------------------------------------------- warnings
def test_a_good_measurement_needs_no_warning() -> None:
    assert fit_costs(measured(PLAIN, noise=0.01)).warnings == ()


def test_few_points_are_said() -> None:
    found = fit_costs(measured(PLAIN, shapes=GRID[:: len(GRID) // 6][:6]))
    assert "few_points" in {each.code for each in found.warnings}


@pytest.mark.parametrize("points", [[], measured(PLAIN)[:2]])
def test_nothing_is_fitted_to_next_to_nothing(points: list[CostPoint]) -> None:
    with pytest.raises(FitError, match=f"Only {len(points)} shapes"):
        fit_costs(points)


def test_shapes_without_a_time_are_left_out_and_said() -> None:
    points = measured(PLAIN)
    points[3] = CostPoint(shape=points[3].shape, engine_ms=(-0.5, 0.0))
    found = fit_costs(points)
    assert len(found.points) == len(points) - 1
    assert [each.text for each in found.warnings if each.code == "lost_points"] == [
        "1 shapes gave no usable time and are left out."
    ]


def test_an_error_too_large_names_the_worst_shape() -> None:
    points = measured(PLAIN)
    worst = points[5]
    points[5] = CostPoint(shape=worst.shape, engine_ms=tuple(each * 4 for each in worst.engine_ms))
    found = fit_costs(points)
    said = next(each.text for each in found.warnings if each.code == "error")
    assert f"{worst.shape.input_tokens} input" in said
    assert f"{worst.shape.output_tokens} output" in said


def test_repeats_that_differ_are_said() -> None:
    assert "noise" in {each.code for each in fit_costs(measured(PLAIN, noise=0.25)).warnings}


def test_counted_tokens_go_before_those_that_were_asked_for() -> None:
    """An engine without a tokenizer to ask: prompts come out longer than ordered; the fit goes by what it counted."""
    asked = [
        CostPoint(
            shape=Shape(
                input_tokens=int(each.input_tokens * 0.9),
                cached_tokens=each.shape.cached_tokens,
                output_tokens=each.shape.output_tokens,
            ),
            engine_ms=each.engine_ms,
            input_tokens=each.input_tokens,
            cached_tokens=each.cached_tokens,
            output_tokens=each.output_tokens,
        )
        for each in measured(PLAIN)
    ]
    assert max(map(abs, off(fit_costs(asked).times, PLAIN).values())) < 0.01


# --------------------------------------------------------------------- repeats
def test_a_disturbed_repeat_is_left_out() -> None:
    found = combine_repeats((1.0, 1.02, 1.6))
    assert found is not None
    assert found.value == pytest.approx(1.01)
    assert found.rejected == (1.6,)
    assert found.spread == pytest.approx(0.01 / 1.01)


@settings(deadline=None)
@given(st.lists(st.floats(0.97, 1.03), min_size=3, max_size=9), st.floats(1.5, 50.0))
def test_one_outlier_never_moves_the_value_out_of_the_others(times: list[float], outlier: float) -> None:
    found = combine_repeats([*times, outlier])
    assert found is not None
    assert min(times) - 1e-12 <= found.value <= max(times) + 1e-12
    assert outlier in found.rejected


@settings(deadline=None)
@given(st.lists(st.floats(-1.0, 100.0, allow_nan=False), max_size=8))
def test_the_value_lies_among_the_usable_repeats(times: list[float]) -> None:
    found = combine_repeats(times)
    usable = [each for each in times if each > 0]
    if not usable:
        assert found is None
    else:
        assert found is not None
        assert min(usable) * (1 - 1e-9) <= found.value <= max(usable) * (1 + 1e-9)
        assert found.spread >= 0
