"""What may become a price by itself: measurements that agree with themselves and with what was before."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from capacity.policy.adoption import MOST_APART, MOST_CHANGE, Evidence, doubts
from capacity.policy.fit import fit_costs
from capacity.policy.knee import find_knee
from worker.spec import CostPoint, LevelPoint, Shape

SOUND = Evidence(
    mean_error=0.05, max_error=0.2, r2=0.99, warnings=(), notes=(), is_lower_bound=False,
    mix_ms=20.0, knee_per_s=32.0, saturation_per_s=50.0,
)  # fmt: skip


def said(error_limit: float = 0.1, **changes: Any) -> str:
    return "; ".join(doubts(replace(SOUND, **changes), error_limit=error_limit))


def test_a_sound_first_measurement_is_adopted() -> None:
    assert said() == ""
    assert said(warnings=[("uncertain", "Known to 30 % only."), ("cached_unknown", "Not measured.")]) == ""
    assert said(saturation_per_s=None) == "", "the load was never told: nothing contradicts it"
    assert said(cores=8, mix_ms=100.0) == "", "five of eight cores"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"is_lower_bound": True}, "only a lower bound"),
        ({"mean_error": 0.101}, "misses by 10.1% on average, more than the 10.0%"),
        ({"mean_error": float("nan")}, "on average"),
        ({"max_error": 0.6}, "misses a shape by 60%"),
        ({"r2": 0.8}, "R² 0.80, below 0.9"),
        ({"warnings": [("noise", "Repeats differ by more than 10%.")]}, "repeats differ by more than 10%"),
        ({"notes": ["A deciding level had fewer than 50 requests."]}, "a deciding level had fewer than 50 requests"),
        ({"mix_ms": 40.0}, "foretells 25 requests/s at most, and the replica completes 50"),
        ({"mix_ms": 10.0}, "foretells 100 requests/s at most, and the replica completes 50"),
        ({"mix_ms": 0.0}, "foretells inf requests/s"),
        ({"cores": 2, "mix_ms": 100.0}, "keeps 5 cores busy, and the host has 2"),
        ({"cores": 2, "mix_ms": 2.0}, "keeps 0.1 cores busy"),
        ({"knee_per_s": 2.0}, "the knee is at 4% of saturation"),
        ({"knee_per_s": 60.0}, "the knee is at 120% of saturation"),
        ({"change": 2.5, "changes": "requests would cost"}, "requests would cost 2.5 times as many MU"),
        ({"change": 0.3, "changes": "requests would cost"}, "requests would cost 0.3 times as many MU"),
    ],
)  # fmt: skip
def test_each_doubt_is_told(changes: dict[str, Any], words: str) -> None:
    assert words in said(**changes)


@given(
    st.floats(0.0, 1.0), st.floats(0.0, 2.0), st.floats(-1.0, 1.0), st.floats(0.0, 500.0), st.floats(0.01, 500.0),
    st.floats(0.01, 500.0), st.one_of(st.none(), st.floats(0.0, 10.0)), st.booleans(), st.floats(0.01, 0.9),
)  # fmt: skip
def test_nothing_is_adopted_that_breaks_one_of_the_rules(
    mean: float, most: float, r2: float, mix_ms: float, knee: float, saturation: float, change: float | None,
    is_lower_bound: bool, limit: float,
) -> None:  # fmt: skip
    """The rules as they are documented, each by itself."""
    found = doubts(
        replace(
            SOUND, mean_error=mean, max_error=most, r2=r2, mix_ms=mix_ms, knee_per_s=knee, saturation_per_s=saturation,
            change=change, is_lower_bound=is_lower_bound,
        ),
        error_limit=limit,
    )  # fmt: skip
    is_sound = mean <= limit and most <= 0.5 and r2 >= 0.9 and not is_lower_bound
    is_one = 1 / MOST_APART <= saturation * mix_ms / 1000 <= MOST_APART and 0.1 <= knee / saturation <= 1.15
    is_known = change is None or 1 / MOST_CHANGE <= change <= MOST_CHANGE
    assert (not found) == (is_sound and is_one and is_known)


RECORDED = json.loads(Path(__file__).with_name("h100.json").read_text())
MIX = msgspec.convert(RECORDED["mix"], tuple[Shape, ...])
POINTS = msgspec.convert(RECORDED["at_32"]["points"], list[CostPoint])
LEVELS = msgspec.convert(RECORDED["at_32"]["levels"], list[LevelPoint])


def of_h100(points: list[CostPoint], levels: list[LevelPoint], saturation: float = 29.604) -> tuple[str, ...]:
    fit = fit_costs(points)
    knee = find_knee(
        levels, mix=MIX, times=fit.times, attained_share=0.95, max_concurrency=32, saturation_per_s=saturation
    )
    evidence = Evidence(
        mean_error=fit.mean_error, max_error=fit.max_error, r2=fit.r2,
        warnings=[(one.code, one.text) for one in fit.warnings], notes=knee.warnings,
        is_lower_bound=knee.is_lower_bound, mix_ms=knee.mix_ms, knee_per_s=knee.rate_per_s,
        saturation_per_s=knee.saturation_per_s,
    )  # fmt: skip
    return doubts(evidence, error_limit=0.15)


def test_an_accelerator_passes_and_does_not_where_one_of_its_measurements_was_disturbed() -> None:
    assert of_h100(POINTS, LEVELS) == ()
    # Somebody else had half of the card while shapes were measured, but not under load; or the other way round.
    slow = [msgspec.structs.replace(one, engine_ms=tuple(2 * each for each in one.engine_ms)) for one in POINTS]
    (doubt,) = of_h100(slow, LEVELS)
    assert "foretells 15.5 requests/s at most" in doubt
    held = [msgspec.structs.replace(one, rate_per_s=one.rate_per_s / 2, completed=one.completed // 2) for one in LEVELS]
    (doubt,) = of_h100(POINTS, held, 14.8)
    assert "the replica completes 15.5" in doubt
