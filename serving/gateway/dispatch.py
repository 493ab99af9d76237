"""Puts requests on replicas: asks the routing policy, and lets requests wait, in order, while every slot is taken.

What is inside a reservation goes first; the rest passes through ``serving/gateway/best_effort.py``.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import Counter, deque
from collections.abc import Callable, Collection, Sequence
from typing import NamedTuple

from capacity.policy import claw_back
from serving.gateway.best_effort import BestEffort
from serving.gateway.placement import Busy as Busy
from serving.gateway.placement import Lent as Lent
from serving.gateway.placement import LoadBook, OnWay, TicketLike
from serving.gateway.placement import NoReplica as NoReplica
from serving.gateway.placement import Owned as Owned
from serving.gateway.placement import Placement as Placement
from serving.gateway.placement import Reclaimed as Reclaimed
from serving.gateway.records import ReplicaRecord
from serving.policy import gate
from serving.policy.routing import Candidate, Decision, Load, RoutingPolicy, turns

POLL_S = 0.05
"""How often a queue looks again: slots that other gateways free are only seen through their beats."""
SUSPECT_S = 2.0
_PATIENCE = 0.5
"""What part of a pool's deadline owners wait before what is lent is ended for them."""


class _Field:
    """The candidates of one deployment, as long as its records and the loads stay the same."""

    __slots__ = ("by_id", "candidates", "generation", "place", "records")

    def __init__(self, records: tuple[ReplicaRecord, ...], loads: LoadBook, suspects: Collection[str]) -> None:
        self.records = records
        self.generation = loads.generation
        self.place = loads.place
        gateway, gateways = loads.place
        ready = (record.id for record in records if record.state == "ready")
        order = turns(ready, gateway=gateway, gateways=gateways)
        self.by_id = {record.id: record for record in records}
        self.candidates = [
            Candidate(
                record.id,
                record.state == "ready",
                record.target_concurrency,
                loads.replica(record.id),
                record.id in suspects,
                claw_back.ms_per_mu(record.supply_mu_per_min),
                order.get(record.id, 0),
            )
            for record in records
        ]


class _Waiter(NamedTuple):
    """``due``: from when on what is lent is ended for it."""

    load: Load
    tried: tuple[str, ...]
    claim: Claim
    place: asyncio.Future[Placement]
    due: float


Claim = Lent | Owned | None
"""By what right a request asks for a place. None: it had one, on a replica that has failed."""


def _ignore(deployment: str, seconds: float) -> None:
    """For those who do not count."""


