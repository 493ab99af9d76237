"""A deployment that loses a replica, has a slow one, and is asked for more than it has: on a virtual clock.

What decides who waits, who is refused and who is served is the product: dispatcher, queues, gate, loads, the scheduler
of the simulated engine. What became of each request is noted, as its client would.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

from bench.fairness.virtual import Board
from bench.fairness.world import all_over
from serving.gateway.dispatch import Busy, Claim, Dispatcher, Lent, NoReplica, Owned
from serving.gateway.loads import Loads
from serving.gateway.records import ReplicaRecord
from serving.policy.routing import Load, least_wait
from tests.faults.definition import Seen, Sold
from worker.simulated.engine import Engine, Fault
from worker.simulated.profile import EngineProfile
from worker.simulated.scheduler import Sequence as Answer

MODEL = "d"
MU_PER_TOKEN = 0.02
ASKED_MU = 2.0
ENGINE = EngineProfile(alpha_ms=0.05, beta_ms=4.0, step_floor_ms=40.0, max_num_seqs=6, max_model_len=2048)
WIDTH = 4
"""Requests at once per replica: of 25 tokens each, four a second."""


@dataclass
class Sender:
    tenant: str
    per_s: float
    begins: float = 0.0
    ends: float = float("inf")


class _Taker:
    """Who takes an answer's tokens; ``end`` says how it ended before its time."""

    def __init__(self) -> None:
        loop = asyncio.get_running_loop()
        self.first: asyncio.Future[None] = loop.create_future()
        self.last: asyncio.Future[None] = loop.create_future()
        self.tokens = 0
        self.end = ""

    def emit(self, sequence: Answer, token: int, reason: str | None) -> None:
        self.tokens += 1
        if not self.first.done():
            self.first.set_result(None)
        if reason and not self.last.done():
            self.last.set_result(None)

    def flush(self) -> None:
        """Nothing is kept back."""

    def stop(self, why: str) -> None:
        self.end = self.end or why
        for awaited in (self.first, self.last):
            if not awaited.done():
                awaited.set_result(None)

    def cut(self) -> None:
        self.stop("cut")


