"""From requests to model units, replicas and accelerators, and back; and from one price version to another."""

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from capacity.policy.calculator import Shape, affordable, default_burst, demand, largest_request, mu_per_request
from capacity.policy.conversion import convert
from capacity.policy.cost import CostProfile
from capacity.policy.profiles import default_profile, scoring_profile

PRICED = CostProfile(
    version=1,
    base=0.1,
    alpha=0.001,
    beta=0.02,
    gamma=1e-6,
    epsilon=0.0,
    cached_factor=0.1,
    modalities={"image_token": 0.002},
    long_input_tiers=((8000, 2.0),),
)
RULES = {"supply_mu_per_min": 100.0, "accelerators_each": 2}
coefficients = st.floats(0.0, 5.0, allow_subnormal=False)


def by_hand(profile, i, cached, o):
    """The formula of the house plan."""
    factor = max([1.0, *(f for start, f in profile.long_input_tiers if i >= start)])
    return profile.base + factor * (
        profile.alpha * (i - cached)
        + profile.epsilon * (i * i - cached * cached)
        + profile.alpha * profile.cached_factor * cached
        + profile.beta * o
        + profile.gamma * o * (i + o / 2)
    )


def test_a_shape_and_a_rate_become_units_replicas_and_accelerators():
    shape = Shape(input_tokens=1000, cached_share=0.4, output_tokens=200)
    each = 0.1 + 0.6 + 0.04 + 4.0 + 1e-6 * 200 * 1100
    found = demand(PRICED, shape, requests_per_min=60, **RULES)
    assert found.mu_per_request == pytest.approx(each)
    assert found.mu_per_min == pytest.approx(60 * each)
    # 297.6 MU/min are three replicas of 100, and one is kept spare: four of two accelerators.
    assert (found.replicas, found.accelerators) == (4, 8)
    assert demand(PRICED, shape, requests_per_min=60, keep_spare=False, **RULES).replicas == 3
    assert demand(PRICED, shape, requests_per_min=60, oversell_factor=1.5, **RULES).replicas == 3
    assert demand(PRICED, shape, requests_per_min=0, **RULES).replicas == 0


@given(st.integers(0, 20_000), st.floats(0, 1), st.integers(1, 4000), st.floats(0.01, 10_000))
def test_there_and_back_is_the_same(input_tokens, cached, output_tokens, rate):
    shape = Shape(input_tokens, cached, output_tokens)
    found = demand(PRICED, shape, requests_per_min=rate, **RULES)
    again = affordable(PRICED, shape, mu_per_min=found.mu_per_min, **RULES)
    assert again.requests_per_min == pytest.approx(rate)
    assert (
        again.mu_per_request
        == found.mu_per_request
        == pytest.approx(by_hand(PRICED, input_tokens, round(input_tokens * cached), output_tokens))
    )


def test_units_cost_what_the_profile_says_and_unknown_ones_are_refused():
    assert mu_per_request(PRICED, Shape(units={"image_token": 500})) == pytest.approx(0.1 + 1.0)
    with pytest.raises(ValueError, match="no price for rows; it has prices for: image_token"):
        mu_per_request(PRICED, Shape(units={"rows": 1}))


@pytest.mark.parametrize(
    "shape", [{"input_tokens": -1}, {"output_tokens": -1}, {"cached_share": 1.1}, {"units": {"image_token": -1}}]
)
def test_what_no_request_can_be_is_refused(shape):
    with pytest.raises(ValueError, match=r"negative|between 0 and 1"):
        Shape(**shape)


@pytest.mark.parametrize("rate", [-1.0, math.inf, math.nan])
def test_what_no_rate_can_be_is_refused(rate):
    with pytest.raises(ValueError, match="finite number"):
        demand(PRICED, Shape(1, 0, 1), requests_per_min=rate, **RULES)
    with pytest.raises(ValueError, match="finite number"):
        affordable(PRICED, Shape(1, 0, 1), mu_per_min=rate, **RULES)


def test_requests_that_cost_nothing_cannot_be_counted():
    free = CostProfile(version=1, base=0, alpha=1, beta=1, gamma=0, epsilon=0, cached_factor=0)
    with pytest.raises(ValueError, match="costs nothing"):
        affordable(free, Shape(), mu_per_min=1, **RULES)


