"""Best-effort requests: let through while the gate is open, in the order of virtual token counters while it is not.

One queue per deployment and gateway process. The order between tenants is ``serving/policy/fairness.py``, the gate is
``serving/policy/gate.py``; here is what waits, for how long, and what an owner's return does to it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple, Protocol

from serving.gateway.placement import Busy, Lent, LoadBook, NoReplica, Placement, Reclaimed, TicketLike
from serving.policy import gate
from serving.policy.fairness import FairQueue, Turn
from serving.policy.pace import Pace
from serving.policy.routing import Candidate, Decision, Load

POLL_S = 0.05
"""How often a queue looks again: what other gateways free is only seen through their beats."""
_RETRY_MIN_S, _RETRY_MAX_S = 1.0, 60.0
_PACE_OVER_S = 10.0


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


_STOPS: dict[gate.Obstacle, Literal["larger", "itself"]] = {"backlog": "larger", "owners": "itself"}


class Waiter:
    """A request in the queue. ``why``: what kept it there when it was last looked at."""

    __slots__ = ("ask", "load", "place", "why")

    def __init__(self, load: Load, ask: Lent) -> None:
        self.load = load
        self.ask = ask
        self.place: asyncio.Future[Placement] = asyncio.get_running_loop().create_future()
        self.why = ""


class Line:
    """One deployment's queue, and what its owners have taken back."""

    __slots__ = ("hold_until", "needed_since", "pace", "queue", "running", "seen", "told_at")

    def __init__(self) -> None:
        self.queue: FairQueue[Waiter] = FairQueue()
        self.hold_until = float("-inf")
        """Nothing is lent before this moment."""
        self.needed_since: float | None = None
        self.told_at = float("-inf")
        self.seen = 0
        self.running: dict[TicketLike, tuple[str, Callable[[], None]]] = {}
        """What is served of what is lent, the oldest first: at which replica, and what ends it."""
        self.pace = Pace(_PACE_OVER_S)
        """MU/s that leave the queue for replicas."""


