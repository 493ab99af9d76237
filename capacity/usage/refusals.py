"""Keeping how many requests were refused and why: minutes as the gateways counted them, hours as their sums."""

from __future__ import annotations

import datetime
import uuid
from collections.abc import Mapping
from typing import NamedTuple

from django.db import transaction
from django.db.models import Sum
from django.utils import timezone

from capacity.models import BooksState, RefusalRollup
from capacity.policy.guarantee import UNTOLD
from capacity.usage.billing import invoices_open
from capacity.usage.guarantees import guarantees_open_untold

_BY = ("tenant_id", "key_id", "pool_id", "reason", "status")


class Kind(NamedTuple):
    """What refusals are told apart by."""

    tenant_id: uuid.UUID
    key_id: uuid.UUID
    pool_id: uuid.UUID | None
    reason: str
    status: int


@transaction.atomic
def refusals_write(counts: Mapping[tuple[datetime.datetime, Kind], int]) -> int:
    """Bring minutes to what was counted in them so far, and their hours to the sums. Returns how many minutes changed.

    A count never falls: a state that began anew counts from zero. Minutes of the guarantee ledger that it changes are
    judged anew.
    """
    if not counts:
        return 0
    minutes = {minute for minute, _ in counts}
    known = {
        (row.starts_at, Kind(*(getattr(row, name) for name in _BY))): row
        for row in RefusalRollup.objects.filter(period="minute", starts_at__in=minutes)
    }
    new, changed = [], set()
    for (minute, kind), count in counts.items():
        row = known.get((minute, kind))
        if row is None:
            new.append(RefusalRollup(period="minute", starts_at=minute, requests=count, **kind._asdict()))
        elif row.requests < count:
            RefusalRollup.objects.filter(pk=row.pk).update(requests=count)
        else:
            continue
        changed.add((minute, kind))
    RefusalRollup.objects.bulk_create(new, ignore_conflicts=True, batch_size=500)
    _open({(minute, kind) for minute, kind in changed if kind.reason in UNTOLD and kind.pool_id})
    for hour in sorted({minute.replace(minute=0) for minute, _ in changed}):
        _sum_hour(hour, {kind for minute, kind in changed if minute.replace(minute=0) == hour})
    return len(changed)


def refusal_minutes_delete_old(*, before: datetime.datetime, untold_before: datetime.datetime | None = None) -> int:
    """Retention: minutes go, hours stay. Returns how many. Those that the guarantee ledger counts stay as long as its
    minutes do, until ``untold_before``: a record that comes late has them counted again.
    """
    old = RefusalRollup.objects.filter(period="minute", starts_at__lt=before)
    if untold_before is not None and untold_before < before:
        old = old.exclude(reason__in=UNTOLD, starts_at__gte=untold_before)
    return old.delete()[0]


def _open(untold: set[tuple[datetime.datetime, Kind]]) -> None:
    """Have what was judged of these minutes judged anew, and what was issued of their months looked at again."""
    guarantees_open_untold((minute, kind.pool_id) for minute, kind in untold if kind.pool_id is not None)
    judged_until = BooksState.objects.filter(pk=1).values_list("guaranteed_until", flat=True).first()
    late = [(kind.tenant_id, minute) for minute, kind in untold if judged_until is not None and minute < judged_until]
    invoices_open(late, now=timezone.now())


def _sum_hour(hour: datetime.datetime, kinds: set[Kind]) -> None:
    until = hour + datetime.timedelta(hours=1)
    rows = RefusalRollup.objects.filter(
        period="minute", starts_at__gte=hour, starts_at__lt=until, tenant_id__in={kind.tenant_id for kind in kinds}
    )
    sums = {
        Kind(*values): total for *values, total in rows.order_by().values_list(*_BY).annotate(total=Sum("requests"))
    }
    hours = RefusalRollup.objects.filter(period="hour", starts_at=hour)
    known = {Kind(*(getattr(row, name) for name in _BY)): row for row in hours}
    new = []
    for kind in kinds:
        if kind in known:
            RefusalRollup.objects.filter(pk=known[kind].pk).update(requests=sums[kind])
        else:
            new.append(RefusalRollup(period="hour", starts_at=hour, requests=sums[kind], **kind._asdict()))
    RefusalRollup.objects.bulk_create(new, ignore_conflicts=True, batch_size=500)
