"""What is served of what is lent, and what ends it or puts it back when an owner needs its place."""

from __future__ import annotations

from collections.abc import Callable

from serving.gateway.placement import Lent, OnWay, Placement, TicketLike
from serving.policy import gate


class LentOut:
    """One deployment's best-effort requests at replicas, the oldest first."""

    __slots__ = ("_reading", "_running")

    def __init__(self) -> None:
        self._running: dict[TicketLike, tuple[str, Callable[[], None]]] = {}
        """At which replica, and what ends it."""
        self._reading: dict[TicketLike, tuple[str, OnWay]] = {}
        """Long prompts that may be put back while they are read: at which replica, and what does it."""

    def note(
        self, placed: Placement, ask: Lent, on_reclaim: Callable[[], None] | None, on_way: OnWay | None = None
    ) -> None:
        """It is at a replica now. What it has of a pool of which nothing is reserved is nobody else's."""
        if ask.is_reserved and on_reclaim is not None:
            self._running[placed.ticket] = (placed.replica.id, on_reclaim)
            if on_way is not None and gate.is_long(placed.ticket.w_mu, placed.replica.supply_mu_per_min):
                self._reading[placed.ticket] = (placed.replica.id, on_way)

    def left(self, ticket: TicketLike) -> None:
        """A request has left its replica."""
        self._running.pop(ticket, None)
        self._reading.pop(ticket, None)

    def put_back(self, replica: str, reason: str) -> None:
        """Put back the long prompts that are being read at ``replica``. Loads count them no more."""
        for ticket, (where, on_way) in list(self._reading.items()):
            if where == replica and ticket.is_reading:
                self.left(ticket)
                ticket.prefilled()
                on_way(where, reason)

    def cut(self, replica: str = "") -> bool:
        """End the newest, at ``replica`` where one is named; whether there was any."""
        for ticket, (where, on_reclaim) in reversed(self._running.items()):
            if not replica or where == replica:
                self.left(ticket)
                on_reclaim()
                return True
        return False
