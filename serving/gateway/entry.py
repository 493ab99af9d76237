"""Whether one best-effort request may go to a replica now, and what is in its way."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple, Protocol

from serving.gateway.placement import Lent, NoReplica, Placement
from serving.policy import gate
from serving.policy.routing import Candidate, Decision, Load


class Slots(Protocol):
    """Where requests go: ``serving.gateway.dispatch.Dispatcher``, as far as best effort needs it."""

    def candidates(self, deployment: str) -> Sequence[Candidate]: ...

    def try_place(self, deployment: str, load: Load, tried: tuple[str, ...], *, is_lent: bool) -> Placement | Decision:
        """Between its decision and the replica's load nothing may await."""
        ...

    def has_waiting(self, deployment: str) -> bool: ...


class Blocked(NamedTuple):
    """``stops``: nobody else can pass now either; smaller ones can, in their order; or it is in nobody else's way."""

    why: str
    stops: Literal["everybody", "larger", "itself"]


_STOPS: dict[gate.Obstacle, Literal["larger", "itself"]] = {
    "backlog": "larger",
    "owners": "itself",
    "turn": "itself",
}
HELD = Blocked("what is reserved is needed by its owner", "everybody")


def let_through(
    slots: Slots, deployment: str, load: Load, ask: Lent, *, owned_mu_per_s: float, ahead: Sequence[float] | None
) -> Placement | Blocked:
    """A place now, or what is in the way. Raises NoReplica. ``owned_mu_per_s`` and ``ahead``: see ``gate.look``."""
    if slots.has_waiting(deployment):
        return Blocked("requests inside reservations wait for a free slot", "everybody")
    seen = gate.look(
        slots.candidates(deployment),
        prefill_mu=load.prefill_mu,
        largest_prefill_mu=ask.largest_prefill_mu,
        is_reserved=ask.is_reserved,
        owned_mu_per_s=owned_mu_per_s,
        ahead=ahead,
    )
    if seen.obstacle == "no_replica":
        raise NoReplica(seen.reason)
    if not seen.is_open:
        return Blocked(seen.reason, _STOPS.get(seen.obstacle, "everybody"))
    placed = slots.try_place(deployment, load, (), is_lent=True)
    if isinstance(placed, Placement):
        return placed
    if placed.verdict == "none":
        raise NoReplica(placed.reason)
    return Blocked(placed.reason, "everybody")
