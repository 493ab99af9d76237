"""The console's charts over time: have, could have, sold, offered, used, lent and breached, of one pool or of all."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

from django.conf import settings
from django.db.models import Count, Q, Sum

from capacity.models import (
    AcceleratorRollup,
    BooksState,
    GuaranteeHour,
    GuaranteeMinute,
    HardwareType,
    Pool,
    PoolRollup,
    Reservation,
    UsageRollup,
)
from capacity.selectors import profiles_in_force, reference_mu_per_min, usage_rows
from capacity.usage.rows import RESERVED
from penstock.web.live import read_ring
from penstock.web.series import (
    HOUR,
    RECENT_S,
    RING_S,
    Line,
    Minute,
    Range,
    add,
    bucket_starts,
    bucketed,
    held,
    means,
    per_bucket,
    scale,
    sold_line,
    totals,
)
from serving.models import Deployment, ScalingDecision
from serving.selectors import replicas_at_most

Series = dict[str, Any]
"""``t`` in UNIX seconds, lines of equal length in ``unit``; ``breached`` in minutes."""

Factor = Callable[[UUID], float]
"""What turns a pool's MU/min into the chart's unit."""

HOLD_S = 90.0
"""What the loops see once a minute holds for so long in shorter buckets."""


def capacity_series(now: datetime, chosen: Range, pool: Pool | None) -> Series:
    """Have, could have, sold, offered, used (reserved and best effort), lent and breached of one pool in MU/min.

    Without ``pool`` all pools are added up as replica-equivalents, since MU of two pools do not add. Breached counts
    minutes of reservations, in each bucket. Up to a day it is read second by second and minute by minute, beyond from
    hours.
    """
    starts, step_s = bucket_starts(now.timestamp(), chosen), chosen.step.total_seconds()
    profiles = profiles_in_force(at=now)
    living = list(Deployment.objects.filter(**({"pool": pool} if pool else {})))

    def factor(pool_id: UUID) -> float:
        return 1.0 if pool else 1.0 / reference_mu_per_min(profiles.get(pool_id))

    read = _by_hours if chosen.step >= HOUR else _by_seconds
    lines = read(now, chosen, starts, pool, factor)
    if chosen.step < HOUR:
        most = sum(
            replicas_at_most(row) * reference_mu_per_min(profiles.get(row.pool_id)) * factor(row.pool_id)
            for row in living
        )
        lines["could"] = [most] * len(starts) if living else [None] * len(starts)
    begins = datetime.fromtimestamp(starts[0], UTC)
    sales = _sales(begins, pool)
    sold = [scale(list(sold_line(starts, own)), factor(pool_id)) for pool_id, own in sales.items()]
    if living or lines["have"] != [None] * len(starts):
        sold.append([0.0] * len(starts))
    lines["sold"] = add(sold) if sold else [None] * len(starts)
    lines |= _used(now, chosen, starts, pool, factor)
    lines |= _kept(chosen, starts, pool, factor, is_sold=bool(sales))
    return {"unit": "MU/min" if pool else "replica-equivalents", "t": starts, "step_s": step_s, **lines}


def accelerator_series(now: datetime, chosen: Range, hardware: HardwareType) -> Series:
    """Accelerators of one kind that there were, that replicas held, and that were sold."""
    starts, step_s = bucket_starts(now.timestamp(), chosen), chosen.step.total_seconds()
    is_long = chosen.step >= HOUR
    rows = AcceleratorRollup.objects.filter(
        period="hour" if is_long else "minute",
        hardware_type=hardware,
        starts_at__gte=datetime.fromtimestamp(starts[0], UTC) - timedelta(seconds=HOLD_S),
        starts_at__lt=datetime.fromtimestamp(starts[-1] + step_s, UTC),
    ).order_by()
    columns = ("have", "used", "sold")
    found = list(rows.values_list("starts_at", *columns))
    lines: dict[str, Line] = {}
    for place, name in enumerate(columns, start=1):
        line = means(starts, step_s, [(row[0].timestamp(), row[place]) for row in found])
        lines[name] = line if is_long else held(line, limit=max(1, int(HOLD_S / step_s)))
    return {"unit": "accelerators", "t": starts, "step_s": step_s, **lines}


def _summed(lines: Sequence[Line], length: int) -> Line:
    return add(lines) if lines else [None] * length


def _by_seconds(
    now: datetime, chosen: Range, starts: Sequence[float], pool: Pool | None, factor: Factor
) -> dict[str, Line]:
    """Have and offered from the rings, and where they do not reach from the scale loop's samples of each minute."""
    begins = datetime.fromtimestamp(starts[0], UTC)
    deployments = _deployments_since(begins, pool)
    minutes = _decision_minutes([row.pk for row in deployments], begins)
    have, offered = [], []
    for row in deployments:
        ring = read_ring(str(row.pk), _ring_samples(chosen))
        seen = bucketed(starts, chosen.step.total_seconds(), ring, minutes[row.pk])
        have.append(scale(seen.have, factor(row.pool_id)))
        offered.append(scale(seen.offered, factor(row.pool_id)))
    return {"have": _summed(have, len(starts)), "offered": _summed(offered, len(starts))}


