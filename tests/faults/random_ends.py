"""Requests that end at random before a small installation of real processes whose gateways and state are killed.

The limits here do not drain (their window is longer than history), so that what is charged can be counted in the end.
"""

from __future__ import annotations

import asyncio
import json
import random
import signal
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import aiohttp
import redis
from django.db import connections

from penstock.loops.usage import write_usage
from serving.gateway.state import connect
from tenants.member_credentials import seal
from tests.gateway.harness import PEPPER, PROFILE, Cluster, Engine, Gateway, key_record

REQUESTS = 200
SPREAD_S = 2.0
GATEWAYS = 2
FOREVER_S = 1e12
KINDS = ("requests_per_min", "tokens_per_min", "mu_per_min", "concurrency", "mu_per_month", "money_per_day")
PRICE_PER_1000_MU = 400.0
FAULTS = ("none", "gateway", "gateway", "both gateways", "state", "state", "emptied state", "state and gateway")


def new_id() -> str:
    return str(uuid.uuid4())


@dataclass
class Request:
    """One request as its client saw it. ``ended`` is 0 while it runs; times in UNIX seconds."""

    name: str
    who: str
    gateway: int
    input_tokens: int
    max_tokens: int
    is_stream: bool
    sent: float = 0.0
    ended: float = 0.0
    status: int = 0
    left: bool = False
    whole: bool = False

    @property
    def most_tokens(self) -> int:
        """More than a gateway can have taken it for."""
        return 4 * self.input_tokens + 64 + self.max_tokens

    @property
    def most_mu(self) -> float:
        return float(PROFILE["base"] + PROFILE["alpha"] * self.most_tokens + PROFILE["beta"] * self.max_tokens)

    @property
    def end(self) -> str:
        if self.left:
            return "left"
        if self.status == 200:
            return "whole" if self.whole else "broken"
        return str(self.status or "no answer")

    def counts_for(self, whose: str) -> bool:
        """Whether a limit of ``whose`` may be charged for it."""
        return whose in ("tenant", "reservation", self.who)

    def was_open(self, since: float, until: float) -> bool:
        return self.sent <= until and self.ended >= since


@dataclass
class Round:
    """What one seed did: its tenant and limits, its requests, and when what was killed (and was back)."""

    seed: int
    tenant: str
    keys: dict[str, str]
    """Who asks → the id under which usage is booked: two keys and a member."""
    limits: dict[str, list[dict[str, Any]]]
    """Whose (``tenant``, or who asks) → limits as published; ``reservation``: the bucket of what the tenant bought."""
    fault: str
    requests: list[Request] = field(default_factory=list)
    kills: list[tuple[str, float, float]] = field(default_factory=list)
    """(``state`` or the number of a gateway, killed, back)."""

    def killed(self, what: str) -> list[tuple[float, float]]:
        return [(at, back) for name, at, back in self.kills if name == what]


