"""What the agent keeps of a calibration: ``replicas/<id>/calibration.json``, enough for a later agent to go on."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Literal

import msgspec

from worker.files import write_atomic
from worker.processes import Launched
from worker.spec import CalibrationOrder, CalibrationReport, CostPoint, LevelPoint
from worker.state import replica_folder

FILE = "calibration.json"
_USUAL_LEVELS = 8
_LEVEL_WINDOWS = 1.5


class Size(msgspec.Struct, frozen=True):
    """Requests of a batch, and how many of them are in flight at once. A count of 0: nothing to measure."""

    count: int
    in_flight: int


class Record(msgspec.Struct, kw_only=True, omit_defaults=True):
    """One calibration. ``process`` is the engine it was begun on: another one may cost something else.

    ``sizes`` and ``points`` are by the number of their shape in the order; an empty size: the engine cannot tell what
    this shape is measured for.
    """

    order: CalibrationOrder
    process: Launched | None = None
    state: Literal["waiting", "measuring", "done", "failed"] = "waiting"
    reason: str = ""
    method: Literal["", "engine_cpu", "saturated"] = ""
    engine_version: str = ""
    sizes: dict[int, Size] = {}
    points: dict[int, CostPoint] = {}
    saturation_per_s: float = 0.0
    levels: list[LevelPoint] = []
    step: str = ""
    detail: str = ""

    def is_untold(self, index: int) -> bool:
        """Whether the engine does not tell what the shape of this number is measured for."""
        return index in self.sizes and self.sizes[index].count == 0

    @property
    def share(self) -> float:
        """How far it has come, 0..1; a whole one only when it is done. Levels are as many as it usually takes."""
        if self.state == "done":
            return 1.0
        order = self.order
        repeat, level = order.batch_s, _LEVEL_WINDOWS * order.window_s
        levels = min(order.max_levels, _USUAL_LEVELS) if order.mix else 0
        whole = repeat * len(order.shapes) * order.repeats + level * levels
        kept = repeat * sum(len(each.engine_ms) for each in self.points.values()) + level * min(
            levels, len(self.levels)
        )
        return round(min(0.99, kept / whole), 3) if whole > 0 else 0.0

    def report(self) -> CalibrationReport:
        return CalibrationReport(
            calibration_id=self.order.calibration_id,
            state=self.state,
            reason=self.reason,
            method=self.method,
            share=self.share,
            step=self.step,
            detail=self.detail,
            points=tuple(self.points[index] for index in sorted(self.points)),
            levels=tuple(self.levels),
            saturation_per_s=self.saturation_per_s,
            engine_version=self.engine_version,
        )


def save_record(replicas: Path, replica_id: str, record: Record) -> None:
    """Write the record. Raises OSError."""
    write_atomic(replica_folder(replicas, replica_id) / FILE, msgspec.json.encode(record))


def load_record(replicas: Path, replica_id: str) -> Record | None:
    """Read what an earlier agent kept; None when there is nothing that can be read."""
    with contextlib.suppress(OSError, ValueError):
        return msgspec.json.decode((replica_folder(replicas, replica_id) / FILE).read_bytes(), type=Record)
    return None
