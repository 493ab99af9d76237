"""A platform in the middle of its day, with figures that add up: what was offered is what the roll-ups settled.

Two pools: ``chat-32b`` on two hosts with accelerators (three replicas ready, one loading weights, one failed) and
``demo-sim`` on simulated engines. Two tenants with two keys each; both have reserved from ``chat-32b``.
"""

from __future__ import annotations

import random
import uuid
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal

import msgspec
import redis
from django.utils import timezone

from capacity.models import (
    Accelerator,
    CostProfile,
    HardwareType,
    Host,
    Model,
    Pool,
    Reservation,
    UsageRecord,
)
from capacity.usage.lines import Charge
from serving.models import Deployment, Incident, Replica, Revision, ScalingDecision
from tenants.models import ApiKey, Limit, Membership, Tenant, User
from tests.web.calibrated import calibrations
from tests.web.invoiced import invoiced
from tests.web.over_time import over_time, refused
from tests.web.promised import judged
from tests.web.traffic import OF_RESERVATIONS, history, offered, rings

GIB = 2**30
PASSWORD = "a-long-enough-password"


@dataclass(frozen=True)
class Seeded:
    operator: User
    owner: User
    viewer: User
    stranger: User
    northwind: Tenant
    alder: Tenant
    chat: Deployment
    sim: Deployment
    failed: Replica


def people() -> tuple[User, User, User, User, Tenant, Tenant]:
    operator = User.objects.create_user("operator@penstock.example", PASSWORD, is_operator=True)
    owner = User.objects.create_user("owner@northwind.example", PASSWORD)
    viewer = User.objects.create_user("viewer@northwind.example", PASSWORD)
    stranger = User.objects.create_user("owner@alder.example", PASSWORD)
    northwind = Tenant.objects.create(slug="northwind", name="Northwind Bank")
    alder = Tenant.objects.create(slug="alder", name="Alder Health")
    Membership.objects.create(tenant=northwind, user=owner, role="owner")
    Membership.objects.create(tenant=northwind, user=viewer, role="viewer")
    Membership.objects.create(tenant=alder, user=stranger, role="owner")
    return operator, owner, viewer, stranger, northwind, alder


def api_key(tenant: Tenant, name: str) -> ApiKey:
    public = uuid.uuid5(uuid.NAMESPACE_DNS, f"{tenant.slug}.{name}").hex[:12]
    return ApiKey.objects.create(
        tenant=tenant, name=name, public_id=public, digest="0" * 64, pepper=1, scopes=["inference"]
    )


def pool(slug: str, model: Model, hardware: HardwareType, *, calibrated: bool, now: datetime) -> Pool:
    made = Pool.objects.create(slug=slug, name=slug, model=model, ttft_objective_ms=800, tpot_objective_ms=45)
    CostProfile.objects.create(
        pool=made,
        version=1,
        hardware_type=hardware,
        effective_from=now - timedelta(days=60),
        calibrated=calibrated,
        alpha=0.00002,
        beta=0.0006,
    )
    return made


def usage_record(tenant: Tenant, key_id: uuid.UUID, of: Pool, **fields: object) -> UsageRecord:
    """One completed request of ``tenant``, a second ago."""
    now = timezone.now()
    defaults: dict[str, object] = {
        "id": uuid.uuid4(),
        "deployment_id": uuid.uuid4(),
        "revision_id": uuid.uuid4(),
        "replica_id": uuid.uuid4(),
        "model": "chat-32b",
        "dialect": "chat",
        "service_class": "best_effort",
        "stream": True,
        "profile_version": 1,
        "estimated_mu": 0.4,
        "actual_mu": 0.32,
        "input_tokens": 1000,
        "cached_tokens": 400,
        "output_tokens": 500,
        "outcome": "completed",
        "status": 200,
        "finish_reason": "stop",
        "gateway": "gw-1",
        "admitted_at": now - timedelta(seconds=9),
        "routed_at": now - timedelta(seconds=8.9),
        "first_byte_at": now - timedelta(seconds=8),
        "ended_at": now - timedelta(seconds=1),
    }
    return UsageRecord.objects.create(tenant_id=tenant.pk, key_id=key_id, pool_id=of.pk, **(defaults | fields))