def _by_hours(
    now: datetime, chosen: Range, starts: Sequence[float], pool: Pool | None, factor: Factor
) -> dict[str, Line]:
    """Have, could have and offered from the roll-ups of hours; the newest bucket is a mean of what is over of it."""
    step_s = chosen.step.total_seconds()
    rows = PoolRollup.objects.filter(
        period="hour",
        starts_at__gte=datetime.fromtimestamp(starts[0], UTC),
        starts_at__lt=datetime.fromtimestamp(starts[-1] + step_s, UTC),
        **({"pool_id": pool.pk} if pool else {}),
    ).order_by()
    columns = ("have", "could", "offered")
    known: dict[UUID, list[tuple[float, ...]]] = defaultdict(list)
    for pool_id, at, *values in rows.values_list("pool_id", "starts_at", *columns):
        known[pool_id].append((at.timestamp(), *values))
    lines: dict[str, Line] = {}
    for place, name in enumerate(columns, start=1):
        own = [
            scale(means(starts, step_s, [(row[0], row[place]) for row in of_pool]), factor(pool_id))
            for pool_id, of_pool in known.items()
        ]
        lines[name] = _summed(own, len(starts))
    return lines


def _deployments_since(begins: datetime, pool: Pool | None) -> list[Deployment]:
    """What was removed meanwhile had, was offered and used what it did; until its last stream ended, it still did."""
    ended = begins - timedelta(seconds=settings.PENSTOCK_DRAIN_LIMIT_S)
    rows = Deployment.everything.filter(Q(removed_at=None) | Q(removed_at__gt=ended))
    return list(rows.filter(**({"pool": pool} if pool else {})))


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


