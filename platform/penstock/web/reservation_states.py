"""The colour of a reservation's state, as operators and the tenant see it."""

from __future__ import annotations

from capacity.models import Reservation

State = Reservation.State
_PILLS = {
    State.REQUESTED: "busy",
    State.DRAFT: "off",
    State.ACTIVE: "ok",
    State.ENDED: "off",
    State.CANCELLED: "off",
    State.REFUSED: "warn",
}


def pill_of(row: Reservation) -> str:
    """The kind of pill that stands for its state."""
    return _PILLS[State(row.state)]
