"""A scripted measurement: an engine with coefficients of its own, written from the definition of the cost."""

from __future__ import annotations

from dataclasses import dataclass, field

from worker.spec import CalibrationOrder, CalibrationReport, CostPoint, LevelPoint, Shape


@dataclass
class MeasuredEngine:
    """Engine milliseconds per request. ``knee_per_s``: the highest rate of the mix that keeps the objectives."""

    base: float = 2.0
    alpha: float = 0.05
    beta: float = 1.2
    gamma: float = 0.0004
    epsilon: float = 0.00001
    cached_factor: float = 0.1
    knee_per_s: float = 4.0
    stop_after: int | None = None
    """The agent goes on measuring for ever after so many shapes; None: it ends."""
    fails: str = ""
    wobble: float = 0.0
    """Requests of some lengths take so much longer, as a share, and the others so much less."""
    token_ms: float = 20.0
    """Time per output token without load."""
    told: list[str] = field(default_factory=list)
    """Ids of calibrations that were ordered."""

    def speed_up(self, factor: float) -> None:
        """Everything takes so many times less, and so many times as many requests keep the objectives."""
        for name in ("base", "alpha", "beta", "gamma", "epsilon"):
            setattr(self, name, getattr(self, name) / factor)
        self.knee_per_s *= factor

    def cost_ms(self, shape: Shape) -> float:
        fresh = shape.input_tokens - shape.cached_tokens
        squares = shape.input_tokens**2 - shape.cached_tokens**2
        prefill = self.alpha * fresh + self.epsilon * squares + self.alpha * self.cached_factor * shape.cached_tokens
        context = shape.input_tokens + shape.output_tokens / 2
        decode = self.beta * shape.output_tokens + self.gamma * shape.output_tokens * context
        return self.base + prefill + decode

    def __call__(self, order: CalibrationOrder) -> CalibrationReport:
        if order.calibration_id not in self.told:
            self.told.append(order.calibration_id)
        shapes = order.shapes if self.stop_after is None else order.shapes[: self.stop_after]
        points = tuple(self.point(shape, order.repeats) for shape in shapes)
        if self.fails:
            return CalibrationReport(
                calibration_id=order.calibration_id, state="failed", reason=self.fails, points=points
            )
        if self.stop_after is not None:
            return CalibrationReport(
                calibration_id=order.calibration_id,
                state="measuring",
                method="saturated",
                share=len(points) / len(order.shapes) / 2,
                step="cost grid",
                detail=f"{len(points)} of {len(order.shapes)} shapes",
                points=points,
            )
        return CalibrationReport(
            calibration_id=order.calibration_id,
            state="done",
            method="saturated",
            share=1.0,
            step="done",
            points=points,
            levels=self.levels(order),
            saturation_per_s=self.knee_per_s / 0.62,
            engine_version="scripted 1.0",
        )

    def point(self, shape: Shape, repeats: int) -> CostPoint:
        return CostPoint(
            shape=shape,
            engine_ms=(self.cost_ms(shape) * (1 + self.wobble * (-1) ** (shape.input_tokens // 7)),) * repeats,
            input_tokens=float(shape.input_tokens),
            cached_tokens=float(shape.cached_tokens),
            output_tokens=float(shape.output_tokens),
        )

    def levels(self, order: CalibrationOrder) -> tuple[LevelPoint, ...]:
        """The share that keeps the objectives falls to the wanted one exactly at the knee."""
        found = []
        count = len(order.mix)
        for part in (0.25, 0.5, 0.75, 0.95, 1.05, 1.25):
            rate = part * self.knee_per_s
            requests = round(rate * order.window_s * 10)
            attained = 1.0 if part < 0.9 else order.attained_share + (1.0 - part) * 0.8
            tpot = self.token_ms * (1 + part)
            found.append(
                LevelPoint(
                    rate_per_s=rate,
                    completed=requests,
                    seconds=order.window_s * 10,
                    input_tokens=sum(shape.input_tokens for shape in order.mix) * requests // count,
                    cached_tokens=sum(shape.cached_tokens for shape in order.mix) * requests // count,
                    output_tokens=sum(shape.output_tokens for shape in order.mix) * requests // count,
                    ttft_ms={"p50": 100.0 * (1 + part), "p95": 200.0 * (1 + part), "p99": 300.0 * (1 + part)},
                    tpot_ms={"p50": tpot, "p95": tpot * 1.3, "p99": tpot * 1.6},
                    attained=attained,
                    requests=requests,
                )
            )
        return tuple(found)
