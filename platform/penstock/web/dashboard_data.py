"""What a tenant's dashboard shows: usage by model and key, latest requests, limits. Every query names the tenant."""

from collections import defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Self
from uuid import UUID

from django.db.models import Q, QuerySet, Sum

from capacity.models import Pool, Reservation, UsageRecord, UsageRollup
from capacity.selectors import claw_back_s, reservations_running, usage_rows, used_mu_per_min
from capacity.usage.rows import FINE
from penstock.web import figures
from penstock.web.moments import read_place
from penstock.web.people import playground_names
from penstock.web.series import Range
from serving.models import Deployment, Revision
from serving.options import spoken
from serving.selectors import current_revisions
from tenants.models import ApiKey, Limit, Tenant
from tenants.selectors import limits_held

LATEST_ROWS = 20
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
TENANT_RANGES = {
    item.key: item
    for item in (
        Range("1h", "1 h", timedelta(hours=1), timedelta(minutes=1), 30),
        Range("6h", "6 h", timedelta(hours=6), timedelta(minutes=5), 60),
        Range("24h", "24 h", timedelta(hours=24), timedelta(minutes=15), 60),
        Range("7d", "7 d", timedelta(days=7), timedelta(hours=1), 300),
        Range("30d", "30 d", timedelta(days=30), timedelta(hours=6), 300),
    )
}
SUMS = {
    name: Sum(name)
    for name in (
        "requests",
        "failed",
        "input_tokens",
        "cached_tokens",
        "output_tokens",
        "mu",
        "ttft_ms_sum",
        "ttft_count",
    )
}


Row = dict[str, Any]
"""Sums of roll-ups with the identifiers they are grouped by."""


@dataclass(frozen=True)
class Place:
    """A place in the list of requests. Many end at one moment when a gateway is lost: its time alone is none."""

    ended_at: datetime
    id: UUID

    def __str__(self) -> str:
        return f"{self.ended_at.isoformat()}_{self.id}"

    @classmethod
    def parse(cls, text: str) -> Self | None:
        """What ``str`` gave, from a URL; None when it is absent or malformed."""
        found = read_place(text)
        return cls(*found) if found else None


@dataclass(frozen=True)
class Usage:
    """Usage over a range. Tokens by kind; MU of one pool only, else they would not add."""

    name: str
    sub: str = ""
    requests: int = 0
    failed: int = 0
    input_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    mu: float = 0.0
    ttft_ms_sum: float = 0.0
    ttft_count: int = 0

    @property
    def ttft_ms(self) -> float | None:
        return self.ttft_ms_sum / self.ttft_count if self.ttft_count else None

    @property
    def cached_share(self) -> float | None:
        return self.cached_tokens / self.input_tokens if self.input_tokens else None

    @property
    def failed_share(self) -> float | None:
        return self.failed / self.requests if self.requests else None


@dataclass(frozen=True)
class ModelChoice:
    """A served model that the tenant may use. ``speaks`` is what it can be asked, as ``worker.options.Speak`` says."""

    name: str
    pool: Pool
    engine: str
    is_simulated: bool
    speaks: tuple[str, ...] = ()

    @property
    def can_chat(self) -> bool:
        return "generate" in self.speaks


@dataclass(frozen=True)
class RequestRow:
    record: UsageRecord
    key: str
    ttft_ms: float | None
    duration_ms: float

    @property
    def is_plain(self) -> bool:
        return self.record.outcome == "completed"

    @property
    def outcome(self) -> str:
        return self.record.outcome.replace("_", " ")


@dataclass(frozen=True)
class Held:
    """A reservation that runs now, and what the tenant used of the pool inside its reservations in the last 60 s."""

    reservation: Reservation
    used_mu_per_min: float

    @property
    def claw_back_s(self) -> float:
        """Within this the tenant has back what was lent of it."""
        return claw_back_s(self.reservation.profile, context_tokens=self.reservation.pool.model.context_tokens)

    @property
    def share(self) -> float:
        return self.used_mu_per_min / self.reservation.mu_per_min


@dataclass(frozen=True)
class Dashboard:
    at: datetime
    total: Usage
    mu_by_pool: dict[UUID, float]
    by_model: list[Usage]
    by_key: list[Usage]
    latest: list[RequestRow]
    older: Place | None
    limits: list[Limit]
    models: list[ModelChoice]
    held: list[Held]
    keys: list[ApiKey]
    has_used: bool


def period_for(chosen: Range) -> UsageRollup.Period:
    """The coarsest roll-up that fills the range's buckets."""
    return UsageRollup.Period.HOUR if chosen.step >= timedelta(hours=1) else UsageRollup.Period.MINUTE


def begins(chosen: Range, now: datetime) -> datetime:
    """The start of the first roll-up that lies wholly within ``chosen``: a sum never holds more than its label says."""
    period = timedelta(hours=1) if period_for(chosen) == UsageRollup.Period.HOUR else timedelta(minutes=1)
    first = now - chosen.length
    return first + (EPOCH - first) % period


def pick_model(models: Sequence[ModelChoice], asked: str | None) -> ModelChoice | None:
    """The one of that name; else the first that can chat, or the first of all."""
    named = next((row for row in models if row.name == asked), None)
    return named or next((row for row in models if row.can_chat), models[0] if models else None)


def usable_models(tenant: Tenant) -> list[ModelChoice]:
    """Models the tenant may send requests to, by name."""
    deployments = list(
        Deployment.objects.filter(Q(pool__is_public=True) | Q(pool__tenants=tenant), is_enabled=True)
        .select_related("pool")
        .distinct()
        .order_by("name")
    )
    revisions = current_revisions(deployments)
    choices = []
    for row in deployments:
        revision = revisions.get(row.pk)
        choices.append(
            ModelChoice(
                name=row.name,
                pool=row.pool,
                engine=revision.get_runtime_display() if revision else "",
                is_simulated=revision is not None and revision.runtime == Revision.Runtime.SIMULATED,
                speaks=spoken(revision.runtime, revision.options) if revision else (),
            )
        )
    return choices


