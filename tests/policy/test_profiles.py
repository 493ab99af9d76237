"""Default profiles: plausible ratios, the unit's normalisation, and hardware recognised by its reported name."""

import pytest

from capacity.policy.cost import invocation_units, request_cost, unpriced
from capacity.policy.profiles import (
    ACCELERATORS,
    KNEE,
    default_profile,
    engine_ms_per_mu,
    engine_times,
    hardware_from_report,
    scoring_profile,
    simulated_options,
)


def test_nothing_known_gives_an_uncalibrated_profile_of_an_8b_model_on_one_h100():
    p = default_profile()
    assert not p.calibrated
    assert p == default_profile(parameters=8_030_000_000, context_tokens=8192, hardware=hardware_from_report("H100"))
    # 20,000 prompt tokens a second saturate the engine: its knee is at KNEE of that, for 100 MU/min.
    assert 100 / (p.alpha * 60) == pytest.approx(20_000 * KNEE, rel=0.03)
    assert 3.5 <= p.beta / p.alpha <= 8.0


@pytest.mark.parametrize("hardware", [None, *ACCELERATORS, hardware_from_report("Xeon", cores=2)])
def test_a_replica_at_its_knee_supplies_100_mu_a_minute_whatever_the_model(hardware):
    for parameters in (111_000, 8_030_000_000, 70_000_000_000):
        p = default_profile(parameters=parameters, hardware=hardware)
        times = engine_times(parameters=parameters, context_tokens=None, hardware=hardware)
        prompt_tokens_per_min = 60 / times.alpha_s
        assert prompt_tokens_per_min * p.alpha * KNEE == pytest.approx(100.0)


def test_a_larger_model_needs_more_engine_time_and_a_faster_card_less():
    h100, h200 = hardware_from_report("NVIDIA H100 80GB HBM3"), hardware_from_report("NVIDIA H200")
    small = engine_times(parameters=8_000_000_000, context_tokens=None, hardware=h100)
    large = engine_times(parameters=30_000_000_000, context_tokens=None, hardware=h100)
    faster = engine_times(parameters=30_000_000_000, context_tokens=None, hardware=h200)
    assert small.alpha_s < large.alpha_s
    assert small.beta_s < large.beta_s
    assert faster.beta_s < large.beta_s


def test_little_memory_or_long_context_means_a_small_batch_and_dear_output():
    short = engine_times(parameters=8_030_000_000, context_tokens=4096, hardware=hardware_from_report("A10"))
    long = engine_times(parameters=8_030_000_000, context_tokens=131_072, hardware=hardware_from_report("A10"))
    assert long.batch < short.batch
    assert long.beta_s > short.beta_s


@pytest.mark.parametrize(
    ("reported", "known"),
    [
        ("NVIDIA H100 80GB HBM3", "H100"),
        ("NVIDIA H200", "H200"),
        ("NVIDIA A100-SXM4-80GB", "A100"),
        ("NVIDIA L40S", "L40S"),
        ("NVIDIA L4", "L4"),
        ("NVIDIA GeForce RTX 4090", "RTX 4090"),
        ("Tesla T4", "T4"),
        ("Something Else 9000", "A10"),
    ],
)
def test_hardware_is_recognised_by_the_name_a_driver_reports(reported, known):
    expected = next(h for h in ACCELERATORS if h.name == known)
    assert hardware_from_report(reported).flops == expected.flops
    assert hardware_from_report(reported, memory_bytes=5).memory_bytes == 5


def test_the_tiny_model_on_a_cpu_has_the_measured_output_to_input_ratio():
    """Measured: one output token costs 20 to 47 input tokens; overhead of the roofline may lower it somewhat."""
    p = default_profile(parameters=111_000, context_tokens=2048, hardware=hardware_from_report("Xeon", cores=2))
    assert 10 <= p.beta / p.alpha <= 47


def test_the_simulated_engine_gets_terms_that_saturate_at_the_knee_share_of_the_same_price():
    p = default_profile()
    terms = simulated_options(p, replica_mu_per_min=50)
    request_ms = terms["base_ms"] + terms["alpha_ms"] * 700 + terms["epsilon_ms"] * 700**2
    request_ms += terms["beta_ms"] * 100 + terms["gamma_ms"] * 100 * (700 + 50)
    mu_per_min = 60_000 / request_ms * request_cost(p, input_tokens=700, output_tokens=100)
    assert mu_per_min * KNEE == pytest.approx(50)


def test_a_replica_without_supply_is_refused():
    with pytest.raises(ValueError, match="more than 0"):
        engine_ms_per_mu(0)


def test_a_classic_model_costs_what_its_server_was_measured_to_take():
    """CPU ms of one request of so many rows and KiB, measured; a core at its knee yields 100 MU/min."""
    profile = scoring_profile()
    measured = {(1, 0.03): 4.6, (10, 0.23): 4.4, (100, 2.2): 6.4, (1000, 21.5): 11.3, (5000, 107.4): 71.0}
    for (rows, kib), ms in measured.items():
        units = invocation_units(rows=rows, body_bytes=round(kib * 1024))
        mu = request_cost(profile, input_tokens=0, units=units)
        assert mu * engine_ms_per_mu() == pytest.approx(ms, rel=0.4)
    assert not unpriced(profile, invocation_units(rows=1, body_bytes=1))
