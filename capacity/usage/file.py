"""A tenant's usage as a file that can be checked without trusting who made it (``capacity.policy.verification``)."""

from __future__ import annotations

import datetime
import uuid
from collections.abc import Iterator
from typing import Any

import msgspec
from django.db.models import Sum
from django.utils import timezone

from capacity.models import (
    BooksState,
    CostProfile,
    Invoice,
    LateUsage,
    Reservation,
    UsageAnchor,
    UsageChain,
    UsageRecord,
    UsageRollup,
)
from capacity.policy.chain import GENESIS
from capacity.policy.verification import FORMAT
from capacity.usage.attainment import in_month, months
from capacity.usage.billing import is_shared
from capacity.usage.chain import SEALED, sealed, starts_after
from capacity.usage.reads import COLUMNS

_SLICE = 1000
_LOOKS = 20
_SUMS = ("requests", "input_tokens", "cached_tokens", "output_tokens", "mu")


def usage_file(*, tenant_id: uuid.UUID, tenant: str, since: datetime.date | None) -> Iterator[bytes]:
    """The lines of the file, made while they are sent; ``since``: a day (UTC) from which on it is whole."""
    after, after_hash = starts_after(tenant_id=tenant_id, since=since)
    sequence, last, rollups = _still(tenant_id)
    whole_from = _whole_from(tenant_id, since=since, after=after)
    yield _line(
        "header",
        format=FORMAT,
        tenant_id=tenant_id,
        tenant=tenant,
        made_at=timezone.now(),
        whole_from=whole_from,
        after_sequence=after,
        after_hash=after_hash,
    )
    yield from _prices(_pools_of(tenant_id))
    anchors = UsageAnchor.objects.filter(tenant_id=tenant_id, sequence__gt=after, sequence__lte=sequence)
    for anchor in anchors.order_by("sequence"):
        yield _line("anchor", day=anchor.day, at=anchor.at, sequence=anchor.sequence, hash=anchor.hash)
    for row in rollups:
        day = row.pop("starts_at").date()
        if day >= whole_from:
            yield _line("rollup", day=day, **row)
    yield from _invoices(tenant_id, until=sequence)
    yield from _records(tenant_id, after=after, until=sequence)
    yield _line("end", records=sequence - after, sequence=sequence, hash=last)