class Dispatcher:
    """One per gateway process. ``replicas`` gives the current records of a deployment, ``clock`` monotonic seconds,
    ``wall_clock`` UNIX seconds.

    ``on_claw_back`` hears of a deployment for how long an owner of a reservation had found no room.
    """

    def __init__(
        self,
        replicas: Callable[[str], tuple[ReplicaRecord, ...]],
        loads: LoadBook,
        policy: RoutingPolicy,
        *,
        queue_s: float,
        queue_max: int,
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
        on_claw_back: Callable[[str, float], None] = _ignore,
    ) -> None:
        self._replicas = replicas
        self._loads = loads
        self._policy = policy
        self._queue_s = queue_s
        self._queue_max = queue_max
        self._queues: dict[str, deque[_Waiter]] = {}
        self._fields: dict[str, _Field] = {}
        self._suspects: dict[str, float] = {}
        self._clock = clock
        self._owed: dict[TicketLike, tuple[float, str, str]] = {}
        """Owners' streams whose first token has not come: until when it may take, deployment and replica."""
        self._poller: asyncio.TimerHandle | None = None
        self.best_effort = BestEffort(
            self,
            loads,
            queue_s=queue_s,
            queue_max=queue_max,
            clock=clock,
            wall_clock=wall_clock,
            on_relief=on_claw_back,
        )

    @property
    def waiting(self) -> int:
        """Requests without a place, of both classes."""
        return sum(len(queue) for queue in self._queues.values()) + self.best_effort.waiting

    def has_waiting(self, deployment: str) -> bool:
        """Whether requests inside reservations, or such as had a place before, wait for a slot."""
        return deployment in self._queues

    async def place(
        self,
        deployment: str,
        load: Load,
        tried: tuple[str, ...] = (),
        *,
        claim: Claim = None,
        on_reclaim: Callable[[], None] | None = None,
        on_way: OnWay | None = None,
    ) -> Placement:
        """Return the request's place, after a wait of at most ``queue_s``. Raises NoReplica, Busy or Reclaimed.

        ``on_reclaim`` is called when a best-effort request must end before it is complete; ``on_way``, with its replica
        and why, when it must leave that while its prompt is read: it may ask again, with that as its ``Lent.home``.
        """
        if isinstance(claim, Lent) and not tried:
            return await self.best_effort.place(deployment, load, claim, on_reclaim, on_way)
        placed = await self._place_by_right(deployment, load, tried, claim)
        if isinstance(claim, Lent):
            self.best_effort.placed_again(deployment, placed, claim, on_reclaim)
        return placed

    async def _place_by_right(self, deployment: str, load: Load, tried: tuple[str, ...], claim: Claim) -> Placement:
        """Of owners, and of those that had a place before."""
        queue = self._queues.get(deployment)
        if not queue or all(waiter.tried for waiter in queue):
            # Those wait for what they have not tried: nobody is overtaken.
            placed = self._try(deployment, load, tried, claim)
            if isinstance(placed, Placement):
                return placed
            if placed.verdict == "none":
                raise NoReplica(placed.reason)
            queue = self._queues.setdefault(deployment, deque())
        if len(queue) >= self._queue_max and not _push_out(queue, claim):
            raise _full(queue)
        due = self._clock() + claim.claw_back_s * _PATIENCE if isinstance(claim, Owned) else math.inf
        return await self._wait(deployment, queue, _Waiter(load, tried, claim, _future(), due))

    def started(self, deployment: str, ticket: TicketLike) -> None:
        """The request's first token has come: its prompt is read, and others may be."""
        ticket.first_token()
        self._owed.pop(ticket, None)
        self.best_effort.pump(deployment)

    def finish(self, deployment: str, ticket: TicketLike, *, ok: bool) -> None:
        """The request has left its replica: its slot goes to the first that waits."""
        ticket.finished(ok)
        self._owed.pop(ticket, None)
        self.best_effort.left(deployment, ticket)
        if deployment in self._queues:
            self._pump(deployment)
        self.best_effort.pump(deployment)

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
        loads = self._loads
        if (
            field is None
            or field.records is not records
            or field.generation != loads.generation
            or field.place != loads.place
        ):
            field = _Field(records, loads, self._suspects)
            if records:
                self._fields[deployment] = field
            else:
                self._fields.pop(deployment, None)
        return field

    def candidates(self, deployment: str) -> Sequence[Candidate]:
        """The replicas of a deployment as the policy sees them."""
        return self._field(deployment).candidates

    def try_place(self, deployment: str, load: Load, tried: tuple[str, ...], *, is_lent: bool) -> Placement | Decision:
        """A place now, or why there is none."""
        field = self._field(deployment)
        decision = self._policy(field.candidates, load._replace(is_lent=True) if is_lent else load, tried)
        if decision.verdict != "dispatch":
            return decision
        # Between decision and ticket nothing may await: the next decision must see this request.
        ticket = self._loads.dispatched(decision.replica, load.prefill_mu, load.decode_mu, is_lent=is_lent)
        record = field.by_id[decision.replica]
        if not load.is_stream:
            pending = self._loads.replica(record.id).w
            own_s = gate.presumed_prefill_s(claw_back.engine_ms(pending, record.supply_mu_per_min))
            self._loads.presume(ticket, self._clock() + own_s)
        return Placement(record, ticket, decision)

    def _try(self, deployment: str, load: Load, tried: tuple[str, ...], claim: Claim) -> Placement | Decision:
        """``try_place``, and what an owner finds there decides whether more is lent."""
        way = self.best_effort.make_way(deployment, load.prefill_mu, tried) if isinstance(claim, Owned) else ""
        placed = self.try_place(deployment, load, tried, is_lent=isinstance(claim, Lent))
        if isinstance(claim, Owned):
            if isinstance(placed, Placement):
                self._loads.owned(deployment, load.prefill_mu)
                if way and gate.is_long(
                    self._loads.replica(placed.replica.id).lent_w, placed.replica.supply_mu_per_min
                ):
                    self._loads.wants_way(placed.replica.id)
                if load.is_stream:
                    # What it waits for of its own, and of other owners, is nobody's fault.
                    replica = self._loads.replica(placed.replica.id)
                    owned_ms = claw_back.engine_ms(replica.w - replica.lent_w, placed.replica.supply_mu_per_min)
                    due = self._clock() + claim.claw_back_s * _PATIENCE + gate.presumed_prefill_s(owned_ms)
                    self._owed[placed.ticket] = (due, deployment, placed.replica.id)
                    self._poll_later()
                # It may go beside a long prompt of its own accord: it is at risk when no replica is clear.
                if gate.must_claw_back(placed.decision.clearest_ms, ttft_objective_ms=claim.ttft_objective_ms):
                    self.best_effort.claw_back(deployment)
                else:
                    self.best_effort.relieved(deployment)
            elif placed.verdict == "wait":
                self.best_effort.claw_back(deployment)
        return placed

    async def _wait(self, deployment: str, queue: deque[_Waiter], waiter: _Waiter) -> Placement:
        mu = waiter.load.prefill_mu + waiter.load.decode_mu
        queue.append(waiter)
        self._loads.queued(deployment, mu)
        self._poll_later()
        try:
            async with asyncio.timeout(self._queue_s):
                return await waiter.place
        except TimeoutError:
            if waiter.place.done() and not waiter.place.cancelled():
                return waiter.place.result()
            raise Busy(f"no slot came free within {self._queue_s:g} s", reason="wait") from None
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
                placed = self._try(deployment, waiter.load, waiter.tried, waiter.claim)
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
        self._cut()
        if self._queues or self._owed:
            self._poll_later()

    def _cut(self) -> None:
        """End what is lent for owners who have waited for half of what they may: one for each, and each time."""
        now = self._clock()
        for deployment, queue in self._queues.items():
            for waiter in queue:
                if waiter.due <= now and not self.best_effort.cut(deployment):
                    lender = max(self.candidates(deployment), key=_lent, default=None)
                    if lender is not None and _lent(lender) > 0.0:
                        self._loads.wants_cut(lender.id)
        for ticket, (due, deployment, replica) in list(self._owed.items()):
            if due > now or self.best_effort.cut(deployment, replica):
                continue
            load = self._loads.replica(replica)
            if load.lent_w + load.lent_d > 0.0:
                self._loads.wants_cut(replica)
            else:
                del self._owed[ticket]


def _lent(candidate: Candidate) -> float:
    """Best-effort MU at a replica."""
    return candidate.load.lent_w + candidate.load.lent_d


def _full(queue: Collection[_Waiter]) -> Busy:
    return Busy(f"{len(queue)} requests are waiting already", reason="queue_full")


def _push_out(queue: deque[_Waiter], claim: Claim) -> bool:
    """Make place in a full queue for an owner where another has more waiting: no promise is kept at others' cost.

    Whether there is place.
    """
    if not isinstance(claim, Owned):
        return False
    waiting = Counter(one.claim.tenant for one in queue if isinstance(one.claim, Owned) and not one.tried)
    tenant, most = max(waiting.items(), key=lambda item: item[1], default=("", 0))
    if most <= waiting[claim.tenant] + 1:
        return False
    newest = next(
        one for one in reversed(queue) if isinstance(one.claim, Owned) and one.claim.tenant == tenant and not one.tried
    )
    if not newest.place.done():
        newest.place.set_exception(_full(queue))
    queue.remove(newest)
    return True


def _future() -> asyncio.Future[Placement]:
    return asyncio.get_running_loop().create_future()
