"""What the passing of time does to reservations: they begin and end, each by compare-and-swap."""

import datetime

from django.db import transaction

from capacity.models import Reservation
from capacity.services.pools import bump
from tenants.audit import Actor, audit
from tenants.changes import record_change

State = Reservation.State


def reservations_start(*, now: datetime.datetime, actor: Actor) -> int:
    """Activate the reservations whose time has come. Returns how many."""
    due = Reservation.objects.filter(state=State.DRAFT, starts_at__lte=now).select_related("pool", "tenant")
    return sum(_move(row, State.ACTIVE, "reservation.start", now=now, actor=actor) for row in due.order_by("starts_at"))


def reservations_end(*, now: datetime.datetime, actor: Actor) -> int:
    """End the reservations whose time is over: their share of the pool is free to be sold again. Returns how many."""
    over = Reservation.objects.filter(state=State.ACTIVE, ends_at__lte=now).select_related("pool", "tenant")
    return sum(_move(row, State.ENDED, "reservation.end", now=now, actor=actor) for row in over.order_by("ends_at"))


@transaction.atomic
def _move(row: Reservation, to: Reservation.State, action: str, *, now: datetime.datetime, actor: Actor) -> bool:
    # Asked again: it may have been prolonged or put off since it was read.
    due = {"ends_at__lte": now} if to == State.ENDED else {"starts_at__lte": now}
    if not Reservation.objects.filter(pk=row.pk, state=row.state, **due).update(state=to, updated_at=now):
        return False
    after = {"state": to, "ends_at": row.ends_at} if to == State.ENDED else {"state": to, "starts_at": row.starts_at}
    audit(
        actor=actor,
        action=action,
        target=row,
        tenant_id=row.tenant_id,
        before={"state": row.state},
        after=after,
    )
    bump(row.pool)
    record_change(kind="reservation", object_id=row.pk)
    return True
