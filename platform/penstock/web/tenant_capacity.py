"""A tenant's reservation against its use: the gauge, the chart, and what was refused. Every query names the tenant."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from uuid import UUID

from django.db.models import Count, Max, Sum

from capacity.models import (
    BooksState,
    GuaranteeHour,
    GuaranteeMinute,
    Pool,
    RefusalRollup,
    Reservation,
)
from capacity.selectors import claw_back_s, reservations_running, usage_rows, used_mu_per_min
from capacity.usage.rows import RESERVED
from penstock.web import figures
from penstock.web.dashboard_data import begins, key_names_of, period_for
from penstock.web.refusal_words import Words, words_of
from penstock.web.series import HOUR, Line, Range, bucket_starts, sold_line, totals
from tenants.models import Tenant

CENTRE, RADIUS, TOP = 110.0, 88.0, 104.0
"""Of the gauge's arc, in px."""
_LENT_FRESH = timedelta(minutes=10)


@dataclass(frozen=True)
class Arc:
    """A part of the gauge: ``kind`` names its colour, ``path`` is SVG's."""

    kind: str
    path: str


@dataclass(frozen=True)
class Gauge:
    """What a tenant uses of a pool now, against what it has reserved of it. All in MU/min.

    ``used`` stays within the rate that is reserved; ``burst`` is charged to the reservations as well, above their rate;
    ``best`` is best effort on top. ``lent``: what others took of it in the last minute that is judged, None where none
    is of late.
    """

    pool: Pool
    reservations: tuple[Reservation, ...]
    used: float
    burst: float
    best: float
    lent: float | None
    claw_back_s: float | None

    @property
    def reserved(self) -> float:
        return sum(row.mu_per_min for row in self.reservations)

    @property
    def total(self) -> float:
        return self.used + self.burst + self.best

    @property
    def idle(self) -> float:
        return max(0.0, self.reserved - self.used)

    @property
    def burst_mu(self) -> float:
        """MU that the buckets hold beyond the rate."""
        return sum(row.burst_mu for row in self.reservations)

    @property
    def most(self) -> float:
        """The end of the scale."""
        wanted = max(1.25 * self.reserved, 1.05 * self.total, 1e-9)
        power = 10.0 ** math.floor(math.log10(wanted))
        return next(power * factor for factor in (1, 1.25, 1.5, 2, 2.5, 3, 4, 5, 6, 8, 10) if power * factor >= wanted)

    @property
    def arcs(self) -> list[Arc]:
        inside = self.used + self.burst
        parts = (
            ("track", 0.0, self.most),
            ("used", 0.0, self.used),
            ("burst", self.used, inside),
            ("best", inside, self.total),
        )
        return [Arc(kind, self._arc(begin, end)) for kind, begin, end in parts if end - begin > 0.001 * self.most]

    @property
    def mark(self) -> tuple[float, float, float, float]:
        """The line at what is reserved: x1, y1, x2, y2."""
        return (*self._at(self.reserved, RADIUS - 14), *self._at(self.reserved, RADIUS + 14))

    @property
    def label(self) -> str:
        return (
            f"{figures.number(self.used)} of {figures.number(self.reserved)} MU/min reserved are used, "
            f"{figures.number(self.burst)} beyond it as burst, {figures.number(self.best)} best effort on top"
        )

    def _at(self, mu: float, radius: float) -> tuple[float, float]:
        angle = math.pi * (1.0 - min(1.0, max(0.0, mu / self.most)))
        return CENTRE + radius * math.cos(angle), TOP - radius * math.sin(angle)

    def _arc(self, begin: float, end: float) -> str:
        (x1, y1), (x2, y2) = self._at(begin, RADIUS), self._at(end, RADIUS)
        return f"M{x1:.2f} {y1:.2f}A{RADIUS:g} {RADIUS:g} 0 0 1 {x2:.2f} {y2:.2f}"


def gauge_of(tenant: Tenant, pool: Pool, now: datetime) -> Gauge:
    """The tenant's gauge of one pool at ``now``, also where nothing is reserved of it."""
    running = reservations_running(at=now).filter(tenant=tenant, pool=pool).select_related("profile", "pool__model")
    rows = tuple(running.order_by("starts_at"))
    inside = used_mu_per_min(now=now, group="pool_id", tenant_id=tenant.pk, is_reserved=True).get(pool.pk, 0.0)
    beyond = used_mu_per_min(now=now, group="pool_id", tenant_id=tenant.pk, is_reserved=False).get(pool.pk, 0.0)
    reserved = sum(row.mu_per_min for row in rows)
    newest = (
        GuaranteeMinute.objects.filter(reservation__in=rows, starts_at__gte=now - _LENT_FRESH, starts_at__lte=now)
        .values("starts_at")
        .annotate(lent=Sum("lent_mu"))
        .order_by("-starts_at")
        .first()
    )
    first = rows[0] if rows else None
    return Gauge(
        pool=pool,
        reservations=rows,
        used=min(inside, reserved),
        burst=max(0.0, inside - reserved),
        best=beyond,
        lent=newest["lent"] if newest else None,
        claw_back_s=claw_back_s(first.profile, context_tokens=first.pool.model.context_tokens) if first else None,
    )


