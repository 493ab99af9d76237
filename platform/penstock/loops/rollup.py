"""Roll up, a few times a minute: what there was of each pool and of accelerators, and what gateways refused."""

from __future__ import annotations

import datetime
import uuid
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

import redis

from capacity.models import AcceleratorRollup, PoolRollup
from capacity.selectors import profiles_in_force, reference_mu_per_min
from capacity.usage.lines import REFUSAL_COUNTS_S, RefusalField, refusal_counts_key
from capacity.usage.refusals import Kind, refusals_write
from capacity.usage.rollups import accelerator_minutes_add, pool_minutes_add
from penstock.accelerators import count_accelerators
from penstock.loops.isolation import isolated
from serving.gateway.state import deployment_ring, ring_read_many
from serving.models import Deployment
from serving.policy.observation import minute_means
from serving.selectors import replicas_at_most

_CATCH_UP = 10
"""Minutes back that are still written after a standstill, from what the rings remember."""
_REFUSALS_BACK, _FAR_BACK_MIN = 5, 10
"""Minutes of refusals that are looked at each time; and at which minutes of the hour all that the state has."""
_MINUTE = datetime.timedelta(minutes=1)


def roll_up(client: redis.Redis, *, now: datetime.datetime) -> int:
    """Write the minutes that are over and not written yet; how many."""
    written = 0
    parts: tuple[tuple[str, Callable[[], int]], ...] = (
        ("rolling pools up", lambda: _pools(client, now=now)),
        ("rolling accelerators up", lambda: _accelerators(now=now)),
        ("rolling refusals up", lambda: _refusals(client, now=now)),
    )
    for what, part in parts:
        with isolated(what):
            written += part()
    return written


def _refusals(client: redis.Redis, *, now: datetime.datetime) -> int:
    """What gateways have counted in the minutes before: the last few, and now and then as far back as the state has."""
    this = int(now.timestamp() // 60)
    back = REFUSAL_COUNTS_S // 60 if now.minute % _FAR_BACK_MIN == 0 else _REFUSALS_BACK
    minutes = range(this - back + 1, this + 1)
    pipeline = client.pipeline(transaction=False)
    for minute in minutes:
        pipeline.hgetall(refusal_counts_key(minute))
    counts: dict[tuple[datetime.datetime, Kind], int] = {}
    for minute, found in zip(minutes, pipeline.execute(), strict=True):
        at = datetime.datetime.fromtimestamp(minute * 60, datetime.UTC)
        for field, count in found.items():
            # What a gateway of another version says differently is passed over.
            with suppress(ValueError):
                told = RefusalField.decode(field.decode())
                pool = uuid.UUID(told.pool) if told.pool else None
                kind = Kind(uuid.UUID(told.tenant), uuid.UUID(told.key), pool, told.reason[:40], told.status)
                counts[at, kind] = int(count)
    return refusals_write(counts)


def _pools(client: redis.Redis, *, now: datetime.datetime) -> int:
    this = now.replace(second=0, microsecond=0)
    wanted = [this - back * _MINUTE for back in range(1, _CATCH_UP + 1)]
    deployments = list(Deployment.objects.all())
    pools = {row.pool_id for row in deployments}
    known = PoolRollup.objects.filter(period="minute", pool_id__in=pools, starts_at__gte=wanted[-1])
    there: dict[datetime.datetime, set[uuid.UUID]] = defaultdict(set)
    for pool_id, starts_at in known.values_list("pool_id", "starts_at"):
        there[starts_at].add(pool_id)
    missing = [at for at in wanted if there[at] < pools]
    if not missing:
        return 0
    count = int((now - missing[-1]).total_seconds()) + 2
    rings = ring_read_many(client, [deployment_ring(str(row.pk)) for row in deployments], count)
    profiles = profiles_in_force(at=now)
    could: dict[uuid.UUID, float] = defaultdict(float)
    for row in deployments:
        could[row.pool_id] += replicas_at_most(row) * reference_mu_per_min(profiles.get(row.pool_id))
    rows: list[PoolRollup] = []
    for at in missing:
        rows += _minute(at, deployments, rings, could)
    return pool_minutes_add(rows)


def _minute(
    at: datetime.datetime,
    deployments: Sequence[Deployment],
    rings: Mapping[str, Sequence[dict[str, Any]]],
    could: Mapping[uuid.UUID, float],
) -> list[PoolRollup]:
    """One row per pool of which at least one deployment was looked at in the minute."""
    rows: dict[uuid.UUID, PoolRollup] = {}
    for deployment in deployments:
        seen = minute_means(rings.get(deployment_ring(str(deployment.pk)), ()), starts_at=at.timestamp())
        if seen is None:
            continue
        have, offered = seen
        row = rows.setdefault(
            deployment.pool_id,
            PoolRollup(
                period="minute",
                starts_at=at,
                pool_id=deployment.pool_id,
                have=0.0,
                could=could[deployment.pool_id],
                offered=0.0,
            ),
        )
        row.have += have
        row.offered += offered
    return list(rows.values())


def _accelerators(*, now: datetime.datetime) -> int:
    minute = now.replace(second=0, microsecond=0)
    if AcceleratorRollup.objects.filter(period="minute", starts_at=minute).exists():
        return 0
    return accelerator_minutes_add(
        AcceleratorRollup(
            period="minute",
            starts_at=minute,
            hardware_type_id=kind.hardware.pk,
            have=kind.have,
            used=kind.used,
            sold=kind.sold,
        )
        for kind in count_accelerators(now=now)
    )
