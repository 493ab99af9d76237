"""What the usage pages show of one tenant: sums, a chart's lines, requests, and one request. Every query names it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from django.conf import settings
from django.db.models import Q, QuerySet, Sum

from capacity.models import OUTCOMES, Pool, UsageRecord, UsageRollup
from capacity.selectors import usage_rows
from capacity.usage.charges import LimitMet, WhyRefused, limits_met, why_refused
from capacity.usage.lines import Refusal
from capacity.usage.reads import cost_of_record, money_of_record, price_of_record
from capacity.usage.rows import FINE
from penstock.web.dashboard_data import SUMS, Place, Row, Usage, begins, period_for, summed
from penstock.web.people import playground_names
from penstock.web.series import Range, bucket_starts
from serving.models import Deployment
from tenants.models import ApiKey, Limit, Tenant

ROWS = 25
ALL, FAILED = "", "failed"
METRICS = {
    "mu": ("Model units", "MU/min", ("mu",)),
    "tokens": ("Tokens", "tokens/min", ("input_tokens", "output_tokens")),
    "requests": ("Requests", "requests/min", ("requests", "failed")),
}
"""What the chart can show: its name, its unit, and the columns of the roll-ups."""


@dataclass(frozen=True)
class Caller:
    """Who sent requests: an API key, or a person in the playground."""

    id: UUID
    name: str
    kind: str


def callers(tenant: Tenant, ids: Collection[UUID]) -> dict[UUID, Caller]:
    """The tenant's keys, and of ``ids`` the people whose requests came from the playground."""
    keys = ApiKey.objects.filter(tenant=tenant).order_by("name").values_list("pk", "name")
    found = {pk: Caller(pk, name, "key") for pk, name in keys}
    people = playground_names(tenant, [pk for pk in ids if pk not in found])
    return found | {pk: Caller(pk, name, "playground") for pk, name in people.items()}


@dataclass(frozen=True)
class Filters:
    """What the page's address asks for, as far as it makes sense. ``key`` may be a member's id."""

    range: Range
    key: UUID | None = None
    model: str = ""
    outcome: str = ALL
    query: str = ""

    @classmethod
    def read(cls, given: Mapping[str, Any], chosen: Range) -> Filters:
        """From an address's query. What cannot be understood is left out."""
        outcome = str(given.get("outcome", ALL))
        try:
            key = UUID(str(given.get("key", "")))
        except ValueError:
            key = None
        return cls(
            range=chosen,
            key=key,
            model=str(given.get("model", ""))[:200].replace("\0", ""),
            outcome=outcome if outcome in (FAILED, *OUTCOMES) else ALL,
            query=str(given.get("q", "")).strip()[:200].replace("\0", ""),
        )

    @property
    def is_any(self) -> bool:
        return bool(self.key or self.model or self.outcome or self.query)


def records(tenant: Tenant, asked: Filters, now: datetime) -> QuerySet[UsageRecord]:
    """The requests that the filters leave, newest first. An id is found whenever the request was."""
    rows = UsageRecord.objects.filter(tenant_id=tenant.pk).order_by("-ended_at", "-pk")
    if asked.query:
        named = Q(client_request_id=asked.query)
        with suppress(ValueError):
            named |= Q(pk=UUID(asked.query))
        rows = rows.filter(named)
    else:
        rows = rows.filter(ended_at__gte=now - asked.range.length)
    if asked.key is not None:
        rows = rows.filter(key_id=asked.key)
    if asked.model:
        rows = rows.filter(model=asked.model)
    if asked.outcome == FAILED:
        rows = rows.exclude(outcome__in=FINE)
    elif asked.outcome:
        rows = rows.filter(outcome=asked.outcome)
    return rows


def page_of(rows: QuerySet[UsageRecord], before: Place | None) -> tuple[list[UsageRecord], Place | None]:
    """One page of requests that come after the place ``before``, and where the next one begins."""
    if before is not None:
        older = Q(ended_at__lt=before.ended_at) | Q(pk__lt=before.id)
        rows = rows.filter(older, ended_at__lte=before.ended_at)
    found = list(rows[: ROWS + 1])
    last = found[ROWS - 1] if len(found) > ROWS else None
    return found[:ROWS], Place(last.ended_at, last.pk) if last else None


@dataclass(frozen=True)
class Sums:
    """Usage over a range. MU of pools are different goods: they stand apart, by pool."""

    total: Usage
    by_pool: list[tuple[Pool, float]]
    by_model: list[Usage]
    by_caller: list[Usage]
    callers: dict[UUID, Caller]
    models: list[str]


