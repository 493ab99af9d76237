"""The calendar of a pool as a drawing: what is sold over time against what can be."""

from __future__ import annotations

import datetime
import math
from collections.abc import Sequence
from dataclasses import dataclass

from capacity.policy.ledger import Piece

WIDTH, HEIGHT = 720.0, 190.0
LEFT, RIGHT, TOP, BOTTOM = 58.0, 28.0, 10.0, 26.0
_DAY = 86400.0
_LEAST_S, _MOST_S = 30 * _DAY, 400 * _DAY
_STEPS_D = (1, 2, 7, 14, 30, 60, 90)


@dataclass(frozen=True)
class Tick:
    """A line of the grid with its label, at ``x`` or ``y`` px."""

    at: float
    label: str


@dataclass(frozen=True)
class SalesPlot:
    """Points of lines and areas as SVG has them; ``rows`` tells the same in words, for a table."""

    sold: str
    asked: str
    sellable: str
    could_have: str
    days: tuple[Tick, ...]
    rates: tuple[Tick, ...]
    rows: tuple[Piece, ...]
    width: float = WIDTH
    height: float = HEIGHT
    left: float = LEFT
    right: float = WIDTH - RIGHT
    top: float = TOP
    bottom: float = HEIGHT - BOTTOM


def horizon(moments: Sequence[float | None], *, now: float) -> float:
    """Until when to look: a tenth beyond the last of ``moments``, a month at least and little more than a year."""
    last = max((moment for moment in moments if moment is not None), default=now)
    return now + min(_MOST_S, max(_LEAST_S, 1.1 * (last - now)))


def sales_plot(
    pieces: Sequence[Piece], *, since: float, until: float, ask: tuple[float, float, float | None] | None = None
) -> SalesPlot:
    """Draw ``pieces`` from ``since`` to ``until`` (UNIX s). ``ask``: MU/min, start and end that would come on top."""
    top = max([1.0, *(max(piece.could_have, piece.sellable, piece.sold) for piece in pieces)])
    if ask is not None:
        top = max(top, *(piece.sold + ask[0] for piece in pieces))
    step = _round_up(top / 4)
    most = step * math.ceil(top / step)

    def x(moment: float | None) -> float:
        inside = until if moment is None else min(until, max(since, moment))
        return LEFT + (WIDTH - LEFT - RIGHT) * (inside - since) / (until - since)

    def y(mu: float) -> float:
        return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * min(mu, most) / most

    def line(values: Sequence[tuple[float, float | None, float]]) -> str:
        return " ".join(f"{x(at):.1f},{y(mu):.1f}" for a, b, mu in values for at in (a, b))

    shown = [piece for piece in pieces if piece.starts_at < until]
    sold = [(piece.starts_at, piece.ends_at, piece.sold) for piece in shown]
    base = f"{x(since):.1f},{y(0):.1f} {{}} {x(until):.1f},{y(0):.1f}"
    asked = ""
    if ask is not None:
        mu, starts, ends = ask
        over = [
            (max(a, starts), min(until if b is None else b, until if ends is None else ends), height)
            for a, b, height in sold
            if (b is None or b > starts) and (ends is None or a < ends)
        ]
        lower = " ".join(f"{x(at):.1f},{y(height):.1f}" for a, b, height in reversed(over) for at in (b, a))
        asked = f"{line([(a, b, height + mu) for a, b, height in over])} {lower}".strip()
    return SalesPlot(
        sold=base.format(line(sold)),
        asked=asked,
        sellable=line([(piece.starts_at, piece.ends_at, piece.sellable) for piece in shown]),
        could_have=line([(piece.starts_at, piece.ends_at, piece.could_have) for piece in shown]),
        days=tuple(Tick(x(at), label) for at, label in _days(since, until)),
        rates=tuple(Tick(y(step * i), f"{step * i:,.10g}") for i in range(round(most / step) + 1)),
        rows=tuple(shown),
    )


def _round_up(value: float) -> float:
    """The next of 1, 2, 5, 10, …"""
    power = 10.0 ** math.floor(math.log10(value))
    return next(power * factor for factor in (1, 2, 5, 10) if power * factor >= value * (1 - 1e-9))


def _days(since: float, until: float) -> list[tuple[float, str]]:
    step = next((days for days in _STEPS_D if (until - since) / (days * _DAY) <= 7), _STEPS_D[-1])
    first = math.ceil(since / _DAY) * _DAY
    return [
        (at, datetime.datetime.fromtimestamp(at, datetime.UTC).strftime("%-d %b"))
        for at in (first + i * step * _DAY for i in range(int((until - first) // (step * _DAY)) + 1))
    ]
