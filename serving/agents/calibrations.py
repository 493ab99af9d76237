"""What an agent tells of a measurement: progress and results go to the calibration that ordered it."""

from __future__ import annotations

import datetime
import math
from typing import Any

import msgspec

from serving.models import Calibration, Replica
from worker.spec import CalibrationReport

_KEEP_EVERY_S = 5.0
"""A report that says nothing new is written down so often: it shows that the agent is alive."""
_MOST_POINTS, _MOST_LEVELS = 1000, 200
"""More than any grid has: an agent must not fill the database."""


def calibration_told(
    *, replica: Replica, told: CalibrationReport, now: datetime.datetime, kv_tokens: int | None = None
) -> bool:
    """Keep what the agent of ``replica`` says of the measurement that was ordered; whether something was written.
    ``kv_tokens``: what the engine's cache holds, where it tells.

    What it says of any other calibration, or of one that is over, is passed over.
    """
    if replica.calibration_id is None or told.calibration_id != str(replica.calibration_id):
        return False
    rows = Calibration.objects.filter(
        pk=replica.calibration_id, replica_id=replica.pk, state=Calibration.State.MEASURING
    )
    row = rows.first()
    if row is None:
        return False
    fields = _fields(row, told, kv_tokens, now=now)
    is_alive = row.reported_at is not None and (now - row.reported_at).total_seconds() < _KEEP_EVERY_S
    changed = {name: value for name, value in fields.items() if getattr(row, name) != value}
    if not changed and is_alive:
        return False
    return bool(rows.update(**changed, reported_at=now, updated_at=now))


def _fields(
    row: Calibration, told: CalibrationReport, kv_tokens: int | None, *, now: datetime.datetime
) -> dict[str, Any]:
    since = row.progress.get("since") if row.progress.get("state") == told.state else None
    share = told.share if math.isfinite(told.share) else 0.0
    return {
        "progress": {
            "state": told.state,
            "since": since or now.timestamp(),
            "share": round(min(1.0, max(0.0, share)), 4),
            "step": told.step[:80],
            "detail": told.detail[:200],
            "reason": told.reason[:400],
            "saturation_per_s": told.saturation_per_s,
            "kv_tokens": kv_tokens,
        },
        "method": told.method[:20],
        "engine_version": (told.engine_version or row.engine_version)[:60],
        "points": msgspec.to_builtins(told.points[:_MOST_POINTS]),
        "levels": msgspec.to_builtins(told.levels[:_MOST_LEVELS]),
    }
