"""Closing the books: minutes become final when no gateway can bring a request for them any more."""

import datetime
from dataclasses import dataclass

from django.db import transaction
from django.db.models import Q, QuerySet
from django.utils import timezone

from capacity.models import BooksState, UsageRecord, UsageRollup, Watermark
from capacity.usage.chain import chained_delete_old
from capacity.usage.rows import period_start
from tenants.audit import Actor, audit

GRACE = datetime.timedelta(seconds=30)
"""A minute stays open this long at least: a gateway that has just started has no watermark yet."""

_LENGTHS = {
    UsageRollup.Period.MINUTE: datetime.timedelta(minutes=1),
    UsageRollup.Period.HOUR: datetime.timedelta(hours=1),
    UsageRollup.Period.DAY: datetime.timedelta(days=1),
}


@dataclass(frozen=True, slots=True)
class Closing:
    """Everything that ended before ``final_until`` is final; ``closed`` counts the roll-up rows made so, by period.

    ``held_by`` is the segment whose watermark is the furthest behind, ``behind_s`` by how much; alarm when it grows.
    """

    final_until: datetime.datetime
    closed: dict[str, int]
    held_by: str = ""
    behind_s: float = 0.0


@transaction.atomic
def finalise_minutes(now: datetime.datetime) -> Closing:
    """Make final every minute whose end all open watermarks have passed, then the hours and days that are complete."""
    slowest = Watermark.objects.filter(is_closed=False).order_by("at").first()
    bound = period_start(min(now - GRACE, slowest.at) if slowest else now - GRACE, UsageRollup.Period.MINUTE)
    BooksState.objects.bulk_create([BooksState()], ignore_conflicts=True)
    BooksState.objects.filter(Q(final_until=None) | Q(final_until__lt=bound), pk=1).update(final_until=bound)
    final_until = BooksState.objects.get(pk=1).final_until or bound
    closed = {
        str(period): UsageRollup.objects.filter(
            period=period, is_final=False, starts_at__lte=final_until - length
        ).update(is_final=True)
        for period, length in _LENGTHS.items()
    }
    if slowest is None:
        return Closing(final_until, closed)
    return Closing(final_until, closed, slowest.segment, max(0.0, (now - slowest.at).total_seconds()))


@transaction.atomic
def watermark_close(*, segment: str, actor: Actor) -> bool:
    """Wait no longer for a segment whose file is lost with its machine. Returns False if it was closed before.

    What it may still have held is lost to the books; that is why a person decides it.
    """
    mark = Watermark.objects.filter(segment=segment).first()
    if mark is None or not Watermark.objects.filter(segment=segment, is_closed=False).update(
        is_closed=True, updated_at=timezone.now()
    ):
        return False
    audit(actor=actor, action="watermark.close", target=mark, before={"at": mark.at, "sequence": mark.sequence})
    return True


@transaction.atomic
def usage_delete_old(*, before: datetime.datetime, actor: Actor) -> int:
    """Retention: the only way that usage records go. Roll-ups and anchors stay. Only what is final is deleted, and of a
    chain what lies before an anchor: up to a day later than asked. Returns how many.

    The books remember up to when: a segment of which they hold no record any more may still be shipped again.
    """
    final_until = BooksState.objects.filter(pk=1).values_list("final_until", flat=True).first()
    if final_until is None:
        return 0
    limit = min(before, final_until)
    unchained: QuerySet[UsageRecord] = QuerySet(UsageRecord).filter(chain_sequence=None, ended_at__lt=limit)
    count = unchained.delete()[0] + chained_delete_old(before=limit)
    if count:
        BooksState.objects.filter(Q(deleted_until=None) | Q(deleted_until__lt=limit), pk=1).update(deleted_until=limit)
        target = BooksState.objects.get(pk=1)
        audit(actor=actor, action="usage.delete_old", target=target, after={"before": limit, "records": count})
    return count


def watermarks_delete_closed(*, before: datetime.datetime) -> int:
    """Forget closed segments that nothing has been heard of since ``before``. Returns how many.

    Keep them for longer than records: a file that comes back from a backup is known by its segment only.
    """
    return Watermark.objects.filter(is_closed=True, updated_at__lt=before).delete()[0]
