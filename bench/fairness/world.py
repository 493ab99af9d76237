"""One deployment without sockets: the gateway's dispatcher and policies, simulated engines, and tenants who send.

What decides is the product: dispatchers, best-effort queues, gate, order, buckets, loads and their exchange, scheduler
of the simulated engine. Left out are HTTP, the journal and the server that the state is. Times are seconds of the
virtual clock.
"""

from __future__ import annotations

import asyncio
import random
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from bench.fairness.taker import Taker
from bench.fairness.till import Till, share_of
from bench.fairness.virtual import Board
from capacity.policy import claw_back
from capacity.policy.cost import CostProfile, token_costs
from capacity.policy.profiles import KNEE
from serving.gateway.demands import Granted
from serving.gateway.dispatch import Busy, Claim, Dispatcher, Lent, Owned
from serving.gateway.loads import Loads
from serving.gateway.records import ReplicaRecord
from serving.policy import bucket, classes
from serving.policy.bucket import Bucket
from serving.policy.routing import Load, least_wait
from worker.simulated.engine import Engine
from worker.simulated.profile import EngineProfile
from worker.simulated.scheduler import Sequence as Answer

Scheme = Literal["nothing", "requests", "classes"]
"""``requests``: each tenant has a limit of requests a minute, and that is all."""

SUPPLY = 100.0
MS_PER_MU = 60_000.0 * KNEE / SUPPLY
MODEL = "d"
TARGET = 32
"""Requests at once per replica, as vertical scaling finds it for 50 ms a token."""

ENGINE = EngineProfile(
    base_ms=0.0,
    alpha_ms=1.0,
    beta_ms=0.2,
    gamma_ms=1e-3,
    epsilon_ms=3.2e-4,
    step_floor_ms=8.0,
    kv_tokens=20_480,
    max_model_len=8192,
    max_num_seqs=72,
    max_num_batched_tokens=102,
)
"""The default engine, seen through tokens twenty times as large: what it takes for a prompt of 30,000 tokens it takes
here for 1,500, so that a run needs a twentieth of the work."""


def price_of(engine: EngineProfile) -> CostProfile:
    """MU as engine time at a batch of 48, which is what a calibration would find."""
    return CostProfile(
        version=1,
        base=0.0,
        alpha=engine.alpha_ms / MS_PER_MU,
        beta=(engine.beta_ms + engine.step_floor_ms / 48) / MS_PER_MU,
        gamma=engine.gamma_ms / MS_PER_MU,
        epsilon=engine.epsilon_ms / MS_PER_MU,
        cached_factor=0.0,
    )


def alone_s(prefill_mu: float, engine: EngineProfile) -> float:
    """Seconds until the first token on an idle engine."""
    return (prefill_mu * MS_PER_MU + engine.step_floor_ms) / 1000


@dataclass(frozen=True)
class Tenant:
    """Sends ``per_s`` requests a second at random moments, from ``begins`` to ``ends``, or keeps ``at_once`` in flight.

    ``taught``: tokens that its key's answers have had so far, by which requests are estimated; 0: as many as they have.
    ``prompt`` and ``output`` are ranges of tokens. ``mu_per_min``: what it has reserved, 0: nothing.
    ``requests_per_min``: its limit where requests are what is limited. ``at``: the gateways that it sends to, all
    where none is named.
    """

    name: str
    prompt: tuple[int, int]
    output: tuple[int, int]
    per_s: float = 0.0
    at_once: int = 0
    begins: float = 0.0
    ends: float = float("inf")
    mu_per_min: float = 0.0
    requests_per_min: float = 1e9
    wait_s: float = 5.0
    at: tuple[int, ...] = ()
    taught: int = 0


