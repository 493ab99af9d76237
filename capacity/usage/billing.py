"""What invoices are made of: exact sums of each day, kept as records are booked, and what the guarantee ledger says."""

from __future__ import annotations

import datetime
import uuid
from collections.abc import Iterable
from decimal import Decimal
from typing import Any

from django.db.models import F, Sum

from capacity.models import BilledDay, CostProfile, GuaranteeDay, LateUsage, Pool, Reservation, UsageRecord
from capacity.policy.invoice import Line, Promised, Used, billed_mu, following, lines_of, number
from capacity.usage.attainment import in_month, months

BilledKey = tuple[str, str, str, str, int, str]
"""Day (ISO), tenant, pool, served model, version of the price, class; ids as text, so that keys have an order."""

_KEY = ("day", "tenant_id", "pool_id", "model", "profile_version", "service_class")
_COUNTS = ("requests", "input_tokens", "cached_tokens", "output_tokens")
_SUMS = (*_COUNTS, "mu_whole", "mu_nano")
_NANO = 10**9


def bill(records: Iterable[UsageRecord]) -> None:
    """Add ``records``, which have just been booked, to their days. Call it in their transaction."""
    found: dict[BilledKey, list[int]] = {}
    for record in records:
        day = record.ended_at.astimezone(datetime.UTC).date().isoformat()
        who = (day, str(record.tenant_id), str(record.pool_id), record.model, record.profile_version)
        sums = found.setdefault((*who, record.service_class), [0] * len(_SUMS))
        tokens = (record.input_tokens, record.cached_tokens, record.output_tokens)
        for at, amount in enumerate((1, *tokens, *divmod(int(billed_mu(record.actual_mu).scaleb(9)), _NANO))):
            sums[at] += amount
    # Every writer takes the rows in the same order, so no two wait for each other.
    rows: list[tuple[dict[str, Any], dict[str, int]]] = [
        (dict(zip(_KEY, key, strict=True)), dict(zip(_SUMS, sums, strict=True))) for key, sums in sorted(found.items())
    ]
    BilledDay.objects.bulk_create([BilledDay(**row) for row, _ in rows], ignore_conflicts=True)
    for row, amounts in rows:
        BilledDay.objects.filter(**row).update(**{name: F(name) + amount for name, amount in amounts.items()})


def invoices_open(late: Iterable[tuple[uuid.UUID, datetime.datetime]], *, now: datetime.datetime) -> None:
    """Something of tenants came late, of these moments: what was issued of their months is to be looked at again."""
    found = {(tenant, month_in(moment)) for tenant, moment in late}
    for tenant, month in sorted(found):
        LateUsage.objects.bulk_create([LateUsage(tenant_id=tenant, month=month, at=now)], ignore_conflicts=True)
        LateUsage.objects.filter(tenant_id=tenant, month=month).update(at=now)


def month_in(at: datetime.datetime) -> datetime.date:
    """The first day of the month (UTC) of a moment."""
    return at.astimezone(datetime.UTC).date().replace(day=1)


def begins(month: datetime.date) -> datetime.datetime:
    """Its first moment."""
    return datetime.datetime.combine(month, datetime.time(), datetime.UTC)


def month_lines(*, tenant_id: uuid.UUID, month: datetime.date, currency: str, document_format: int) -> tuple[Line, ...]:
    """What the books say now of the tenant's month. ``currency``: of the prices of usage; ``document_format``: of the
    month's invoice."""
    used, promised = _used(tenant_id, month), month_promised(tenant_id=tenant_id, month=month)
    return lines_of(month=month, used=used, promised=promised, currency=currency, document_format=document_format)


def _used(tenant_id: uuid.UUID, month: datetime.date) -> list[Used]:
    days: Any = BilledDay.objects.filter(tenant_id=tenant_id, day__gte=month, day__lt=following(month)).order_by()
    summed = days.values(*_KEY[2:]).annotate(**{f"sum_{name}": Sum(name) for name in _SUMS})
    rows = [(row, {name: int(row[f"sum_{name}"]) for name in _SUMS}) for row in summed]
    pools = {row["pool_id"] for row, _ in rows}
    names = dict(Pool.everything.filter(pk__in=pools).values_list("pk", "slug"))
    prices = CostProfile.objects.filter(pool__in=pools).order_by()
    priced = {
        (pool, version): price for pool, version, price in prices.values_list("pool", "version", "price_per_1000_mu")
    }
    found = []
    for row, sums in rows:
        price = priced.get((row["pool_id"], row["profile_version"]))
        found.append(
            Used(
                pool_id=str(row["pool_id"]),
                pool=names.get(row["pool_id"], ""),
                model=row["model"],
                profile_version=row["profile_version"],
                service_class=row["service_class"],
                **{name: sums[name] for name in _COUNTS},
                mu=sums["mu_whole"] + Decimal(sums["mu_nano"]).scaleb(-9),
                price=None if price is None else number(price),
            )
        )
    return found


def month_promised(*, tenant_id: uuid.UUID, month: datetime.date) -> list[Promised]:
    """The tenant's reservations in the month, as the guarantee ledger has them."""
    rows = in_month(Reservation.objects.filter(tenant=tenant_id), month).select_related("renews")
    return [
        Promised(
            reservation=str(one.reservation.pk),
            pool_id=str(one.reservation.pool_id),
            pool=one.reservation.pool.slug,
            mu_per_min=number(one.reservation.mu_per_min),
            minutes=one.minutes - is_shared(one.reservation, month),
            breach_minutes=one.breach_minutes,
            price=one.reservation.price,
            currency=one.reservation.currency,
            credit_share=number(one.credit_share),
            credit=one.exact_credit,
        )
        for one in months(rows.order_by("starts_at", "pk"), month)
    ]


def is_shared(row: Reservation, month: datetime.date) -> bool:
    """Whether its first minute of the month is paid for already: terms changed within it, and the old ones count."""
    earlier, starts = row.renews, row.starts_at
    is_within = bool(starts.second or starts.microsecond)
    if not is_within or earlier is None or month_in(starts) != month:
        return False
    # One that was cancelled before it began has paid for nothing.
    return earlier.ends_at == starts and earlier.state != Reservation.State.CANCELLED


def tenants_of(month: datetime.date) -> list[uuid.UUID]:
    """Who used anything in the month, or was promised something."""
    until = following(month)
    used = BilledDay.objects.filter(day__gte=month, day__lt=until).order_by().values_list("tenant_id", flat=True)
    days = GuaranteeDay.objects.filter(day__gte=month, day__lt=until, minutes__gt=0).order_by()
    promised = days.values_list("reservation__tenant", flat=True)
    return sorted({*used.distinct(), *promised.distinct()})


def first_month() -> datetime.date | None:
    """The earliest month of which the books have anything."""
    days = [
        BilledDay.objects.order_by("day").values_list("day", flat=True).first(),
        GuaranteeDay.objects.order_by("day").values_list("day", flat=True).first(),
    ]
    known = [day for day in days if day is not None]
    return min(known).replace(day=1) if known else None