class BestEffort:
    """``clock`` gives monotonic seconds. ``on_relief`` hears for how long an owner had found no room."""

    def __init__(
        self,
        slots: Slots,
        loads: LoadBook,
        *,
        queue_s: float,
        queue_max: int,
        clock: Callable[[], float],
        on_relief: Callable[[str, float], None],
    ) -> None:
        self._slots = slots
        self._loads = loads
        self._queue_s = queue_s
        self._queue_max = queue_max
        self._clock = clock
        self._on_relief = on_relief
        self._lines: dict[str, Line] = {}
        self._poller: asyncio.TimerHandle | None = None

    @property
    def waiting(self) -> int:
        return sum(line.queue.size for line in self._lines.values())

    async def place(
        self, deployment: str, load: Load, ask: Lent, on_reclaim: Callable[[], None] | None = None
    ) -> Placement:
        """The request's place, after a wait of at most ``ask.wait_s``. Raises NoReplica, Busy or Reclaimed.

        ``on_reclaim`` is called when the request must end before it is complete: an owner is waiting for its place.
        """
        line = self._line(deployment)
        queue = line.queue
        self._heed(deployment, line)
        if not queue.size:
            placed = self._pass(deployment, line, load, ask)
            if isinstance(placed, Placement):
                queue.serve(ask.tenant, ask.mu)
                self._note_running(line, placed, ask, on_reclaim)
                return placed
        if queue.size >= self._queue_max:
            raise Busy(
                f"{queue.size} best-effort requests are waiting already",
                retry_after_s=self._retry_after_s(line),
                reason="queue_full",
            )
        placed = await self._wait(deployment, line, load, ask)
        self._note_running(line, placed, ask, on_reclaim)
        return placed

    def left(self, deployment: str, ticket: TicketLike) -> None:
        """A request has left its replica."""
        line = self._lines.get(deployment)
        if line is not None:
            line.running.pop(ticket, None)

    def cut(self, deployment: str, replica: str = "") -> bool:
        """End the newest best-effort request, at ``replica`` where one is named; whether there was any."""
        line = self._lines.get(deployment)
        if line is None:
            return False
        for ticket, (where, on_reclaim) in reversed(line.running.items()):
            if not replica or where == replica:
                del line.running[ticket]
                on_reclaim()
                return True
        return False

    def cut_at(self, replica: str) -> None:
        """An owner at another gateway waits for what is lent at ``replica``: end the newest of it."""
        for deployment in list(self._lines):
            if self.cut(deployment, replica):
                return

    @staticmethod
    def _note_running(line: Line, placed: Placement, ask: Lent, on_reclaim: Callable[[], None] | None) -> None:
        if ask.is_reserved and on_reclaim is not None:
            line.running[placed.ticket] = (placed.replica.id, on_reclaim)

    def settle(self, deployment: str, tenant: str, difference: float) -> None:
        """What a served request really cost, less what it was expected to."""
        line = self._lines.get(deployment)
        if line is not None:
            line.queue.settle(tenant, difference)

    def claw_back(self, deployment: str) -> None:
        """An owner has found no room: lend nothing for a moment, on any gateway, and evict what waits."""
        line, now = self._line(deployment), self._clock()
        if line.needed_since is None:
            line.needed_since = now
        if now - line.told_at > gate.HOLD_S / 2:
            line.told_at = now
            self._loads.clawed_back(deployment)
        self._stop_lending(line, now)

    def relieved(self, deployment: str) -> None:
        """An owner has found room at once."""
        line = self._lines.get(deployment)
        if line is not None and line.needed_since is not None:
            self._on_relief(deployment, self._clock() - line.needed_since)
            line.needed_since = None

    def pump(self, deployment: str) -> None:
        """Room may have come: let through whose turn it is."""
        line = self._lines.get(deployment)
        if line is None or not line.queue.size:
            return
        self._heed(deployment, line)
        placed: Placement | None = None
        is_shut = False

        def fits(waiter: Waiter) -> bool | None:
            nonlocal placed, is_shut
            if is_shut or waiter.place.done():
                return False
            found = self._pass(deployment, line, waiter.load, waiter.ask)
            if isinstance(found, Placement):
                placed = found
                return True
            waiter.why, is_shut = found.why, found.stops == "everybody"
            return None if found.stops == "itself" else False

        try:
            while (turn := line.queue.take(fits)) is not None:
                if placed is not None:
                    line.pace.add(turn.mu, self._clock())
                    turn.item.place.set_result(placed)
        except NoReplica as error:
            for turn in list(line.queue):
                self._end(line, turn, NoReplica(str(error)))

    def _line(self, deployment: str) -> Line:
        line = self._lines.get(deployment)
        if line is None:
            line = self._lines[deployment] = Line()
            line.seen = self._loads.claw_backs(deployment)
        return line

    def _heed(self, deployment: str, line: Line) -> None:
        """Stop lending where an owner at another gateway has found no room."""
        told = self._loads.claw_backs(deployment)
        if told != line.seen:
            line.seen = told
            self._stop_lending(line, self._clock())

    def _pass(self, deployment: str, line: Line, load: Load, ask: Lent) -> Placement | Blocked:
        """A place now, or what is in the way. Raises NoReplica."""
        if self._clock() < line.hold_until:
            return Blocked("what is reserved is needed by its owner", "everybody")
        if self._slots.has_waiting(deployment):
            return Blocked("requests inside reservations wait for a free slot", "everybody")
        seen = gate.look(
            self._slots.candidates(deployment),
            prefill_mu=load.prefill_mu,
            largest_prefill_mu=ask.largest_prefill_mu,
            is_reserved=ask.is_reserved,
            owned_mu_per_s=self._loads.owned_mu_per_s(deployment) if ask.is_reserved else 0.0,
        )
        if seen.obstacle == "no_replica":
            raise NoReplica(seen.reason)
        if not seen.is_open:
            return Blocked(seen.reason, _STOPS.get(seen.obstacle, "everybody"))
        placed = self._slots.try_place(deployment, load, (), is_lent=True)
        if isinstance(placed, Placement):
            return placed
        if placed.verdict == "none":
            raise NoReplica(placed.reason)
        return Blocked(placed.reason, "everybody")

    async def _wait(self, deployment: str, line: Line, load: Load, ask: Lent) -> Placement:
        waiter = Waiter(load, ask)
        turn = line.queue.join(ask.tenant, waiter, ask.mu)
        mu = load.prefill_mu + load.decode_mu
        wait_s = min(ask.wait_s, self._queue_s)
        self._loads.queued(deployment, mu)
        self._poll_later()
        # It may pass at once where those before it wait for more room than it needs.
        self.pump(deployment)
        try:
            async with asyncio.timeout(wait_s):
                return await waiter.place
        except TimeoutError:
            if waiter.place.done() and not waiter.place.cancelled():
                return waiter.place.result()
            raise Busy(
                f"no room for best-effort requests within {wait_s:g} s, {waiter.why}",
                retry_after_s=self._retry_after_s(line),
                reason="wait",
            ) from None
        except asyncio.CancelledError:
            if waiter.place.done() and not waiter.place.cancelled() and waiter.place.exception() is None:
                waiter.place.result().ticket.finished(True)
                self.pump(deployment)
            raise
        finally:
            self._loads.queued(deployment, -mu)
            line.queue.leave(turn)

    def _stop_lending(self, line: Line, now: float) -> None:
        line.hold_until = now + gate.HOLD_S
        if not line.queue.size:
            return
        retry_after_s = max(gate.HOLD_S, self._retry_after_s(line))
        for turn in list(line.queue):
            error = Reclaimed(
                "the owner of a reservation needs what was lent", retry_after_s=retry_after_s, reason="reclaimed"
            )
            self._end(line, turn, error)

    def _end(self, line: Line, turn: Turn[Waiter], error: Exception) -> None:
        line.queue.leave(turn)
        if not turn.item.place.done():
            turn.item.place.set_exception(error)

    def _retry_after_s(self, line: Line) -> float:
        """When what waits now has gone, at the pace of late."""
        pace = line.pace.now(self._clock())
        expected = line.queue.mu / pace if pace > 0.0 else _RETRY_MIN_S
        return min(_RETRY_MAX_S, max(_RETRY_MIN_S, expected))

    def _poll_later(self) -> None:
        if self._poller is None:
            self._poller = asyncio.get_running_loop().call_later(POLL_S, self._poll)

    def _poll(self) -> None:
        self._poller = None
        self._loads.note_presumed(self._clock())
        for deployment, line in list(self._lines.items()):
            if line.queue.size:
                self.pump(deployment)
        if self.waiting:
            self._poll_later()
