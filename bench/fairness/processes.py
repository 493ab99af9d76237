"""The same tenants before real processes: gateways, Valkey, each simulated engine by itself, clients over HTTP.

An engine reads a short prompt in some tens of milliseconds and makes a hundred tokens a second, so that two busy cores
do for all of it. Where limits of requests are all there is, clients go to the engines themselves, to the one with the
fewest requests: no gateway could know better, and none takes its time.
"""

from __future__ import annotations

import asyncio
import json
import random
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any, Literal

import aiohttp
import httpx
import msgspec

from bench.fairness import scenarios
from bench.fairness.scenarios import Across, Outcome, Placed, Return
from bench.fairness.world import MODEL, SUPPLY, TARGET, Account, Diary, Request, Tenant, alone_s, price_of
from capacity.policy import claw_back
from capacity.policy.cost import token_costs
from serving.policy import bucket
from tests.gateway.harness import Cluster, Process, cluster, free_port, key_record, wait_for
from worker.simulated.profile import EngineProfile
from worker.simulated.tokenizer import FIRST_WORD, WORD_COUNT

Scheme = Literal["direct", "requests", "classes"]
"""``direct``: limits of requests, and no gateway. ``requests``: the same limits at the gateways, with nothing reserved:
all is best effort. ``classes``: reservations."""
LAST_WORD_S = 15.0
"""How long after the last request answers are waited for."""


class Site(Diary):
    """``replicas`` engines, ``gateways`` before them, and clients in this process. ``run`` it once."""

    def __init__(
        self,
        scheme: Scheme,
        tenants: Sequence[Tenant],
        *,
        replicas: int,
        gateways: int,
        engine: EngineProfile,
        seed: int = 1,
    ) -> None:
        super().__init__()
        self.scheme = scheme
        self.tenants = tenants
        self.replicas, self.gateways = replicas, gateways
        self.engine = engine
        self.price = price_of(engine)
        self._seed = seed
        self._accounts = {t.name: Account(t.requests_per_min, bucket.WINDOW_MS) for t in tenants}
        self._in_flight: dict[str, int] = {}
        self._began = 0.0

    @property
    def deadline_s(self) -> float:
        """What the pool says of the return of an owner."""
        return claw_back.deadline_s(self.price, context_tokens=self.engine.max_model_len, supply_mu_per_min=SUPPLY)

    def run(self, seconds: float, *, last_word_s: float = LAST_WORD_S) -> None:
        """Start everything, let the tenants send for so long, wait for answers, and stop everything."""
        with cluster() as made, self._engines() as engines:
            self._publish(made, engines)
            count = 0 if self.scheme == "direct" else self.gateways
            starting = [made.start_gateway(f"gateway-{n}") for n in range(count)]
            for gateway in starting:
                gateway.wait()
            made.settle(*starting)
            urls = [gateway.url for gateway in starting] or engines
            asyncio.run(self._send_all(seconds, urls, last_word_s))

    @contextmanager
    def _engines(self) -> Iterator[list[str]]:
        ports = [free_port() for _ in range(self.replicas)]
        command = [sys.executable, "-m", "worker.simulated", "--served-model-name", MODEL]
        command += ["--profile", msgspec.json.encode(self.engine).decode(), "--scheduling-policy", "priority"]
        running = [Process([*command, "--port", str(port)]) for port in ports]
        try:
            urls = [f"http://127.0.0.1:{port}" for port in ports]
            for url in urls:
                wait_for("an engine", lambda at=url: httpx.get(f"{at}/health").status_code == 200, every=0.05)
            yield urls
        finally:
            for process in running:
                process.stop()

    def _publish(self, made: Cluster, engines: list[str]) -> None:
        profile = {k: v for k, v in asdict(self.price).items() if k in _PRICES}
        waits = max(tenant.wait_s for tenant in self.tenants)
        pool = {"id": "p", "slug": "p", "profile": profile, "claw_back_s": self.deadline_s, "best_effort_wait_s": waits}
        deployment = {"id": MODEL, "name": MODEL, "pool": "p", "revision": "r", "runtime": "simulated"}
        records: list[tuple[str, dict[str, Any]]] = [
            ("pool", pool),
            ("deployment", deployment | {"max_model_len": self.engine.max_model_len}),
        ]
        for number, url in enumerate(engines):
            replica = {"id": f"r{number}", "deployment": MODEL, "revision": "r", "host": "h", "address": url}
            replica |= {"state": "ready", "target_concurrency": TARGET, "supply_mu_per_min": SUPPLY}
            records.append(("replica", replica))
        for tenant in self.tenants:
            name, rate = tenant.name, tenant.requests_per_min
            limits = [{"id": f"l-{name}", "kind": "requests_per_min", "value": rate}]
            records.append(("tenant", {"id": name, "slug": name, "limits": [] if self.scheme == "classes" else limits}))
            records.append(("key", key_record(_public(name), name)))
            if self.scheme == "classes" and tenant.mu_per_min:
                sold = {"id": f"s-{name}", "tenant": name, "pool": "p", "profile": profile, "starts_at": 1000.0}
                sold |= {"mu_per_min": tenant.mu_per_min, "burst_mu": tenant.mu_per_min / 6}
                records.append(("reservation", sold))
        made.publish(*records)

    # ------------------------------------------------------------- clients
    def _now(self) -> float:
        return asyncio.get_running_loop().time() - self._began

    async def _send_all(self, seconds: float, urls: list[str], last_word_s: float) -> None:
        self._in_flight = dict.fromkeys(urls, 0)
        under_way: set[asyncio.Task[None]] = set()
        connector = aiohttp.TCPConnector(limit=0)
        async with aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(total=None)) as session:
            self._began = asyncio.get_running_loop().time()
            await asyncio.gather(*(self._send(tenant, seconds, session, under_way) for tenant in self.tenants))
            if under_way:
                _, late = await asyncio.wait(under_way, timeout=last_word_s)
                for task in late:
                    task.cancel()
                await asyncio.gather(*late, return_exceptions=True)

    async def _send(
        self, tenant: Tenant, seconds: float, session: aiohttp.ClientSession, under_way: set[asyncio.Task[None]]
    ) -> None:
        dice = random.Random(f"{tenant.name} {self._seed}")
        ends = min(tenant.ends, seconds)

        def send() -> asyncio.Task[None]:
            task = asyncio.ensure_future(self._serve(tenant, dice, session))
            under_way.add(task)
            task.add_done_callback(under_way.discard)
            return task

        async def send_on() -> None:
            while self._now() < ends:
                await asyncio.wait({send()}, timeout=max(0.0, ends - self._now()))
                if self.requests[-1].refused:
                    await asyncio.sleep(1.0)

        await asyncio.sleep(tenant.begins)
        await asyncio.gather(*(send_on() for _ in range(tenant.at_once)))
        due = self._now()
        while tenant.per_s:
            # By the clock, not from answer to answer: a busy machine sends as many.
            due += dice.expovariate(tenant.per_s)
            await asyncio.sleep(max(0.0, min(due, ends) - self._now()))
            if due >= ends:
                return
            send()

    async def _serve(self, tenant: Tenant, dice: random.Random, session: aiohttp.ClientSession) -> None:
        prompt, output = dice.randint(*tenant.prompt), dice.randint(*tenant.output)
        cost = token_costs(self.price, input_tokens=prompt, output_tokens=output)
        alone = alone_s(cost.prefill, self.engine)
        request = Request(tenant.name, self._now(), prompt, output, cost.total, alone)
        self.requests.append(request)
        urls = list(self._in_flight)
        if self.scheme == "direct":
            if not self._accounts[tenant.name].take(1.0, self._now()):
                request.refused = "limit"
                return
            url = min(urls, key=self._in_flight.__getitem__)
        else:
            url = dice.choice([urls[n] for n in tenant.at] or urls)
        body: dict[str, Any] = {"model": MODEL, "max_tokens": output, "ignore_eos": True, "stream": True}
        body["prompt"] = dice.choices(range(FIRST_WORD, FIRST_WORD + WORD_COUNT), k=prompt)
        self._in_flight[url] += 1
        try:
            await self._read(session, url, body, request)
        except asyncio.CancelledError:
            # Nobody waits any longer: what it has taken so far is the least.
            request.total_s = float("inf")
            request.first_s = request.first_s or self._now() - request.at
        except aiohttp.ClientError:
            # No answer, or a part of one, is none in time.
            request.total_s, request.refused = self._now() - request.at, "lost"
        finally:
            self._in_flight[url] -= 1

    async def _read(self, session: aiohttp.ClientSession, url: str, body: dict[str, Any], request: Request) -> None:
        headers = {"authorization": f"Bearer mu_{_public(request.tenant)}_secret"}
        tail = b""
        async with session.post(f"{url}/v1/completions", json=body, headers=headers) as answer:
            if answer.status != 200:
                request.refused = str(json.loads(await answer.read())["error"].get("code") or answer.status)
            else:
                request.is_reserved = answer.headers.get("x-penstock-class") == "reserved"
                async for part in answer.content.iter_any():
                    request.first_s = request.first_s or self._now() - request.at
                    tail = (tail + part)[-400:]
        request.total_s = self._now() - request.at
        if not request.refused and b'"error"' in tail:
            request.refused = "cut"