def replica(
    deployment: Deployment, revision: Revision, host: Host, state: str, now: datetime, **fields: object
) -> Replica:
    defaults: dict[str, object] = {"state_since": now - timedelta(hours=19), "supply_mu_per_min": 100.0}
    if state == "ready":
        defaults |= {"address": "http://127.0.0.1:9000", "phase": "ready", "engine_version": "vLLM 0.11.2"}
    made = Replica.objects.create(
        deployment=deployment, revision=revision, host=host, state=state, **(defaults | fields)
    )
    made.created_at = now - timedelta(hours=20)
    made.save(update_fields=("created_at",))
    return made


def host(name: str, hardware: HardwareType, now: datetime, *, accelerators: int) -> Host:
    facts = {
        "hostname": name,
        "agent_version": "0.1.0",
        "cores": 64 if accelerators else 16,
        "cpu_model": "AMD EPYC 9354" if accelerators else "AMD EPYC 7443",
        "memory_bytes": 512 * GIB if accelerators else 64 * GIB,
        "memory_available_bytes": 391 * GIB if accelerators else 51 * GIB,
        "load_1m": 6.4 if accelerators else 1.2,
        "environments": [{"name": "vllm-0.11.2", "state": "ready"}] if accelerators else [],
    }
    made = Host.objects.create(name=name, hardware_type=hardware, secret=b"x", last_report_at=now, report=facts)
    for index in range(accelerators):
        Accelerator.objects.create(
            host=made, index=index, uuid=f"GPU-{name}-{index}", name="H200", memory_bytes=141 * 10**9
        )
    return made


