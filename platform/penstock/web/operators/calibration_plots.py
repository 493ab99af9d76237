"""Pictures of a calibration as coordinates: residuals of the fit, times against load with the knee marked, throughput.

Drawn by the server as SVG, in units of ``WIDTH`` × ``HEIGHT``: they work without scripts, and print.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from capacity.policy.concurrency import served_per_s, side_by_side
from penstock.web import figures
from worker.spec import LevelPoint

WIDTH, HEIGHT = 360.0, 220.0
LEFT, RIGHT, TOP, BOTTOM = 44.0, 12.0, 12.0, 30.0
_LEAST_ERROR = 0.05


@dataclass(frozen=True)
class Tick:
    at: float
    text: str


@dataclass(frozen=True)
class Dot:
    x: float
    y: float
    title: str
    kind: str = ""


@dataclass(frozen=True)
class Line:
    """``points`` as SVG writes them."""

    name: str
    kind: str
    points: str


@dataclass(frozen=True)
class Plot:
    """``marks``: vertical lines with a word; ``bounds``: horizontal ones. ``says``: all of it in words."""

    title: str
    unit: str
    says: str
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    x_unit: str
    dots: tuple[Dot, ...] = ()
    lines: tuple[Line, ...] = ()
    marks: tuple[Tick, ...] = ()
    bounds: tuple[Tick, ...] = ()
    left: float = LEFT
    right: float = WIDTH - RIGHT
    top: float = TOP
    bottom: float = HEIGHT - BOTTOM
    width: float = WIDTH
    height: float = HEIGHT


def residuals(points: Sequence[dict[str, Any]]) -> Plot | None:
    """The relative error of each shape against its measured time, on a logarithmic scale. None without points."""
    rows = [one for one in points if one["measured_ms"] > 0]
    if not rows:
        return None
    times = [one["measured_ms"] for one in rows]
    across = _logarithmic(min(times), max(times), LEFT, WIDTH - RIGHT)
    most = max(_LEAST_ERROR, *(abs(one["error"]) for one in rows)) * 1.15
    up = _linear(-most, most, HEIGHT - BOTTOM, TOP)
    dots = tuple(
        Dot(
            across(one["measured_ms"]),
            up(one["error"]),
            f"{_shape(one)}: {figures.number(one['measured_ms'])} ms measured, {figures.number(one['fitted_ms'])} ms "
            f"fitted, {_signed(one['error'])} %",
            "bad" if abs(one["error"]) > 0.25 else "",
        )
        for one in rows
    )
    worst = max(rows, key=lambda one: abs(one["error"]))
    return Plot(
        title="Residuals",
        unit="% of the measured time",
        says=f"{len(rows)} shapes; the largest error is {_signed(worst['error'])} % at {_shape(worst)}.",
        x_ticks=tuple(Tick(across(value), figures.number(value)) for value in _decades(min(times), max(times))),
        y_ticks=tuple(Tick(up(value), f"{_signed(value)}") for value in (-_round(most), 0.0, _round(most))),
        x_unit="measured engine ms, logarithmic",
        dots=dots,
        bounds=(Tick(up(0.0), ""),),
    )


def curve(
    levels: Sequence[dict[str, Any]], *, name: str, title: str, objective_ms: float, knee_per_s: float | None
) -> Plot | None:
    """Median and 95th percentile of ``name`` (``ttft_ms`` or ``tpot_ms``) against the load. None without levels."""
    rows = sorted((one for one in levels if one.get(name, {}).get("p50")), key=lambda one: float(one["rate_per_s"]))
    if not rows:
        return None
    rates = [one["rate_per_s"] for one in rows]
    across = _linear(0.0, max(*rates, knee_per_s or 0.0) * 1.04, LEFT, WIDTH - RIGHT)
    # What is far beyond the objective is cut: the shape below it is what matters.
    highest = max(one[name].get("p95", one[name]["p50"]) for one in rows)
    top = min(max(highest, objective_ms) * 1.1, objective_ms * 3.0)
    up = _linear(0.0, top, HEIGHT - BOTTOM, TOP)
    lines, dots = [], []
    for percentile, kind in (("p50", "mid"), ("p95", "high")):
        places = [(across(one["rate_per_s"]), up(min(top, one[name].get(percentile, 0.0)))) for one in rows]
        lines.append(Line(percentile, kind, " ".join(f"{x:.1f},{y:.1f}" for x, y in places)))
        dots += [
            Dot(
                x,
                y,
                f"{figures.number(one['rate_per_s'])} requests/s: {percentile} "
                f"{figures.milliseconds(one[name].get(percentile))} ms, {figures.percent(one['attained'])} % keep both "
                "objectives",
                kind,
            )
            for one, (x, y) in zip(rows, places, strict=True)
        ]
    marks = (Tick(across(knee_per_s), f"knee {figures.number(knee_per_s)}"),) if knee_per_s else ()
    return Plot(
        title=title,
        unit="ms",
        says=f"{title} at {len(rows)} loads up to {figures.number(max(rates))} requests/s, objective "
        f"{figures.milliseconds(objective_ms)} ms"
        + (f"; the knee is at {figures.number(knee_per_s)} requests/s." if knee_per_s else "."),
        x_ticks=tuple(Tick(across(value), figures.number(value)) for value in _steps(max(rates))),
        y_ticks=tuple(Tick(up(value), figures.milliseconds(value)) for value in _steps(top)),
        x_unit="requests/s offered to the replica",
        dots=tuple(dots),
        lines=tuple(lines),
        marks=marks,
        bounds=(Tick(up(objective_ms), f"objective {figures.milliseconds(objective_ms)}"),),
    )


def throughput(levels: Sequence[LevelPoint], *, limit: Mapping[str, Any] | None) -> Plot | None:
    """What the replica completed against the requests that it served at the same time, and what is expected of more
    places. None without levels.

    ``limit``: a ``SupplyLimit`` as it is stored.
    """
    rows = [one for one in levels if served_per_s(one) > 0]
    if not rows:
        return None
    measured = sorted(zip(side_by_side(rows), map(served_per_s, rows), strict=True))
    expected = [(count, rate) for count, rate in limit["estimate"]] if limit else []
    places = limit["target_concurrency"] if limit else 0
    most = max(count for count, _ in [*measured, *expected, (places, 0.0)])
    fastest = max(rate for _, rate in [*measured, *expected])
    across = _linear(0.0, most * 1.04, LEFT, WIDTH - RIGHT)
    up = _linear(0.0, fastest * 1.1, HEIGHT - BOTTOM, TOP)
    lines, dots = [], []
    for name, kind, pairs in (("measured", "mid", measured), ("expected", "high guess", expected)):
        spots = [(across(count), up(rate)) for count, rate in pairs]
        if not spots:
            continue
        lines.append(Line(name, kind, " ".join(f"{x:.1f},{y:.1f}" for x, y in spots)))
        # Of what is expected the end alone is a statement.
        for (count, rate), (x, y) in list(zip(pairs, spots, strict=True))[-1 if expected is pairs else 0 :]:
            words = f"{figures.number(count)} requests at the same time: {figures.number(rate)}/s {name}"
            dots.append(Dot(x, y, words, kind.split()[0]))
    marks = (Tick(across(places), f"{places} places"),) if places else ()
    says = f"Up to {figures.number(max(rate for _, rate in measured))} requests/s were completed"
    if expected:
        says += f"; {figures.number(expected[-1][1])} are expected of {limit['recommended'] if limit else ''} places"
    return Plot(
        title="Throughput",
        unit="requests/s completed",
        says=f"{says}.",
        x_ticks=tuple(Tick(across(value), figures.number(value)) for value in _steps(most)),
        y_ticks=tuple(Tick(up(value), figures.number(value)) for value in _steps(fastest * 1.1)),
        x_unit="requests served at the same time, on average",
        dots=tuple(dots),
        lines=tuple(lines),
        marks=marks,
    )


def _shape(one: dict[str, Any]) -> str:
    cached = f", {one['cached_tokens']:.0f} cached" if one["cached_tokens"] else ""
    return f"{one['input_tokens']:.0f} in{cached}, {one['output_tokens']:.0f} out"


def _signed(share: float) -> str:
    text = figures.percent(share)
    return f"+{text}" if share > 0 else text


def _linear(low: float, high: float, start: float, end: float) -> Callable[[float], float]:
    span = (high - low) or 1.0
    return lambda value: start + (value - low) / span * (end - start)


def _logarithmic(low: float, high: float, start: float, end: float) -> Callable[[float], float]:
    place = _linear(math.log(low) - 0.15, math.log(high) + 0.15, start, end)
    return lambda value: place(math.log(value))


def _decades(low: float, high: float) -> list[float]:
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    found = [10.0**power for power in range(first, last + 1) if low <= 10.0**power <= high]
    return found if len(found) > 1 else [low, high]


def _steps(high: float) -> list[float]:
    """Three or so round values up to ``high``, from 0."""
    step = _round(high / 3.0)
    return [step * index for index in range(min(6, int(high / step) + 1))] if step > 0 else [0.0]


def _round(value: float) -> float:
    """The next lower number that begins with 1, 2, 2.5 or 5."""
    if value <= 0:
        return 0.0
    size = 10.0 ** math.floor(math.log10(value))
    return next((size * part for part in (5.0, 2.5, 2.0, 1.0) if size * part <= value * (1 + 1e-9)), size)