_PRICES = ("version", "base", "alpha", "beta", "gamma", "epsilon", "cached_factor")


def _public(name: str) -> str:
    """The public part of the tenant's key."""
    return name.replace("-", "")


def neighbours(
    scheme: Scheme, *, replicas: int, gateways: int, seconds: float, with_flood: bool, seed: int = 1
) -> Outcome:
    """Owners and small tenants, with the flood beside them or without it. Times unanswered at the end are the least."""
    tenants = [*scenarios.owners(replicas), *scenarios.small(replicas)]
    tenants += [scenarios.flood(replicas)] if with_flood else []
    site = Site(scheme, tenants, replicas=replicas, gateways=gateways, engine=scenarios.CHUNKED, seed=seed)
    site.run(seconds)
    return scenarios.outcome(site, seconds)


def owner_returns(*, replicas: int, gateways: int, long: bool, seed: int = 1) -> Return:
    """Owners come back after 15 s to a pool that was lent to the last, and stay for 20 s."""
    tenants = [*scenarios.owners(replicas, begins=15.0), scenarios.lender(replicas, long=long)]
    site = Site("classes", tenants, replicas=replicas, gateways=gateways, engine=scenarios.CHUNKED, seed=seed)
    site.run(35.0)
    return scenarios.returned(site, 15.0, deadline_s=site.deadline_s)


def across(placed: Placed, *, replicas: int, seconds: float, gateways: int, seed: int = 1) -> Across:
    """Best-effort tenants who always want more, at gateways that share the replicas."""
    tenants = scenarios.placed_tenants(placed, replicas=replicas, gateways=gateways)
    site = Site("classes", tenants, replicas=replicas, gateways=gateways, engine=scenarios.CHUNKED, seed=seed)
    site.run(seconds, last_word_s=0.5)
    return scenarios.shared(site, tenants, seconds)
