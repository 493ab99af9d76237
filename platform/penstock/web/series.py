"""Time series for the charts: what was had, sold, offered and used, in buckets of equal length."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import timedelta

from penstock.web.live import DeploymentSample

Line = list[float | None]


@dataclass(frozen=True)
class Range:
    """A time range a chart may show: ``length`` in buckets of ``step``; ``poll_s`` is how often it is drawn anew."""

    key: str
    label: str
    length: timedelta
    step: timedelta
    poll_s: int

    @property
    def buckets(self) -> int:
        return int(self.length / self.step)


def _ranges(*ranges: Range) -> dict[str, Range]:
    return {item.key: item for item in ranges}


CONSOLE_RANGES = _ranges(
    Range("15m", "15 m", timedelta(minutes=15), timedelta(seconds=5), 5),
    Range("1h", "1 h", timedelta(hours=1), timedelta(seconds=15), 15),
    Range("6h", "6 h", timedelta(hours=6), timedelta(minutes=1), 60),
    Range("24h", "24 h", timedelta(hours=24), timedelta(minutes=5), 60),
    Range("7d", "7 d", timedelta(days=7), timedelta(hours=1), 300),
    Range("30d", "30 d", timedelta(days=30), timedelta(hours=6), 300),
)
RING_S = 7200
"""The state keeps this many seconds of samples."""
RECENT_S = 600
"""For buckets of a minute and more the scale loop's minute samples speak, but for these newest seconds."""


HOUR = timedelta(hours=1)


def pick(ranges: dict[str, Range], key: str | None, default: str) -> Range:
    """The range the URL asks for; the default for an unknown one."""
    return ranges.get(key or "", ranges[default])


@dataclass(frozen=True)
class Minute:
    """What the scale loop saw of a deployment when it decided, in MU/min."""

    at: float
    offered_mu_per_min: float | None
    capacity_mu_per_min: float | None


@dataclass(frozen=True)
class Seen:
    """One deployment over time, for one bucket: None where nobody looked."""

    offered: Line
    have: Line


def bucket_starts(now: float, chosen: Range) -> list[float]:
    """UNIX times of the buckets' starts; the last bucket is the newest full one."""
    step_s = chosen.step.total_seconds()
    end = now // step_s * step_s
    return [end - (chosen.buckets - index) * step_s for index in range(chosen.buckets)]


def bucketed(
    starts: Sequence[float], step_s: float, ring: Iterable[DeploymentSample], minutes: Iterable[Minute]
) -> Seen:
    """Samples as MU/min per bucket; minutes fill the buckets that the ring does not reach.

    A sample counts what was offered since the one before it, so offered is divided by the time between them, not by
    their number, and the oldest sample only says when that time begins. Capacity is the newest in the bucket.
    """
    sums: list[list[float]] = [[0.0, 0.0] for _ in starts]
    have: Line = [None] * len(starts)
    newest = [0.0] * len(starts)
    first = starts[0]
    before: float | None = None
    for sample in sorted(ring, key=lambda row: row.at):
        index = int((sample.at - first) // step_s)
        gap_s, before = 0.0 if before is None else sample.at - before, sample.at
        if 0 <= index < len(starts):
            if gap_s > 0.0:
                sums[index][0] += sample.offered_mu
                sums[index][1] += gap_s
            if sample.at >= newest[index]:
                newest[index], have[index] = sample.at, sample.capacity_mu_per_min
    offered: Line = [mu / seconds * 60.0 if seconds else None for mu, seconds in sums]
    gathered: dict[int, list[Minute]] = defaultdict(list)
    for minute in minutes:
        index = int((minute.at - first) // step_s)
        if 0 <= index < len(starts) and offered[index] is None:
            gathered[index].append(minute)
    for index, rows in gathered.items():
        seen = [row.offered_mu_per_min for row in rows if row.offered_mu_per_min is not None]
        offered[index] = sum(seen) / len(seen) if seen else None
        have[index] = next(
            (row.capacity_mu_per_min for row in reversed(rows) if row.capacity_mu_per_min is not None), None
        )
    return Seen(offered=offered, have=held(have, limit=max(1, int(90 / step_s))))


def held(line: Line, limit: int) -> Line:
    """``line`` with gaps of at most ``limit`` buckets filled by the value before: a level holds until the next look."""
    filled, last, age = list(line), None, 0
    for index, value in enumerate(line):
        if value is not None:
            last, age = value, 0
        else:
            age += 1
            filled[index] = last if age <= limit else None
    return filled


def means(starts: Sequence[float], step_s: float, known: Iterable[tuple[float, float]]) -> Line:
    """The mean of what is known, as pairs (UNIX seconds, value), in each bucket; None where nothing is."""
    sums: list[list[float]] = [[0.0, 0.0] for _ in starts]
    for at, value in known:
        index = int((at - starts[0]) // step_s)
        if 0 <= index < len(starts):
            sums[index][0] += value
            sums[index][1] += 1.0
    return [value / count if count else None for value, count in sums]


def totals(starts: Sequence[float], step_s: float, known: Iterable[tuple[float, float]], until: float) -> Line:
    """The sum of what is known in each bucket; None in those that begin at ``until`` or later."""
    line: Line = [0.0 if start < until else None for start in starts]
    for at, value in known:
        index = int((at - starts[0]) // step_s)
        if 0 <= index < len(starts):
            line[index] = (line[index] or 0.0) + value
    return line


def per_bucket(starts: Sequence[float], step_s: float, minutes: dict[float, float], until: float) -> Line:
    """MU of whole minutes (by UNIX start) as MU/min per bucket; buckets after ``until`` are not known yet."""
    line: Line = []
    for start in starts:
        if start + step_s > until:
            line.append(None)
            continue
        first = start // 60 * 60
        count = max(1, int(step_s // 60))
        line.append(sum(minutes.get(first + 60 * index, 0.0) for index in range(count)) / count)
    return line


def sold_line(starts: Sequence[float], sales: Sequence[tuple[float, float | None, float]]) -> list[float]:
    """MU/min reserved at each bucket's start; ``sales`` are (from, until or None, MU/min)."""
    return [sum(mu for begins, ends, mu in sales if begins <= at and (ends is None or at < ends)) for at in starts]


def add(lines: Sequence[Line]) -> Line:
    """The sum of lines bucket by bucket; None only where every line is None."""
    return [
        sum(known) if (known := [value for value in row if value is not None]) else None
        for row in zip(*lines, strict=True)
    ]


def scale(line: Line, factor: float) -> Line:
    return [None if value is None else value * factor for value in line]