def sums(tenant: Tenant, asked: Filters, now: datetime) -> Sums:
    """What was used in the range, by key and model, of what the filters leave. Outcomes are in the requests alone."""
    rollups = _rollups(tenant, asked, begins(asked.range, now), now)
    grouped: list[Row] = [dict(row) for row in rollups.values("deployment_id", "pool_id", "key_id").annotate(**SUMS)]
    # What was removed is told by its name, too, together with what bears that name now.
    names = dict(Deployment.everything.values_list("pk", "name"))
    pools = Pool.everything.in_bulk({row["pool_id"] for row in grouped})
    seen = _seen(tenant, asked, now)
    known = callers(tenant, set(seen.values_list("key_id", flat=True).distinct()))
    by_pool: dict[UUID, float] = defaultdict(float)
    models: dict[str, list[Row]] = defaultdict(list)
    people: dict[tuple[UUID, str], list[Row]] = defaultdict(list)
    for row in grouped:
        by_pool[row["pool_id"]] += row["mu"]
        model = names.get(row["deployment_id"], "deleted")
        models[model].append(row)
        people[row["key_id"], model].append(row)

    def most_first(rows: Iterable[Usage]) -> list[Usage]:
        return sorted(rows, key=lambda row: -row.requests)

    return Sums(
        total=summed("Total", "", grouped),
        by_pool=sorted(((pools[pk], mu) for pk, mu in by_pool.items() if pk in pools), key=lambda pair: pair[0].name),
        by_model=most_first(summed(model, "", rows) for model, rows in models.items()),
        by_caller=most_first(
            summed(known[key].name if key in known else "deleted", model, rows) for (key, model), rows in people.items()
        ),
        callers=known,
        models=sorted({names[pk] for pk in seen.values_list("deployment_id", flat=True).distinct() if pk in names}),
    )


def _rollups(tenant: Tenant, asked: Filters, since: datetime, until: datetime) -> QuerySet[UsageRollup]:
    rows = usage_rows(period=period_for(asked.range), since=since, until=until, tenant_id=tenant.pk)
    if asked.key is not None:
        rows = rows.filter(key_id=asked.key)
    if asked.model:
        rows = rows.filter(deployment_id__in=Deployment.everything.filter(name=asked.model).values("pk"))
    return rows


def _seen(tenant: Tenant, asked: Filters, now: datetime) -> QuerySet[UsageRollup]:
    """The range's roll-ups whatever the filters: what the filters offer."""
    return usage_rows(period=period_for(asked.range), since=begins(asked.range, now), until=now, tenant_id=tenant.pk)


