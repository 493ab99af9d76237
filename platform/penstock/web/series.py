"""Time series for the charts: what was had, sold, offered and used, in buckets of equal length."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from uuid import UUID

from django.conf import settings
from django.db.models import Q, Sum

from capacity.models import Pool, Reservation, UsageRollup
from capacity.selectors import profiles_in_force, reference_mu_per_min, usage_rows
from penstock.web.live import DeploymentSample, read_ring
from serving.models import Deployment, ScalingDecision
from serving.selectors import replicas_at_most

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
)
RING_S = 7200
"""The state keeps this many seconds of samples."""
RECENT_S = 600
"""For buckets of a minute and more the scale loop's minute samples speak, but for these newest seconds."""


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
    return Seen(offered=offered, have=_held(have, limit=max(1, int(90 / step_s))))


def _held(line: Line, limit: int) -> Line:
    """``line`` with gaps of at most ``limit`` buckets filled by the value before: a level holds until the next look."""
    filled, last, age = list(line), None, 0
    for index, value in enumerate(line):
        if value is not None:
            last, age = value, 0
        else:
            age += 1
            filled[index] = last if age <= limit else None
    return filled


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


def capacity_series(now: datetime, chosen: Range, pool: Pool | None) -> dict[str, object]:
    """The console's chart: have, could have, sold, offered and used, of one pool in MU/min.

    Without ``pool`` all pools are added up as replica-equivalents, since MU of two pools do not add.
    """
    starts, step_s = bucket_starts(now.timestamp(), chosen), chosen.step.total_seconds()
    begins = datetime.fromtimestamp(starts[0], UTC)
    # What was removed meanwhile had, was offered and used what it did; until its last stream ended, it still did.
    ended = begins - timedelta(seconds=settings.PENSTOCK_DRAIN_LIMIT_S)
    seen_since = Deployment.everything.filter(Q(removed_at=None) | Q(removed_at__gt=ended))
    deployments = list(seen_since.filter(**({"pool": pool} if pool else {})))
    living = [row for row in deployments if row.removed_at is None]
    profiles = profiles_in_force(at=now)

    def factor_of(pool_id: UUID) -> float:
        return 1.0 if pool else 1.0 / reference_mu_per_min(profiles.get(pool_id))

    minutes = _decision_minutes([row.pk for row in deployments], begins)
    used = _used_minutes([row.pk for row in deployments], begins, now)
    sales = _sales(begins, pool)
    have, offered, use = [], [], []
    for row in deployments:
        ring = read_ring(str(row.pk), _ring_samples(chosen))
        seen = bucketed(starts, step_s, ring, minutes[row.pk])
        factor = factor_of(row.pool_id)
        have.append(scale(seen.have, factor))
        offered.append(scale(seen.offered, factor))
        until = now.timestamp() // 60 * 60
        use.append(scale(per_bucket(starts, step_s, used[row.pk], until), factor))
    could = sum(
        replicas_at_most(row) * reference_mu_per_min(profiles.get(row.pool_id)) * factor_of(row.pool_id)
        for row in living
    )
    sold = [scale(list(sold_line(starts, own)), factor_of(pool_id)) for pool_id, own in sales.items()]
    if deployments:
        sold.append([0.0] * len(starts))
    empty: Line = [None] * len(starts)
    return {
        "unit": "MU/min" if pool else "replica-equivalents",
        "t": starts,
        "have": add(have) if have else empty,
        "could": [could] * len(starts) if living else empty,
        "sold": add(sold) if sold else empty,
        "offered": add(offered) if offered else empty,
        "used": add(use) if use else empty,
    }


def _ring_samples(chosen: Range) -> int:
    if chosen.step >= timedelta(minutes=1):
        return RECENT_S
    return min(RING_S, int(chosen.length.total_seconds() + 2 * chosen.step.total_seconds()))


def _decision_minutes(deployment_ids: Sequence[UUID], begins: datetime) -> dict[UUID, list[Minute]]:
    """The scale loop's samples, oldest first, by deployment."""
    rows: dict[UUID, list[Minute]] = defaultdict(list)
    decisions = ScalingDecision.objects.filter(deployment_id__in=deployment_ids, at__gte=begins).order_by("at")
    for deployment_id, at, inputs in decisions.values_list("deployment_id", "at", "inputs"):
        rows[deployment_id].append(decision_minute(at.timestamp(), inputs))
    return rows


def decision_minute(at: float, inputs: object) -> Minute:
    """What a decision's recorded inputs say about offered load and supply, in MU/min."""
    seen = inputs.get("observation") if isinstance(inputs, dict) else None
    if not isinstance(seen, dict):
        return Minute(at=at, offered_mu_per_min=None, capacity_mu_per_min=None)
    ready, supply = _figure(seen.get("ready")), _figure(seen.get("replica_mu_per_min"))
    return Minute(
        at=at,
        offered_mu_per_min=_figure(seen.get("offered_mu_per_min")),
        capacity_mu_per_min=None if ready is None or supply is None else ready * supply,
    )


def _figure(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) else None


def _used_minutes(deployment_ids: Sequence[UUID], begins: datetime, now: datetime) -> dict[UUID, dict[float, float]]:
    rows: dict[UUID, dict[float, float]] = defaultdict(dict)
    rollups = usage_rows(period=UsageRollup.Period.MINUTE, since=begins - timedelta(minutes=1), until=now)
    summed = rollups.filter(deployment_id__in=deployment_ids).values("deployment_id", "starts_at")
    for deployment_id, starts_at, mu in summed.annotate(sum=Sum("mu")).values_list("deployment_id", "starts_at", "sum"):
        rows[deployment_id][starts_at.timestamp()] = mu
    return rows


def _sales(begins: datetime, pool: Pool | None) -> dict[UUID, list[tuple[float, float | None, float]]]:
    """What was sold since ``begins``, by pool, also where nothing is deployed: (from, until or None, MU/min)."""
    rows: dict[UUID, list[tuple[float, float | None, float]]] = defaultdict(list)
    held = Reservation.objects.filter(
        Q(ends_at__isnull=True) | Q(ends_at__gt=begins),
        state__in=(Reservation.State.ACTIVE, Reservation.State.ENDED),
        **({"pool": pool} if pool else {}),
    )
    for pool_id, starts_at, ends_at, mu in held.values_list("pool_id", "starts_at", "ends_at", "mu_per_min"):
        rows[pool_id].append((starts_at.timestamp(), ends_at.timestamp() if ends_at else None, mu))
    return rows
