"""Reads of the books that are too large for one answer, or that explain one request."""

from __future__ import annotations

import datetime
from collections.abc import Iterator, Sequence
from typing import Any

from django.db.models import Count, Q, QuerySet, Sum

from capacity.models import CostProfile, UsageRecord, UsageRollup
from capacity.policy import cost
from capacity.usage.rows import money_of

COLUMNS = (
    "id",
    "client_request_id",
    "key_id",
    "pool_id",
    "deployment_id",
    "model",
    "dialect",
    "service_class",
    "stream",
    "input_tokens",
    "cached_tokens",
    "output_tokens",
    "units",
    "estimated_mu",
    "actual_mu",
    "profile_version",
    "outcome",
    "status",
    "finish_reason",
    "lower_bound",
    "admitted_at",
    "first_byte_at",
    "ended_at",
)
"""What a tenant is told of each of its requests."""

PLATFORM_COLUMNS = ("tenant_id", *COLUMNS, "revision_id", "replica_id", "gateway", "error")
"""What operators are told beside: whose it was, where it ran, and what the engine said."""

_SLICE = 1000

GROUPS = {"key": "key_id", "deployment": "deployment_id", "service_class": "service_class", "tenant": "tenant_id"}
"""Columns of the roll-ups by the word that groups by them."""


def in_slices(
    rows: QuerySet[UsageRecord], columns: Sequence[str], *, size: int = _SLICE
) -> Iterator[list[tuple[Any, ...]]]:
    """``columns`` of ``rows``, newest first, ``size`` rows at a time, each slice by a query of its own.

    A cursor would stay open for as long as its reader takes: it would keep SQLite from truncating its write-ahead log,
    and PostgreSQL would first put all of the result aside.
    """
    ordered = rows.order_by("-ended_at", "-id").values_list("ended_at", "id", *columns)
    found = list(ordered[:size])
    while found:
        yield [row[2:] for row in found]
        if len(found) < size:
            return
        ended_at, pk = found[-1][:2]
        # The first condition finds the place in the index, the second goes on within the same moment.
        after = ordered.filter(Q(ended_at__lte=ended_at) & (Q(ended_at__lt=ended_at) | Q(id__lt=pk)))
        found = list(after[:size])


def rollups_grouped(
    *, period: str, since: datetime.datetime, until: datetime.datetime, group: str | None, **only: Any
) -> QuerySet[UsageRollup, Any]:
    """Sums by period and pool, and by ``group`` within them, newest first; ``only`` filters by column.

    Always by pool: MU of different pools are different goods, and are never added.
    """
    rows = UsageRollup.objects.filter(period=period, starts_at__gte=since, starts_at__lt=until, **only)
    by = ("starts_at", "pool_id", *((GROUPS[group],) if group else ()))
    sums = {name: Sum(name) for name in _SUMMED}
    found: QuerySet[UsageRollup, Any] = rows.order_by("-starts_at", *by[1:]).values(*by)
    return found.annotate(open=Count("id", filter=Q(is_final=False)), **sums)


_SUMMED = (
    "requests",
    "failed",
    "input_tokens",
    "cached_tokens",
    "output_tokens",
    "mu",
    "money",
    "ttft_ms_sum",
    "ttft_count",
    "duration_ms_sum",
)


def price_of_record(record: UsageRecord) -> CostProfile | None:
    """The version that the request was priced with; None where the pool is not known any more."""
    return CostProfile.objects.filter(pool_id=record.pool_id, version=record.profile_version).first()


def money_of_record(record: UsageRecord, price: CostProfile | None) -> float | None:
    """What the request cost in money, by the price that it was admitted by; None where that names none."""
    rate = price.price_per_1000_mu if price else None
    return None if price is None or rate is None else money_of(record, {(price.pool_id, price.version): rate})


def terms_of(price: CostProfile) -> cost.CostProfile:
    """A stored version of a price as the cost function takes it."""
    return cost.CostProfile(
        version=price.version,
        base=price.base,
        alpha=price.alpha,
        beta=price.beta,
        gamma=price.gamma,
        epsilon=price.epsilon,
        cached_factor=price.cached_factor,
        modalities=price.modalities,
        long_input_tiers=price.long_input_tiers,
        calibrated=price.calibrated,
    )


def cost_of_record(record: UsageRecord, price: CostProfile) -> cost.CostBreakdown | None:
    """What the request cost, term by term; None where nothing was used, and so nothing was billed."""
    # A request to a classic model has no tokens, and rows and KiB instead; those of a lost gateway were not counted.
    has_units = bool(record.units) and record.outcome != "gateway_lost"
    if not (record.input_tokens + record.output_tokens or has_units):
        return None
    profile = terms_of(price)
    return cost.request_breakdown(
        profile,
        input_tokens=record.input_tokens,
        cached_tokens=record.cached_tokens,
        output_tokens=record.output_tokens,
        units=record.units,
    )
