"""Puts requests on replicas: asks the routing policy, and lets requests wait, in order, while every slot is taken."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Collection
from typing import NamedTuple, Protocol

from serving.gateway.records import ReplicaRecord
from serving.policy.routing import Candidate, Decision, Load, ReplicaLoad, RoutingPolicy

POLL_S = 0.05
"""How often a queue looks again: slots that other gateways free are only seen through their beats."""
SUSPECT_S = 2.0


class TicketLike(Protocol):
    def first_token(self) -> None: ...

    def token(self) -> None: ...

    def finished(self, ok: bool) -> None: ...


class LoadBook(Protocol):
    """``serving.gateway.loads.Loads``, as far as dispatching needs it."""

    generation: int
    """Another number when loads have been forgotten, so that those which somebody keeps must be asked for again."""

    def replica(self, replica_id: str) -> ReplicaLoad: ...

    def dispatched(self, replica_id: str, w_mu: float, d_mu: float) -> TicketLike: ...

    def queued(self, deployment_id: str, mu: float) -> None: ...


class NoReplica(Exception):
    """Nothing ready can take the request, now or after a wait. The message is the policy's reason."""


class Busy(Exception):
    """The queue is full, or the request has waited as long as it may."""


class Placement(NamedTuple):
    """A request's place on a replica. ``ticket`` must be finished exactly when the request leaves it."""

    replica: ReplicaRecord
    ticket: TicketLike
    decision: Decision


class _Field:
    """The candidates of one deployment, as long as its records and the loads stay the same."""

    __slots__ = ("by_id", "candidates", "generation", "records")

    def __init__(self, records: tuple[ReplicaRecord, ...], loads: LoadBook, suspects: Collection[str]) -> None:
        self.records = records
        self.generation = loads.generation
        self.by_id = {record.id: record for record in records}
        self.candidates = [
            Candidate(
                record.id,
                record.state == "ready",
                record.target_concurrency,
                loads.replica(record.id),
                record.id in suspects,
            )
            for record in records
        ]


class _Waiter(NamedTuple):
    load: Load
    tried: tuple[str, ...]
    place: asyncio.Future[Placement]


class Dispatcher:
    """One per gateway process. ``replicas`` gives the current records of a deployment."""

    def __init__(
        self,
        replicas: Callable[[str], tuple[ReplicaRecord, ...]],
        loads: LoadBook,
        policy: RoutingPolicy,
        *,
        queue_s: float,
        queue_max: int,
    ) -> None:
        self._replicas = replicas
        self._loads = loads
        self._policy = policy
        self._queue_s = queue_s
        self._queue_max = queue_max
        self._queues: dict[str, deque[_Waiter]] = {}
        self._fields: dict[str, _Field] = {}
        self._suspects: dict[str, float] = {}
        self._poller: asyncio.TimerHandle | None = None

    @property
    def waiting(self) -> int:
        return sum(len(queue) for queue in self._queues.values())

    async def place(self, deployment: str, load: Load, tried: tuple[str, ...] = ()) -> Placement:
        """Return the request's place, after a wait of at most ``queue_s``. Raises NoReplica or Busy."""
        queue = self._queues.get(deployment)
        if not queue or all(waiter.tried for waiter in queue):
            # Those wait for what they have not tried: nobody is overtaken.
            placed = self._try(deployment, load, tried)
            if isinstance(placed, Placement):
                return placed
            if placed.verdict == "none":
                raise NoReplica(placed.reason)
            queue = self._queues.setdefault(deployment, deque())
        if len(queue) >= self._queue_max:
            raise Busy(f"{len(queue)} requests are waiting already")
        return await self._wait(deployment, queue, load, tried)

    def finish(self, deployment: str, ticket: TicketLike, *, ok: bool) -> None:
        """The request has left its replica: its slot goes to the first that waits."""
        ticket.finished(ok)
        if deployment in self._queues:
            self._pump(deployment)

    def suspect(self, replica: str) -> None:
        """The replica has just failed a request: others go first for a moment."""
        loop = asyncio.get_running_loop()
        self._suspects[replica] = loop.time() + SUSPECT_S
        self._mark(replica, True)
        loop.call_later(SUSPECT_S + 0.001, self._forgive, replica)

    def _forgive(self, replica: str) -> None:
        if self._suspects.get(replica, 0.0) <= asyncio.get_running_loop().time():
            self._suspects.pop(replica, None)
            self._mark(replica, False)

    def _mark(self, replica: str, is_suspect: bool) -> None:
        for field in self._fields.values():
            for candidate in field.candidates:
                if candidate.id == replica:
                    candidate.is_suspect = is_suspect

    def _field(self, deployment: str) -> _Field:
        records = self._replicas(deployment)
        field = self._fields.get(deployment)
        if field is None or field.records is not records or field.generation != self._loads.generation:
            field = _Field(records, self._loads, self._suspects)
            if records:
                self._fields[deployment] = field
            else:
                self._fields.pop(deployment, None)
        return field

    def _try(self, deployment: str, load: Load, tried: tuple[str, ...]) -> Placement | Decision:
        field = self._field(deployment)
        decision = self._policy(field.candidates, load, tried)
        if decision.verdict != "dispatch":
            return decision
        # Between decision and ticket nothing may await: the next decision must see this request.
        ticket = self._loads.dispatched(decision.replica, load.prefill_mu, load.decode_mu)
        return Placement(field.by_id[decision.replica], ticket, decision)

    async def _wait(self, deployment: str, queue: deque[_Waiter], load: Load, tried: tuple[str, ...]) -> Placement:
        waiter = _Waiter(load, tried, asyncio.get_running_loop().create_future())
        mu = load.prefill_mu + load.decode_mu
        queue.append(waiter)
        self._loads.queued(deployment, mu)
        self._poll_later()
        try:
            async with asyncio.timeout(self._queue_s):
                return await waiter.place
        except TimeoutError:
            if waiter.place.done() and not waiter.place.cancelled():
                return waiter.place.result()
            raise Busy(f"no slot came free within {self._queue_s:g} s") from None
        except asyncio.CancelledError:
            if waiter.place.done() and not waiter.place.cancelled() and waiter.place.exception() is None:
                self.finish(deployment, waiter.place.result().ticket, ok=True)
            raise
        finally:
            self._loads.queued(deployment, -mu)
            if waiter in queue:
                queue.remove(waiter)
            if not queue and self._queues.get(deployment) is queue:
                del self._queues[deployment]

    def _pump(self, deployment: str) -> None:
        queue = self._queues.get(deployment) or deque()
        for waiter in list(queue):
            if not waiter.place.done():
                placed = self._try(deployment, waiter.load, waiter.tried)
                if isinstance(placed, Placement):
                    waiter.place.set_result(placed)
                elif placed.verdict == "none":
                    waiter.place.set_exception(NoReplica(placed.reason))
                elif waiter.tried:
                    # What is free is what it has tried: that need not hold back those behind it.
                    continue
                else:
                    return
            queue.remove(waiter)

    def _poll_later(self) -> None:
        if self._poller is None:
            self._poller = asyncio.get_running_loop().call_later(POLL_S, self._poll)

    def _poll(self) -> None:
        self._poller = None
        for deployment in list(self._queues):
            self._pump(deployment)
        if self._queues:
            self._poll_later()