def seed(client: redis.Redis | None, now: datetime | None = None, *, hours: int = 24 * 30) -> Seeded:
    """Fill the database, and the rings when ``client`` is given. ``now`` is the newest moment, ``hours`` the past."""
    now = now or timezone.now()
    rng = random.Random(11)
    operator, owner, viewer, stranger, northwind, alder = people()
    gpu = HardwareType.objects.create(slug="h200", name="NVIDIA H200", memory_bytes=141 * 10**9)
    cpu = HardwareType.objects.create(slug="cpu", name="CPU", is_cpu=True)
    hosts = [host("gpu-01", gpu, now, accelerators=2), host("gpu-02", gpu, now, accelerators=2)]
    node = host("node-01", cpu, now, accelerators=0)
    qwen = Model.objects.create(
        slug="qwen3-32b", name="Qwen3-32B", artifact_kind="hub", artifact_value="Qwen/Qwen3-32B"
    )
    none = Model.objects.create(slug="simulated", name="Simulated 8B", artifact_kind="none")
    chat_pool, sim_pool = (
        pool("chat-32b", qwen, gpu, calibrated=True, now=now),
        pool("demo-sim", none, cpu, calibrated=False, now=now),
    )
    chat = Deployment.objects.create(
        pool=chat_pool, name="chat-32b", min_replicas=2, max_replicas=6, desired_replicas=4
    )
    sim = Deployment.objects.create(pool=sim_pool, name="demo-sim", min_replicas=1, max_replicas=4, desired_replicas=2)
    chat_r = Revision.objects.create(deployment=chat, number=1, runtime="vllm", target_concurrency=16)
    sim_r = Revision.objects.create(deployment=sim, number=1, runtime="simulated", target_concurrency=32)
    chats = [replica(chat, chat_r, hosts[i // 2], "ready", now, accelerators=[i % 2]) for i in range(3)]
    replica(
        chat,
        chat_r,
        hosts[1],
        "starting",
        now,
        accelerators=[1],
        state_since=now - timedelta(seconds=38),
        phase="weights",
        progress={"step": "weights", "share": 0.63, "detail": "41 of 65 GB"},
    )
    failed = replica(
        chat,
        chat_r,
        hosts[1],
        "failed",
        now,
        state_since=now - timedelta(minutes=4),
        phase="failed",
        reason="The engine ended with code 1: not enough memory for a KV cache. Lower the context length, then retry.",
    )
    sims = [
        replica(sim, sim_r, node, "ready", now, engine_version="Simulated 1", state_since=now - timedelta(minutes=m))
        for m in (74, 12)
    ]
    for tenant, mu in ((northwind, 150.0), (alder, 90.0)):
        Reservation.objects.create(
            tenant=tenant,
            pool=chat_pool,
            profile=CostProfile.objects.get(pool=chat_pool),
            mu_per_min=mu,
            starts_at=now - timedelta(days=20),
            ends_at=now + timedelta(days=131),
            state=Reservation.State.ACTIVE,
            burst_mu=mu / 6,
            price=Decimal("0.42"),
            currency="EUR",
            verdict="fits",
            decided_by=operator.email,
            decided_at=now - timedelta(days=21),
        )
    promised = list(Reservation.objects.order_by("-mu_per_min"))
    judged(now, promised)
    invoiced(now, northwind, (chat_pool, sim_pool))
    over_time(now, hours, {chat: 3, sim: 2}, promised)
    _wishes(chat_pool, northwind, alder, owner, now)
    keys = {
        "core-banking": (northwind, chat, 0.42),
        "support-assist": (northwind, chat, 0.20),
        "triage": (alder, chat, 0.38),
        "sandbox": (northwind, sim, 0.7),
        "evaluation": (alder, sim, 0.3),
    }
    made = {name: api_key(tenant, name) for name, (tenant, _, _) in keys.items()}
    ApiKey.objects.update(last_used_at=now - timedelta(seconds=20), created_by=owner)
    ApiKey.objects.filter(tenant=alder).update(created_by=stranger)
    Limit.objects.create(tenant=northwind, kind=Limit.Kind.CONCURRENCY, value=64, set_by="operator")
    Limit.objects.create(
        tenant=northwind, api_key=made["sandbox"], kind=Limit.Kind.TOKENS_PER_MIN, value=20_000, set_by="tenant"
    )
    history(now, hours, keys, made)
    refused(now, hours, keys, made)
    _requests(now, rng, chats, chat_r, keys, made)
    _decisions(now, min(hours, 24), chat, sim, chats)
    calibrations(chat, sim, now)
    if client is not None:
        rings(client, now, min(hours, 2), chat, sim, [*chats, *sims])
    return Seeded(operator, owner, viewer, stranger, northwind, alder, chat, sim, failed)


def _wishes(pool: Pool, northwind: Tenant, alder: Tenant, owner: User, now: datetime) -> None:
    """What is asked for, what starts later, and what was declined."""
    common = {"pool": pool, "profile": CostProfile.objects.get(pool=pool)}
    day = timedelta(days=1)
    Reservation.objects.create(
        **common,
        tenant=northwind,
        mu_per_min=80.0,
        burst_mu=14.0,
        starts_at=now + 14 * day,
        ends_at=now + 104 * day,
        state="requested",
        note="The new branch app goes live in all offices",
        requested_by=owner.email,
    )
    Reservation.objects.create(
        **common,
        tenant=alder,
        mu_per_min=60.0,
        burst_mu=12.0,
        starts_at=now + 35 * day,
        ends_at=now + 160 * day,
        state="draft",
        price=Decimal("0.4"),
        currency="EUR",
        verdict="without_spare",
        override_reason="Two more accelerators are ordered",
        decided_by="operator@penstock.example",
        decided_at=now - day,
    )
    Reservation.objects.create(
        **common,
        tenant=alder,
        mu_per_min=900.0,
        burst_mu=150.0,
        starts_at=now + day,
        state="refused",
        reason="There is no room for so much before the new hall opens in spring",
        decided_by="operator@penstock.example",
        decided_at=now - 3 * day,
    )


def _requests(
    now: datetime, rng: random.Random, replicas: list[Replica], revision: Revision, keys: dict, made: dict
) -> None:
    rows = []
    for index in range(120):
        name = rng.choices(list(keys), weights=[share for _, _, share in keys.values()])[0]
        tenant, deployment, _ = keys[name]
        ended = now - timedelta(seconds=index * 0.9)
        tokens_in, tokens_out = int(rng.lognormvariate(7.0, 0.6)), int(rng.lognormvariate(5.8, 0.5))
        ttft_s, broken = 0.12 + rng.random() * 0.25 + tokens_in * 4e-5, index in (7, 43)
        took_s = ttft_s + tokens_out * 0.028
        mu = tokens_in * 0.00002 + tokens_out * 0.0006
        estimated_mu = mu * (0.85 + rng.random() * 0.4)
        rows.append(
            UsageRecord(
                id=uuid.UUID(int=(0x019AA << 108) | rng.getrandbits(100)),
                tenant_id=tenant.pk,
                key_id=made[name].pk,
                pool_id=deployment.pool_id,
                deployment_id=deployment.pk,
                revision_id=revision.pk,
                replica_id=rng.choice(replicas).pk,
                model=deployment.name,
                dialect="chat",
                service_class="reserved" if name in OF_RESERVATIONS else "best_effort",
                stream=True,
                profile_version=1,
                estimated_mu=estimated_mu,
                actual_mu=mu,
                input_tokens=tokens_in,
                cached_tokens=int(tokens_in * 0.44),
                output_tokens=tokens_out,
                estimated_input_tokens=int(tokens_in * (0.95 + rng.random() * 0.1)),
                estimated_output_tokens=int(tokens_out * (0.8 + rng.random() * 0.5)),
                lower_bound=broken,
                outcome="engine_lost" if broken else "completed",
                status=502 if broken else 200,
                error="The connection to the replica broke." if broken else "",
                finish_reason="" if broken else "stop",
                charges=_charges(name, deployment, tokens_in + tokens_out, estimated_mu),
                gateway="gw-1",
                admitted_at=ended - timedelta(seconds=took_s),
                routed_at=ended - timedelta(seconds=took_s - 0.002),
                first_byte_at=ended - timedelta(seconds=took_s - ttft_s),
                ended_at=ended,
            )
        )
    UsageRecord.objects.bulk_create(rows)


def _charges(key: str, deployment: Deployment, tokens: int, mu: float) -> list[list[object]]:
    """What limits of all holders, and a reservation with or without room, said of a request."""
    own, month = str(uuid.UUID(int=7)), timezone.now().strftime("%Y-%m")
    budget = f"{own}.{deployment.pool_id}.{month}"
    found = [
        Charge(own, "tenant", "requests_per_min", "", 9000.0, 1.0, 8421.0),
        Charge(own, "key", "tokens_per_min", deployment.name, 120_000.0, float(tokens), 70_112.0),
        Charge(budget, "member", "mu_per_month", "", 6_000_000.0, mu, 2_412_635.4),
        Charge(own, "tenant", "concurrency", "", 64.0, 1.0, 41.0),
        Charge(own, "reservation", "mu_per_min", "", 150.0, mu, 24.7, key in OF_RESERVATIONS),
    ]
    told: list[list[object]] = msgspec.to_builtins(found)
    return told


def _decisions(now: datetime, hours: int, chat: Deployment, sim: Deployment, chats: list[Replica]) -> None:
    rows = []
    for deployment, ready in ((chat, 3), (sim, 2)):
        for back in range(1, hours * 60):
            at = now - timedelta(minutes=back)
            load = offered(deployment.name, at)
            observation = {"offered_mu_per_min": load, "ready": ready, "replica_mu_per_min": 100.0}
            rows.append(
                ScalingDecision(
                    at=at,
                    deployment_id=deployment.pk,
                    deployment_name=deployment.name,
                    before=ready,
                    after=ready,
                    reason=f"{load:.0f} MU/min offered fits {ready} replicas, {ready * 100 - load:.0f} to spare",
                    inputs={"observation": observation},
                )
            )
    ScalingDecision.objects.bulk_create(rows, batch_size=500)
    ScalingDecision.objects.create(
        at=now - timedelta(seconds=40),
        deployment_id=chat.pk,
        deployment_name="chat-32b",
        before=3,
        after=4,
        reason="253 MU/min offered needs 3.4 replicas to keep 1 % of requests from waiting over 5 s",
        inputs={"observation": {"offered_mu_per_min": 253.0, "ready": 3, "replica_mu_per_min": 100.0}},
    )
    Incident.objects.create(
        kind=Incident.Kind.START_FAILED,
        deployment_id=chat.pk,
        deployment_name="chat-32b",
        opened_at=now - timedelta(minutes=4),
        summary="A replica of chat-32b did not start on gpu-02",
    )
    Incident.objects.create(
        kind=Incident.Kind.HANG,
        deployment_id=chat.pk,
        deployment_name="chat-32b",
        replica_id=chats[0].pk,
        opened_at=now - timedelta(hours=5, minutes=12),
        closed_at=now - timedelta(hours=5, minutes=9, seconds=20),
        summary="A replica of chat-32b hung with 11 requests in flight",
        timeline=[{"at": 0, "what": "replaced on gpu-01 and ready"}],
    )
