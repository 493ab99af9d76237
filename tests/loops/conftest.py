"""A small platform for the loops: one host with a scripted agent, one pool, one deployment; a real shared state."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest
import redis
from django.conf import settings

from capacity.models import Host, Pool
from capacity.policy.cost import CostProfile
from capacity.services import hardware_type_get_or_create, host_enrol, model_create, pool_create, profile_add
from penstock.loops.reconcile import reconcile
from serving.agents.envelopes import HostSecrets, report_verify
from serving.agents.reports import Applied, report_apply
from serving.gateway.loads import DeploymentBeat, GatewayBeat, ReplicaBeat
from serving.gateway.state import policy_state_read
from serving.models import Deployment, Replica
from serving.services import deployment_create
from tests.loops.agent import ScriptedAgent
from tests.loops.measuring import MeasuredEngine
from tests.replay import replayed

BOSS = "a test"


@dataclass
class FakeGateway:
    """Writes a gateway's heartbeat by the letter of ``docs/protocols.md``."""

    client: redis.Redis
    name: str = "gw-1"
    pid: int = 100
    started_at: float = 1.0
    sequence: int = 0
    replicas: dict[str, ReplicaBeat] = field(default_factory=dict)
    deployments: dict[str, DeploymentBeat] = field(default_factory=dict)

    def beat(self) -> None:
        self.sequence += 1
        beat = GatewayBeat(
            gateway=self.name,
            pid=self.pid,
            sequence=self.sequence,
            at=time.time(),
            started_at=self.started_at,
            replicas=self.replicas,
            deployments=self.deployments,
        )
        seconds, micros = self.client.time()
        self.client.set(f"penstock:gw:{self.name}", msgspec.json.encode(beat), px=2000)
        self.client.zadd("penstock:gws", {self.name: seconds + micros / 1e6})

    def silence(self) -> None:
        self.client.delete(f"penstock:gw:{self.name}")
        self.client.zrem("penstock:gws", self.name)


@dataclass
class World:
    """The platform under test, on a clock of its own (UNIX seconds)."""

    client: redis.Redis
    pool: Pool
    deployment: Deployment
    agents: list[ScriptedAgent]
    now: float = 1_800_000_000.0
    secrets: HostSecrets = field(default_factory=HostSecrets)
    idle_gateway: FakeGateway | None = None
    """A gateway that lives and has nothing to do."""

    def __post_init__(self) -> None:
        self.idle_gateway = FakeGateway(self.client, name="gw-0", pid=99)

    @property
    def client_url(self) -> str:
        return str(settings.REDIS_URL)

    @property
    def agent(self) -> ScriptedAgent:
        return self.agents[0]

    @property
    def at(self) -> datetime:
        return datetime.fromtimestamp(self.now, UTC)

    def deliver(self, agent: ScriptedAgent) -> Applied:
        report = report_verify(agent.envelope(self.now), secrets=self.secrets)
        return report_apply(report, client=self.client, now=self.at)

    def tick(self, seconds: float = 2.0, *, silent: tuple[ScriptedAgent, ...] = ()) -> None:
        """One round: agents act and report, the loop reconciles, time passes."""
        if self.idle_gateway is not None:
            self.idle_gateway.beat()
        for agent in self.agents:
            if agent not in silent:
                agent.step(self.now)
                self.deliver(agent)
        reconcile(self.client, now=self.now)
        self.now += seconds

    def run(self, seconds: float, **kwargs: tuple[ScriptedAgent, ...]) -> None:
        end = self.now + seconds
        while self.now < end:
            self.tick(**kwargs)

    def replicas(self, *states: str) -> list[Replica]:
        rows = Replica.objects.filter(deployment=self.deployment).order_by("created_at")
        return list(rows.filter(state__in=states) if states else rows)

    def want(self, count: int) -> None:
        Deployment.objects.filter(pk=self.deployment.pk).update(desired_replicas=count)

    def add_host(self, name: str) -> ScriptedAgent:
        hardware = hardware_type_get_or_create(name="CPU", actor=BOSS, is_cpu=True)
        host, secret = host_enrol(name=name, hardware_type=hardware, actor=BOSS)
        agent = ScriptedAgent(self.client, str(host.pk), secret)
        self.agents.append(agent)
        return agent

    def host(self, agent: ScriptedAgent | None = None) -> Host:
        return Host.objects.get(pk=(agent or self.agent).host_id)


def counts(world: World) -> dict[str, int]:
    found: dict[str, int] = {}
    for replica in world.replicas():
        found[replica.state] = found.get(replica.state, 0) + 1
    return found


def explained(world: World) -> dict[str, object]:
    return policy_state_read(world.client, "reconcile", str(world.deployment.pk)) or {}


@pytest.fixture
def state(settings: Any, state_url: str) -> Iterator[redis.Redis]:
    settings.REDIS_URL = state_url
    with redis.Redis.from_url(state_url) as client:
        yield client


@pytest.fixture(autouse=True)
def nothing_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """What one test has heard is news to the next."""
    monkeypatch.setattr("penstock.loops.isolation._told", {})


def make_rows() -> tuple[Pool, Deployment, Host, bytes]:
    """A pool with a price, a deployment, and a host with its secret."""
    hardware = hardware_type_get_or_create(name="CPU", actor=BOSS, is_cpu=True)
    model = model_create(name=f"model {uuid.uuid4().hex[:6]}", artifact_kind="none", actor=BOSS)
    pool = pool_create(name=model.name, model=model, hardware_type=hardware, actor=BOSS)
    profile = CostProfile(version=1, base=0.0, alpha=0.01, beta=0.2, gamma=0.0, epsilon=0.0, cached_factor=0.1)
    profile_add(pool=pool, hardware_type=hardware, profile=profile, actor=BOSS, replica_mu_per_min=100.0)
    deployment = deployment_create(
        pool=pool, name=f"demo-{model.slug[-6:]}", runtime="simulated", actor=BOSS, min_replicas=1, max_replicas=4
    )
    return pool, deployment, *host_enrol(name="host-1", hardware_type=hardware, actor=BOSS)


def make_world(state: redis.Redis) -> World:
    pool, deployment, host, secret = replayed("world of the loops", make_rows)
    world = World(state, pool, deployment, [])
    world.agents.append(ScriptedAgent(state, str(host.pk), secret))
    return world


@pytest.fixture
def world(db: None, state: redis.Redis) -> World:
    return make_world(state)


@pytest.fixture
def gateway(state: redis.Redis) -> FakeGateway:
    return FakeGateway(state)


@pytest.fixture
def engine() -> MeasuredEngine:
    return MeasuredEngine()


@pytest.fixture
def serving(world: World, engine: MeasuredEngine) -> World:
    """Two ready replicas on one host, whose agent can measure."""
    world.agent.measure = engine
    world.want(2)
    world.run(14)
    assert len(world.replicas("ready")) == 2
    return world
