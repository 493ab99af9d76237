"""Calibrations from start to end, with scripted agents on a clock of its own."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from django.core.exceptions import ValidationError
from django.db import IntegrityError, transaction

from capacity.models import CostProfile, Host, ReplicaSupply
from capacity.services import hardware_type_get_or_create, host_drain
from penstock.loops.calibrate import calibrate
from penstock.published import records
from serving.gateway.loads import ReplicaBeat
from serving.models import Calibration, Replica
from serving.services import (
    calibration_adopt,
    calibration_cancel,
    deployment_disable,
    deployment_update,
    revision_create,
    supplies_refresh,
)
from tenants.models import AuditEntry
from tests.loops.calibrating import run, start, tick, until
from tests.loops.conftest import BOSS, FakeGateway, World
from tests.loops.measuring import MeasuredEngine

pytestmark = pytest.mark.django_db


def held(world: World) -> list[Replica]:
    return [one for one in world.replicas("draining") if one.calibration_id]


def published(replica: Replica, world: World) -> bytes:
    ((_, _, raw),) = records("replica", [replica.pk], now=world.at)
    return raw


def test_a_replica_is_measured_out_of_rotation_and_comes_back(serving: World, engine: MeasuredEngine) -> None:
    engine.stop_after = 5
    row = until(serving, start(serving), "measuring")
    (measured,) = held(serving)
    assert row.replica_id == measured.pk
    assert (row.hardware_name, row.host_name) == ("CPU", "host-1")
    assert b'"draining"' in published(measured, serving), "gateways must send it nothing"
    run(serving, 30)
    row.refresh_from_db()
    assert (row.state, row.progress["step"], len(row.points)) == ("measuring", "cost grid", 5)
    assert 0 < row.progress["share"] < 1
    assert len(serving.replicas()) == 2, "it was replaced, or stopped"
    assert len(serving.replicas("ready")) == 1
    engine.stop_after = None
    row = until(serving, row, "fitted")
    run(serving, 4)
    assert held(serving) == []
    assert len(serving.replicas("ready")) == 2
    assert engine.told == [str(row.pk)]
    assert row.fit["mean_error"] < 0.01
    terms = row.fit["terms"]
    for name in ("base", "alpha", "beta", "gamma", "epsilon", "cached_factor"):
        assert terms[name] == pytest.approx(getattr(engine, name), rel=0.05), name
    assert row.knee["rate_per_s"] == pytest.approx(4.0, rel=0.05)
    assert not CostProfile.objects.filter(pool=serving.pool, calibrated=True).exists(), "nobody has adopted it"
    actions = AuditEntry.objects.filter(action__startswith="calibration.").order_by("at", "id")
    assert list(actions.values_list("action", flat=True)) == [
        "calibration.start",
        "calibration.draining",
        "calibration.measuring",
        "calibration.fitted",
    ]


def test_adopted_it_is_the_next_price_of_a_hundred_mu_a_minute_at_the_knee(
    serving: World, engine: MeasuredEngine
) -> None:
    row = until(serving, start(serving), "fitted")
    day = serving.at + timedelta(days=1)
    newest = CostProfile.objects.filter(pool=serving.pool).order_by("-version").first()
    assert newest is not None
    calibration_adopt(calibration=row, actor=BOSS, effective_from=newest.effective_from + timedelta(days=400), now=day)
    made = CostProfile.objects.get(pool=serving.pool, version=newest.version + 1)
    assert (made.calibrated, made.replica_mu_per_min, row.adopted_version) == (True, 100.0, made.version)
    assert made.effective_from == newest.effective_from + timedelta(days=400)
    order_mix = [engine.cost_ms(shape) for shape in _mix(row)]
    per_ms = 100.0 / (60 * row.knee["rate_per_s"] * sum(order_mix) / len(order_mix))
    assert made.beta == pytest.approx(engine.beta * per_ms, rel=0.05)
    assert made.alpha == pytest.approx(engine.alpha * per_ms, rel=0.05)
    with pytest.raises(ValidationError, match="only a fitted one"):
        calibration_adopt(calibration=row, actor=BOSS, now=day)


def _mix(row: Calibration) -> list[Any]:
    import msgspec

    from worker.spec import Shape

    return msgspec.convert(row.order["mix"], list[Shape])


def test_on_other_hardware_it_becomes_what_replicas_there_supply(serving: World, engine: MeasuredEngine) -> None:
    other = hardware_type_get_or_create(name="NVIDIA L4", actor=BOSS, memory_bytes=24 << 30)
    Host.objects.update(hardware_type=other)
    row = until(serving, start(serving), "fitted")
    before = CostProfile.objects.filter(pool=serving.pool).count()
    calibration_adopt(calibration=row, actor=BOSS, now=serving.at)
    assert CostProfile.objects.filter(pool=serving.pool).count() == before, "the price is the reference's"
    supply = ReplicaSupply.objects.get(pool=serving.pool, hardware_type=other)
    assert supply.requests_per_min == pytest.approx(240.0, rel=0.05)
    # By the pool's price of 0.01 MU per input token, a tenth of that where cached, and 0.2 MU per output token.
    costs = [
        0.01 * (shape.input_tokens - shape.cached_tokens) + 0.001 * shape.cached_tokens + 0.2 * shape.output_tokens
        for shape in _mix(row)
    ]
    wanted = supply.requests_per_min * sum(costs) / len(costs)
    assert row.adopted_supply == pytest.approx(wanted)
    assert [one.supply_mu_per_min for one in serving.replicas("ready")] == pytest.approx([wanted, wanted])
    Replica.objects.update(supply_mu_per_min=1.0)
    assert supplies_refresh(now=serving.at) == 2
    assert supplies_refresh(now=serving.at) == 0


def test_the_only_replica_is_taken_only_where_an_outage_is_allowed(world: World, engine: MeasuredEngine) -> None:
    world.agent.measure = engine
    with pytest.raises(ValidationError, match="no replica is ready"):
        start(world)
    world.run(14)
    with pytest.raises(ValidationError, match="only one replica is ready") as refusal:
        start(world)
    assert "allow_outage" in refusal.value.message_dict
    row = until(world, start(world, allow_outage=True), "measuring")
    assert world.replicas("ready") == []
    assert len(world.replicas()) == 1, "a second replica was made for the one that is measured"
    until(world, row, "fitted")
    run(world, 4)
    assert len(world.replicas("ready")) == 1


def test_requests_in_flight_end_first(serving: World, gateway: FakeGateway) -> None:
    row = start(serving)
    for one in serving.replicas("ready"):
        gateway.replicas[str(one.pk)] = ReplicaBeat(n=1)
    for _ in range(10):
        gateway.beat()
        tick(serving)
    row.refresh_from_db()
    assert (row.state, row.reason) == ("draining", "draining: 1 in flight")
    gateway.replicas.clear()
    gateway.beat()
    until(serving, row, "fitted")


def test_one_at_a_time(serving: World, engine: MeasuredEngine) -> None:
    engine.stop_after = 1
    row = until(serving, start(serving), "measuring")
    with pytest.raises(ValidationError, match="under way already"):
        start(serving)
    with pytest.raises(IntegrityError), transaction.atomic():
        Calibration.objects.create(
            deployment_id=serving.deployment.pk, pool_id=serving.pool.pk, revision_id=row.revision_id, revision_number=1
        )
    assert calibration_cancel(calibration=row, actor=BOSS, now=serving.at)
    assert not calibration_cancel(calibration=row, actor=BOSS, now=serving.at)
    run(serving, 4)
    assert start(serving).state == "queued"


def test_a_cancelled_one_gives_its_replica_back(serving: World, engine: MeasuredEngine) -> None:
    engine.stop_after = 1
    row = until(serving, start(serving), "measuring")
    calibration_cancel(calibration=row, actor=BOSS, now=serving.at)
    run(serving, 4)
    assert len(serving.replicas("ready")) == 2
    assert all(order.calibration is None for order in serving.agent.orders.replicas)


def test_what_the_agent_cannot_measure_is_told(serving: World, engine: MeasuredEngine) -> None:
    engine.fails = "the engine answers 400 to every request"
    row = until(serving, start(serving), "failed")
    assert row.reason == "the engine answers 400 to every request"
    assert len(row.points) == len(row.order["shapes"]), "what was measured stays to be looked at"
    run(serving, 4)
    assert len(serving.replicas("ready")) == 2


def test_an_agent_that_cannot_measure_is_not_waited_for_for_ever(serving: World) -> None:
    for one in serving.agent.engines.values():
        one.measure = None
    row = until(serving, start(serving), "failed", seconds=300)
    assert "is it up to date?" in row.reason
    run(serving, 4)
    assert len(serving.replicas("ready")) == 2


def test_a_lost_host_ends_it(serving: World, engine: MeasuredEngine) -> None:
    engine.stop_after = 1
    row = until(serving, start(serving), "measuring")
    for _ in range(30):
        serving.tick(silent=(serving.agent,))
        calibrate(serving.client, now=serving.now)
    row.refresh_from_db()
    assert row.state == "failed"
    assert "lost" in row.reason or "failed while it was out of rotation" in row.reason
    assert held(serving) == []


def test_a_crash_ends_it_and_the_replica_is_replaced(serving: World, engine: MeasuredEngine) -> None:
    engine.stop_after = 1
    row = until(serving, start(serving), "measuring")
    serving.agent.engines[str(row.replica_id)].script = ["failed"]
    row = until(serving, row, "failed")
    assert "its incident tells why" in row.reason
    run(serving, 20)
    assert len(serving.replicas("ready")) == 2


def test_where_no_other_replica_serves_any_more_the_measured_one_does(serving: World, engine: MeasuredEngine) -> None:
    engine.stop_after = 1
    row = until(serving, start(serving), "measuring")
    (other,) = serving.replicas("ready")
    serving.agent.engines[str(other.pk)].script = ["failed"]
    row = until(serving, row, "failed")
    assert "no other replica serves any more" in row.reason
    tick(serving)
    assert row.replica_id in {one.pk for one in serving.replicas("ready")}


def test_an_agent_that_restarts_goes_on(serving: World, engine: MeasuredEngine) -> None:
    engine.stop_after = 1
    row = until(serving, start(serving), "measuring")
    serving.agent.restart()
    run(serving, 10)
    engine.stop_after = None
    until(serving, row, "fitted")


@pytest.mark.parametrize("how", ["disable", "revise", "drain"])
def test_what_changes_the_deployment_ends_it(serving: World, engine: MeasuredEngine, how: str) -> None:
    engine.stop_after = 1
    row = until(serving, start(serving), "measuring")
    if how == "disable":
        deployment_disable(deployment=serving.deployment, actor=BOSS)
    elif how == "revise":
        revision_create(deployment=serving.deployment, runtime="simulated", actor=BOSS)
    else:
        host_drain(host=serving.host(), actor=BOSS)
    row = until(serving, row, "failed")
    wanted = {"disable": "was stopped", "revise": "newer revision", "drain": "being drained"}
    assert wanted[how] in row.reason
    run(serving, 60)
    assert held(serving) == []
    if how != "revise":
        assert serving.replicas("ready", "draining") == []


def test_fewer_replicas_wanted_meanwhile_do_not_leave_clients_without_one(
    serving: World, engine: MeasuredEngine
) -> None:
    engine.stop_after = 1
    row = until(serving, start(serving), "measuring")
    deployment_update(deployment=serving.deployment, actor=BOSS, pinned_replicas=1)
    run(serving, 20)
    assert len(serving.replicas("ready")) == 1
    calibration_cancel(calibration=row, actor=BOSS, now=serving.at)
    run(serving, 60)
    assert len(serving.replicas("ready")) == 1
    assert serving.replicas("draining") == []


def test_a_mark_without_a_calibration_is_given_back(serving: World) -> None:
    """Whatever went wrong, no replica stays out of rotation for ever."""
    row = until(serving, start(serving), "draining")
    Calibration.objects.filter(pk=row.pk).delete()
    tick(serving)
    tick(serving)
    assert len(serving.replicas("ready")) == 2


def test_without_a_knee_it_fails_and_keeps_the_fit(serving: World, engine: MeasuredEngine) -> None:
    engine.levels = lambda order: ()  # type: ignore[method-assign]
    row = until(serving, start(serving), "failed")
    assert "No level of load was measured" in row.reason
    assert row.fit["terms"]["beta"] == pytest.approx(engine.beta, rel=0.05)


def test_another_calibrations_word_is_passed_over(serving: World, engine: MeasuredEngine) -> None:
    row = until(serving, start(serving), "draining")
    measure = serving.agent.measure
    assert measure is not None
    from serving.agents.calibrations import calibration_told
    from worker.spec import CalibrationReport

    replica = Replica.objects.get(pk=row.replica_id)
    told = CalibrationReport(calibration_id="another", state="done")
    assert not calibration_told(replica=replica, told=told, now=serving.at)
    told = CalibrationReport(calibration_id=str(row.pk), state="done")
    assert not calibration_told(replica=replica, told=told, now=serving.at), "it does not measure yet"
    row = until(serving, row, "measuring")
    told = CalibrationReport(calibration_id=str(row.pk), state="measuring", share=0.1)
    assert calibration_told(replica=replica, told=told, kv_tokens=4096, now=serving.at)
    row.refresh_from_db()
    assert row.progress["kv_tokens"] == 4096, "what memory holds bounds the target concurrency that is recommended"


def test_numbers_that_no_engine_has_end_it_and_the_replica_comes_back(serving: World, engine: MeasuredEngine) -> None:
    engine.token_ms = 2e307
    row = until(serving, start(serving), "failed")
    assert "cannot be fitted (OverflowError)" in row.reason
    run(serving, 4)
    assert not held(serving)
    assert len(serving.replicas("ready")) == 2