def _used(now: datetime, chosen: Range, starts: Sequence[float], pool: Pool | None, factor: Factor) -> dict[str, Line]:
    """MU/min that were settled: inside reservations (``reserved``), beyond (``best``), and both (``used``)."""
    step_s = chosen.step.total_seconds()
    is_long = chosen.step >= HOUR
    period = UsageRollup.Period.HOUR if is_long else UsageRollup.Period.MINUTE
    since = datetime.fromtimestamp(starts[0], UTC) - (timedelta() if is_long else timedelta(minutes=1))
    until = min(now, datetime.fromtimestamp(starts[-1] + step_s, UTC))
    rollups = usage_rows(period=period, since=since, until=until)
    rollups = rollups.filter(pool_id=pool.pk) if pool else rollups
    rows = rollups.values("pool_id", "starts_at", "service_class").annotate(sum=Sum("mu"))
    sums: dict[tuple[UUID, bool], dict[float, float]] = defaultdict(lambda: defaultdict(float))
    for pool_id, at, of_class, mu in rows.values_list("pool_id", "starts_at", "service_class", "sum"):
        sums[pool_id, of_class == RESERVED][at.timestamp()] += mu
    pools = {pool_id for pool_id, _ in sums} or ({pool.pk} if pool else set())
    lines: dict[str, Line] = {}
    for name, is_reserved in (("reserved", True), ("best", False)):
        own = []
        for pool_id in pools:
            known = sums[pool_id, is_reserved]
            if is_long:
                line = scale(totals(starts, step_s, known.items(), until.timestamp()), 60.0 / step_s)
            else:
                line = per_bucket(starts, step_s, known, now.timestamp() // 60 * 60)
            own.append(scale(line, factor(pool_id)))
        lines[name] = _summed(own, len(starts))
    lines["used"] = add([lines["reserved"], lines["best"]])
    return lines


def _kept(
    chosen: Range, starts: Sequence[float], pool: Pool | None, factor: Factor, *, is_sold: bool
) -> dict[str, Line]:
    """MU/min of reservations that were lent, and their breach minutes, as far as the guarantee ledger has judged."""
    step_s, is_long = chosen.step.total_seconds(), chosen.step >= HOUR
    judged = BooksState.objects.filter(pk=1).values_list("guaranteed_until", flat=True).first()
    until = judged.timestamp() if judged else 0.0
    if not is_sold:
        # Of what nothing is sold nothing can be lent or broken: known at once.
        nothing: Line = [0.0] * len(starts)
        return {"lent": nothing, "breached": nothing}
    first = starts[0] if is_long else starts[0] // 60 * 60
    window = {
        "starts_at__gte": datetime.fromtimestamp(first, UTC),
        "starts_at__lt": datetime.fromtimestamp(starts[-1] + step_s, UTC),
    } | ({"reservation__pool": pool} if pool else {})
    rows: Any
    if is_long:
        rows = GuaranteeHour.objects.filter(**window).order_by().values("reservation__pool", "starts_at")
        found = rows.annotate(lent=Sum("lent_mu"), broken=Sum("breach_minutes"))
    else:
        rows = GuaranteeMinute.objects.filter(**window).order_by().values("reservation__pool", "starts_at")
        found = rows.annotate(lent=Sum("lent_mu"), broken=Count("pk", filter=Q(is_breach=True)))
    lent: dict[UUID, dict[float, float]] = defaultdict(dict)
    broken: list[tuple[float, float]] = []
    for pool_id, at, mu, minutes in found.values_list("reservation__pool", "starts_at", "lent", "broken"):
        lent[pool_id][at.timestamp()] = mu
        if minutes:
            broken.append((max(at.timestamp(), starts[0]), float(minutes)))
    lines = []
    for pool_id, known in lent.items():
        if is_long:
            line = scale(totals(starts, step_s, known.items(), until), 60.0 / step_s)
        else:
            line = per_bucket(starts, step_s, known, until)
        lines.append(scale(line, factor(pool_id)))
    lines.append([0.0 if start + (0.0 if is_long else step_s) <= until else None for start in starts])
    return {"lent": add(lines), "breached": totals(starts, step_s, broken, until)}


def _sales(begins: datetime, pool: Pool | None) -> dict[UUID, list[tuple[float, float | None, float]]]:
    """What was sold since ``begins``, by pool, also where nothing is deployed: (from, until or None, MU/min)."""
    rows: dict[UUID, list[tuple[float, float | None, float]]] = defaultdict(list)
    held_then = Reservation.objects.filter(
        Q(ends_at__isnull=True) | Q(ends_at__gt=begins),
        state__in=(Reservation.State.ACTIVE, Reservation.State.ENDED),
        **({"pool": pool} if pool else {}),
    )
    for row in held_then.prefetch_related("gaps"):
        for since, until in row.spans():
            rows[row.pool_id].append((since.timestamp(), until.timestamp() if until else None, row.mu_per_min))
    return rows
