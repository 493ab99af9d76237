"""The drift loop: what agents tell against what the adopted calibration predicts."""

from __future__ import annotations

from datetime import timedelta

import pytest
from django.utils import timezone

from capacity.models import CostProfile
from capacity.services import profile_restore, profile_withdraw
from penstock.loops.drift import drift, in_force, standing_of
from serving.gateway.state import replica_ring, ring_push
from serving.measuring import curve_of
from serving.models import Calibration, Incident, Replica
from serving.services import calibration_adopt, calibration_start
from tests.loops.calibrating import run, start, tick, until
from tests.loops.conftest import BOSS, World

pytestmark = pytest.mark.django_db


class Engines:
    """Counters of the world's ready replicas, as agents report them: a steady load at half of the knee."""

    def __init__(self, world: World, row: Calibration) -> None:
        self.world, self.curve = world, curve_of(row)
        self.replicas = [str(one.pk) for one in world.replicas("ready")]
        self.mix = row.order["mix"]
        self.counters = dict.fromkeys(
            (
                "requests_total", "prompt_tokens_total", "cached_tokens_total", "generation_tokens_total",
                "ttft_seconds_sum", "ttft_seconds_count", "itl_seconds_sum", "itl_seconds_count",
            ),
            0.0,
        )  # fmt: skip
        self.slow = 1.0
        self.start = 7.0

    def minute(self, rate: float = 2.0) -> None:
        """A minute of ``rate`` requests/s of the mix at each replica, then the loop's look at it."""
        count = len(self.mix)
        inputs = sum(shape["input_tokens"] for shape in self.mix) / count
        cached = sum(shape.get("cached_tokens", 0) for shape in self.mix) / count
        outputs = sum(shape.get("output_tokens", 1) for shape in self.mix) / count
        # The scripted curve at half of the knee: 150 ms and 30 ms in the median, spread as its percentiles say.
        level = next(
            one for one in self.curve.levels if abs(one.work_ms_per_min / self.curve.knee_ms_per_min - 0.5) < 0.05
        )
        for _ in range(2):
            for name, rise in (
                ("requests_total", 1.0),
                ("prompt_tokens_total", inputs),
                ("cached_tokens_total", cached),
                ("generation_tokens_total", outputs),
                ("ttft_seconds_sum", self.slow * level.ttft_ms / 1000),
                ("ttft_seconds_count", 1.0),
                ("itl_seconds_sum", self.slow * level.tpot_ms / 1000 * (outputs - 1)),
                ("itl_seconds_count", outputs - 1),
            ):
                self.counters[name] += rise * rate * 30
            self.world.now += 30
            samples = {
                replica_ring(pk): {"at": self.world.now, "process_start_seconds": self.start, **self.counters}
                for pk in self.replicas
            }
            ring_push(self.world.client, samples, keep=900)
        drift(self.world.client, now=self.world.now)

    def minutes(self, count: int) -> None:
        for _ in range(count):
            self.minute()


@pytest.fixture
def adopted(serving: World) -> Calibration:
    row = until(serving, start(serving), "fitted")
    run(serving, 4)
    return calibration_adopt(calibration=row, actor=BOSS, now=serving.at)


def alarms() -> list[Incident]:
    return list(Incident.objects.filter(kind="cost_drift", closed_at=None))


def test_a_slower_engine_is_an_incident_that_proposes_to_calibrate_again(serving: World, adopted: Calibration) -> None:
    engines = Engines(serving, adopted)
    engines.minutes(30)
    assert alarms() == []
    standing = standing_of(serving.client, adopted)
    assert standing is not None
    assert standing.scales["tpot"] == pytest.approx(1.0, abs=0.12)
    engines.slow = 1.3
    engines.minutes(15)
    (incident,) = alarms()
    assert incident.deployment_id == serving.deployment.pk
    assert "Calibrate again" in incident.summary
    assert incident.evidence["calibration"] == str(adopted.pk)
    engines.minutes(5)
    assert alarms() == [incident], "one alarm is one incident"
    engines.slow = 1.0
    engines.minutes(30)
    assert alarms() == []


def test_an_alarm_outlives_the_state_and_ends_with_the_next_calibration(serving: World, adopted: Calibration) -> None:
    engines = Engines(serving, adopted)
    engines.slow = 1.4
    engines.minutes(20)
    assert len(alarms()) == 1
    serving.client.delete(f"penstock:policy:drift:{serving.deployment.pk}")
    engines.minutes(8)
    assert len(alarms()) == 1
    serving.run(10)
    again = until(
        serving, calibration_start(deployment=serving.deployment, actor=BOSS, grid="small", now=serving.at), "fitted"
    )
    calibration_adopt(calibration=again, actor=BOSS, now=serving.at + timedelta(seconds=1))
    drift(serving.client, now=serving.now)
    assert alarms() == []
    assert Incident.objects.get(kind="cost_drift").timeline[-1]["what"] == "another calibration counts now"
    assert standing_of(serving.client, adopted) is None


def test_an_engine_that_was_started_anew_and_one_that_is_silent_tell_nothing(
    serving: World, adopted: Calibration
) -> None:
    engines = Engines(serving, adopted)
    engines.minutes(3)
    engines.start += 1
    before = standing_of(serving.client, adopted)
    engines.minute()
    serving.now += 300
    drift(serving.client, now=serving.now)
    after = standing_of(serving.client, adopted)
    assert before is not None
    assert after is not None
    assert (before.minutes, after.minutes) == (2, 2)


def test_engines_are_not_compared_with_a_calibration_whose_price_was_withdrawn(
    serving: World, adopted: Calibration
) -> None:
    fitted = until(serving, start(serving), "fitted")
    run(serving, 4)
    tomorrow = timezone.now() + timedelta(days=1)
    newer = calibration_adopt(calibration=fitted, actor=BOSS, effective_from=tomorrow, now=serving.at)
    assert in_force() == {serving.deployment.pk: newer}
    price = CostProfile.objects.get(pool=serving.pool, version=newer.adopted_version)
    profile_withdraw(profile=price, actor=BOSS)
    assert in_force() == {serving.deployment.pk: adopted}
    profile_restore(profile=price, actor=BOSS)
    assert in_force() == {serving.deployment.pk: newer}


def test_without_an_adopted_calibration_nothing_is_looked_at(serving: World) -> None:
    row = until(serving, start(serving), "fitted")
    tick(serving)
    assert drift(serving.client, now=serving.now) == 0
    assert standing_of(serving.client, row) is None
    assert Replica.objects.count() == 2
