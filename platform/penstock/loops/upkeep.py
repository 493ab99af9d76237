"""House-keeping: minutes become final, what has run out ends, history that nobody needs goes."""

import datetime
import logging

from django.conf import settings
from django.contrib.sessions.models import Session
from django.utils import timezone

from capacity.services import reservations_end
from capacity.usage.books import finalise_minutes, usage_delete_old, watermarks_delete_closed
from serving.services import decisions_delete_old, replicas_delete_old
from tenants.models import SignInLink
from tenants.services import idempotent_answers_delete_old
from tenants.signin import attempts_delete_old

log = logging.getLogger(__name__)

_LINKS_KEPT = datetime.timedelta(days=1)
_ANSWERS_KEPT = datetime.timedelta(days=1)
_SEGMENTS_KEPT = datetime.timedelta(days=90)
"""Beyond the retention of records."""
_HELD_UP_S = 300.0
ACTOR = "upkeep"


def finalise() -> None:
    """Close the minutes that every gateway's watermark has passed."""
    closing = finalise_minutes(timezone.now())
    if closing.behind_s > _HELD_UP_S:
        log.warning("minutes stay provisional: segment %s is %.0f s behind", closing.held_by, closing.behind_s)


def upkeep() -> None:
    """Everything that is due once a minute. Each part stands alone and can be repeated."""
    now = timezone.now()
    keep = now - datetime.timedelta(days=settings.PENSTOCK_HISTORY_DAYS)
    replicas_delete_old(before=keep)
    decisions_delete_old(before=keep)
    usage_kept = datetime.timedelta(days=settings.PENSTOCK_USAGE_DAYS)
    usage_delete_old(before=now - usage_kept, actor=ACTOR)
    watermarks_delete_closed(before=now - usage_kept - _SEGMENTS_KEPT)
    SignInLink.objects.filter(expires_at__lt=now - _LINKS_KEPT).delete()
    attempts_delete_old(now=now)
    idempotent_answers_delete_old(before=now - _ANSWERS_KEPT)
    Session.objects.filter(expire_date__lt=now).delete()
    reservations_end(now=now, actor=ACTOR)
