"""Keeping how much there was over time: minutes are written once, hours are the means of their minutes."""

from __future__ import annotations

import datetime
from collections.abc import Iterable
from typing import Any

from django.db import transaction
from django.db.models import Avg, Count, Model

from capacity.models import AcceleratorRollup, PoolRollup

_POOL, _ACCELERATOR = ("have", "could", "offered"), ("have", "used", "sold")


@transaction.atomic
def pool_minutes_add(rows: Iterable[PoolRollup]) -> int:
    """Add minutes of pools, but for those that are there, and bring their hours up to date. Returns how many came."""
    return _add(PoolRollup, list(rows), "pool_id", _POOL)


@transaction.atomic
def accelerator_minutes_add(rows: Iterable[AcceleratorRollup]) -> int:
    """Add minutes of accelerators, but for those that are there, and bring their hours up to date."""
    return _add(AcceleratorRollup, list(rows), "hardware_type_id", _ACCELERATOR)


def rollup_minutes_delete_old(*, before: datetime.datetime) -> int:
    """Retention: minutes go, hours stay. Returns how many."""
    old = {"period": "minute", "starts_at__lt": before}
    return PoolRollup.objects.filter(**old).delete()[0] + AcceleratorRollup.objects.filter(**old).delete()[0]


def _add(model: type[Model], rows: list[Any], owner: str, columns: tuple[str, ...]) -> int:
    if not rows:
        return 0
    manager: Any = model._default_manager
    first, last = min(row.starts_at for row in rows), max(row.starts_at for row in rows)
    known = set(
        manager.filter(period="minute", starts_at__gte=first, starts_at__lte=last).values_list(owner, "starts_at")
    )
    new = [row for row in rows if (getattr(row, owner), row.starts_at) not in known]
    manager.bulk_create(new, ignore_conflicts=True)
    for hour in sorted({row.starts_at.replace(minute=0) for row in new}):
        _sum_hour(model, hour, owner, columns)
    return len(new)


def _sum_hour(model: type[Model], hour: datetime.datetime, owner: str, columns: tuple[str, ...]) -> None:
    manager: Any = model._default_manager
    minutes = manager.filter(
        period="minute", starts_at__gte=hour, starts_at__lt=hour + datetime.timedelta(hours=1)
    ).order_by()
    means = minutes.values(owner).annotate(count=Count("pk"), **{f"mean_{name}": Avg(name) for name in columns})
    for row in means:
        values = {name: row[f"mean_{name}"] for name in columns} | {"minutes": row["count"]}
        manager.update_or_create(period="hour", starts_at=hour, **{owner: row[owner]}, defaults=values)
