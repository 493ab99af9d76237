"""What was used between two minutes, from the coarsest roll-ups that tell."""

from __future__ import annotations

import datetime
import uuid
from collections.abc import Collection, Iterator
from typing import NamedTuple

from django.db.models import Q, Sum

from capacity.models import UsageRollup
from capacity.usage.rows import period_start


class Used(NamedTuple):
    """``money`` in the installation's currency."""

    tenant: uuid.UUID
    key: uuid.UUID
    pool: uuid.UUID
    deployment: uuid.UUID
    mu: float
    money: float


def used_between(
    *, since: datetime.datetime, until: datetime.datetime, tenants: Collection[uuid.UUID]
) -> Iterator[Used]:
    """Sums by tenant, key, pool and deployment of what ended from ``since``, the start of a UTC day, to before
    ``until``, the start of a minute. One query, whatever lies between.
    """
    day, hour = (max(since, period_start(until, period)) for period in ("day", "hour"))
    parts = Q(period="day", starts_at__gte=since, starts_at__lt=day)
    parts |= Q(period="hour", starts_at__gte=day, starts_at__lt=hour)
    parts |= Q(period="minute", starts_at__gte=hour, starts_at__lt=until)
    who = ("tenant_id", "key_id", "pool_id", "deployment_id")
    rows = UsageRollup.objects.filter(parts, tenant_id__in=tenants).order_by().values_list(*who)
    for tenant, key, pool, deployment, mu, money in rows.annotate(Sum("mu"), Sum("money")):
        yield Used(tenant, key, pool, deployment, mu, money)
