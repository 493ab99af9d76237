"""Three promises of one installation, each about to be broken in its own way, and tenants who send inside them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import aiohttp

from tests.e2e.clients import StreamLog, stream
from tests.e2e.stack import Stack
from tests.faults.definition import Rule, Seen, Sold

ALPHA, BETA = 0.002, 0.02
"""The price of every pool, in MU per input and output token."""
TOKENS = 50
RULE = Rule(ttft_ms=1000.0, tpot_ms=60.0, tolerated=0.05)
FAST = {"alpha_ms": 0.05, "beta_ms": 0.2, "step_floor_ms": 8.0}
TIGHT = {"alpha_ms": 0.05, "beta_ms": 20.0, "step_floor_ms": 1.0}
"""It makes fifty tokens a second, however many requests share them: one request a second."""

SET_UP = f"""
import json
from capacity.models import HardwareType, Host
from capacity.policy.cost import CostProfile
from capacity.services import host_labels_set, model_create, pool_create
from serving.services import deployment_create
from tenants.services import api_key_create, tenant_create

who = dict(actor="test")
host_labels_set(host=Host.objects.get(name=FIRST), labels={{"rack": "first"}}, **who)
hardware = HardwareType.objects.get()
price = CostProfile(version=1, base=0.0, alpha={ALPHA}, beta={BETA}, gamma=0.0, epsilon=0.0, cached_factor=1.0)
keys = {{}}
for name, options, width, oversell in ASKED:
    model = model_create(name=name, artifact_kind="none", **who)
    pool = pool_create(
        name=name, model=model, hardware_type=hardware, profile=price, ttft_objective_ms={RULE.ttft_ms:.0f},
        tpot_objective_ms={RULE.tpot_ms:.0f}, slo_share={RULE.tolerated}, oversell_factor=oversell, keep_spare=False,
        **who,
    )
    deployment_create(
        pool=pool, name=name, runtime="simulated", options=options, target_concurrency=width, min_replicas=1,
        max_replicas=1, pinned_replicas=1, cold_start_s=2.0, **who,
    )
for name in OWNERS:
    tenant = tenant_create(name=name, slug=name, **who)
    keys[name] = api_key_create(tenant=tenant, name="key", scopes=("inference",), **who)[1]
print("MADE " + json.dumps(keys))
"""

SELL = """
import datetime, json
from django.utils import timezone
from capacity.models import Pool
from capacity.services import reservation_sell
from tenants.models import Tenant
starts_at = timezone.now() + datetime.timedelta(seconds=5)
for tenant, pool, mu in SOLD:
    row = reservation_sell(
        tenant=Tenant.objects.get(slug=tenant), pool=Pool.objects.get(slug=pool), mu_per_min=mu,
        starts_at=starts_at, actor="test",
    )
    print("SOLD " + json.dumps([str(row.pk), tenant, pool, mu, row.starts_at.timestamp(), row.verdict]))
"""


@dataclass
class Sender:
    """Sends ``per_s`` requests a second of one length, evenly, until it is told to stop."""

    tenant: str
    pool: str
    key: str
    per_s: float
    logs: list[StreamLog] = field(default_factory=list)

    async def send(self, stack: Stack, session: aiohttp.ClientSession, over: asyncio.Event) -> None:
        loop = asyncio.get_running_loop()
        begun, sent, running = loop.time(), 0, set()
        while not over.is_set():
            running.add(asyncio.ensure_future(self._one(stack, session, sent)))
            sent += 1
            pause = begun + sent / self.per_s - loop.time()
            await asyncio.sleep(max(0.0, pause))
        await asyncio.gather(*running)

    async def _one(self, stack: Stack, session: aiohttp.ClientSession, number: int) -> None:
        mark = f"{self.tenant}-{self.pool}-{id(self):x}-{number}"
        prompt = f"number {number} of {self.tenant}"
        self.logs.append(
            await stream(
                session,
                stack.base_url,
                self.key,
                model=self.pool,
                client_id=mark,
                max_tokens=TOKENS,
                prompt=prompt,
            )
        )

    def seen(self) -> list[Seen]:
        """What came of its requests, by its own notes."""
        return [_seen(self, log) for log in self.logs]


def _seen(sender: Sender, log: StreamLog) -> Seen:
    told: Any = log.usage
    asked, made = int(told.get("prompt_tokens", 0)), int(told.get("completion_tokens", 0))
    first = next((at for at, count in log.tokens if count), None)
    return Seen(
        tenant=sender.tenant,
        pool=sender.pool,
        is_reserved=log.service_class == "reserved",
        status=log.status,
        is_whole=log.done and not log.error,
        sent_at=log.sent_at,
        first_at=first,
        ended_at=log.ended_at,
        output_tokens=made,
        mu=ALPHA * asked + BETA * made,
        asked_mu=log.estimated_mu,
    )


def set_up(stack: Stack, first: str, asked: Sequence[tuple[Any, ...]], owners: Sequence[str]) -> dict[str, str]:
    """Pools with a deployment each, and tenants: their keys by name. ``first``: the host that is not lost."""
    told = stack.manage(f"FIRST = {first!r}\nASKED = {list(asked)!r}\nOWNERS = {list(owners)!r}\n{SET_UP}")
    keys: dict[str, str] = json.loads(told.split("MADE ")[1].splitlines()[0])
    return keys


def sell(stack: Stack, sold: Sequence[tuple[str, str, float]]) -> dict[str, Sold]:
    """Reservations from a few seconds on, of which the ledger says that they fit. By tenant."""
    told = stack.manage(f"SOLD = {list(sold)!r}\n{SELL}")
    found = {}
    for line in told.splitlines():
        if line.startswith("SOLD "):
            pk, tenant, pool, mu, starts_at, verdict = json.loads(line[5:])
            assert verdict == "fits"
            found[tenant] = Sold(pk, tenant, pool, mu, starts_at)
    return found