def series(tenant: Tenant, asked: Filters, metric: str, pool: Pool | None, now: datetime) -> dict[str, object]:
    """The chart's lines per minute over the range: of one pool where they are MU, else of all."""
    _, unit, columns = METRICS[metric]
    starts, step_s = bucket_starts(now.timestamp(), asked.range), asked.range.step.total_seconds()
    lines = {column: [0.0] * len(starts) for column in columns}
    first = datetime.fromtimestamp(starts[0], now.tzinfo)
    last = datetime.fromtimestamp(starts[-1] + step_s, now.tzinfo)
    rows = _rollups(tenant, asked, first, last)
    if pool is not None:
        rows = rows.filter(pool_id=pool.pk)
    summed_rows = rows.values("starts_at").annotate(**{f"sum_{column}": Sum(column) for column in columns})
    for starts_at, *values in summed_rows.values_list("starts_at", *(f"sum_{column}" for column in columns)):
        at = int((starts_at.timestamp() - starts[0]) // step_s)
        for column, value in zip(columns, values, strict=True):
            lines[column][at] += value
    return {
        "unit": unit,
        "t": starts,
        **{column: [value / step_s * 60.0 for value in line] for column, line in lines.items()},
    }


# ------------------------------------------------------------------ one request
@dataclass(frozen=True)
class Term:
    """A part of the price: what was counted, and what it came to in MU."""

    name: str
    counted: str
    mu: float


@dataclass(frozen=True)
class Step:
    """A stretch of a request's life, in ms; ``start`` and ``share`` are parts of the whole, 0..100."""

    name: str
    kind: str
    ms: float
    start: float
    share: float


@dataclass(frozen=True)
class MetRow:
    """A limit that the request met, in words, with its figures."""

    name: str
    met: LimitMet

    @property
    def had_room(self) -> bool:
        return self.met.charged > 0

    @property
    def decimals(self) -> int:
        """Requests and tokens are whole, MU and money are not."""
        return 3 if self.met.kind.startswith(("mu_", "money_")) else 0


@dataclass(frozen=True)
class Receipt:
    record: UsageRecord
    caller: Caller | None
    pool: Pool | None
    terms: list[Term]
    total: float
    factor: float
    calibrated: bool
    steps: list[Step]
    duration_ms: float
    ttft_ms: float | None
    tokens_per_s: float | None
    attempts: Sequence[Mapping[str, Any]]
    money: float | None
    """In the installation's currency; None where the price names none."""
    currency: str
    limits: Sequence[MetRow]
    refusal: WhyRefused | None

    @property
    def is_booked(self) -> bool:
        return self.refusal is None or self.refusal.was_admitted

    @property
    def made_way(self) -> bool:
        """Whether it was put back in the queue for the owner of a reservation."""
        return any(attempt.get("outcome") == "made_way" for attempt in self.attempts)

    @property
    def difference(self) -> float:
        """Actual less estimated, in MU."""
        return self.record.actual_mu - self.record.estimated_mu


def receipt(tenant: Tenant, record: UsageRecord, refusal: Refusal | None = None) -> Receipt:
    """All that the books know of one request of ``tenant``; ``refusal``: why it was not admitted."""
    price = price_of_record(record)
    cost = cost_of_record(record, price) if price else None
    money = money_of_record(record, price)
    duration_ms = _ms(record.admitted_at, record.ended_at) or 0.0
    first_ms = _ms(record.admitted_at, record.first_byte_at)
    is_stream = record.stream and first_ms is not None
    writing_s = (duration_ms - first_ms) / 1000 if is_stream and first_ms is not None else 0.0
    return Receipt(
        record=record,
        caller=callers(tenant, {record.key_id}).get(record.key_id),
        pool=Pool.everything.filter(pk=record.pool_id).first(),
        terms=_terms(record, cost) if cost else [],
        total=cost.total if cost else 0.0,
        factor=cost.factor if cost else 1.0,
        calibrated=price.calibrated if price else False,
        steps=_steps(record, duration_ms),
        duration_ms=duration_ms,
        ttft_ms=first_ms if is_stream else None,
        tokens_per_s=(record.output_tokens - 1) / writing_s if record.output_tokens > 1 and writing_s > 0 else None,
        attempts=record.attempts,
        money=money,
        currency=settings.PENSTOCK_CURRENCY,
        limits=[MetRow(_name_of(met), met) for met in limits_met(record, money)],
        refusal=why_refused(record, refusal),
    )


def _name_of(met: LimitMet) -> str:
    if met.holder == "reservation":
        return "Reservation, in MU"
    if met.holder == "allowance":
        return "Allowance of the reservation, in MU"
    of_model = f", for {met.model}" if met.model else ""
    return f"{Limit.Kind(met.kind).label} of the {met.holder}{of_model}"


def _terms(record: UsageRecord, cost: Any) -> list[Term]:
    fresh = record.input_tokens - record.cached_tokens
    rows = [
        Term("Base", "per request", cost.base),
        Term("Prefill", f"{fresh:,} input tokens that were not cached", cost.prefill),
        Term("Attention over the input", f"{record.input_tokens:,} tokens, squared", cost.prefill_attention),
        Term("Cached input", f"{record.cached_tokens:,} tokens", cost.cached),
        Term("Decode", f"{record.output_tokens:,} output tokens", cost.decode),
        Term("Attention while writing", "output × what was before it", cost.decode_attention),
        *(Term(name, f"{record.units.get(name, 0):g} units", mu) for name, mu in cost.modalities.items()),
    ]
    return [row for row in rows if row.mu]


def _steps(record: UsageRecord, duration_ms: float) -> list[Step]:
    routed = _ms(record.admitted_at, record.routed_at)
    first = _ms(record.admitted_at, record.first_byte_at)
    marks = [("Waiting for a replica", "wait", 0.0 if routed is None else routed)]
    if routed is not None:
        marks.append(("Until the first byte", "prefill", duration_ms if first is None else first))
    if first is not None:
        marks.append(("Answering", "decode", duration_ms))
    steps, before = [], 0.0
    for name, kind, until in marks:
        until = min(max(until, before), duration_ms)
        whole = duration_ms or 1.0
        steps.append(Step(name, kind, until - before, before / whole * 100, (until - before) / whole * 100))
        before = until
    return steps


def _ms(since: datetime, until: datetime | None) -> float | None:
    return None if until is None else (until - since).total_seconds() * 1000
