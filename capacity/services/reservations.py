"""Reservations: what tenants have bought of a pool."""

import datetime

from django.db import transaction

from capacity.models import Reservation
from capacity.services.pools import bump
from tenants.audit import Actor, audit


def reservations_end(*, now: datetime.datetime, actor: Actor) -> int:
    """End the reservations whose time is over: their share of the pool is free to be sold again. Returns how many."""
    over = Reservation.objects.filter(state=Reservation.State.ACTIVE, ends_at__lte=now).select_related("pool", "tenant")
    return sum(_end(reservation, now=now, actor=actor) for reservation in over.order_by("ends_at", "pk"))


@transaction.atomic
def _end(reservation: Reservation, *, now: datetime.datetime, actor: Actor) -> bool:
    # Asked again: it may have been prolonged since it was read.
    active = Reservation.objects.filter(pk=reservation.pk, state=Reservation.State.ACTIVE, ends_at__lte=now)
    if not active.update(state=Reservation.State.ENDED, updated_at=now):
        return False
    audit(
        actor=actor,
        action="reservation.end",
        target=reservation,
        tenant_id=reservation.tenant_id,
        before={"state": Reservation.State.ACTIVE},
        after={"state": Reservation.State.ENDED, "ends_at": reservation.ends_at},
    )
    bump(reservation.pool)
    return True
