"""Puts requests on replicas: asks the routing policy, and lets requests wait, in order, while every slot is taken."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import NamedTuple, Protocol

from serving.gateway.records import ReplicaRecord
from serving.policy.routing import Candidate, Decision, Load, RoutingPolicy

POLL_S = 0.05
"""How often a queue looks again: slots that other gateways free are only seen through their beats."""
SUSPECT_S = 2.0


class LoadView(Protocol):
    """A replica's merged load, as ``serving.gateway.loads`` keeps it."""

    @property
    def n(self) -> int: ...

    @property
    def w(self) -> float: ...

    @property
    def d(self) -> float: ...


class TicketLike(Protocol):
    def first_token(self) -> None: ...

    def token(self) -> None: ...

    def finished(self, ok: bool) -> None: ...


class LoadBook(Protocol):
    """``serving.gateway.loads.Loads``, as far as dispatching needs it."""

    def replica(self, replica_id: str) -> LoadView: ...

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
    reason: str


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
        self._suspects: dict[str, float] = {}
        self._poller: asyncio.TimerHandle | None = None

    @property
    def waiting(self) -> int:
        return sum(len(queue) for queue in self._queues.values())

    async def place(self, deployment: str, load: Load, tried: tuple[str, ...] = ()) -> Placement:
        """Return the request's place, after a wait of at most ``queue_s``. Raises NoReplica or Busy."""
        queue = self._queues.get(deployment)
        if not queue:
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
        now = asyncio.get_running_loop().time()
        self._suspects = {known: until for known, until in self._suspects.items() if until > now}
        self._suspects[replica] = now + SUSPECT_S

    def _try(self, deployment: str, load: Load, tried: tuple[str, ...]) -> Placement | Decision:
        records = self._replicas(deployment)
        suspects = self._suspects
        now = asyncio.get_running_loop().time() if suspects else 0.0
        candidates = []
        for record in records:
            seen = self._loads.replica(record.id)
            candidates.append(
                Candidate(
                    record.id,
                    record.state == "ready",
                    record.target_concurrency,
                    seen.n,
                    seen.w,
                    seen.d,
                    bool(suspects) and suspects.get(record.id, 0.0) > now,
                )
            )
        decision = self._policy(candidates, load, tried)
        if decision.verdict != "dispatch":
            return decision
        # Between decision and ticket nothing may await: the next decision must see this request.
        chosen = next(record for record in records if record.id == decision.replica)
        ticket = self._loads.dispatched(chosen.id, load.prefill_mu, load.decode_mu)
        return Placement(chosen, ticket, decision.reason)

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
            if waiter.place.done() and not waiter.place.cancelled():
                self.finish(deployment, waiter.place.result().ticket, ok=True)
            raise
        finally:
            self._loads.queued(deployment, -mu)
            if waiter in queue:
                queue.remove(waiter)
            if not queue and self._queues.get(deployment) is queue:
                del self._queues[deployment]

    def _pump(self, deployment: str) -> None:
        queue = self._queues.get(deployment)
        while queue:
            waiter = queue[0]
            if waiter.place.done():
                queue.popleft()
                continue
            placed = self._try(deployment, waiter.load, waiter.tried)
            if not isinstance(placed, Placement):
                return
            queue.popleft()
            waiter.place.set_result(placed)

    def _poll_later(self) -> None:
        if self._poller is None:
            self._poller = asyncio.get_running_loop().call_later(POLL_S, self._poll)

    def _poll(self) -> None:
        self._poller = None
        for deployment in list(self._queues):
            self._pump(deployment)
        if self._queues:
            self._poll_later()