def gather_dashboard(
    tenant: Tenant, chosen: Range, now: datetime, before: Place | None, only_failed: bool
) -> Dashboard:
    """Everything the dashboard shows. ``before`` pages back through the latest requests."""
    rollups = usage_rows(period=period_for(chosen), since=begins(chosen, now), until=now, tenant_id=tenant.pk)
    names = dict(Deployment.everything.values_list("pk", "name"))
    pools = dict(Pool.everything.values_list("pk", "name"))
    keys = list(ApiKey.objects.filter(tenant=tenant).order_by("name"))
    by = rollups.values("deployment_id", "pool_id", "key_id").annotate(**SUMS)
    grouped: list[Row] = [dict(row) for row in by]
    records = list(_latest(tenant, before, only_failed)[: LATEST_ROWS + 1])
    last = records[LATEST_ROWS - 1] if len(records) > LATEST_ROWS else None
    callers = {row["key_id"] for row in grouped} | {record.key_id for record in records}
    key_names = key_names_of(tenant, callers)
    return Dashboard(
        at=now,
        total=summed("Total", "", grouped),
        mu_by_pool=_mu_by_pool(grouped),
        by_model=_by_model(grouped, names, pools),
        by_key=_by_key(grouped, names, key_names),
        latest=[_request_row(row, key_names) for row in records[:LATEST_ROWS]],
        older=Place(last.ended_at, last.pk) if last else None,
        limits=[limit for limit in limits_held(_limits(tenant)) if limit.is_in_force],
        models=usable_models(tenant),
        held=held_now(tenant, now),
        keys=keys,
        has_used=bool(grouped) or bool(records) or before is not None or only_failed,
    )


def key_names_of(tenant: Tenant, callers: Collection[UUID]) -> dict[UUID, str]:
    """Names of keys and of those who ask from the playground: these have no key, their own id stands there."""
    names = dict(ApiKey.objects.filter(tenant=tenant, pk__in=callers).values_list("pk", "name"))
    return names | playground_names(tenant, [pk for pk in callers if pk not in names])


def _limits(tenant: Tenant) -> QuerySet[Limit]:
    rows = Limit.objects.filter(tenant=tenant).select_related("api_key", "member__user")
    return rows.order_by("api_key__name", "member__user__email", "kind")


def _latest(tenant: Tenant, before: Place | None, only_failed: bool) -> QuerySet[UsageRecord]:
    rows = UsageRecord.objects.filter(tenant_id=tenant.pk).order_by("-ended_at", "-pk")
    if before is not None:
        older = Q(ended_at__lt=before.ended_at) | Q(pk__lt=before.id)
        rows = rows.filter(older, ended_at__lte=before.ended_at)
    return rows.exclude(outcome__in=FINE) if only_failed else rows


def summed(name: str, sub: str, rows: Sequence[Row]) -> Usage:
    totals = {field: sum(row[field] or 0 for row in rows) for field in SUMS}
    return Usage(
        name=name,
        sub=sub,
        mu=totals["mu"],
        ttft_ms_sum=totals["ttft_ms_sum"],
        **{field: int(totals[field]) for field in SUMS if field not in ("mu", "ttft_ms_sum")},
    )


def _mu_by_pool(grouped: Sequence[Row]) -> dict[UUID, float]:
    sums: dict[UUID, float] = defaultdict(float)
    for row in grouped:
        sums[row["pool_id"]] += row["mu"]
    return dict(sums)


def _by_model(grouped: Sequence[Row], names: dict[UUID, str], pools: dict[UUID, str]) -> list[Usage]:
    """By model and pool; what was removed stands together with what bears its name now."""
    by: dict[tuple[str, str], list[Row]] = defaultdict(list)
    for row in grouped:
        by[_name(names, row["deployment_id"]), _name(pools, row["pool_id"])].append(row)
    return sorted((summed(model, pool, own) for (model, pool), own in by.items()), key=lambda row: -row.requests)


def _by_key(grouped: Sequence[Row], names: dict[UUID, str], keys: dict[UUID, str]) -> list[Usage]:
    by: dict[tuple[UUID, str], list[Row]] = defaultdict(list)
    for row in grouped:
        by[row["key_id"], _name(names, row["deployment_id"])].append(row)
    rows = [summed(_name(keys, key), model, own) for (key, model), own in by.items()]
    return sorted(rows, key=lambda row: -row.requests)


def _name(names: dict[UUID, str], identifier: UUID) -> str:
    return names.get(identifier, "deleted")


def _request_row(record: UsageRecord, keys: dict[UUID, str]) -> RequestRow:
    first_byte_at = record.first_byte_at if record.stream else None
    ttft_s = None if first_byte_at is None else figures.seconds_between(record.admitted_at, first_byte_at)
    return RequestRow(
        record=record,
        key=_name(keys, record.key_id),
        ttft_ms=None if ttft_s is None else ttft_s * 1000,
        duration_ms=(record.ended_at - record.admitted_at).total_seconds() * 1000,
    )


def held_now(tenant: Tenant, now: datetime) -> list[Held]:
    """The tenant's running reservations with what it used inside those of each pool in the last 60 s."""
    running = list(reservations_running(at=now).filter(tenant=tenant).select_related("pool__model", "profile"))
    used = used_mu_per_min(now=now, group="pool_id", tenant_id=tenant.pk, is_reserved=True)
    return [Held(reservation=row, used_mu_per_min=used.get(row.pool_id, 0.0)) for row in running]