@dataclass
class Request:
    """What became of one. ``refused``: why it got no place, by the word that metrics count."""

    tenant: str
    at: float
    prompt: int
    output: int
    mu: float
    alone_s: float
    is_reserved: bool = False
    refused: str = ""
    first_s: float = 0.0
    total_s: float = 0.0

    @property
    def is_in_time(self) -> bool:
        """First token within a second, or three times what the prompt takes of an idle engine; 50 ms a token then."""
        if self.refused:
            return False
        pace = (self.total_s - self.first_s) / max(1, self.output - 1)
        return self.first_s <= max(1.0, 3 * self.alone_s) and pace <= 0.05


class Diary:
    """What became of all requests."""

    def __init__(self) -> None:
        self.requests: list[Request] = []

    def of(self, *names: str, since: float = 0.0, until: float = float("inf")) -> list[Request]:
        return [r for r in self.requests if r.tenant in names and since <= r.at < until]

    def served_mu(self, name: str, *, since: float = 0.0, until: float = float("inf")) -> float:
        """MU of the requests that were answered between two moments."""
        return sum(r.mu for r in self.of(name) if not r.refused and since <= r.at + r.total_s < until)


@dataclass
class Account:
    """A leaky bucket by the product's arithmetic."""

    capacity: float
    window_ms: float
    level: Bucket = field(default_factory=Bucket)

    def take(self, amount: float, now: float) -> bool:
        self._drain(now)
        if not bucket.fits(self.level.level, amount, capacity=self.capacity):
            return False
        self.level = bucket.charged(self.level, amount)
        return True

    def _drain(self, now: float) -> None:
        rate = bucket.rate_per_ms(self.capacity, self.window_ms)
        self.level = bucket.drained(self.level, rate=rate, now_ms=now * 1000)


