"""Reads of this app with joins: prices in force, what is sold, what was used, how far the books are."""

import datetime
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from django.db.models import Count, Exists, OuterRef, Q, QuerySet, Sum
from django.db.models.functions import Coalesce

from capacity.models import BooksState, CostProfile, Host, QuarantinedUsage, Reservation, UsageRollup, Watermark
from tenants.crypto import decrypt

Group = Literal["tenant_id", "key_id", "pool_id", "deployment_id", "service_class"]

_AMOUNTS = (
    "requests",
    "failed",
    "input_tokens",
    "cached_tokens",
    "output_tokens",
    "mu",
    "ttft_ms_sum",
    "ttft_count",
    "duration_ms_sum",
)


def host_secret(host: Host) -> bytes:
    """The secret that signs what the host and the control plane say to each other. Raises DecryptionError."""
    return decrypt(host.secret)


def profiles_in_force(*, at: datetime.datetime) -> dict[uuid.UUID, CostProfile]:
    """The profile in force at ``at`` by pool id: one query. A pool without a price is absent."""
    newer = CostProfile.objects.filter(pool=OuterRef("pool"), effective_from__lte=at).filter(
        Q(effective_from__gt=OuterRef("effective_from"))
        | Q(effective_from=OuterRef("effective_from"), version__gt=OuterRef("version"))
    )
    rows = CostProfile.objects.filter(effective_from__lte=at).exclude(Exists(newer)).select_related("hardware_type")
    return {row.pool_id: row for row in rows}


def profile_in_force(*, pool_id: uuid.UUID, at: datetime.datetime) -> CostProfile | None:
    """The pool's profile in force at ``at``, or None."""
    rows = CostProfile.objects.filter(pool_id=pool_id, effective_from__lte=at).select_related("hardware_type")
    return rows.order_by("-effective_from", "-version").first()


def sold_mu_per_min(*, at: datetime.datetime) -> dict[uuid.UUID, float]:
    """Reserved MU/min by pool id at ``at``."""
    active = Reservation.objects.filter(state=Reservation.State.ACTIVE, starts_at__lte=at).filter(
        Q(ends_at=None) | Q(ends_at__gt=at)
    )
    return dict(active.order_by().values_list("pool_id").annotate(sold=Sum("mu_per_min")))


@dataclass(frozen=True, slots=True)
class UsageSum:
    """Usage summed over roll-up rows. ``mean_*`` in ms, None where nothing was measured."""

    requests: int = 0
    failed: int = 0
    input_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    mu: float = 0.0
    ttft_ms_sum: float = 0.0
    ttft_count: int = 0
    duration_ms_sum: float = 0.0

    @property
    def mean_ttft_ms(self) -> float | None:
        return self.ttft_ms_sum / self.ttft_count if self.ttft_count else None

    @property
    def mean_duration_ms(self) -> float | None:
        return self.duration_ms_sum / self.requests if self.requests else None


@dataclass(frozen=True, slots=True)
class UsagePoint:
    """Usage of one period. Provisional until ``is_final``."""

    starts_at: datetime.datetime
    usage: UsageSum
    is_final: bool


def period_for(length: datetime.timedelta) -> UsageRollup.Period:
    """The roll-up that draws ``length`` in at most about 750 points."""
    if length <= datetime.timedelta(hours=12):
        return UsageRollup.Period.MINUTE
    return UsageRollup.Period.HOUR if length <= datetime.timedelta(days=31) else UsageRollup.Period.DAY


def usage_rows(
    *,
    period: str,
    since: datetime.datetime,
    until: datetime.datetime,
    tenant_id: uuid.UUID | None = None,
    key_id: uuid.UUID | None = None,
    pool_id: uuid.UUID | None = None,
    deployment_id: uuid.UUID | None = None,
) -> QuerySet[UsageRollup]:
    """Roll-up rows that start in ``[since, until)``, of what is given."""
    wanted = {"tenant_id": tenant_id, "key_id": key_id, "pool_id": pool_id, "deployment_id": deployment_id}
    rows = UsageRollup.objects.filter(period=period, starts_at__gte=since, starts_at__lt=until).order_by()
    return rows.filter(**{name: value for name, value in wanted.items() if value is not None})


def usage_series(rows: QuerySet[UsageRollup]) -> list[UsagePoint]:
    """``usage_rows`` by time, oldest first. Periods without usage are absent."""
    groups = rows.values("starts_at").annotate(**_sums(), open=Count("id", filter=Q(is_final=False)))
    return [UsagePoint(row["starts_at"], _sum_of(row), not row["open"]) for row in groups.order_by("starts_at")]


def usage_by(rows: QuerySet[UsageRollup], group: Group) -> dict[Any, UsageSum]:
    """``usage_rows`` by tenant, key, pool, deployment or class, the largest first."""
    groups = rows.values(group).annotate(**_sums()).order_by("-total_mu")
    return {row[group]: _sum_of(row) for row in groups}


def usage_total(rows: QuerySet[UsageRollup]) -> UsageSum:
    """``usage_rows`` in one sum."""
    return _sum_of(rows.aggregate(**_sums()))


def _sums() -> dict[str, Any]:
    return {f"total_{name}": Coalesce(Sum(name), 0 if _is_count(name) else 0.0) for name in _AMOUNTS}


def _is_count(name: str) -> bool:
    return name in ("requests", "failed", "input_tokens", "cached_tokens", "output_tokens", "ttft_count")


def _sum_of(row: Mapping[str, Any]) -> UsageSum:
    return UsageSum(**{name: row[f"total_{name}"] for name in _AMOUNTS})


@dataclass(frozen=True, slots=True)
class Books:
    """How far the books are. ``slowest`` names the open segment that is the furthest behind."""

    final_until: datetime.datetime | None
    late_records: int
    quarantined: int
    slowest: str
    slowest_at: datetime.datetime | None


def books() -> Books:
    """Finality, alarms and what holds the closing up."""
    state = BooksState.objects.filter(pk=1).first()
    slowest = Watermark.objects.filter(is_closed=False).order_by("at").first()
    return Books(
        final_until=state.final_until if state else None,
        late_records=state.late_records if state else 0,
        quarantined=QuarantinedUsage.objects.filter(resolved_at=None).count(),
        slowest=slowest.segment if slowest else "",
        slowest_at=slowest.at if slowest else None,
    )


def used_mu_per_min(
    *, now: datetime.datetime, group: Group = "deployment_id", minutes: int = 1, ids: Iterable[uuid.UUID] | None = None
) -> dict[Any, float]:
    """Mean settled MU/min of the last ``minutes`` complete minutes. Long requests count when they end."""
    until = now.replace(second=0, microsecond=0)
    rows = usage_rows(period=UsageRollup.Period.MINUTE, since=until - datetime.timedelta(minutes=minutes), until=until)
    if ids is not None:
        rows = rows.filter(**{f"{group}__in": list(ids)})
    return {key: usage.mu / minutes for key, usage in usage_by(rows, group).items()}
