"""One deployment without sockets: the gateway's dispatcher and policies, simulated engines, and tenants who send.

What decides is the product: dispatcher, best-effort queue, gate, order, buckets, loads, scheduler of the simulated
engine. Left out are HTTP, the journal and the shared state. Times are seconds of the virtual clock.
"""

from __future__ import annotations

import asyncio
import random
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from capacity.policy import claw_back
from capacity.policy.cost import CostProfile, token_costs
from capacity.policy.profiles import KNEE
from serving.gateway.dispatch import Busy, Claim, Dispatcher, Lent, Owned
from serving.gateway.loads import OWNED_OVER_S, ReplicaLoad, Ticket
from serving.gateway.records import ReplicaRecord
from serving.policy import bucket, classes
from serving.policy.bucket import Bucket
from serving.policy.pace import Pace
from serving.policy.routing import Load, least_mu
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


@dataclass(frozen=True)
class Tenant:
    """Sends ``per_s`` requests a second at random moments, from ``begins`` to ``ends``, or keeps ``at_once`` in flight.

    ``prompt`` and ``output`` are ranges of tokens. ``mu_per_min``: what it has reserved, 0: nothing.
    ``requests_per_min``: its limit where requests are what is limited.
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


class LoadBook:
    """Loads of one gateway."""

    def __init__(self) -> None:
        self.generation = 0
        self._loads: dict[str, ReplicaLoad] = {}
        self._owned = Pace(OWNED_OVER_S)

    def replica(self, replica_id: str) -> ReplicaLoad:
        return self._loads.setdefault(replica_id, ReplicaLoad())

    def dispatched(self, replica_id: str, w_mu: float, d_mu: float, *, is_lent: bool = False) -> Ticket:
        return Ticket(self.replica(replica_id), w_mu, d_mu, is_lent=is_lent)

    def presume(self, ticket: object, at: float) -> None:
        """Every answer is a stream here."""

    def note_presumed(self, now: float) -> None:
        """Every answer is a stream here."""

    def queued(self, deployment_id: str, mu: float) -> None:
        """Nobody looks."""

    def owned(self, deployment_id: str, prefill_mu: float) -> None:
        self._owned.add(prefill_mu, asyncio.get_running_loop().time())

    def owned_mu_per_s(self, deployment_id: str) -> float:
        return self._owned.now(asyncio.get_running_loop().time())

    def clawed_back(self, deployment_id: str) -> None:
        """There is no other gateway."""

    def wants_cut(self, replica_id: str) -> None:
        """There is no other gateway."""

    def claw_backs(self, deployment_id: str) -> int:
        return 0


class _Taker:
    """Who takes an answer's tokens."""

    def __init__(self) -> None:
        loop = asyncio.get_running_loop()
        self.first: asyncio.Future[None] = loop.create_future()
        self.last: asyncio.Future[None] = loop.create_future()
        self.is_cut = False

    def cut(self) -> None:
        """An owner needs the place."""
        self.is_cut = True
        for awaited in (self.first, self.last):
            if not awaited.done():
                awaited.set_result(None)

    def emit(self, sequence: Answer, token: int, reason: str | None) -> None:
        if not self.first.done():
            self.first.set_result(None)
        if reason and not self.last.done():
            self.last.set_result(None)

    def flush(self) -> None:
        """Nothing is kept back."""


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


