"""Best-effort requests: let through while the gate is open, in the order of virtual token counters while it is not.

One queue per deployment and gateway process. The order between tenants, over all gateways, is
``serving/policy/fairness.py``, the gate is ``serving/policy/gate.py``, when refused ones are to come again
``serving/policy/returns.py``; here is what waits, for how long, and what an owner's return does to it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import cast

from capacity.policy.claw_back import EXCHANGE_S
from serving.gateway.entry import HELD, Blocked, Slots, let_through
from serving.gateway.lines import Line, Waiter, busy
from serving.gateway.placement import (
    Busy,
    Expected,
    Lent,
    LoadBook,
    NoReplica,
    OnWay,
    Placement,
    Reclaimed,
    TicketLike,
)
from serving.policy import gate
from serving.policy.fairness import Told, Turn
from serving.policy.returns import Place, Word
from serving.policy.routing import Load

POLL_S = 0.05
"""How often a queue looks again: what other gateways free is only seen through their beats."""


class BestEffort:
    """``clock`` gives monotonic seconds, ``wall_clock`` UNIX seconds. ``on_relief`` hears for how long an owner had
    found no room."""

    def __init__(
        self,
        slots: Slots,
        loads: LoadBook,
        *,
        queue_s: float,
        queue_max: int,
        clock: Callable[[], float],
        wall_clock: Callable[[], float],
        on_relief: Callable[[str, float], None],
    ) -> None:
        self._slots = slots
        self._loads = loads
        self._queue_s = queue_s
        self._queue_max = queue_max
        self._clock = clock
        self._wall_clock = wall_clock
        self._on_relief = on_relief
        self._lines: dict[str, Line] = {}
        self._told: Mapping[str, Mapping[str, Told]] = {}
        self._name = ""
        self._poller: asyncio.TimerHandle | None = None

    @property
    def waiting(self) -> int:
        return sum(line.queue.size for line in self._lines.values())

    async def place(
        self,
        deployment: str,
        load: Load,
        ask: Lent,
        on_reclaim: Callable[[], None] | None = None,
        on_way: OnWay | None = None,
    ) -> Placement:
        """The request's place, after a wait of at most ``ask.wait_s``. Raises NoReplica, Busy or Reclaimed.

        ``on_reclaim`` is called when the request must end before it is complete: an owner is waiting for its place.
        ``on_way``, with its replica and why, when it must leave that while its prompt is read, and may ask again.
        """
        line = self._line(deployment)
        if ask.home:
            line.queue.settle(ask.tenant, -ask.mu)
            load = load._replace(home=ask.home)
        self._heed(deployment, line)
        back = None
        if line.returns.are_any and not ask.home:
            back = line.returns.take(ask.tenant, ask.key, ask.mu, ask.mark, self._clock())
        if back is None:
            return await self._place(deployment, line, load, ask, None, on_reclaim, on_way)
        try:
            placed = await self._place(deployment, line, load, ask, back, on_reclaim, on_way)
        except BaseException:
            line.returns.leave(back)
            raise
        line.returns.done(back)
        return placed

    async def _place(
        self,
        deployment: str,
        line: Line,
        load: Load,
        ask: Lent,
        back: Place | None,
        on_reclaim: Callable[[], None] | None,
        on_way: OnWay | None,
    ) -> Placement:
        queue = line.queue
        if not queue.size and queue.may_pass(ask.tenant, ask.mu, slack=self._slack(deployment, line)):
            placed = self._pass(deployment, line, load, ask, None if self._told.get(deployment) else ())
            if isinstance(placed, Placement):
                queue.serve(ask.tenant, ask.mu)
                line.lent.note(placed, ask, on_reclaim, on_way)
                return placed
        # Who has made way was let in before.
        is_full = queue.size >= self._queue_max and not ask.home
        if is_full and not self._push_out(deployment, line, ask.tenant, back):
            raise self._full(deployment, line, ask, back)
        placed = await self._wait(deployment, line, load, ask, back)
        line.lent.note(placed, ask, on_reclaim, on_way)
        return placed

    def left(self, deployment: str, ticket: TicketLike) -> None:
        """A request has left its replica."""
        line = self._lines.get(deployment)
        if line is not None:
            line.lent.left(ticket)

    def make_way(self, deployment: str, prefill_mu: float, tried: Collection[str] = ()) -> str:
        """An owner with a prompt of ``prefill_mu`` comes: put back those that are being read in its way, if that helps
        it. The replica where that helps, none of ``tried``; empty where it need not, or cannot."""
        way = gate.way([one for one in self._slots.candidates(deployment) if one.id not in tried], prefill_mu)
        line = self._lines.get(deployment)
        if way.replica and line is not None:
            line.lent.put_back(way.replica, way.reason)
        return way.replica

    def make_way_at(self, replica: str) -> None:
        """An owner at another gateway is read at ``replica`` beside long prompts: put back those from here."""
        for line in list(self._lines.values()):
            line.lent.put_back(replica, "an owner at another gateway waits beside long best-effort prompts")

    def cut(self, deployment: str, replica: str = "") -> bool:
        """End the newest best-effort request, at ``replica`` where one is named; whether there was any."""
        line = self._lines.get(deployment)
        return line is not None and line.lent.cut(replica)

    def cut_at(self, replica: str) -> None:
        """An owner at another gateway waits for what is lent at ``replica``: end the newest of it."""
        for line in list(self._lines.values()):
            if line.lent.cut(replica):
                return

    def placed_again(
        self, deployment: str, placed: Placement, ask: Lent, on_reclaim: Callable[[], None] | None
    ) -> None:
        """A best-effort request that a replica has failed is at another one: what it has there is lent, too."""
        self._line(deployment).lent.note(placed, ask, on_reclaim)

    def settle(self, deployment: str, tenant: str, difference: float) -> None:
        """What a served request really cost, less what it was expected to."""
        line = self._lines.get(deployment)
        if line is not None:
            line.queue.settle(tenant, difference)

    def tell(self) -> dict[str, Told]:
        """What the other gateways are to know of the order, by deployment: once for each beat."""
        found = ((deployment, line.queue.tell()) for deployment, line in self._lines.items())
        return {deployment: told for deployment, told in found if told is not None}

    def hear(self, told: Mapping[str, Mapping[str, Told]], name: str) -> None:
        """What all other gateways have told last, by deployment and gateway. ``name``: as they know this one."""
        self._told, self._name = told, name
        for deployment, line in self._lines.items():
            line.queue.hear(told.get(deployment, {}))
            self.pump(deployment)

    def tell_places(self) -> dict[str, Word]:
        """What the other gateways are to know of those who were told to come again, by deployment: for each beat."""
        now = self._clock()
        found = ((deployment, line.tell(now)) for deployment, line in self._lines.items())
        return {deployment: word for deployment, word in found if word is not None}

    def hear_places(self, words: Mapping[str, Mapping[str, Word]], name: str) -> None:
        """What all other gateways have told of that last, by deployment and gateway, and this one's own name."""
        now = self._clock()
        for deployment in words:
            self._line(deployment)
        for deployment, line in self._lines.items():
            line.hear(words.get(deployment, {}), name, now)

    def _slack(self, deployment: str, line: Line) -> float:
        """How far this gateway may run ahead of those who wait at others."""
        return gate.slack_mu(self._slots.candidates(deployment)) if line.queue.others_wait else 0.0

    def claw_back(self, deployment: str) -> None:
        """An owner has found no room: lend nothing for a moment, on any gateway, and evict what waits."""
        line, now = self._line(deployment), self._clock()
        if line.needed_since is None:
            line.needed_since = now
        if now - line.told_at > gate.HOLD_S / 2:
            line.told_at = now
            self._loads.clawed_back(deployment)
        self._stop_lending(deployment, line, now, is_own=True)

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
            found = self._pass(deployment, line, waiter.load, waiter.ask, self._ahead(deployment, line, waiter))
            if isinstance(found, Placement):
                placed = found
                return True
            waiter.why, is_shut = found.why, found.stops == "everybody"
            return None if found.stops == "itself" else False

        try:
            slack = self._slack(deployment, line)
            while (turn := line.queue.take(fits, slack=slack)) is not None:
                if placed is not None:
                    line.took(turn, self._clock())
                    turn.item.place.set_result(placed)
        except NoReplica as error:
            for turn in list(line.queue):
                self._end(line, turn, NoReplica(str(error)))

    def _line(self, deployment: str) -> Line:
        line = self._lines.get(deployment)
        if line is None:
            line = self._lines[deployment] = Line(self._wall_clock)
            line.seen = self._loads.claw_backs(deployment)
            line.queue.hear(self._told.get(deployment, {}))
        return line

    def _heed(self, deployment: str, line: Line) -> None:
        """Stop lending where an owner at another gateway has found no room."""
        told = self._loads.claw_backs(deployment)
        if told != line.seen:
            line.seen = told
            self._stop_lending(deployment, line, self._clock(), is_own=False)

    def _ahead(self, deployment: str, line: Line, waiter: Waiter) -> Sequence[float] | None:
        """What ``gate.look`` is to know of other gateways' queues, for the first request of a tenant."""
        if not self._told.get(deployment):
            return ()
        now = self._clock()
        if waiter.first_at is None:
            waiter.first_at = now
        if waiter.turn is None or now - waiter.first_at < EXCHANGE_S:
            # Others may not have heard of it yet, and it not of them.
            return None
        return line.queue.ahead(waiter.turn, name=self._name)

    def _pass(
        self, deployment: str, line: Line, load: Load, ask: Lent, ahead: Sequence[float] | None
    ) -> Placement | Blocked:
        """A place now, or what is in the way. Raises NoReplica. ``ahead``: see ``gate.look``."""
        if self._clock() < line.hold_until:
            return HELD
        owned = self._loads.owned_mu_per_s(deployment) if ask.is_reserved else 0.0
        return let_through(self._slots, deployment, load, ask, owned_mu_per_s=owned, ahead=ahead)

    async def _wait(self, deployment: str, line: Line, load: Load, ask: Lent, back: Place | None) -> Placement:
        waiter = line.join(load, ask, back, self._clock())
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
            turn = waiter.turn
            line.leave(turn, self._clock())
            raise busy(
                f"no room for best-effort requests within {wait_s:g} s, {waiter.why}",
                self._expect(deployment, line, ask, waiter.back, since=turn.since if turn is not None else None),
                reason="wait",
            ) from None
        except asyncio.CancelledError:
            if waiter.place.done() and not waiter.place.cancelled() and waiter.place.exception() is None:
                waiter.place.result().ticket.finished(True)
                self.pump(deployment)
            raise
        finally:
            self._loads.queued(deployment, -mu)
            line.leave(waiter.turn, self._clock())
            if back is None and waiter.back is not None:
                # A place that it was given while it waited.
                if waiter.place.done() and not waiter.place.cancelled() and waiter.place.exception() is None:
                    line.returns.done(waiter.back)
                else:
                    line.returns.leave(waiter.back)

    def _expect(
        self,
        deployment: str,
        line: Line,
        ask: Lent,
        back: Place | None,
        *,
        since: float | None = None,
        hold_s: float = 0.0,
        elsewhere: float = 0.0,
    ) -> Expected:
        now = self._clock()
        return line.expect(
            ask,
            back,
            now,
            wait_s=min(ask.wait_s, self._queue_s),
            supply_mu_per_s=gate.supply_mu_per_s(self._slots.candidates(deployment)),
            since=since,
            hold_s=max(hold_s, line.hold_until - now),
            elsewhere=elsewhere,
        )

    def ended(self, deployment: str, ask: Lent) -> Reclaimed:
        """Why a request that was served is ended for an owner, and when it is to come again."""
        line = self._line(deployment)
        told = busy(
            "the owner of a reservation needs what was lent",
            self._expect(deployment, line, ask, None, hold_s=gate.HOLD_S),
            reason="cut",
            kind=Reclaimed,
        )
        return cast("Reclaimed", told)

    def _stop_lending(self, deployment: str, line: Line, now: float, *, is_own: bool) -> None:
        """``is_own``: for an owner here. Other gateways then count what is promised here before they promise more; else
        they do so in this moment, too."""
        line.hold_until = now + gate.HOLD_S
        waiting = {tenant: line.queue.waiting(tenant) for tenant in line.queue.tenants}
        for turn in list(line.queue):
            waiter = turn.item
            line.leave(turn, now)
            part = 1.0 - line.queue.waiting(turn.tenant) / waiting[turn.tenant]
            error = busy(
                "the owner of a reservation needs what was lent",
                self._expect(
                    deployment, line, waiter.ask, waiter.back, since=turn.since, elsewhere=0.0 if is_own else part
                ),
                reason="reclaimed",
                kind=Reclaimed,
            )
            self._end(line, turn, error)

    def _push_out(self, deployment: str, line: Line, tenant: str, back: Place | None) -> bool:
        """Make place for a request of ``tenant`` in a full queue; whether there is place."""
        turn = line.gives_way(tenant, back, self._clock())
        if turn is None:
            return False
        line.leave(turn, self._clock())
        self._end(line, turn, self._full(deployment, line, turn.item.ask, turn.item.back, since=turn.since))
        return True

    def _full(self, deployment: str, line: Line, ask: Lent, back: Place | None, *, since: float | None = None) -> Busy:
        return busy(
            f"{line.queue.size} best-effort requests are waiting already",
            self._expect(deployment, line, ask, back, since=since, elsewhere=1.0),
            reason="queue_full",
        )

    def _end(self, line: Line, turn: Turn[Waiter], error: Exception) -> None:
        line.leave(turn, self._clock())
        if not turn.item.place.done():
            turn.item.place.set_exception(error)

    def _poll_later(self) -> None:
        if self._poller is None:
            self._poller = asyncio.get_running_loop().call_later(POLL_S, self._poll)

    def _poll(self) -> None:
        self._poller = None
        self._loads.note_presumed(self._clock())
        for deployment, line in list(self._lines.items()):
            if line.queue.size:
                line.note_unclaimed(self._clock())
                self.pump(deployment)
        if self.waiting:
            self._poll_later()