class Installation:
    """Two gateways before two scripted engines, whose answers are the engines' own account of all tokens."""

    def __init__(self, cluster: Cluster, pool: str, profile: dict[str, Any]) -> None:
        """``pool``: an id that the books know, with its ``profile``."""
        self.cluster = cluster
        self.engines: list[Engine] = [cluster.engine(name) for name in "ab"]
        self.pool, self.profile = pool, profile
        self.deployment, revision = new_id(), new_id()
        self.seen = {engine.name: 0 for engine in self.engines}
        deployment = {"id": self.deployment, "name": "m", "pool": self.pool, "revision": revision}
        replicas = [engine.replica(self.deployment) for engine in self.engines]
        cluster.publish(
            ("pool", {"id": self.pool, "slug": "p", "profile": profile | {"price_per_1000_mu": PRICE_PER_1000_MU}}),
            ("deployment", deployment | {"runtime": "simulated"}),
            *(
                ("replica", replica | {"id": new_id(), "revision": revision, "host": new_id(), "target_concurrency": 8})
                for replica in replicas
            ),
        )
        self.gateways: list[Gateway] = [cluster.start_gateway(f"g{number}") for number in range(GATEWAYS)]
        for gateway in self.gateways:
            cluster.settle(gateway.wait())

    def round(self, seed: int, rng: random.Random) -> Round:
        """A tenant of this seed's own, with limits for itself, two keys and a member; a few of them bind."""
        tenant = new_id()
        keys = {"first": new_id(), "second": new_id(), "member": new_id()}
        made = Round(seed, tenant, keys, {whose: self._limits(rng) for whose in ("tenant", *keys)}, rng.choice(FAULTS))
        self.cluster.publish(
            (
                "tenant",
                {
                    "id": tenant,
                    "slug": f"t{seed}",
                    "limits": made.limits["tenant"],
                    "members": {keys["member"]: made.limits["member"]},
                },
            ),
            *(
                ("key", key_record(f"{who}{seed}", tenant, limits=made.limits[who]) | {"uuid": keys[who]})
                for who in ("first", "second")
            ),
        )
        if rng.random() < 0.3:
            reservation = {
                "id": new_id(),
                "tenant": tenant,
                "pool": self.pool,
                "profile": self.profile,
                "starts_at": 1000.0,
            }
            self.cluster.publish(("reservation", reservation | {"mu_per_min": 300.0, "burst_mu": 100.0}))
        self.cluster.settle(*self.gateways)
        return made

    @staticmethod
    def _limits(rng: random.Random) -> list[dict[str, Any]]:
        typical = {"requests_per_min": 200.0, "tokens_per_min": 8000.0, "mu_per_min": 600.0, "concurrency": 20.0}
        typical |= {"mu_per_month": 600.0, "money_per_day": 240.0}
        limits = []
        for kind in KINDS:
            if rng.random() < 0.6:
                value = round(typical[kind] * (0.3 if rng.random() < 0.05 else rng.choice((1.5, 5.0, 100.0))))
                limits.append({"id": new_id(), "kind": kind, "value": value, "window_s": FOREVER_S})
        return limits

    def run(self, made: Round, rng: random.Random) -> None:
        """Send the requests while the faults happen, and book what comes; returns when all have ended and live."""
        sender = threading.Thread(target=asyncio.run, args=(self._send_all(made, rng),))
        is_over = threading.Event()
        booker = threading.Thread(target=self._book_on, args=(is_over,))
        for thread in (sender, booker):
            thread.start()
        began = time.time()
        for at, fault in self._faults(made, rng):
            time.sleep(max(0.0, began + at - time.time()))
            fault()
        sender.join()
        is_over.set()
        booker.join()
        for gateway in self.gateways:
            self.cluster.settle(gateway.wait())
        if not made.killed("state"):
            made.kills += [("state", at, at) for at in self._lost_answers(began)]

    def _lost_answers(self, since: float) -> list[float]:
        """When a gateway said that it goes on alone: on a machine that is too busy the state's answer came too late."""
        lines = [json.loads(line) for path in self.log_paths() for line in path.read_text().splitlines()]
        alone = [line for line in lines if str(line.get("event", "")).startswith("limits: going on")]
        moments = [datetime.fromisoformat(line["at"]).timestamp() for line in alone]
        return [at for at in moments if at >= since]

    def log_paths(self) -> set[Path]:
        return {gateway.log_path for gateway in self.gateways}

    def _book_on(self, is_over: threading.Event) -> None:
        client = connect(self.cluster.state_url)
        while not is_over.wait(0.2):
            self.book(client)
        client.close()
        connections.close_all()

    @staticmethod
    def book(client: redis.Redis) -> None:
        """As the loops do."""
        try:
            write_usage(client)
        except redis.RedisError:
            return  # the state is away

    def _faults(self, made: Round, rng: random.Random) -> list[tuple[float, Callable[[], None]]]:
        """(seconds after the start, what happens then), in order."""
        plan: list[tuple[float, Callable[[], None]]] = []
        if "state" in made.fault:
            at, is_emptied = rng.uniform(0.5, SPREAD_S), made.fault.startswith("emptied") or rng.random() < 0.3
            killed_at: list[float] = []

            def kill() -> None:
                self.cluster.kill_state(empty=is_emptied)
                killed_at.append(time.time())

            def start() -> None:
                self.cluster.start_state()
                made.kills.append(("state", killed_at[0], time.time()))

            plan += [(at, kill), (at + rng.choice((0.0, 0.3, 1.5)), start)]
        if "gateway" in made.fault:
            numbers = range(GATEWAYS) if made.fault.startswith("both") else [rng.randrange(GATEWAYS)]
            plan += [
                (rng.uniform(0.1, SPREAD_S), lambda number=number: self._replace(made, number)) for number in numbers
            ]
        return sorted(plan, key=lambda step: step[0])

    def _replace(self, made: Round, number: int) -> None:
        old = self.gateways[number]
        old.process.stop(signal.SIGKILL)
        at = time.time()
        self.gateways[number] = self.cluster.start_gateway(old.name, port=old.port)
        made.kills.append((str(number), at, at))

    async def _send_all(self, made: Round, rng: random.Random) -> None:
        connector = aiohttp.TCPConnector(limit=0, force_close=True)
        timeout = aiohttp.ClientTimeout(total=40)
        async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:
            await asyncio.gather(*(self._send(session, made, number, rng) for number in range(REQUESTS)))

    def _credential(self, made: Round, who: str) -> str:
        if who == "member":
            return seal(tenant=made.tenant, member=made.keys[who], peppers={1: PEPPER}, now=time.time())
        return f"mu_{who}{made.seed}_secret"

    async def _send(self, session: aiohttp.ClientSession, made: Round, number: int, rng: random.Random) -> None:
        """One request, which ends as the dice say: whole, left by its client, or failed by its engine."""
        words, max_tokens, is_stream = rng.randint(1, 60), rng.randint(1, 30), rng.random() < 0.7
        request = Request(
            name=f"{made.seed}-{number}",
            who=rng.choice(list(made.keys)),
            gateway=rng.randrange(GATEWAYS),
            input_tokens=words,
            max_tokens=max_tokens,
            is_stream=is_stream,
        )
        made.requests.append(request)
        script: dict[str, Any] = {"delay_ms": rng.choice((0, 2, 10, 40)), "first_ms": rng.choice((0, 0, 20, 100))}
        if is_stream:
            script["cached"] = rng.randint(0, words)
        if rng.random() < 0.2:
            how = ("drop", "error_event", "no_done", "status") if is_stream else ("drop", "status", "garbage")
            script |= {"fail": rng.choice(how), "at": rng.choice((0, 0, rng.randint(1, 30)))}
            if rng.random() < 0.5:
                script["port"] = rng.choice(self.engines).port
        leave_after_s = rng.choice((0.0, 0.01, 0.05, 0.3)) if rng.random() < 0.2 else None
        body = {"model": "m", "prompt": "abcd" * words, "max_tokens": max_tokens, "user": json.dumps(script)}
        headers = {"Authorization": f"Bearer {self._credential(made, request.who)}", "X-Request-Id": request.name}
        await asyncio.sleep(rng.uniform(0.0, SPREAD_S))
        request.sent = time.time()
        try:
            async with asyncio.timeout(leave_after_s):
                await self._ask(session, request, body | {"stream": is_stream}, headers)
        except TimeoutError:
            request.left = True
        except (aiohttp.ClientError, OSError):
            pass
        request.ended = time.time()

    async def _ask(
        self, session: aiohttp.ClientSession, request: Request, body: dict[str, Any], headers: dict[str, str]
    ) -> None:
        """Nobody listens where a gateway is gone: then the other one is asked, as a proxy before them would do."""
        for number in range(GATEWAYS):
            try:
                async with session.post(f"{self._url(request)}/v1/completions", json=body, headers=headers) as answer:
                    request.status = answer.status
                    text = await answer.read()
                    request.whole = answer.status == 200 and (not request.is_stream or b"[DONE]" in text)
                    return
            except aiohttp.ClientConnectorError:
                if number == GATEWAYS - 1:
                    raise
                request.gateway = (request.gateway + 1) % GATEWAYS

    def _url(self, request: Request) -> str:
        return self.gateways[request.gateway].url

    def engine_entries(self) -> list[dict[str, Any]]:
        """What the engines noted since the last call."""
        entries = []
        for engine in self.engines:
            fresh = engine.log(self.seen[engine.name])
            self.seen[engine.name] += len(fresh)
            entries += fresh
        return sorted(entries, key=lambda entry: entry["at"])