class World(Diary):
    """``replicas`` simulated engines behind ``gateways`` that admit by ``scheme``; ``board`` is what these share.

    ``believes``: estimates are believed without bound, as if there were no allowance.
    """

    def __init__(
        self,
        scheme: Scheme,
        tenants: Sequence[Tenant],
        *,
        replicas: int,
        gateways: int = 1,
        seed: int = 1,
        engine: EngineProfile = ENGINE,
        believes: bool = False,
    ) -> None:
        super().__init__()
        self.believes = believes
        self.scheme = scheme
        self.gateways = gateways
        self.board = Board()
        self.tenants = {tenant.name: tenant for tenant in tenants}
        self.random = random.Random(seed)
        self.engine = engine
        self.price = price_of(engine)
        self.largest_mu = classes.largest_prefill_mu(self.price, engine.max_model_len)
        self.reliefs: list[float] = []
        self.put_back = 0
        self.engines: dict[str, Engine] = {}
        self.is_reserved = any(tenant.mu_per_min for tenant in tenants)
        self._records = tuple(
            ReplicaRecord(
                id=f"r{n}",
                deployment=MODEL,
                revision="r",
                host="h",
                address="http://127.0.0.1:1",
                state="ready",
                target_concurrency=TARGET if scheme == "classes" else 100_000,
                supply_mu_per_min=SUPPLY,
            )
            for n in range(replicas)
        )
        self._accounts = {
            name: Account(tenant.requests_per_min, bucket.WINDOW_MS) for name, tenant in self.tenants.items()
        }
        self._till = Till(lambda: asyncio.get_running_loop().time() * 1000, gateways)
        self._shares = {
            name: share_of(name, tenant.mu_per_min, self.price, slot_mu=SUPPLY / TARGET)
            for name, tenant in self.tenants.items()
            if tenant.mu_per_min
        }
        self._sent = 0

    @property
    def deadline_s(self) -> float:
        """What the pool says of the return of an owner."""
        return claw_back.deadline_s(self.price, context_tokens=self.engine.max_model_len, supply_mu_per_min=SUPPLY)

    async def run(self, seconds: float) -> None:
        """Let the tenants send for so long, then wait for what is under way."""
        loop = asyncio.get_running_loop()
        loads = [Loads(self.board, f"gateway-{n}", clock=loop.time) for n in range(self.gateways)]
        self._dispatchers = [self._dispatcher(book) for book in loads]
        for book, desk in zip(loads, self._till.desks, strict=True):
            book.held, book.on_held = desk.unsettled.tell, desk.unsettled.hear
        for book in loads:
            await book.start()
        self.engines = {record.id: Engine(self.engine) for record in self._records}
        cores = [asyncio.ensure_future(engine.run()) for engine in self.engines.values()]
        self._running: set[asyncio.Task[None]] = set()
        senders = [asyncio.ensure_future(self._send(tenant, seconds)) for tenant in self.tenants.values()]
        await asyncio.gather(*senders)
        await all_over(self._running)
        for book in loads:
            await book.stop()
        for core in cores:
            core.cancel()
        await asyncio.gather(*cores, return_exceptions=True)

    def _dispatcher(self, loads: Loads) -> Dispatcher:
        made = Dispatcher(
            lambda _: self._records,
            loads,
            least_wait,
            queue_s=3600.0,
            queue_max=256 if self.scheme == "classes" else 1_000_000,
            clock=asyncio.get_running_loop().time,
            wall_clock=asyncio.get_running_loop().time,
            on_claw_back=lambda _, found: self.reliefs.append(found),
        )
        loads.on_cut = made.best_effort.cut_at
        loads.on_way = made.best_effort.make_way_at
        loads.order, loads.on_order = made.best_effort.tell, made.best_effort.hear
        loads.returns, loads.on_returns = made.best_effort.tell_places, made.best_effort.hear_places
        return made

    async def _send(self, tenant: Tenant, seconds: float) -> None:
        loop = asyncio.get_running_loop()
        dice = random.Random(f"{tenant.name} {self.random.random()}")
        ends = min(tenant.ends, seconds)
        await asyncio.sleep(tenant.begins)
        if tenant.at_once:
            await asyncio.gather(*(self._send_on(tenant, dice, ends) for _ in range(tenant.at_once)))
        while tenant.per_s and loop.time() < ends:
            await asyncio.sleep(dice.expovariate(tenant.per_s))
            if loop.time() < ends:
                self._running.add(asyncio.ensure_future(self._serve(tenant, dice)))

    async def _send_on(self, tenant: Tenant, dice: random.Random, ends: float) -> None:
        """One client that sends its next request when it has its answer, and a moment after a refusal."""
        loop = asyncio.get_running_loop()
        while loop.time() < ends:
            await self._serve(tenant, dice)
            if self.requests[-1].refused:
                await asyncio.sleep(1.0)

    async def _serve(self, tenant: Tenant, dice: random.Random) -> None:
        request = self.new_request(tenant, dice)
        await self.ask(tenant, request, dice.choice(tenant.at or range(self.gateways)))

    def new_request(self, tenant: Tenant, dice: random.Random) -> Request:
        """One of the tenant's, noted in the diary."""
        prompt, output = dice.randint(*tenant.prompt), dice.randint(*tenant.output)
        cost = token_costs(self.price, input_tokens=prompt, output_tokens=output)
        at = asyncio.get_running_loop().time()
        request = Request(tenant.name, at, prompt, output, cost.total, alone_s(cost.prefill, self.engine))
        self.requests.append(request)
        return request

    async def ask(
        self, tenant: Tenant, request: Request, gateway: int, *, key: str = "", mark: str = ""
    ) -> Busy | None:
        """Send it to a gateway, and have it served. The refusal of a dispatcher that has no room for it."""
        loop = asyncio.get_running_loop()
        prompt, output, request.refused = request.prompt, request.output, ""
        cost = token_costs(self.price, input_tokens=prompt, output_tokens=output)
        claim, granted = self._admit(tenant, request, gateway)
        if request.refused:
            return None
        if isinstance(claim, Lent):
            claim = claim._replace(key=key, mark=lambda: mark)
        load = Load(tenant.name, cost.prefill, cost.decode)
        dispatcher = self._dispatchers[gateway]

        def progress(tokens: int) -> None:
            if granted is not None:
                used = token_costs(self.price, input_tokens=prompt, output_tokens=tokens).total
                self._till.overrun(granted, self._shares[tenant.name].bucket, used)

        taker = Taker(progress)
        self._sent += 1
        number = self._sent
        while True:
            try:
                placement = await dispatcher.place(MODEL, load, claim=claim, on_reclaim=taker.cut, on_way=taker.on_way)
            except Busy as error:
                request.refused = error.reason
                if granted is not None:
                    self._till.settle(granted, 0.0)
                return error
            priority = classes.PRIORITY[classes.RESERVED if isinstance(claim, Owned) else classes.BEST_EFFORT]
            answer = Answer(
                [number * 8192 + n for n in range(prompt)],
                max_tokens=output,
                eos_after=None,
                seed=number,
                priority=priority if self.scheme == "classes" else 0,
                owner=taker,
            )
            engine = self.engines[placement.replica.id]
            engine.submit(answer)
            await taker.first
            if taker.is_cut or not taker.has_left:
                break
            engine.end(answer, "abort")
            dispatcher.finish(MODEL, placement.ticket, ok=False)
            self.put_back += 1
            claim = taker.begin_anew(claim)
        if not taker.is_cut:
            request.first_s = loop.time() - request.at
            dispatcher.started(MODEL, placement.ticket)
            await taker.last
        request.total_s = loop.time() - request.at
        if taker.is_cut:
            request.refused = "cut"
            engine.end(answer, "abort")
        dispatcher.finish(MODEL, placement.ticket, ok=True)
        if granted is not None:
            self._till.settle(granted, request.mu)
        return None

    def _admit(self, tenant: Tenant, request: Request, gateway: int) -> tuple[Claim, Granted | None]:
        account, now = self._accounts[tenant.name], asyncio.get_running_loop().time()
        if self.scheme == "requests" and not account.take(1.0, now):
            request.refused = "limit"
        if self.scheme != "classes":
            return None, None
        expected = token_costs(self.price, input_tokens=request.prompt, output_tokens=tenant.taught or request.output)
        if tenant.mu_per_min:
            own = self._shares[tenant.name]
            # Nobody says how long answers may become: as long as a slot can make them.
            most = expected.total + max(0.0, own.slot_mu - expected.decode)
            answer = self._till.charge(
                own, expected.total, expected.total if self.believes else most, at=gateway
            ).answer
            if isinstance(answer, Granted):
                request.is_reserved = True
                return Owned(1_000.0, self.deadline_s, tenant.name), answer
        return Lent(tenant.name, expected.total, tenant.wait_s, self.largest_mu, self.is_reserved), None


async def all_over(running: set[asyncio.Task[None]]) -> None:
    """Wait for all of them. Raises what one of them raised: a request that nobody served is no request in time."""
    while running:
        over, _ = await asyncio.wait(running, return_when=asyncio.FIRST_EXCEPTION)
        running -= over
        for task in over:
            task.result()


def share(requests: Sequence[Request], holds: Callable[[Request], bool]) -> float:
    """The share of ``requests`` of which ``holds`` is true; 1 of none."""
    return sum(map(holds, requests)) / len(requests) if requests else 1.0


def p99(requests: Sequence[Request]) -> float:
    """The 99th percentile of seconds to the first token of those that were answered; infinite when none was."""
    found = [r.first_s for r in requests if not r.refused]
    return statistics.quantiles(found, n=100)[98] if len(found) > 1 else float("inf")


def jain(values: Sequence[float]) -> float:
    """Jain's index of fairness: 1 when all are equal, 1/n when one has everything."""
    return sum(values) ** 2 / (len(values) * sum(value * value for value in values))
