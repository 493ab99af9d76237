"""Observe: heartbeats of several gateways into one sample per deployment and second."""

from __future__ import annotations

import json
from typing import Any

import pytest

from penstock.loops.observe import observe
from serving.gateway.loads import DeploymentBeat, ReplicaBeat
from serving.models import Replica
from serving.services import replica_create
from tests.loops.conftest import FakeGateway, World

pytestmark = pytest.mark.django_db


def newest(world: World) -> dict[str, Any]:
    raw = world.client.lindex(f"penstock:ring:deployment:{world.deployment.pk}", 0)
    sample: dict[str, Any] = json.loads(raw or b"{}")  # type: ignore[arg-type]
    return sample


def test_a_sample_sums_all_gateways(world: World, gateway: FakeGateway) -> None:
    revision = world.deployment.revisions.get()
    replica = replica_create(deployment=world.deployment, revision=revision, reason="x", host=world.host())
    Replica.objects.update(state="ready", address="http://127.0.0.1:1", supply_mu_per_min=80.0)
    second = FakeGateway(world.client, name="gw-2", pid=101)
    deployment_id = str(world.deployment.pk)
    for fake, offered in ((gateway, 100.0), (second, 1000.0)):
        fake.deployments[deployment_id] = DeploymentBeat(offered_mu=offered, offered_requests=1)
        fake.beat()
    observe(world.client, now=world.now)
    assert newest(world)["offered_mu"] == 0.0
    gateway.deployments[deployment_id] = DeploymentBeat(offered_mu=103.0, offered_requests=3, refused=1, completed=2)
    second.deployments[deployment_id] = DeploymentBeat(
        offered_mu=1004.0, offered_requests=2, queue_mu=2.5, reserved_mu=4.0, lent_mu=0.5
    )
    gateway.replicas[str(replica.pk)] = ReplicaBeat(n=2, w=0.5, d=1.0, departed=3)
    second.replicas[str(replica.pk)] = ReplicaBeat(n=1, d=0.25, departed=1)
    gateway.beat()
    second.beat()
    observe(world.client, now=world.now + 1)
    assert newest(world) == {
        "at": world.now + 1,
        "offered_mu": 7.0,
        "offered_requests": 3.0,
        "queue_mu": 2.5,
        "in_flight": 3,
        "in_flight_mu": 1.75,
        "refused": 1.0,
        "completed": 2.0,
        "departed": 4.0,
        "ready": 1,
        "capacity_mu_per_min": 80.0,
        "reserved_mu": 4.0,
        "lent_mu": 0.5,
    }


def test_who_hangs_up_has_left_and_so_has_who_was_at_a_replica_that_broke(world: World, gateway: FakeGateway) -> None:
    revision = world.deployment.revisions.get()
    replica = replica_create(deployment=world.deployment, revision=revision, reason="x", host=world.host())
    Replica.objects.update(state="ready", address="http://127.0.0.1:1")
    seen = []
    for second, (departed, state) in enumerate([(5, "ready"), (9, "ready"), (30, "failed"), (30, "failed")]):
        Replica.objects.update(state=state)
        gateway.replicas[str(replica.pk)] = ReplicaBeat(n=1, departed=departed, last_error_at=1.0)
        gateway.beat()
        observe(world.client, now=world.now + second)
        seen.append(newest(world)["departed"])
    assert seen == [0.0, 4.0, 21.0, 0.0]


def test_another_process_takes_the_next_tick(world: World, gateway: FakeGateway) -> None:
    """Nothing is kept in the process: the memory stands in the state, as JSON."""
    deployment_id = str(world.deployment.pk)
    for second in range(3):
        gateway.deployments[deployment_id] = DeploymentBeat(offered_mu=10.0 * second)
        gateway.beat()
        observe(world.client, now=world.now + second)
    assert newest(world)["offered_mu"] == 10.0
    kept = json.loads(world.client.get("penstock:policy:observe:gateways") or b"{}")  # type: ignore[arg-type]
    assert kept["at"] == world.now + 2


def test_a_dead_gateway_takes_its_requests_along(world: World, gateway: FakeGateway) -> None:
    gateway.deployments[str(world.deployment.pk)] = DeploymentBeat(queue_mu=5.0)
    gateway.beat()
    observe(world.client, now=world.now)
    assert newest(world)["queue_mu"] == 5.0
    gateway.silence()
    observe(world.client, now=world.now + 1)
    assert newest(world)["queue_mu"] == 0.0


def test_a_memory_of_another_version_is_only_a_base_line(world: World, gateway: FakeGateway) -> None:
    world.client.set("penstock:policy:observe:gateways", b'{"at": "yesterday"}')
    gateway.deployments[str(world.deployment.pk)] = DeploymentBeat(offered_mu=50.0)
    gateway.beat()
    observe(world.client, now=world.now)
    assert newest(world)["offered_mu"] == 0.0