def usage_series(tenant: Tenant, pool: Pool, chosen: Range, now: datetime) -> dict[str, object]:
    """The tenant's MU/min of one pool over the range, inside its reservations and beyond, what it has reserved of it,
    and its breach minutes.
    """
    starts, step_s = bucket_starts(now.timestamp(), chosen), chosen.step.total_seconds()
    window = {
        "starts_at__gte": datetime.fromtimestamp(starts[0], UTC),
        "starts_at__lt": datetime.fromtimestamp(starts[-1] + step_s, UTC),
    }
    rollups = usage_rows(
        period=period_for(chosen),
        since=window["starts_at__gte"],
        until=window["starts_at__lt"],
        tenant_id=tenant.pk,
    ).filter(pool_id=pool.pk)
    sums: dict[bool, dict[float, float]] = defaultdict(lambda: defaultdict(float))
    by_class = rollups.values("starts_at", "service_class").annotate(sum=Sum("mu"))
    for starts_at, of_class, mu in by_class.values_list("starts_at", "service_class", "sum"):
        sums[of_class == RESERVED][starts_at.timestamp()] += mu

    def line(is_reserved: bool) -> Line:
        summed = totals(starts, step_s, sums[is_reserved].items(), starts[-1] + step_s)
        return [None if value is None else value / step_s * 60.0 for value in summed]

    own = Reservation.objects.filter(
        tenant=tenant, pool=pool, state__in=(Reservation.State.ACTIVE, Reservation.State.ENDED)
    )
    sales = [
        (since.timestamp(), until.timestamp() if until else None, row.mu_per_min)
        for row in own.prefetch_related("gaps")
        for since, until in row.spans()
    ]
    reserved, best = line(True), line(False)
    return {
        "unit": "MU/min",
        "t": starts,
        "sold": sold_line(starts, sales),
        "reserved": reserved,
        "best": best,
        "used": [(a or 0.0) + (b or 0.0) for a, b in zip(reserved, best, strict=True)],
        "breached": _breached(own, starts, step_s, window),
    }


def _breached(own: Iterable[Reservation], starts: Sequence[float], step_s: float, window: dict[str, datetime]) -> Line:
    judged = BooksState.objects.filter(pk=1).values_list("guaranteed_until", flat=True).first()
    rows = {"reservation__in": [row.pk for row in own], **window}
    if not rows["reservation__in"]:
        return [0.0] * len(starts)
    found: Iterable[tuple[datetime, int]]
    if step_s >= HOUR.total_seconds():
        hours = GuaranteeHour.objects.filter(breach_minutes__gt=0, **rows)
        found = hours.order_by().values_list("starts_at", "breach_minutes")
    else:
        minutes = GuaranteeMinute.objects.filter(is_breach=True, **rows).order_by().values("starts_at")
        found = minutes.annotate(count=Count("pk")).values_list("starts_at", "count")
    known = [(at.timestamp(), float(count)) for at, count in found]
    return totals(starts, step_s, known, judged.timestamp() if judged else 0.0)


@dataclass(frozen=True)
class RefusalRow:
    """Requests that were refused for one reason. ``keys`` are those that sent them, the most refused first."""

    words: Words
    reason: str
    status: int
    pool: str
    keys: tuple[tuple[str, int], ...]
    requests: int
    last_at: datetime


def _refused(tenant: Tenant, chosen: Range) -> dict[str, object]:
    return {"tenant_id": tenant.pk, "period": str(period_for(chosen))}


def refusals_of(tenant: Tenant, chosen: Range, now: datetime) -> list[RefusalRow]:
    """What was refused in the range by reason and pool, the most first: one query, and one or two for names."""
    rows = RefusalRollup.objects.filter(
        starts_at__gte=begins(chosen, now), starts_at__lte=now, **_refused(tenant, chosen)
    )
    found = rows.order_by().values("reason", "status", "pool_id", "key_id")
    found = found.annotate(total=Sum("requests"), last=Max("starts_at"))
    by: dict[tuple[str, int, UUID | None], list[tuple[UUID, int, datetime]]] = defaultdict(list)
    for row in found:
        by[row["reason"], row["status"], row["pool_id"]].append((row["key_id"], row["total"], row["last"]))
    pools = dict(Pool.everything.filter(pk__in={pool for *_, pool in by if pool}).values_list("pk", "name"))
    names = key_names_of(tenant, {key for keys in by.values() for key, *_ in keys})
    told = [
        RefusalRow(
            words=words_of(reason, status),
            reason=reason,
            status=status,
            pool="" if pool is None else pools.get(pool, "deleted"),
            keys=tuple((names.get(key, "deleted"), count) for key, count, _ in sorted(keys, key=lambda one: -one[1])),
            requests=sum(count for _, count, _ in keys),
            last_at=max(at for *_, at in keys),
        )
        for (reason, status, pool), keys in by.items()
    ]
    return sorted(told, key=lambda row: (-row.requests, row.reason))


def refusal_series(tenant: Tenant, chosen: Range, now: datetime) -> dict[str, object]:
    """Refused requests in each bucket: by limits and budgets, for want of room, and for other reasons."""
    starts, step_s = bucket_starts(now.timestamp(), chosen), chosen.step.total_seconds()
    rows = RefusalRollup.objects.filter(
        starts_at__gte=datetime.fromtimestamp(starts[0], UTC),
        starts_at__lt=datetime.fromtimestamp(starts[-1] + step_s, UTC),
        **_refused(tenant, chosen),
    ).order_by()
    known: dict[str, list[tuple[float, float]]] = defaultdict(list)
    counted = rows.values("starts_at", "reason", "status").annotate(sum=Sum("requests"))
    for at, reason, status, count in counted.values_list("starts_at", "reason", "status", "sum"):
        known[words_of(reason, status).group].append((at.timestamp(), float(count)))
    lines = {name: totals(starts, step_s, known[name], starts[-1] + step_s) for name in ("limit", "room", "other")}
    return {"unit": f"requests in {figures.duration(step_s)}", "t": starts, **lines}
