"""The writer of the books: a usage batch becomes records, roll-ups and a moved watermark in one transaction.

What a batch brings a second time is found by its ids and changes nothing, so batches may come twice, in parallel and
out of order. Where retention has deleted the ids, the segment's watermark tells what the books had. A record that the
books refuse goes to quarantine with the reason; it never holds up the others.
"""

import datetime
import hashlib
import uuid
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from django.db import DataError, IntegrityError, transaction
from django.db.models import F, QuerySet
from django.utils import timezone

from capacity.models import BooksState, CostProfile, QuarantinedUsage, UsageRecord, UsageRollup, Watermark
from capacity.usage.batch import Pair, Poison, ReadBatch, poison_of, read_batch, read_pair
from capacity.usage.billing import bill, invoices_open
from capacity.usage.chain import Heads
from capacity.usage.guarantees import guarantees_open
from capacity.usage.lines import UsageBatch
from capacity.usage.rows import RollupKey, RowError, Sums, moment, sum_up, usage_record
from tenants.audit import Actor, audit
from tenants.services import api_keys_mark_used

WRITER = "usage writer"
_CHUNK = 500


@dataclass(frozen=True, slots=True)
class WriteResult:
    """What became of a batch. ``written + known + quarantined`` is the number of its pairs.

    ``acknowledge`` is the highest batch sequence up to which the segment was completely in the books then; with
    ``gap``, earlier batches than this one are missing and the watermark stood still. ``late`` records came for a final
    minute: raise an alarm.
    """

    segment: str
    acknowledge: int
    written: int = 0
    known: int = 0
    quarantined: int = 0
    late: int = 0
    gap: bool = False


def write_batch(batch: UsageBatch | bytes) -> WriteResult:
    """Book ``batch``. Raises BatchError when it cannot be read at all; nothing is acknowledged then."""
    read = read_batch(batch)
    with transaction.atomic():
        mark = _take_turn(read)
        booked = _book(read.pairs, gateway=read.gateway, mark=mark)
        poison = (*read.poison, *booked.poison)
        _quarantine(poison, read)
        sequence, is_gap = _move(mark, read)
    _mark_used(booked.records)
    return WriteResult(
        segment=read.segment,
        acknowledge=sequence,
        written=len(booked.records),
        known=len(read.pairs) - len(booked.records) - len(booked.poison),
        quarantined=len(poison),
        late=booked.late,
        gap=is_gap,
    )


def booked_until(segment: str) -> int:
    """The highest batch sequence up to which ``segment`` is completely in the books now, whoever wrote them."""
    return Watermark.objects.filter(segment=segment).values_list("sequence", flat=True).first() or 0


@transaction.atomic
def quarantine_retry(*, item: QuarantinedUsage, actor: Actor) -> bool:
    """Try to book a quarantined pair again, after what kept it out was mended. Returns whether it is in the books."""
    pair = read_pair(item.payload.encode())
    if item.resolved_at is not None:
        return False
    if isinstance(pair, Poison):
        reason = pair.reason
    else:
        booked = _book((pair,), gateway=item.gateway)
        reason = booked.poison[0].reason if booked.poison else ""
    if reason:
        QuarantinedUsage.objects.filter(pk=item.pk).update(reason=reason[:500])
        return False
    return _resolve(item, "booked", actor)


@transaction.atomic
def quarantine_dismiss(*, item: QuarantinedUsage, why: str, actor: Actor) -> bool:
    """Leave a quarantined pair out of the books for good, and say why. The row stays. False if resolved before."""
    return _resolve(item, f"dismissed: {why}", actor)


def _resolve(item: QuarantinedUsage, resolution: str, actor: Actor) -> bool:
    now = timezone.now()
    swapped = QuarantinedUsage.objects.filter(pk=item.pk, resolved_at=None).update(
        resolved_at=now, resolution=resolution[:200]
    )
    if swapped:
        audit(actor=actor, action="quarantined_usage.resolve", target=item, after={"resolution": resolution})
    return bool(swapped)


