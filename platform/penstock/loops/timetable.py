"""When each loop ticks. Data only: Celery's beat reads it, the lease uses the same periods."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Tick:
    """``every_s``: seconds between ticks. ``limit_s``: a holder that is silent for longer is taken for dead."""

    every_s: float
    limit_s: float

    @property
    def expires_s(self) -> float:
        """A tick that waited nearly a period in the queue is worthless: the next one says the same."""
        return self.every_s * 0.9


TIMETABLE: dict[str, Tick] = {
    "publish": Tick(1.0, 10.0),
    "observe": Tick(1.0, 5.0),
    "usage": Tick(0.5, 20.0),
    "reconcile": Tick(2.0, 15.0),
    "calibrate": Tick(2.0, 30.0),
    "scale": Tick(5.0, 15.0),
    "probe": Tick(5.0, 30.0),
    "finalise": Tick(15.0, 60.0),
    "budgets": Tick(1.0, 30.0),
    "rollup": Tick(15.0, 60.0),
    "drift": Tick(60.0, 120.0),
    "upkeep": Tick(60.0, 300.0),
}