@given(
    coefficients,
    coefficients,
    coefficients,
    coefficients,
    st.lists(st.tuples(st.integers(1, 60), st.floats(1, 4)), max_size=2, unique_by=lambda tier: tier[0]),
    st.integers(1, 60),
)
def test_the_largest_request_is_the_dearest_of_all_that_fit(alpha, beta, gamma, epsilon, tiers, context):
    starts, factors = sorted(start for start, _ in tiers), sorted(factor for _, factor in tiers)
    profile = CostProfile(
        version=1,
        base=0.5,
        alpha=alpha,
        beta=beta,
        gamma=gamma,
        epsilon=epsilon,
        cached_factor=0.1,
        long_input_tiers=tuple(zip(starts, factors, strict=True)),
    )
    every = (by_hand(profile, i, 0, o) for i, o in itertools.product(range(context + 1), repeat=2) if i + o <= context)
    assert largest_request(profile, context) == pytest.approx(max(every))


def test_a_burst_holds_ten_seconds_and_the_largest_request():
    assert default_burst(PRICED, mu_per_min=60_000, context_tokens=1000) == 10_000
    small = default_burst(PRICED, mu_per_min=6, context_tokens=1000)
    assert small == largest_request(PRICED, 1000) > 20
    assert default_burst(PRICED, mu_per_min=6, context_tokens=None) == largest_request(PRICED, 8192)
    assert default_burst(scoring_profile(), mu_per_min=600, context_tokens=None) == 100


# ----- conversion
def scaled(factor: float, version: int = 2) -> CostProfile:
    terms = {name: getattr(PRICED, name) * factor for name in ("base", "alpha", "beta", "gamma", "epsilon")}
    return CostProfile(version=version, cached_factor=0.1, long_input_tiers=PRICED.long_input_tiers, **terms)


def test_a_version_of_other_units_converts_by_their_size():
    found = convert(PRICED, scaled(3.0))
    assert (found.factor, found.basis) == (pytest.approx(3.0), "standard")
    assert "3 times as many MU" in found.reason


def test_usage_weighs_what_is_really_asked():
    dear_output = CostProfile(version=2, base=0.1, alpha=0.001, beta=0.04, gamma=1e-6, epsilon=0, cached_factor=0.1)
    prompts = [Shape(2000, 0.0, 1)] * 10
    answers = [Shape(1, 0.0, 2000)] * 10
    assert convert(PRICED, dear_output, prompts).factor == pytest.approx(1.0, abs=0.02)
    found = convert(PRICED, dear_output, answers)
    assert found.factor == pytest.approx(1.95, abs=0.05)
    assert (found.basis, found.requests) == ("usage", 10)


@given(st.sampled_from([[], [Shape(100, 0.5, 50)], [Shape(9000, 0, 10), Shape(10, 0, 900)]]), coefficients)
def test_there_and_back_again_is_one(used, more):
    other = CostProfile(version=2, base=0.2, alpha=0.002, beta=0.01 + more, gamma=0, epsilon=1e-8, cached_factor=0.2)
    assert convert(PRICED, other, used).factor * convert(other, PRICED, used).factor == pytest.approx(1.0)


def test_the_same_version_is_worth_the_same():
    assert convert(PRICED, PRICED).factor == 1.0
    assert "one version" in convert(PRICED, PRICED).reason


def test_classic_models_are_compared_by_rows_and_size():
    old = scoring_profile()
    new = CostProfile(
        version=2,
        base=old.base * 2,
        alpha=0,
        beta=0,
        gamma=0,
        epsilon=0,
        cached_factor=1,
        modalities={name: price * 2 for name, price in old.modalities.items()},
    )
    assert convert(old, new).factor == pytest.approx(2.0)


def test_versions_that_have_nothing_in_common_count_alike():
    assert convert(scoring_profile(), CostProfile(2, 0, 1, 1, 0, 0, 0)).factor == 1.0


def test_defaults_of_real_models_have_a_burst_that_their_largest_request_fits_into():
    for parameters in (100_000_000, 8_000_000_000, 70_000_000_000):
        profile = default_profile(parameters=parameters, context_tokens=32_768)
        burst = default_burst(profile, mu_per_min=100, context_tokens=32_768)
        assert by_hand(profile, 16_384, 0, 16_384) <= burst