def _take_turn(batch: ReadBatch) -> Watermark:
    """The segment's watermark, locked: a second writer of the same segment waits here, then sees what this one did."""
    Watermark.objects.bulk_create(
        [Watermark(segment=batch.segment, gateway=batch.gateway[:64], at=moment(0.0))], ignore_conflicts=True
    )
    Watermark.objects.filter(segment=batch.segment).update(updated_at=timezone.now())
    return Watermark.objects.get(segment=batch.segment)


def _move(mark: Watermark, batch: ReadBatch) -> tuple[int, bool]:
    """Move the watermark forward; not over a gap, behind which requests may be missing. Returns sequence and gap."""
    if batch.sequence > mark.sequence + 1:
        return mark.sequence, True
    sequence = max(mark.sequence, batch.sequence)
    Watermark.objects.filter(segment=mark.segment).update(
        sequence=sequence,
        at=max(mark.at, moment(batch.watermark)),
        is_closed=mark.is_closed or batch.closed,
    )
    return sequence, False


@dataclass(frozen=True, slots=True)
class _Booked:
    records: list[UsageRecord]
    poison: list[Poison]
    late: int


def _book(pairs: Sequence[Pair], *, gateway: str, mark: Watermark | None = None) -> _Booked:
    """Insert and roll up what the books do not have. ``mark``: of the segment that the pairs come from."""
    poison: list[Poison] = []
    fresh: dict[uuid.UUID, tuple[UsageRecord, Pair]] = {}
    for pair in pairs:
        try:
            record = usage_record(pair, gateway=gateway)
        except RowError as error:
            poison.append(poison_of(pair, str(error)))
            continue
        if record.pk in fresh and fresh[record.pk][1] != pair:
            poison.append(poison_of(pair, "the batch holds another record with this id"))
        else:
            fresh.setdefault(record.pk, (record, pair))
    for pk in _existing(fresh):
        del fresh[pk]
    # After the ids: a retention that ends in between is then seen by one or the other.
    deleted_until = _deleted_until(mark) if mark is not None and fresh else None
    if deleted_until is not None:
        fresh = {pk: row for pk, row in fresh.items() if row[0].ended_at >= deleted_until}
    records = _insert(list(fresh.values()), poison) if fresh else []
    late = _roll_up(records)
    return _Booked(records, poison, late)


def _existing(ids: Iterable[uuid.UUID]) -> set[uuid.UUID]:
    wanted = list(ids)
    found: set[uuid.UUID] = set()
    for start in range(0, len(wanted), _CHUNK):
        chunk = wanted[start : start + _CHUNK]
        found.update(UsageRecord.objects.filter(pk__in=chunk).values_list("pk", flat=True))
    return found


def _deleted_until(mark: Watermark) -> datetime.datetime | None:
    """Every request of the segment that ended before was booked, and has been deleted by retention since.

    What the watermark had not passed is late, however old: it was never booked.
    """
    deleted = BooksState.objects.filter(pk=1).values_list("deleted_until", flat=True).first()
    if deleted is None or mark.is_closed:
        return deleted
    return min(deleted, mark.at)


def _insert(fresh: list[tuple[UsageRecord, Pair]], poison: list[Poison]) -> list[UsageRecord]:
    """Chain and insert all at once or, where the database refuses one, one by one. Appends to ``poison``; returns what
    is in.
    """
    heads = Heads(record.tenant_id for record, _ in fresh)
    before = heads.kept()
    inserted = [record for record, _ in fresh]
    if not _append(inserted, heads):
        heads.back_to(before)
        inserted = []
        for record, pair in fresh:
            before = heads.kept()
            reason = _append_one(record, heads)
            if not reason:
                inserted.append(record)
                continue
            heads.back_to(before)
            # An id that another segment has just booked is known, not poisoned.
            if not UsageRecord.objects.filter(pk=record.pk).exists():
                poison.append(poison_of(pair, reason))
    heads.store()
    return inserted


