"""Plain limits over many gateways, exact in sum (``docs/protocols.md``, *Grants*).

Decisions of small limits, and of any limit near its end, are made in the shared state: those asked for while one
exchange is on its way leave together in the next. Other limits are decided here, from a lease: an amount charged to
the limit when it was taken. While no state answers, each gateway goes on with its share of the rate.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any, Literal

import msgspec
from redis.exceptions import ResponseError

from serving.gateway.alone import Alone, Place
from serving.gateway.asking import GRANTS, exchange_of
from serving.gateway.demands import Ask, Demand, Granted, Phase, Refused, Standing
from serving.gateway.ledger import SWEEP_S, Ledger
from serving.gateway.limits import Limit
from serving.gateway.records import LimitRecord
from serving.gateway.settling import Settling
from serving.gateway.state import GATEWAYS, State, StateUnavailable
from serving.policy import seats

logger = logging.getLogger(__name__)

_PERIOD_S = 0.1
_SETTLE_WITHIN_S = 0.005
_TIMEOUT_S = 0.5
_LEASE_LIFE_S = 1.5  # from the sending on; less than LIFETIME_MS, by a margin for clocks
_RETRY_LEASED_S = 0.025
_RETRY_LEASED_FOR_S = 0.25
_RETRY_GRACE_S = 0.05
_IN_LINE_S = 0.05  # several times in seats.ALIVE_MS
_TELL_WITHIN_S = 0.25  # what was admitted alone is told within this: a period, and an exchange that takes its time


class Grants:
    def __init__(self, state: State, gateway_id: str, *, gateways: int = 0, alone_max_s: float = 600.0) -> None:
        """``gateways``: how many the installation has, 0 if that is not known before the state says it."""
        self._state = state
        self._id = gateway_id
        self._installed = gateways
        self._alone_max_s = alone_max_s
        self._alone: Alone | None = None
        self._ledger = Ledger()
        self._limits = self._ledger.limits
        self._dirty, self._urgent = self._ledger.dirty, self._ledger.urgent
        self._asks: list[Ask] = []
        self._asked = 0
        self._gateways: list[str] = [gateway_id]
        self._state_now_ms = 0.0
        self._answered_at = float("-inf")
        self._started_shared = False
        self._is_in_grace = False
        self._exchange_task: asyncio.Task[None] | None = None
        self._ticker: asyncio.Task[None] | None = None
        self._settle_timer: asyncio.TimerHandle | None = None
        self._settling = Settling(self._ledger, lambda: self._alone, lambda: len(self._gateways), self._tell_soon)
        self.settle, self.overrun = self._settling.settle, self._settling.overrun

    @property
    def mode(self) -> Literal["shared", "alone"]:
        return "shared" if self._alone is None else "alone"

    @property
    def standing(self) -> Standing:
        """By whose word requests are admitted, as people are told."""
        alone, now = self._alone, time.monotonic()
        if self._is_in_grace:
            phase: Phase = "reporting"
        elif alone is None:
            phase = "arbiter" if self._started_shared else "unknown"
        else:
            phase = "alone" if alone.place.is_known else "unknown"
        alone_s = None if alone is None else now - alone.since
        left_s = None if alone_s is None else max(0.0, self._alone_max_s - alone_s)
        return Standing(phase, len(self._gateways) if self._started_shared else self._installed, alone_s, left_s)

    @property
    def alone(self) -> int:
        """While no state answers: how many gateways share the limits, as far as is known; else 0."""
        return 0 if self._alone is None else max(1, self._alone.place.gateways)

    async def start(self) -> None:
        """Begin the exchange with the state."""
        self._ticker = asyncio.get_running_loop().create_task(self._tick())

    async def stop(self) -> None:
        """Give back leases and everything settled; requests still held are forgotten with this gateway's heartbeat."""
        if self._ticker is not None:
            self._ticker.cancel()
            with suppress(asyncio.CancelledError):
                await self._ticker
        if self._settle_timer is not None:
            self._settle_timer.cancel()
        if self._exchange_task is not None:
            await self._exchange_task
        self._ledger.let_go()
        while (self._dirty or self._urgent) and self.mode == "shared":
            self._ledger.is_due = True
            await self._exchange()
        with suppress(StateUnavailable, ResponseError):
            await self._state.call("ZREM", GATEWAYS, self._id)

    def take(self, demands: tuple[Demand, ...]) -> Granted | None:
        """All of it from leases, or None: ask ``acquire`` then. The common case, without waiting."""
        now = time.monotonic()
        if not demands or self.mode != "shared" or now - self._answered_at >= _LEASE_LIFE_S:
            return None
        limits = self._limits
        found = []
        for demand in demands:
            limit = limits.get(demand.limit.id)
            if limit is None or limit.record is not demand.limit or limit.lease < demand.amount:
                return None
            found.append(limit)
        for limit, demand in zip(found, demands, strict=True):
            limit.used_at = now
            limit.take(demand.amount)
            self._ledger.note(limit)
        return Granted(demands, charged_at_ms=self._state_now_ms)

    async def acquire(self, demands: Sequence[Demand], who: str = "") -> Granted | Refused:
        """All or nothing. Cancellation gives everything back. When refused, ``who`` (a key) is promised a time: what it
        asked for is set aside for it then. Without a name nothing is.

        Raises StateUnavailable when the state has not answered yet and this gateway does not know its share, or has not
        for so long that the share holds no more.
        """
        if not demands:
            return Granted(())
        wanted = tuple(demands)
        now = time.monotonic()
        leases_live = now - self._answered_at < _LEASE_LIFE_S
        local: list[Demand] = []
        remote: list[Demand] = []
        for demand in wanted:
            limit = self._ledger.renewed(demand.limit)
            limit.used_at = now
            (local if leases_live and limit.lease >= demand.amount else remote).append(demand)
        if any(not self._limits[demand.limit.id].is_counted for demand in remote):
            # The state is asked about all rates if about one: a promise must hold in all of them.
            rates = [demand for demand in local if not self._limits[demand.limit.id].is_counted]
            local = [demand for demand in local if demand not in rates]
            remote += rates
        if remote and self._alone is not None and now < self._alone.closes_at:
            return self._decide_alone(self._alone, wanted, who, now)
        for demand in local:
            limit = self._limits[demand.limit.id]
            limit.take(demand.amount)
            self._ledger.note(limit)
        if not remote:
            return Granted(wanted, charged_at_ms=self._state_now_ms)
        self._asked += 1
        ask = Ask(wanted, local, remote, who, name=f"{self._id}.{self._asked}")
        ask.give_up_at = now + _RETRY_LEASED_FOR_S
        ask.in_line_until = now + seats.LINE_S
        self._asks.append(ask)
        self._kick()
        try:
            return await ask.answer
        except asyncio.CancelledError:
            self._abandon(ask)
            raise

    def left(self, record: LimitRecord) -> float | None:
        """What is left of the limit, as far as is known here; None where nothing is."""
        limit, alone = self._limits.get(record.id), self._alone
        if limit is None or (alone is not None and not alone.place.is_known):
            return None
        now_ms = time.monotonic() * 1000
        return limit.left(now_ms) if alone is None else alone.left(limit, now_ms)

    def _abandon(self, ask: Ask) -> None:
        """The caller has gone: what was or will be granted goes back."""
        if ask in self._asks:
            self._asks.remove(ask)
            self._settling.give_back(ask.local, self._state_now_ms)
        elif ask.answer.done() and not ask.answer.cancelled() and ask.answer.exception() is None:
            answer = ask.answer.result()
            if isinstance(answer, Granted):
                self._settling.void(answer)

    def _tell_soon(self) -> None:
        if self.mode == "shared" and self._settle_timer is None:
            self._settle_timer = asyncio.get_running_loop().call_later(_SETTLE_WITHIN_S, self._kick)

    def _kick(self) -> None:
        if self._settle_timer is not None:
            self._settle_timer.cancel()
            self._settle_timer = None
        if self._exchange_task is None:
            self._exchange_task = asyncio.get_running_loop().create_task(self._exchange_all())

    async def _tick(self) -> None:
        next_sweep = time.monotonic() + SWEEP_S
        while True:
            now = time.monotonic()
            self._ledger.remind(now)
            if now >= next_sweep and self._alone is None:
                next_sweep = now + SWEEP_S
                self._ledger.sweep(now)
            self._ledger.is_due = True
            self._kick()
            await asyncio.sleep(_PERIOD_S)

    async def _exchange_all(self) -> None:
        try:
            while self._asks or self._urgent or self._ledger.is_due:
                await self._exchange()
                if self.mode == "alone":
                    break
        finally:
            self._exchange_task = None

    async def _exchange(self) -> None:
        """One round trip: report, settle, ask, and take leases."""
        if time.monotonic() - self._answered_at > _LEASE_LIFE_S:
            self._ledger.drop_seats()
        asks, self._asks = self._asks, []
        now = time.monotonic()
        for ask in asks:
            ask.is_last = now >= ask.give_up_at
        order, asked = self._ledger.next(asks)
        gateways = len(self._gateways)
        sent = [limit.report(index < asked, gateways) for index, limit in enumerate(order)]
        call = exchange_of(self._id, order, sent, asks, self._limits, now)
        sent_at = time.monotonic()
        try:
            async with asyncio.timeout(_TIMEOUT_S):
                raw = await self._state.run(GRANTS, call.keys, [call.body])
        except (StateUnavailable, ResponseError, TimeoutError) as error:
            self._ledger.lost(order)
            self._is_in_grace = False
            self._go_alone(error)
            for ask in asks:
                self._answer_alone(ask)
            return
        except asyncio.CancelledError:
            for ask in asks:
                ask.answer.cancel()
            raise
        # Not when the answer is read: the state counts a gateway's life from before it answers.
        self._answered_at = sent_at
        self._apply(msgspec.msgpack.decode(raw), order, asks)

    def _apply(self, answer: list[Any], order: Mapping[Limit, int], asks: Sequence[Ask]) -> None:
        now_ms, epoch, gateways, grace_ms, reports, answers = answer
        self._state_now_ms = float(now_ms)
        if grace_ms:
            # Before the levels are taken over: they lack what the others are still to tell.
            self._wait_for_others(grace_ms / 1000)
        self._ledger.answered(order, reports, _monotonic_ms())
        self._state.note_epoch(epoch)
        if not grace_ms:
            # Not in a grace: then those that are not back yet still have their shares.
            self._gateways = sorted(gateways)
            self._started_shared = True
            self._is_in_grace = False
            self._come_back()
        limits = list(order)
        for ask, result in zip(asks, answers, strict=True):
            if result == 0:
                self._grant(ask)
            elif result == 1:
                self._wait_for_grace(ask)
            else:
                index, wait_ms, remaining, leased = result
                self._refuse(ask, limits[index - 1], wait_ms / 1000, remaining, leased)

    def _grant(self, ask: Ask) -> None:
        for demand in ask.remote:
            limit = self._limits[demand.limit.id]
            if limit.record.kind == demand.limit.kind:
                # Else it has become another while this was asked, and counts something else.
                limit.note(demand.amount)
                self._ledger.note(limit)
        granted = Granted(ask.demands, charged_at_ms=self._state_now_ms)
        if ask.answer.done():
            self._settling.void(granted)
        else:
            ask.answer.set_result(granted)

    def _refuse(self, ask: Ask, limit: Limit, wait_s: float, remaining: float, leased: float) -> None:
        if leased < 0.0 and not ask.answer.done():
            self._later(_IN_LINE_S, ask)
            return
        if leased > 0.0 and not ask.is_last and not ask.answer.done():
            # Other gateways hold leases; idle ones come back within two exchanges.
            self._later(_RETRY_LEASED_S, ask)
            return
        self._settling.give_back(ask.local, self._state_now_ms)
        if not ask.answer.done():
            wait_s = limit.record.ends_at - time.time() if limit.is_budget else wait_s
            ask.answer.set_result(Refused(limit.record, wait_s, remaining))

    def _wait_for_grace(self, ask: Ask) -> None:
        if self._alone is not None and time.monotonic() < self._alone.closes_at:
            self._answer_alone(ask)
        elif ask.answer.done():
            self._settling.give_back(ask.local, self._state_now_ms)
        else:
            self._later(_RETRY_GRACE_S, ask)

    def _later(self, delay_s: float, ask: Ask) -> None:
        def again() -> None:
            if ask.answer.done():
                self._settling.give_back(ask.local, self._state_now_ms)
            else:
                self._asks.append(ask)
                self._kick()

        asyncio.get_running_loop().call_later(delay_s, again)

    def _go_alone(self, why: object) -> None:
        if self._alone is None:
            place = self._place()
            self._alone = Alone(place, time.monotonic(), self._limits.values())
            self._ledger.drop_seats()
            if place.is_known:
                logger.warning("limits: going on with shares of 1/%d: %s", place.gateways, why)
            else:
                logger.warning("limits: requests that have any wait for the state's first answer: %s", why)
        self._alone.closes_at = float("inf")

    def _place(self) -> Place:
        if self._started_shared:
            return Place(len(self._gateways), self._gateways.index(self._id))
        return Place(self._installed, self._installed)

    def _wait_for_others(self, grace_s: float) -> None:
        """The state was away or began anew, and grants nothing until every gateway has said what it holds and used."""
        if not self._is_in_grace:
            self._is_in_grace = True
            self._dirty.update(self._limits.values())
            if self._started_shared:
                self._go_alone("the state was away or began anew: waiting until every gateway has reported")
        if self._alone is not None:
            is_open = self._alone.place.is_known
            self._alone.closes_at = self._answered_at + grace_s - _TELL_WITHIN_S if is_open else 0.0
            self._tell_debts(self._alone)

    def _come_back(self) -> None:
        if self._alone is None:
            return
        self._tell_debts(self._alone)
        self._alone = None
        self._dirty.update(limit for limit in self._limits.values() if limit.is_counted)
        logger.warning("limits: the state answers again")

    def _tell_debts(self, alone: Alone) -> None:
        for limit, debt in alone.debts(_monotonic_ms()):
            limit.settlements.append((debt, self._state_now_ms))
            self._urgent.add(limit)

    def _answer_alone(self, ask: Ask) -> None:
        self._settling.give_back(ask.local, self._state_now_ms)
        if self._alone is None or ask.answer.done():
            return
        try:
            ask.answer.set_result(self._decide_alone(self._alone, ask.demands, ask.who, time.monotonic()))
        except StateUnavailable as error:
            ask.answer.set_exception(error)

    def _decide_alone(self, alone: Alone, demands: tuple[Demand, ...], who: str, now: float) -> Granted | Refused:
        if not alone.place.is_known:
            raise StateUnavailable(
                "the shared state has not answered since this gateway started, and without its word or --gateways "
                "the gateway does not know its share of the limits: start the state"
            )
        if now - alone.since > self._alone_max_s:
            # No limit stands in the way: nobody knows any more what is left of it.
            raise StateUnavailable(
                f"the shared state has not answered for {self._alone_max_s:g} s, and no gateway goes on with its share "
                "of the limits for longer: start the state"
            )
        limits = [self._ledger.known(demand.limit) for demand in demands]
        amounts = [demand.amount for demand in demands]
        obstacle = alone.decide(list(zip(limits, amounts, strict=True)), now * 1000, who)
        if obstacle is not None:
            limit, wait_ms, remaining = obstacle
            return Refused(limit.record, wait_ms / 1000, remaining)
        for limit in limits:
            self._ledger.note(limit)
        return Granted(demands, charged_at_ms=self._state_now_ms, alone_at_ms=now * 1000)


def _monotonic_ms() -> float:
    return time.monotonic() * 1000