class World:
    """``replicas`` simulated engines behind one gateway that admits by ``scheme``."""

    def __init__(
        self, scheme: Scheme, tenants: Sequence[Tenant], *, replicas: int, seed: int = 1, engine: EngineProfile = ENGINE
    ) -> None:
        self.scheme = scheme
        self.tenants = {tenant.name: tenant for tenant in tenants}
        self.random = random.Random(seed)
        self.engine = engine
        self.price = price_of(engine)
        self.largest_mu = classes.largest_prefill_mu(self.price, engine.max_model_len)
        self.requests: list[Request] = []
        self.reliefs: list[float] = []
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
        self._accounts = {name: self._account(tenant) for name, tenant in self.tenants.items()}
        self._sent = 0

    @property
    def deadline_s(self) -> float:
        """What the pool says of the return of an owner."""
        return claw_back.deadline_s(self.price, context_tokens=self.engine.max_model_len, supply_mu_per_min=SUPPLY)

    def _account(self, tenant: Tenant) -> Account:
        if self.scheme == "requests":
            return Account(tenant.requests_per_min, bucket.WINDOW_MS)
        if not tenant.mu_per_min:
            return Account(0.0, bucket.WINDOW_MS)
        burst = tenant.mu_per_min / 6
        return Account(burst, 10_000.0)

    async def run(self, seconds: float) -> None:
        """Let the tenants send for so long, then wait for what is under way."""
        loop = asyncio.get_running_loop()
        self._dispatcher = Dispatcher(
            lambda _: self._records,
            LoadBook(),
            least_mu,
            queue_s=3600.0,
            queue_max=256 if self.scheme == "classes" else 1_000_000,
            clock=loop.time,
            on_claw_back=lambda _, found: self.reliefs.append(found),
        )
        self.engines = {record.id: Engine(self.engine) for record in self._records}
        cores = [asyncio.ensure_future(engine.run()) for engine in self.engines.values()]
        self._running: set[asyncio.Task[None]] = set()
        senders = [asyncio.ensure_future(self._send(tenant, seconds)) for tenant in self.tenants.values()]
        await asyncio.gather(*senders)
        while self._running:
            await asyncio.wait(self._running)
        for core in cores:
            core.cancel()
        await asyncio.gather(*cores, return_exceptions=True)

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
                task = asyncio.ensure_future(self._serve(tenant, dice))
                self._running.add(task)
                task.add_done_callback(self._running.discard)

    async def _send_on(self, tenant: Tenant, dice: random.Random, ends: float) -> None:
        """One client that sends its next request when it has its answer, and a moment after a refusal."""
        loop = asyncio.get_running_loop()
        while loop.time() < ends:
            await self._serve(tenant, dice)
            if self.requests[-1].refused:
                await asyncio.sleep(1.0)

    async def _serve(self, tenant: Tenant, dice: random.Random) -> None:
        loop = asyncio.get_running_loop()
        prompt, output = dice.randint(*tenant.prompt), dice.randint(*tenant.output)
        cost = token_costs(self.price, input_tokens=prompt, output_tokens=output)
        alone_s = (cost.prefill * MS_PER_MU + self.engine.step_floor_ms) / 1000
        request = Request(tenant.name, loop.time(), prompt, output, cost.total, alone_s)
        self.requests.append(request)
        claim = self._admit(tenant, request)
        if request.refused:
            return
        load = Load(tenant.name, cost.prefill, cost.decode)
        taker = _Taker()
        try:
            placement = await self._dispatcher.place(MODEL, load, claim=claim, on_reclaim=taker.cut)
        except Busy as error:
            request.refused = error.reason
            return
        self._sent += 1
        priority = classes.PRIORITY[classes.RESERVED if isinstance(claim, Owned) else classes.BEST_EFFORT]
        answer = Answer(
            [self._sent * 8192 + n for n in range(prompt)],
            max_tokens=output,
            eos_after=None,
            seed=self._sent,
            priority=priority if self.scheme == "classes" else 0,
            owner=taker,
        )
        engine = self.engines[placement.replica.id]
        engine.submit(answer)
        await taker.first
        if not taker.is_cut:
            request.first_s = loop.time() - request.at
            self._dispatcher.started(MODEL, placement.ticket)
            await taker.last
        request.total_s = loop.time() - request.at
        if taker.is_cut:
            request.refused = "cut"
            engine.end(answer, "abort")
        self._dispatcher.finish(MODEL, placement.ticket, ok=True)

    def _admit(self, tenant: Tenant, request: Request) -> Claim:
        account, now = self._accounts[tenant.name], asyncio.get_running_loop().time()
        if self.scheme == "requests":
            if not account.take(1.0, now):
                request.refused = "limit"
            return None
        if self.scheme == "nothing":
            return None
        if tenant.mu_per_min and account.take(request.mu, now):
            request.is_reserved = True
            return Owned(1_000.0, self.deadline_s)
        return Lent(tenant.name, request.mu, tenant.wait_s, self.largest_mu, self.is_reserved)

    # ---------------------------------------------------------------- what came of it
    def of(self, *names: str, since: float = 0.0, until: float = float("inf")) -> list[Request]:
        return [r for r in self.requests if r.tenant in names and since <= r.at < until]

    def served_mu(self, name: str, *, since: float = 0.0, until: float = float("inf")) -> float:
        """MU of the requests that were answered between two moments."""
        return sum(r.mu for r in self.of(name) if not r.refused and since <= r.at + r.total_s < until)


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