def _append(records: Sequence[UsageRecord], heads: Heads) -> bool:
    try:
        with transaction.atomic():
            heads.append(records)
            UsageRecord.objects.bulk_create(records, batch_size=_CHUNK)
    except (IntegrityError, DataError, ValueError):
        return False
    return True


def _append_one(record: UsageRecord, heads: Heads) -> str:
    """Why the record is not in the books; empty where it is."""
    try:
        with transaction.atomic():
            heads.append((record,))
            UsageRecord.objects.bulk_create([record])
    except (IntegrityError, DataError, ValueError) as error:
        return str(error)
    return ""


def _quarantine(poison: Sequence[Poison], batch: ReadBatch) -> None:
    QuarantinedUsage.objects.bulk_create(
        [
            QuarantinedUsage(
                digest=hashlib.sha256(item.payload.encode()).hexdigest(),
                record_id=item.record_id.replace("\0", ""),
                gateway=batch.gateway[:64],
                segment=batch.segment[:100],
                sequence=batch.sequence,
                reason=item.reason.replace("\0", "")[:500],
                payload=item.payload.replace("\0", ""),
            )
            for item in poison
        ],
        ignore_conflicts=True,
    )


def _roll_up(records: list[UsageRecord]) -> int:
    """Add ``records`` to their minutes, hours and days. Returns how many came for a final minute."""
    if not records:
        return 0
    # Every writer takes the rows in the same order, so no two wait for each other.
    sums = sorted(sum_up(records, _rates(records)).items())
    UsageRollup.objects.bulk_create([_empty_row(key) for key, _ in sums], ignore_conflicts=True, batch_size=_CHUNK)
    for key, amounts in sums:
        _row(key).update(**{name: F(name) + amount for name, amount in amounts.columns().items()})
    bill(records)
    return _correct(records, sums)


def _rates(records: Sequence[UsageRecord]) -> dict[tuple[uuid.UUID, int], float]:
    priced = CostProfile.objects.filter(pool__in={record.pool_id for record in records}, price_per_1000_mu__gt=0)
    rows = priced.order_by().values_list("pool_id", "version", "price_per_1000_mu")
    return {(pool, version): price for pool, version, price in rows if price}


def _correct(records: list[UsageRecord], sums: list[tuple[RollupKey, Sums]]) -> int:
    """Open what was final and has changed, and say so: the next closing of the books makes it final again."""
    final_until = BooksState.objects.filter(pk=1).values_list("final_until", flat=True).first()
    if final_until is None:
        return 0
    late = [record for record in records if record.ended_at < final_until]
    if not late:
        return 0
    for key, _ in sums:
        _row(key).filter(is_final=True).update(is_final=False)
    # The row is held from here on: who judges a minute or issues an invoice either sees these records, or is told to
    # look again.
    now = timezone.now()
    BooksState.objects.filter(pk=1).update(late_records=F("late_records") + len(late), last_late_at=now)
    guarantees_open(late)
    invoices_open(((record.tenant_id, record.ended_at) for record in late), now=now)
    for record in late:
        after = {"ended_at": record.ended_at, "final_until": final_until, "mu": record.actual_mu}
        audit(actor=WRITER, action="usage.correct", target=record, tenant_id=record.tenant_id, after=after)
    return len(late)


def _row_key(key: RollupKey) -> dict[str, object]:
    period, starts_at, tenant, api_key, pool, deployment, service_class = key
    return {
        "period": period,
        "starts_at": starts_at,
        "tenant_id": tenant,
        "key_id": api_key,
        "pool_id": pool,
        "deployment_id": deployment,
        "service_class": service_class,
    }


def _row(key: RollupKey) -> QuerySet[UsageRollup]:
    return UsageRollup.objects.filter(**_row_key(key))


def _empty_row(key: RollupKey) -> UsageRollup:
    return UsageRollup(**_row_key(key))


def _mark_used(records: list[UsageRecord]) -> None:
    used: dict[uuid.UUID, datetime.datetime] = {}
    for record in records:
        used[record.key_id] = max(record.admitted_at, used.get(record.key_id, record.admitted_at))
    if used:
        api_keys_mark_used(used=used)
