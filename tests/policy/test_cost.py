"""The price of a request: shape, bounds and agreement with the formula written out by hand."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from capacity.policy.cost import (
    CostProfile,
    invocation_units,
    request_breakdown,
    request_cost,
    tier_factor,
    token_costs,
    unpriced,
)
from capacity.policy.profiles import ACCELERATORS, default_profile, hardware_from_report

prices = st.floats(0.0, 10.0, allow_subnormal=False)
tokens = st.integers(0, 200_000)


def prefill_cost(profile, **tokens):
    return token_costs(profile, **tokens).prefill


def decode_cost(profile, **tokens):
    return token_costs(profile, **tokens).decode


@st.composite
def profiles(draw: st.DrawFn) -> CostProfile:
    factors = sorted(draw(st.lists(st.floats(1.0, 8.0), max_size=3)))
    starts = sorted(draw(st.lists(st.integers(1, 150_000), min_size=len(factors), max_size=len(factors), unique=True)))
    return CostProfile(
        version=1,
        base=draw(prices),
        alpha=draw(prices),
        beta=draw(prices),
        gamma=draw(prices),
        epsilon=draw(prices),
        cached_factor=draw(st.floats(0.0, 1.0)),
        modalities={"image_tile": draw(prices)},
        long_input_tiers=tuple(zip(starts, factors, strict=True)),
    )


DEFAULTS = [
    default_profile(parameters=parameters, context_tokens=context, hardware=hardware)
    for parameters in (None, 111_000, 1_200_000_000, 8_030_000_000, 70_000_000_000, 405_000_000_000)
    for context in (None, 2048, 131_072)
    for hardware in (None, *ACCELERATORS, hardware_from_report("Xeon", cores=2))
]


def by_hand(p: CostProfile, i: int, c: int, o: int, tiles: float) -> float:
    """The formula of the documentation, term after term, with the context summed token by token."""
    attention = sum(i + k + 0.5 for k in range(o))
    pairs = i**2 - c**2
    factor = max([1.0, *(f for start, f in p.long_input_tiers if i >= start)])
    prompt = p.alpha * (i - c) + p.alpha * p.cached_factor * c + p.epsilon * pairs
    return p.base + factor * (prompt + p.beta * o + p.gamma * attention) + p.modalities["image_tile"] * tiles


@given(profiles(), st.integers(0, 5000), st.integers(0, 5000), st.integers(0, 400), st.integers(0, 40))
def test_it_is_the_formula_and_the_breakdown_adds_up_to_it(p, i, c, o, tiles):
    c = min(i, c)
    cost = request_cost(p, input_tokens=i, cached_tokens=c, output_tokens=o, units={"image_tile": tiles})
    parts = request_breakdown(p, input_tokens=i, cached_tokens=c, output_tokens=o, units={"image_tile": tiles})
    assert cost == pytest.approx(by_hand(p, i, c, o, tiles))
    assert parts.total == pytest.approx(cost)


@given(profiles(), tokens, tokens, st.integers(0, 1000), st.integers(0, 1000), tokens)
def test_more_tokens_never_cost_less_and_nothing_is_negative(p, i, o, more_in, more_out, cached):
    cached = min(cached, i)
    cost = request_cost(p, input_tokens=i, cached_tokens=cached, output_tokens=o)
    larger = request_cost(p, input_tokens=i + more_in, cached_tokens=cached, output_tokens=o + more_out)
    assert 0.0 <= cost <= larger * (1 + 1e-12)
    assert math.isfinite(larger)


@given(profiles(), tokens, tokens, tokens, tokens)
def test_a_cached_token_is_never_dearer_than_a_fresh_one(p, i, a, b, o):
    fewer, more = sorted((min(a, i), min(b, i)))
    cost_fewer = request_cost(p, input_tokens=i, cached_tokens=fewer, output_tokens=o)
    cost_more = request_cost(p, input_tokens=i, cached_tokens=more, output_tokens=o)
    assert cost_more <= cost_fewer * (1 + 1e-12)
    assert cost_more >= decode_cost(p, input_tokens=i, output_tokens=o) * (1 - 1e-12)


@given(st.sampled_from(DEFAULTS), st.integers(1, 200_000))
def test_output_is_dearer_than_input_in_every_default_profile(p, n):
    assert request_cost(p, input_tokens=0, output_tokens=n) > request_cost(p, input_tokens=n)


@given(profiles(), tokens, tokens, tokens)
def test_without_tiers_a_request_is_base_plus_prefill_plus_cached_plus_decode(p, i, c, o):
    c = min(c, i)
    flat = CostProfile(1, p.base, p.alpha, p.beta, p.gamma, p.epsilon, p.cached_factor)
    parts = (
        flat.base
        + prefill_cost(flat, input_tokens=i, cached_tokens=c)
        + flat.alpha * flat.cached_factor * c
        + decode_cost(flat, input_tokens=i, output_tokens=o)
    )
    assert request_cost(flat, input_tokens=i, cached_tokens=c, output_tokens=o) == pytest.approx(
        parts, rel=1e-9, abs=1e-9
    )


@given(profiles(), tokens, st.integers(0, 2000), st.integers(0, 2000))
def test_decoding_in_two_parts_costs_what_decoding_at_once_costs(p, i, first, second):
    """The context that the first part leaves is the input of the second: nothing is gained by splitting."""
    together = decode_cost(p, input_tokens=i, output_tokens=first + second)
    apart = decode_cost(p, input_tokens=i, output_tokens=first) + decode_cost(
        p, input_tokens=i + first, output_tokens=second
    )
    assert together == pytest.approx(apart, rel=1e-9, abs=1e-9)


@given(profiles(), tokens, tokens)
def test_prefilling_in_two_chunks_costs_what_prefilling_at_once_costs(p, i, split):
    split = min(split, i)
    chunks = prefill_cost(p, input_tokens=split) + prefill_cost(p, input_tokens=i, cached_tokens=split)
    assert prefill_cost(p, input_tokens=i) == pytest.approx(chunks, rel=1e-9, abs=1e-9)


def test_a_fully_cached_prompt_costs_the_factor_of_an_uncached_one():
    p = CostProfile(1, base=0.0, alpha=2.0, beta=1.0, gamma=0.0, epsilon=0.0, cached_factor=0.25)
    fresh = request_cost(p, input_tokens=1000)
    assert request_cost(p, input_tokens=1000, cached_tokens=1000) == 0.25 * fresh


def test_long_inputs_reach_their_tier_exactly_at_its_start():
    p = CostProfile(1, 0, 1, 1, 0, 0, 0, long_input_tiers=((128_000, 3.0), (32_000, 2.0)))
    assert [tier_factor(p, n) for n in (31_999, 32_000, 127_999, 128_000)] == [1.0, 2.0, 2.0, 3.0]


def test_more_cached_than_input_counts_as_all_cached():
    p = default_profile()
    assert request_cost(p, input_tokens=10, cached_tokens=16) == request_cost(p, input_tokens=10, cached_tokens=10)


def test_an_unpriced_modality_is_named_and_costs_nothing():
    p = default_profile()
    units = {"image_token": 2.0, "hologram": 3.0, "video_s": 0.0}
    assert unpriced(p, units) == ("hologram",)
    parts = request_breakdown(p, input_tokens=10, units=units)
    assert parts.unpriced == ("hologram",)
    assert parts.total == pytest.approx(request_cost(p, input_tokens=10, units={"image_token": 2.0}))


@pytest.mark.parametrize(
    "bad",
    [
        {"alpha": -1.0},
        {"beta": math.nan},
        {"gamma": math.inf},
        {"cached_factor": 1.1},
        {"modalities": {"image_tile": -1.0}},
        {"long_input_tiers": ((100, 0.5),)},
        {"long_input_tiers": ((100, 3.0), (200, 2.0))},
    ],
)
def test_senseless_coefficients_are_refused(bad):
    good = {"version": 1, "base": 0, "alpha": 1, "beta": 1, "gamma": 0, "epsilon": 0, "cached_factor": 0.1}
    with pytest.raises(ValueError, match=r"must|need"):
        CostProfile(**(good | bad))


def test_negative_counts_are_refused():
    for counts in (
        {"input_tokens": -1},
        {"input_tokens": 1, "cached_tokens": -1},
        {"input_tokens": 1, "output_tokens": -1},
    ):
        with pytest.raises(ValueError, match="negative"):
            request_cost(default_profile(), **counts)
    with pytest.raises(ValueError, match="image_tile"):
        request_cost(default_profile(), input_tokens=1, units={"image_tile": -1})


def test_a_profile_from_json_is_hashable_and_keeps_its_tiers():
    p = CostProfile(1, 0, 1, 1, 0, 0, 0, long_input_tiers=[[200, 2], [100, 1.5]])
    assert p.long_input_tiers == ((100, 1.5), (200, 2.0))
    assert isinstance(hash(p), int)


@given(rows=st.integers(0, 10**6), body_bytes=st.integers(0, 10**9))
def test_an_invocation_costs_its_base_rows_and_kib(rows, body_bytes):
    priced = CostProfile(1, 2.0, 0.0, 0.0, 0.0, 0.0, 1.0, {"row": 0.5, "kib": 0.25})
    units = invocation_units(rows=rows, body_bytes=body_bytes)
    assert request_cost(priced, input_tokens=0, units=units) == pytest.approx(2.0 + rows / 2 + body_bytes / 4096)


def test_an_invocation_has_no_negative_counts():
    for counts in ({"rows": -1, "body_bytes": 0}, {"rows": 0, "body_bytes": -1}):
        with pytest.raises(ValueError, match="negative"):
            invocation_units(**counts)
