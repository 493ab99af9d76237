"""House-keeping: minutes become final, what has run out ends, history that nobody needs goes."""

import datetime

from django.conf import settings
from django.contrib.sessions.models import Session
from django.db.models import Max
from django.utils import timezone

from capacity.models import Reservation, UsageRecord
from capacity.usage.writer import finalise_minutes
from serving.services import decisions_delete_old, replicas_delete_old
from tenants.models import ApiKey, Change, SignInLink

_CHANGES_KEPT = datetime.timedelta(hours=1)
_LINKS_KEPT = datetime.timedelta(days=1)
_LAST_USED_LOOK_BACK = datetime.timedelta(minutes=5)


def finalise() -> None:
    """Close the minutes that every gateway's watermark has passed."""
    finalise_minutes()


def upkeep() -> None:
    """Everything that is due once a minute. Each part stands alone and can be repeated."""
    now = timezone.now()
    keep = now - datetime.timedelta(days=settings.PENSTOCK_HISTORY_DAYS)
    replicas_delete_old(before=keep)
    decisions_delete_old(before=keep)
    Change.objects.filter(version__isnull=False, at__lt=now - _CHANGES_KEPT).delete()
    SignInLink.objects.filter(expires_at__lt=now - _LINKS_KEPT).delete()
    Session.objects.filter(expire_date__lt=now).delete()
    reservations_end(now=now)
    keys_mark_used(now=now)


def reservations_end(*, now: datetime.datetime) -> int:
    """End the reservations whose time is over; how many."""
    over = Reservation.objects.filter(state=Reservation.State.ACTIVE, ends_at__lte=now)
    return over.update(state=Reservation.State.ENDED, updated_at=now)


def keys_mark_used(*, now: datetime.datetime) -> int:
    """Say of each key when it was last used, by the records of the last minutes; how many moved."""
    newest = (
        UsageRecord.objects.filter(ended_at__gte=now - _LAST_USED_LOOK_BACK)
        .order_by()
        .values("key_id")
        .annotate(at=Max("admitted_at"))
    )
    moved = 0
    for row in newest:
        key = ApiKey.objects.filter(pk=row["key_id"])
        moved += key.exclude(last_used_at__gte=row["at"]).update(last_used_at=row["at"])
    return moved
