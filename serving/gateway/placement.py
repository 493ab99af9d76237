"""A request's place on a replica, and what is said when there is none."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol

from serving.gateway.records import ReplicaRecord
from serving.policy.routing import Decision, ReplicaLoad


class TicketLike(Protocol):
    @property
    def is_reading(self) -> bool: ...

    @property
    def w_mu(self) -> float: ...

    def first_token(self) -> None: ...

    def token(self) -> None: ...

    def prefilled(self) -> None: ...

    def finished(self, ok: bool) -> None: ...


class LoadBook(Protocol):
    """``serving.gateway.loads.Loads``, as far as dispatching needs it."""

    generation: int
    """Another number when loads have been forgotten, so that those which somebody keeps must be asked for again."""
    place: tuple[int, int]
    """This gateway's place among those that live, from 0, and how many these are."""

    def replica(self, replica_id: str) -> ReplicaLoad: ...

    def dispatched(self, replica_id: str, w_mu: float, d_mu: float, *, is_lent: bool = False) -> TicketLike: ...

    def presume(self, ticket: TicketLike, at: float) -> None: ...

    def note_presumed(self, now: float) -> None: ...

    def queued(self, deployment_id: str, mu: float) -> None: ...

    def owned(self, deployment_id: str, prefill_mu: float) -> None: ...

    def owned_mu_per_s(self, deployment_id: str) -> float: ...

    def clawed_back(self, deployment_id: str) -> None: ...

    def wants_cut(self, replica_id: str) -> None: ...

    def wants_way(self, replica_id: str) -> None: ...

    def claw_backs(self, deployment_id: str) -> int: ...


OnWay = Callable[[str, str], None]
"""Hears, of a request whose prompt is being read, that it must leave its replica, and why."""


class Placement(NamedTuple):
    """A request's place on a replica. ``ticket`` must be finished exactly when the request leaves it."""

    replica: ReplicaRecord
    ticket: TicketLike
    decision: Decision


class NoReplica(Exception):
    """Nothing ready can take the request, now or after a wait. The message is the policy's reason."""


class Expected(NamedTuple):
    """When a refused best-effort request has its turn, and why then: behind ``ahead_mu`` of its tenant's line, which
    moves by ``mu_per_s``. ``has_place``: whether that was set aside for it."""

    retry_after_s: float
    ahead_mu: float
    mu_per_s: float
    has_place: bool


class Busy(Exception):
    """The queue is full, or the request has waited as long as it may.

    ``retry_after_s``: when there may be room; ``reason``: a word to count it by. ``expected``: of best effort, what the
    time follows from.
    """

    def __init__(
        self, message: str, *, retry_after_s: float = 1.0, reason: str, expected: Expected | None = None
    ) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s
        self.reason = reason
        self.expected = expected


class Reclaimed(Busy):
    """What was lent has been taken back: the owner of a reservation needs it."""


class Lent(NamedTuple):
    """What is to be known of a best-effort request: who sends it, and for how long it may wait.

    ``mu`` is what it is expected to cost. ``largest_prefill_mu``: see ``gate.look``. ``is_reserved``: whether somebody
    has reserved a part of the pool. ``home``: the replica at which it has made way for an owner, if it has: a part of
    its prompt was read there. ``key`` sends it; ``mark`` tells a digest of what it asks, the same when it is sent
    again.
    """

    tenant: str
    mu: float
    wait_s: float
    largest_prefill_mu: float = 0.0
    is_reserved: bool = False
    home: str = ""
    key: str = ""
    mark: Callable[[], str] = str


class Owned(NamedTuple):
    """What is to be known of a request inside a reservation: what its tenant was promised."""

    ttft_objective_ms: float
    claw_back_s: float
    tenant: str = ""
