"""House-keeping: minutes become final, what has run out ends, history that nobody needs goes."""

import datetime
import logging
from collections.abc import Callable

from django.conf import settings
from django.contrib.sessions.models import Session
from django.utils import timezone

from capacity.services import reservations_end, reservations_start
from capacity.usage.books import finalise_minutes, usage_delete_old, watermarks_delete_closed
from capacity.usage.chain import anchors_take
from capacity.usage.guarantees import guarantee_minutes_delete_old, guarantees_judge
from capacity.usage.refusals import refusal_minutes_delete_old
from capacity.usage.rollups import rollup_minutes_delete_old
from penstock.loops.invoices import issue_due
from penstock.loops.isolation import isolated
from serving.services import calibrations_delete_old, decisions_delete_old, replicas_delete_old, supplies_refresh
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
    """Close the minutes that every gateway's watermark has passed, and judge what was promised in them."""
    closing = finalise_minutes(timezone.now())
    if closing.behind_s > _HELD_UP_S:
        log.warning("minutes stay provisional: segment %s is %.0f s behind", closing.held_by, closing.behind_s)
    guarantees_judge()


def upkeep() -> None:
    """Everything that is due once a minute. Each part stands alone and can be repeated; promises come first."""
    now = timezone.now()
    keep = now - datetime.timedelta(days=settings.PENSTOCK_HISTORY_DAYS)
    usage_keep = now - datetime.timedelta(days=settings.PENSTOCK_USAGE_DAYS)
    parts: tuple[tuple[str, Callable[[], object]], ...] = (
        ("starting reservations", lambda: reservations_start(now=now, actor=ACTOR)),
        ("ending reservations", lambda: reservations_end(now=now, actor=ACTOR)),
        ("anchoring usage", lambda: anchors_take(now=now)),
        ("issuing invoices", lambda: issue_due(now=now, after_days=settings.PENSTOCK_INVOICE_DAYS, actor=ACTOR)),
        ("bringing supplies up to date", lambda: supplies_refresh(now=now)),
        ("forgetting calibrations", lambda: calibrations_delete_old(before=keep)),
        ("forgetting replicas", lambda: replicas_delete_old(before=keep)),
        ("forgetting decisions", lambda: decisions_delete_old(before=keep)),
        ("forgetting minutes of capacity", lambda: rollup_minutes_delete_old(before=keep)),
        ("forgetting minutes of refusals", lambda: refusal_minutes_delete_old(before=keep, untold_before=usage_keep)),
        ("forgetting usage", lambda: usage_delete_old(before=usage_keep, actor=ACTOR)),
        ("forgetting guarantee minutes", lambda: guarantee_minutes_delete_old(before=usage_keep)),
        ("forgetting segments", lambda: watermarks_delete_closed(before=usage_keep - _SEGMENTS_KEPT)),
        ("forgetting links", lambda: SignInLink.objects.filter(expires_at__lt=now - _LINKS_KEPT).delete()),
        ("forgetting sign-in tries", lambda: attempts_delete_old(now=now)),
        ("forgetting answers", lambda: idempotent_answers_delete_old(before=now - _ANSWERS_KEPT)),
        ("forgetting sessions", lambda: Session.objects.filter(expire_date__lt=now).delete()),
    )
    for what, part in parts:
        # Not even a lock that was waited for in vain in one keeps the others from being done.
        with isolated(what, raising=()):
            part()