class BrokenWorld:
    """Clock 0 is ``epoch`` (UNIX s). ``sold`` says who is served inside a reservation; ``seen`` is what they saw."""

    def __init__(self, sold: Sequence[Sold], pool: str, *, epoch: float, replicas: int, seed: int) -> None:
        self.sold, self.pool, self.epoch = sold, pool, epoch
        self.dice = random.Random(seed)
        self.seen: list[Seen] = []
        self.refused: list[str] = []
        self.lost: set[str] = set()
        self._all = tuple(
            ReplicaRecord(
                id=f"r{n}",
                deployment=MODEL,
                revision="r",
                host=f"h{n}",
                address="http://127.0.0.1:1",
                state="ready",
                target_concurrency=WIDTH,
                supply_mu_per_min=100.0,
            )
            for n in range(replicas)
        )
        self.records = self._all
        self._takers: dict[_Taker, str] = {}
        self._running: set[asyncio.Task[None]] = set()
        self._number = 0

    async def run(self, senders: Sequence[Sender], seconds: float, troubles: Sequence[tuple[float, str, str]]) -> None:
        """``troubles``: when, what (``lose``, ``return``, ``slow``, ``heal``), and of which replica."""
        loop = asyncio.get_running_loop()
        loads = Loads(Board(), "gateway-0", clock=loop.time)
        self.dispatcher = Dispatcher(
            lambda _: self.records, loads, least_wait, queue_s=8.0, queue_max=64, clock=loop.time, wall_clock=loop.time
        )
        loads.on_cut = self.dispatcher.best_effort.cut_at
        loads.on_way = self.dispatcher.best_effort.make_way_at
        loads.order, loads.on_order = self.dispatcher.best_effort.tell, self.dispatcher.best_effort.hear
        await loads.start()
        self.engines = {record.id: Engine(ENGINE) for record in self._all}
        cores = [asyncio.ensure_future(engine.run()) for engine in self.engines.values()]
        for when, what, replica in troubles:
            loop.call_later(when, self._trouble, what, replica)
        await asyncio.gather(*(self._send(sender, seconds) for sender in senders))
        await all_over(self._running)
        await loads.stop()
        for core in cores:
            core.cancel()
        await asyncio.gather(*cores, return_exceptions=True)

    def _trouble(self, what: str, replica: str) -> None:
        if what in ("slow", "heal"):
            self.engines[replica].break_by(Fault(mode="slow", factor=4.0) if what == "slow" else Fault())
            return
        (self.lost.add if what == "lose" else self.lost.discard)(replica)
        self.records = tuple(record for record in self._all if record.id not in self.lost)
        for taker, where in list(self._takers.items()):
            if where in self.lost:
                taker.stop("lost")

    async def _send(self, sender: Sender, seconds: float) -> None:
        loop = asyncio.get_running_loop()
        await asyncio.sleep(sender.begins)
        while True:
            await asyncio.sleep(self.dice.expovariate(sender.per_s))
            if loop.time() >= min(sender.ends, seconds):
                return
            self._running.add(asyncio.ensure_future(self._serve(sender.tenant)))

    def _claim(self, tenant: str, mu: float) -> Claim:
        now = self.epoch + asyncio.get_running_loop().time()

        def holds(one: Sold) -> bool:
            return one.starts_at <= now < one.ends_at and not any(a <= now < b for a, b in one.gaps)

        if any(holds(one) for one in self.sold if one.tenant == tenant):
            return Owned(1000.0, 3.0)
        return Lent(tenant, mu, 5.0, 40.0, True)

    async def _serve(self, tenant: str) -> None:
        loop = asyncio.get_running_loop()
        self._number += 1
        output, mu = self.dice.randint(10, 40), 0.0
        claim = self._claim(tenant, MU_PER_TOKEN * output)
        seen = Seen(
            tenant=tenant,
            pool=self.pool,
            is_reserved=isinstance(claim, Owned),
            status=200,
            is_whole=True,
            sent_at=self.epoch + loop.time(),
            first_at=None,
            ended_at=0.0,
            output_tokens=0,
            mu=mu,
            asked_mu=ASKED_MU,
        )
        taker = _Taker()
        load = Load(tenant, 0.1, MU_PER_TOKEN * output)
        try:
            placement = await self.dispatcher.place(MODEL, load, claim=claim, on_reclaim=taker.cut)
        except (Busy, NoReplica) as error:
            status = 429 if isinstance(error, Busy) else 503
            self.seen.append(replace(seen, status=status, is_whole=False, ended_at=self.epoch + loop.time()))
            return
        name = placement.replica.id
        answer = Answer(
            [self._number * 4096 + n for n in range(20)],
            max_tokens=output,
            eos_after=None,
            seed=self._number,
            priority=0 if isinstance(claim, Owned) else 10,
            owner=taker,
        )
        self._takers[taker] = name
        self.engines[name].submit(answer)
        await taker.first
        first_at = self.epoch + loop.time() if taker.tokens else None
        if not taker.end:
            self.dispatcher.started(MODEL, placement.ticket)
            await taker.last
        del self._takers[taker]
        if taker.end:
            self.engines[name].end(answer, "abort")
        self.dispatcher.finish(MODEL, placement.ticket, ok=not taker.end)
        self.seen.append(
            replace(
                seen,
                # What broke before its first byte is answered with an error, after it the stream ends with one.
                status=200 if not taker.end or taker.tokens else (502 if taker.end == "lost" else 429),
                is_whole=not taker.end,
                first_at=first_at,
                ended_at=self.epoch + loop.time(),
                output_tokens=taker.tokens,
                mu=MU_PER_TOKEN * taker.tokens,
            )
        )
