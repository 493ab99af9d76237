"""Calibrations of the seeded platform: one adopted, one fitted and not adopted, one under way, one that failed."""

from __future__ import annotations

from dataclasses import asdict
from datetime import datetime, timedelta

import msgspec

from capacity.models import HardwareType, UsageRollup
from serving.measuring import measured, order_of
from serving.models import Calibration, Deployment, Replica, Revision
from tests.loops.measuring import MeasuredEngine
from worker.spec import CalibrationOrder

QWEN = MeasuredEngine(
    base=3.1, alpha=0.0046, beta=0.62, gamma=0.00009, epsilon=0.0000006, cached_factor=0.06, knee_per_s=6.4, wobble=0.03
)
"""About what Qwen3-32B takes on one H200, in engine milliseconds of a saturated batch."""


def calibrations(chat: Deployment, sim: Deployment, now: datetime) -> dict[str, Calibration]:
    """By state. Times count back from ``now``."""
    days()
    revision = chat.revisions.get(number=1)
    first = _fitted(chat, revision, QWEN, now - timedelta(days=31), "medium")
    Calibration.objects.filter(pk=first.pk).update(
        state="adopted",
        state_since=now - timedelta(days=30),
        reason="adopted by operator@penstock.example",
        adopted_at=now - timedelta(days=30),
        adopted_by="operator@penstock.example",
        adopted_version=1,
        effective_from=now - timedelta(days=30),
    )
    first.refresh_from_db()
    own = {name: value for name, value in asdict(QWEN).items() if name != "told"}
    # Quick tokens for as many requests at once as there are places: more of these would be more supply.
    slower = MeasuredEngine(**{**own, "beta": 0.71, "token_ms": 11.0})
    second = _fitted(chat, revision, slower, now - timedelta(hours=3), "thorough")
    under_way = _measuring(sim, sim.revisions.get(number=1), now)
    failed = _blank(chat, revision, now - timedelta(days=2), "small")
    failed.state, failed.ended_at = "failed", now - timedelta(days=2)
    failed.reason = "not drained after 900 s: 3 in flight. Calibrate when fewer long requests run"
    failed.save()
    return {"adopted": first, "fitted": second, "measuring": under_way, "failed": failed}


def days() -> None:
    """The roll-ups by day, as the books have them beside those by hour."""
    own = ("tenant_id", "key_id", "pool_id", "deployment_id", "service_class")
    sums = ("requests", "failed", "input_tokens", "cached_tokens", "output_tokens", "mu", "ttft_count")
    found: dict[tuple[object, ...], UsageRollup] = {}
    # Of a past of an hour none is whole just after the hour.
    period = "hour" if UsageRollup.objects.filter(period="hour").exists() else "minute"
    for row in UsageRollup.objects.filter(period=period):
        day = row.starts_at.replace(hour=0, minute=0, second=0, microsecond=0)
        keys = {name: getattr(row, name) for name in own}
        whole = found.setdefault((day, *keys.values()), UsageRollup(period="day", starts_at=day, **keys))
        for name in sums:
            setattr(whole, name, getattr(whole, name) + getattr(row, name))
    UsageRollup.objects.bulk_create(found.values())


def _blank(of: Deployment, revision: Revision, at: datetime, grid: str) -> Calibration:
    row = Calibration(
        deployment_id=of.pk,
        deployment_name=of.name,
        pool_id=of.pool_id,
        pool_name=of.pool.name,
        revision_id=revision.pk,
        revision_number=revision.number,
        runtime=revision.runtime,
        grid=grid,
        state="cancelled",
        state_since=at,
        requested_by="operator@penstock.example",
        created_at=at,
    )
    order = order_of(calibration_id=str(row.pk), pool=of.pool, revision=revision, grid=grid)
    row.order = msgspec.to_builtins(order)
    row.save()
    return row


def _placed(row: Calibration, of: Deployment) -> None:
    replica = Replica.objects.filter(deployment=of, state="ready").select_related("host__hardware_type").first()
    assert replica is not None
    assert replica.host is not None
    hardware: HardwareType = replica.host.hardware_type
    row.replica_id, row.host_name = replica.pk, replica.host.name
    row.hardware_type_id, row.hardware_name = hardware.pk, hardware.name
    row.engine_version = replica.engine_version


def _fitted(of: Deployment, revision: Revision, engine: MeasuredEngine, at: datetime, grid: str) -> Calibration:
    row = _blank(of, revision, at, grid)
    told = engine(msgspec.convert(row.order, CalibrationOrder))
    _placed(row, of)
    row.points, row.levels = msgspec.to_builtins(told.points), msgspec.to_builtins(told.levels)
    row.method, row.progress = told.method, {"state": "done", "share": 1.0, "saturation_per_s": told.saturation_per_s}
    found = measured(row)
    row.fit, row.knee, row.state = found.fit, found.knee, "fitted"
    row.reason = f"measured: the fit misses by {found.fit['mean_error']:.1%} on average"
    row.measuring_at, row.ended_at = at + timedelta(minutes=1), at + timedelta(minutes=19)
    row.state_since = row.ended_at
    row.save()
    return row


def _measuring(of: Deployment, revision: Revision, now: datetime) -> Calibration:
    row = _blank(of, revision, now - timedelta(minutes=4), "medium")
    _placed(row, of)
    told = MeasuredEngine(stop_after=9)(msgspec.convert(row.order, CalibrationOrder))
    row.points = msgspec.to_builtins(told.points)
    row.progress = {"state": "measuring", "share": 0.41, "step": "cost grid", "detail": told.detail}
    row.state, row.state_since = "measuring", now - timedelta(minutes=3)
    row.measuring_at, row.reported_at, row.reason = now - timedelta(minutes=3), now, "being measured"
    row.method = "saturated"
    row.save()
    return row
