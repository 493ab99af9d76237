"""Calibrations on a clock of their own: begun, moved on, and waited for."""

from __future__ import annotations

from typing import Any

from penstock.loops.calibrate import calibrate
from serving.models import Calibration
from serving.services import calibration_start
from tests.loops.conftest import BOSS, World


def tick(world: World, seconds: float = 2.0) -> None:
    world.tick(seconds)
    calibrate(world.client, now=world.now)


def run(world: World, seconds: float) -> None:
    end = world.now + seconds
    while world.now < end:
        tick(world)


def until(world: World, row: Calibration, *states: str, seconds: float = 60.0) -> Calibration:
    end = world.now + seconds
    row.refresh_from_db()
    while row.state not in states:
        assert world.now < end, f"it is {row.state}: {row.reason}"
        tick(world)
        row.refresh_from_db()
    return row


def start(world: World, **fields: Any) -> Calibration:
    return calibration_start(deployment=world.deployment, actor=BOSS, now=world.at, **{"grid": "small", **fields})
