"""Fit and knee on what a real accelerator was measured to do (``h100.json`` says which and how)."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest

from capacity.policy.fit import Fit, fit_costs
from capacity.policy.knee import Knee, find_knee, mix_cost
from worker.spec import CostPoint, LevelPoint, Shape

RECORDED = json.loads(Path(__file__).with_name("h100.json").read_text())
MIX = msgspec.convert(RECORDED["mix"], tuple[Shape, ...])
LEVELS = msgspec.convert(RECORDED["at_32"]["levels"], list[LevelPoint])


def fitted(concurrency: int) -> Fit:
    return fit_costs(msgspec.convert(RECORDED[f"at_{concurrency}"]["points"], list[CostPoint]))


def knee() -> Knee:
    saturation = RECORDED["at_32"]["saturation_per_s"]
    return find_knee(
        LEVELS,
        mix=MIX,
        times=fitted(32).times,
        attained_share=0.95,
        max_concurrency=32,
        saturation_per_s=saturation,
    )


@pytest.mark.parametrize(("concurrency", "mean_error"), [(32, 0.12), (128, 0.08)])
def test_the_terms_explain_an_accelerator(concurrency: int, mean_error: float) -> None:
    fit = fitted(concurrency)
    assert fit.r2 > 0.99
    assert fit.mean_error < mean_error


def test_prompts_are_bound_by_arithmetic_and_answers_by_memory() -> None:
    """8.03e9 weights take two operations each for a token, of at most 989e12/s dense; their 16 GB are read once
    a step, at most at 3.35e12 B/s, for all requests that are in it. So a prompt's tokens cost the same whatever runs
    beside them, and an answer's as much less as there are more answers side by side."""
    few, many = fitted(32).times, fitted(128).times
    least_ms = 1000.0 * 2 * 8.03e9 / 989e12
    assert least_ms < many.alpha <= few.alpha < 2 * least_ms
    step_ms = 1000.0 * 16.06e9 / 3.35e12
    assert few.beta > step_ms / 37
    assert 2.0 < few.beta / many.beta < 145 / 37
    assert many.epsilon > 0.0 == few.epsilon, "attention shows in prompts of 13,926 tokens, not in 3,481"
    assert 0.0 < few.cached_factor < 0.1 > many.cached_factor > 0.0


def test_the_fit_foretells_what_the_replica_completes() -> None:
    """It saw single shapes only; the most that was completed came from a mix of them in open loop."""
    most = max(each.completed / each.seconds for each in LEVELS)
    assert 1000.0 / mix_cost(fitted(32).times, MIX) == pytest.approx(most, rel=0.02)


def test_a_batch_that_undersells_the_engine_makes_no_knee_above_saturation() -> None:
    most = max(each.completed / each.seconds for each in LEVELS)
    found = knee()
    assert RECORDED["at_32"]["saturation_per_s"] < found.rate_per_s
    assert found.saturation_per_s == pytest.approx(most)
    assert found.share == pytest.approx(1.0, abs=0.02)
