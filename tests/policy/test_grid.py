"""The shapes that are measured: they fit the engine, and they let every term show."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from capacity.policy.fit import fit_costs
from capacity.policy.grid import (
    LEAST_CONTEXT,
    PLANS,
    GridSize,
    cost_grid,
    default_repeats,
    estimated_s,
    request_mix,
)
from capacity.policy.knee import mix_cost
from capacity.policy.profiles import default_profile
from worker.spec import CalibrationOrder, CostPoint, Shape

SIZES = st.sampled_from(sorted(PLANS))


@settings(deadline=None)
@given(st.integers(LEAST_CONTEXT, 1_000_000), SIZES, st.sampled_from([1, 16, 32, 128]), st.booleans())
def test_every_shape_fits_the_engine(context: int, size: GridSize, block: int, caching: bool) -> None:
    shapes = cost_grid(context, size=size, block_tokens=block, prefix_caching=caching)
    mix = request_mix(context, block_tokens=block, prefix_caching=caching)
    assert len(set(shapes)) == len(shapes)
    for shape in (*shapes, *mix):
        assert shape.input_tokens >= 1
        assert shape.output_tokens >= 1
        assert shape.input_tokens + shape.output_tokens <= context
        assert 0 <= shape.cached_tokens < shape.input_tokens, "at least one token is always computed"
        assert shape.cached_tokens % block == 0, "engines cache whole blocks"
        assert caching or not shape.cached_tokens
    assert max(each.input_tokens for each in shapes) > context // 2
    assert min(each.input_tokens for each in shapes) <= 32


@settings(deadline=None)
@given(st.integers(1024, 200_000), SIZES)
def test_every_term_shows_in_the_grid(context: int, size: GridSize) -> None:
    """Exact times of a known profile give it back from any grid: no term hides behind another."""
    truth = default_profile()
    points = [
        CostPoint(shape=each, engine_ms=(mix_cost(truth, (each,)),), cached_tokens=each.cached_tokens)
        for each in cost_grid(context, size=size)
    ]
    found = fit_costs(points)
    assert not {each.term for each in found.dropped} & {"alpha", "beta", "cached"}
    assert not [each for each in found.warnings if each.code in ("collinear", "cached_unknown", "few_points")]
    assert found.max_error < 0.02


def test_a_larger_grid_has_more_shapes_and_repeats() -> None:
    sizes: list[GridSize] = ["small", "medium", "thorough"]
    counts = [len(cost_grid(8192, size=each)) for each in sizes]
    assert counts == sorted(set(counts))
    assert [default_repeats(each) for each in sizes] == [2, 3, 5]


@pytest.mark.parametrize("make", [cost_grid, request_mix])
def test_a_context_too_short_is_refused(make: object) -> None:
    with pytest.raises(ValueError, match="63 tokens is too short"):
        make(63)  # type: ignore[operator]


def test_a_block_without_tokens_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 1 token, got 0"):
        cost_grid(4096, block_tokens=0)


def test_the_mix_has_short_and_long_requests_and_some_history() -> None:
    mix = request_mix(16_384)
    assert min(each.input_tokens for each in mix) <= 128
    assert max(each.input_tokens for each in mix) >= 2048
    assert any(each.cached_tokens for each in mix)
    assert not any(each.cached_tokens for each in request_mix(16_384, prefix_caching=False))


# --------------------------------------------------------------------- how long it takes
def ordered(**changes: object) -> CalibrationOrder:
    values: dict[str, object] = {"calibration_id": "c", "shapes": cost_grid(4096), "mix": request_mix(4096)}
    return CalibrationOrder(**(values | changes))  # type: ignore[arg-type]


def test_the_estimate_counts_batches_and_levels() -> None:
    shapes = (Shape(input_tokens=16), Shape(input_tokens=64))
    grid = estimated_s(ordered(shapes=shapes, mix=(), repeats=3, batch_s=4.0))
    assert grid == pytest.approx(4.0 + 2 * 3.5 * 4.0)
    whole = estimated_s(ordered(shapes=shapes, repeats=3, batch_s=4.0, window_s=20.0, max_levels=4))
    assert whole == pytest.approx(grid + 6.0 + 4 * 30.0)


def test_long_requests_take_longer_than_a_batch_is_meant_to() -> None:
    order = ordered(max_concurrency=16, batch_s=4.0)
    assert estimated_s(order, request_ms=lambda shape: 1.0) == estimated_s(order)
    assert estimated_s(order, request_ms=lambda shape: 5000.0) > 10 * estimated_s(order)


def test_more_of_anything_takes_longer() -> None:
    base = estimated_s(ordered())
    assert estimated_s(ordered(repeats=5)) > base
    assert estimated_s(ordered(window_s=40.0)) > base
    assert estimated_s(ordered(shapes=cost_grid(4096, size="thorough"))) > base
