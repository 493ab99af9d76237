"""Reconcile with scripted agents on a clock of its own: convergence, drains, new revisions, and what waits."""

from __future__ import annotations

import pytest

from serving.gateway.loads import ReplicaBeat
from serving.services import (
    deployment_disable,
    deployment_update,
    revision_create,
)
from tenants.models import AuditEntry, Change
from tests.loops.conftest import BOSS, FakeGateway, World, counts
from worker.spec import AcceleratorReport

pytestmark = pytest.mark.django_db


def test_a_new_deployment_gets_its_minimum_ready(world: World) -> None:
    world.run(20)
    (replica,) = world.replicas()
    assert (replica.state, str(replica.host_id)) == ("ready", world.agent.host_id)
    assert world.host().acknowledged_generation == world.host().generation > 0


def test_a_settled_platform_stands_still(world: World) -> None:
    world.run(20)
    generation, changes = world.host().generation, Change.objects.count()
    world.run(30)
    assert (world.host().generation, Change.objects.count()) == (generation, changes)


def test_more_are_made_and_fewer_are_drained(world: World) -> None:
    world.want(3)
    world.run(20)
    assert counts(world) == {"ready": 3}
    world.want(1)
    world.tick()
    assert counts(world) == {"ready": 1, "draining": 2}
    world.run(20)
    assert counts(world) == {"ready": 1, "stopped": 2}
    assert len(world.agent.engines) == 1


def test_a_drain_waits_for_what_is_in_flight(world: World, gateway: FakeGateway) -> None:
    world.want(2)
    world.run(20)
    for replica in world.replicas():
        gateway.replicas[str(replica.pk)] = ReplicaBeat(n=3, d=1.0)
    gateway.beat()
    world.want(1)
    world.run(10)
    (draining,) = world.replicas("draining")
    gateway.replicas[str(draining.pk)] = ReplicaBeat(n=0)
    gateway.beat()
    world.tick()
    assert world.replicas("draining") == []


def test_a_drain_has_a_limit(world: World, gateway: FakeGateway) -> None:
    world.want(2)
    world.run(20)
    world.want(1)
    for replica in world.replicas():
        gateway.replicas[str(replica.pk)] = ReplicaBeat(n=3, d=1.0)
    for _ in range(14):
        gateway.beat()
        world.tick()
    assert len(world.replicas("draining")) == 1
    for _ in range(4):
        gateway.beat()
        world.tick()
    (stopped,) = world.replicas("stopping", "stopped")
    assert "drain limit" in stopped.reason or stopped.state == "stopped"


def test_a_drain_takes_its_whole_time_while_no_gateway_tells(world: World) -> None:
    """Gateways that are cut off from the state stream on, and nobody hears of it."""
    world.want(2)
    world.run(20)
    world.idle_gateway = None
    FakeGateway(world.client, name="gw-0").silence()
    world.want(1)
    world.run(28)
    (draining,) = world.replicas("draining")
    world.run(8)
    draining.refresh_from_db()
    assert draining.state in ("stopping", "stopped")


def test_a_drain_waits_for_what_the_engine_itself_has_in_hand(world: World) -> None:
    world.want(2)
    world.run(20)
    for engine in world.agent.engines.values():
        engine.metrics = {"running": 1.0, "waiting": 0.0}
    world.want(1)
    world.run(14)
    (draining,) = world.replicas("draining")
    world.agent.engines[str(draining.pk)].metrics = {"running": 0.0, "waiting": 0.0}
    world.run(6)
    draining.refresh_from_db()
    assert draining.state in ("stopping", "stopped")


def test_the_idlest_replica_goes(world: World, gateway: FakeGateway) -> None:
    world.want(3)
    world.run(20)
    first, second, third = world.replicas("ready")
    for replica, mu in ((first, 5.0), (second, 0.5), (third, 7.0)):
        gateway.replicas[str(replica.pk)] = ReplicaBeat(n=1, d=mu)
    gateway.beat()
    world.want(2)
    world.tick()
    assert [replica.pk for replica in world.replicas("draining")] == [second.pk]


def test_a_disabled_deployment_stops(world: World) -> None:
    world.run(20)
    deployment_disable(deployment=world.deployment, actor=BOSS)
    world.run(20)
    assert counts(world) == {"stopped": 1}
    assert world.agent.engines == {}


def test_a_pin_holds(world: World) -> None:
    deployment_update(deployment=world.deployment, actor=BOSS, pinned_replicas=2)
    world.want(4)
    world.run(20)
    assert counts(world) == {"ready": 2}


def test_a_new_revision_replaces_the_old_without_a_gap(world: World) -> None:
    world.want(2)
    world.run(20)
    revision_create(deployment=world.deployment, runtime="simulated", actor=BOSS, options={"seed": 2})
    fewest = 2
    for _ in range(20):
        world.tick()
        fewest = min(fewest, len(world.replicas("ready")))
    ready = world.replicas("ready")
    assert fewest >= 2
    assert [replica.revision.number for replica in ready] == [2, 2]


def test_a_full_host_rolls_out_one_by_one(world: World) -> None:
    """Two accelerators, both held by the old revision: each of its replicas makes room for one of the new."""
    gib = 1 << 30
    world.agent.accelerators = tuple(
        AcceleratorReport(index=index, name="H200", uuid=f"GPU-{index}", memory_bytes=141 * gib) for index in (0, 1)
    )
    one = {"accelerators": 1}
    revision_create(deployment=world.deployment, runtime="simulated", actor=BOSS, options=one)
    world.want(2)
    world.run(20)
    old = {replica.pk for replica in world.replicas("ready")}
    assert len(old) == 2
    revision_create(deployment=world.deployment, runtime="simulated", actor=BOSS, options={**one, "seed": 2})
    fewest, held = 2, []
    for _ in range(60):
        world.tick()
        fewest = min(fewest, len(world.replicas("ready")))
        there = world.replicas("pending", "starting", "ready", "draining", "stopping")
        held.append([index for replica in there for index in replica.accelerators])
    ready = world.replicas("ready")
    assert fewest == 1
    assert [replica.revision.number for replica in ready] == [3, 3]
    assert all(len(indices) == len(set(indices)) for indices in held), "an accelerator was given twice"
    drained = AuditEntry.objects.filter(action="replica.draining")
    assert all("makes room" in entry.after["reason"] for entry in drained)


def test_without_room_to_gain_the_old_revision_serves_on(world: World) -> None:
    world.run(20)
    host = world.host()
    type(host).objects.filter(pk=host.pk).update(state="cordoned")
    revision_create(deployment=world.deployment, runtime="simulated", actor=BOSS, options={"seed": 2})
    world.run(60)
    assert [replica.revision.number for replica in world.replicas("ready")] == [1]


def test_without_a_host_a_replica_says_why_it_waits(world: World) -> None:
    host = world.host()
    type(host).objects.filter(pk=host.pk).update(state="cordoned")
    world.run(6)
    (replica,) = world.replicas()
    assert replica.state == "pending"
    assert "cordoned" in replica.reason


def test_an_engine_that_will_not_stop_is_killed(world: World) -> None:
    world.run(20)
    world.agent.engines[str(world.replicas()[0].pk)].step = lambda now: None  # type: ignore[method-assign]
    deployment_disable(deployment=world.deployment, actor=BOSS)
    world.run(50)
    assert not world.replicas()[0].kill
    world.run(30)
    assert world.replicas()[0].kill
