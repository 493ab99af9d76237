"""Which calibrations become the price by themselves, and which wait for a person."""

from __future__ import annotations

from typing import Any

import pytest

from capacity.models import CostProfile
from capacity.services import pool_update
from serving.services import (
    calibration_adopt,
)
from tests.loops.calibrating import start, until
from tests.loops.conftest import BOSS, World
from tests.loops.measuring import MeasuredEngine

pytestmark = pytest.mark.django_db


@pytest.mark.parametrize(
    ("allowed", "limit", "end"), [(True, 0.1, "adopted"), (True, 1e-3, "fitted"), (False, 0.5, "fitted")]
)
def test_adoption_by_itself(serving: World, engine: MeasuredEngine, allowed: bool, limit: float, end: str) -> None:
    engine.wobble = 0.05
    pool_update(pool=serving.pool, actor=BOSS, adopts_calibrations=allowed, adoption_error_limit=limit)
    row = until(serving, start(serving), "fitted", "adopted")
    assert 1e-3 < row.fit["mean_error"] < 0.1
    assert row.state == end
    waits = "not adopted by itself: the fit misses by" in row.reason
    assert waits == (allowed and end == "fitted"), row.reason


def test_a_first_one_whose_fit_and_load_contradict_each_other_is_left_for_a_person(
    serving: World, engine: MeasuredEngine
) -> None:
    """Nothing was measured before that it could be compared with: it is compared with itself."""
    pool_update(pool=serving.pool, actor=BOSS, adopts_calibrations=True)
    engine.knee_per_s *= 3
    row = until(serving, start(serving), "fitted", "adopted")
    assert row.state == "fitted"
    assert "not adopted by itself: the fit foretells" in row.reason
    assert "one of them was disturbed" in row.reason


def test_what_changes_a_measured_price_by_more_than_twice_is_left_for_a_person(
    serving: World, engine: MeasuredEngine
) -> None:
    pool_update(pool=serving.pool, actor=BOSS, adopts_calibrations=True)
    until(serving, start(serving), "adopted")
    engine.speed_up(30)
    row = until(serving, start(serving), "fitted", "adopted")
    assert row.state == "fitted"
    assert "not adopted by itself: the requests that were offered would cost 0.033 times as many MU" in row.reason
    calibration_adopt(calibration=row, actor=BOSS, now=serving.at)
    engine.speed_up(1 / 1.5)
    until(serving, start(serving), "adopted")


def test_asked_for_it_is_adopted_when_it_is_fitted(serving: World) -> None:
    row = until(serving, start(serving, adopt_when_fitted=True), "adopted")
    assert CostProfile.objects.get(pool=serving.pool, version=row.adopted_version).calibrated


def test_what_was_asked_for_is_adopted_though_the_loops_stumbled_when_it_was_fitted(
    serving: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stumble(**_: Any) -> None:
        raise RuntimeError("not this time")

    monkeypatch.setattr("penstock.loops.calibrate.calibration_adopt", stumble)
    row = until(serving, start(serving, adopt_when_fitted=True), "fitted")
    monkeypatch.undo()
    assert until(serving, row, "adopted", seconds=10).adopted_version


def test_a_load_that_never_broke_the_objectives_is_left_for_a_person(serving: World, engine: MeasuredEngine) -> None:
    whole = engine.levels
    engine.levels = lambda order: whole(order)[:3]  # type: ignore[method-assign]
    row = until(serving, start(serving, adopt_when_fitted=True), "fitted")
    assert row.knee["is_lower_bound"]