def _still(tenant_id: uuid.UUID) -> tuple[int, str, list[dict[str, Any]]]:
    """Where the chain ends, and the sums of the days until yesterday that are final, of one and the same moment."""
    today = timezone.now().astimezone(datetime.UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    own = UsageRollup.objects.filter(period="day", tenant_id=tenant_id, starts_at__lt=today)
    # A record that came late opens the rows it belongs to: until they are final again, their day is not compared.
    days: Any = own.exclude(starts_at__in=own.filter(is_final=False).values("starts_at"))
    days = days.order_by("starts_at", "pool_id", "service_class").values("starts_at", "pool_id", "service_class")
    days = days.annotate(**{name: Sum(name) for name in _SUMS})
    for _ in range(_LOOKS):
        before = _head(tenant_id)
        rows = list(days)
        if _head(tenant_id) == before:
            return (*before, rows)
    # It is booked without a pause: the sums of closed days do not move by it, but for what comes late.
    return (*before, rows)


def _head(tenant_id: uuid.UUID) -> tuple[int, str]:
    head = UsageChain.objects.filter(tenant_id=tenant_id).values_list("sequence", "hash").first()
    return head or (0, GENESIS)


def _whole_from(tenant_id: uuid.UUID, *, since: datetime.date | None, after: int) -> datetime.date:
    """The first day of which the file has every record."""
    days = [since or datetime.date.min]
    deleted = UsageAnchor.objects.filter(tenant_id=tenant_id, is_deleted=True).order_by("-sequence").first()
    if deleted is not None and deleted.sequence <= after:
        days.append(deleted.day + datetime.timedelta(days=2))
    books = BooksState.objects.filter(pk=1).first()
    if books is not None and books.deleted_until is not None:
        days.append(books.deleted_until.astimezone(datetime.UTC).date() + datetime.timedelta(days=1))
    unchained = UsageRecord.objects.filter(tenant_id=tenant_id, chain_sequence=None).order_by("-ended_at").first()
    if unchained is not None:
        days.append(unchained.ended_at.astimezone(datetime.UTC).date() + datetime.timedelta(days=1))
    return max(days)


def _pools_of(tenant_id: uuid.UUID) -> set[uuid.UUID]:
    """The pools that the tenant has ever used."""
    rows = UsageRollup.objects.filter(period="day", tenant_id=tenant_id).order_by()
    return set(rows.values_list("pool_id", flat=True).distinct())


def _prices(pools: set[uuid.UUID]) -> Iterator[bytes]:
    in_force = CostProfile.objects.filter(pool_id__in=pools, effective_from__lte=timezone.now(), withdrawn_at=None)
    for price in in_force.select_related("pool").order_by("pool_id", "version"):
        yield _line(
            "price",
            pool_id=price.pool_id,
            pool=price.pool.slug,
            version=price.version,
            effective_from=price.effective_from,
            base=price.base,
            alpha=price.alpha,
            beta=price.beta,
            gamma=price.gamma,
            epsilon=price.epsilon,
            cached_factor=price.cached_factor,
            modalities=price.modalities,
            long_input_tiers=price.long_input_tiers,
            price_per_1000_mu=price.price_per_1000_mu,
        )


def _invoices(tenant_id: uuid.UUID, *, until: int) -> Iterator[bytes]:
    """The documents that speak of the chain as far as the file has it, and what was promised in their months."""
    # Whether they wait for a note is looked at first: a note that is made meanwhile says what was promised by then.
    pending = set(LateUsage.objects.filter(tenant_id=tenant_id).values_list("month", flat=True))
    rows = Invoice.objects.filter(tenant=tenant_id).order_by("number")
    documents = [row for row in rows if row.content["chain"]["sequence"] <= until]
    for month in sorted({row.month for row in documents}):
        yield from _promised(tenant_id, month)
    for row in documents:
        yield _line("invoice", hash=row.hash, is_pending=row.month in pending, content=row.content)


def _promised(tenant_id: uuid.UUID, month: datetime.date) -> Iterator[bytes]:
    reservations = in_month(Reservation.objects.filter(tenant=tenant_id), month).select_related("renews")
    for one in months(reservations.order_by("starts_at", "pk"), month):
        row = one.reservation
        yield _line(
            "promised",
            month=f"{month:%Y-%m}",
            reservation=row.pk,
            pool_id=row.pool_id,
            pool=row.pool.slug,
            mu_per_min=row.mu_per_min,
            price=None if row.price is None else str(row.price),
            currency=row.currency,
            starts_at=row.starts_at,
            ends_at=row.ends_at,
            minutes=one.minutes,
            shared_minutes=int(is_shared(row, month)),
            breach_minutes=one.breach_minutes,
            credit_share=one.credit_share,
        )


def _records(tenant_id: uuid.UUID, *, after: int, until: int) -> Iterator[bytes]:
    names = ("chain_sequence", "chain_hash", "tenant_id", *COLUMNS, *SEALED)
    rows = UsageRecord.objects.filter(tenant_id=tenant_id).only(*names).order_by("chain_sequence")
    while after < until:
        # Each slice by a query of its own: a reader who is slow holds nothing.
        found = list(rows.filter(chain_sequence__gt=after, chain_sequence__lte=min(until, after + _SLICE)))
        yield b"".join(_record(record) for record in found)
        after += _SLICE


def _record(record: UsageRecord) -> bytes:
    seen = {name: getattr(record, name) for name in COLUMNS}
    return _line("record", sequence=record.chain_sequence, hash=record.chain_hash, sealed=sealed(record), **seen)


def _line(kind: str, **fields: Any) -> bytes:
    return msgspec.json.encode({"kind": kind, **fields}) + b"\n"
