"""What was used of one pool, by tenant: totals from the roll-ups, and some requests of each."""

from __future__ import annotations

import datetime
import uuid
from typing import NamedTuple

from django.db.models import Sum

from capacity.models import UsageRecord, UsageRollup
from capacity.policy.preview import TenantUse, Use

MOST_TENANTS = 40
"""Those with the most MU are told one by one, the others together: so many queries it takes at most."""
SAMPLE = 200
"""Newest requests of each tenant that are priced anew."""


class _Total(NamedTuple):
    """A tenant's sums, in the order of ``TenantUse``'s fields."""

    tenant_id: uuid.UUID | None
    requests: int
    mu: float
    input_tokens: int
    cached_tokens: int
    output_tokens: int


def pool_use(*, pool_id: uuid.UUID, since: datetime.datetime, until: datetime.datetime) -> list[TenantUse]:
    """Usage of a pool in the days (UTC) from that of ``since`` to that of ``until``, by tenant, the largest first.

    One query over the daily roll-ups, and one bounded one for each of the ``MOST_TENANTS`` largest tenants.
    """
    first = since.replace(hour=0, minute=0, second=0, microsecond=0)
    rows = UsageRollup.objects.filter(
        period=UsageRollup.Period.DAY, starts_at__gte=first, starts_at__lte=until, pool_id=pool_id
    )
    totals = [
        _Total(*row)
        for row in rows.order_by()
        .values_list("tenant_id")
        .annotate(
            count=Sum("requests"),
            charged=Sum("mu"),
            inputs=Sum("input_tokens"),
            cached=Sum("cached_tokens"),
            outputs=Sum("output_tokens"),
        )
    ]
    totals.sort(key=lambda row: (-row.mu, str(row.tenant_id)))
    found = [TenantUse(*row, sample=_sample(row.tenant_id, pool_id, first, until)) for row in totals[:MOST_TENANTS]]
    rest = totals[MOST_TENANTS:]
    if rest:
        together = _Total(None, *(sum(column) for column in list(zip(*rest, strict=True))[1:]))
        found.append(TenantUse(*together, tenants=len(rest)))
    return found


def _sample(
    tenant_id: uuid.UUID | None, pool_id: uuid.UUID, since: datetime.datetime, until: datetime.datetime
) -> tuple[Use, ...]:
    if tenant_id is None:
        return ()
    rows = UsageRecord.objects.filter(
        tenant_id=tenant_id, pool_id=pool_id, ended_at__gte=since, ended_at__lte=until, actual_mu__gt=0
    ).order_by("-ended_at")
    columns = ("input_tokens", "cached_tokens", "output_tokens", "actual_mu", "units")
    return tuple(Use(*row) for row in rows.values_list(*columns)[:SAMPLE])
