"""Hosts that fall silent and return: what is lost with them, what serves on, and what is taken back."""

from __future__ import annotations

import pytest

from penstock.loops.reconcile import reconcile
from serving.gateway.loads import ReplicaBeat
from serving.gateway.state import policy_state_read
from serving.models import Incident, Replica
from serving.services import replica_create
from tests.loops.conftest import FakeGateway, World, counts

pytestmark = pytest.mark.django_db


def test_a_silent_host_is_lost_and_its_replicas_fail_over(world: World) -> None:
    other = world.add_host("host-2")
    world.want(2)
    world.run(20)
    assert {str(replica.host_id) for replica in world.replicas("ready")} == {world.agent.host_id, other.host_id}
    silent_at = world.now
    while world.host().state == "active":
        world.tick(silent=(world.agent,))
    assert 15 <= world.now - silent_at <= 20
    assert world.host().state == "lost"
    world.run(12, silent=(world.agent,))
    assert {str(replica.host_id) for replica in world.replicas("ready")} == {other.host_id}
    assert counts(world) == {"failed": 1, "ready": 2}
    assert Incident.objects.get().kind == "host_lost"


def test_a_lost_host_is_no_reason_to_back_off(world: World) -> None:
    world.run(20)
    for _ in range(2):
        world.run(22, silent=(world.agent,))
        world.run(14)
    assert len(world.replicas("ready")) == 1
    assert not Incident.objects.exclude(kind="host_lost").exists()


def test_a_host_that_returns_is_taken_back(world: World) -> None:
    world.run(20)
    world.run(30, silent=(world.agent,))
    assert counts(world) == {"failed": 1, "pending": 1}
    world.run(20)
    assert world.host().state == "active"
    assert counts(world) == {"failed": 1, "ready": 1}
    assert len(world.agent.engines) == 1
    assert Incident.objects.get().closed_at is not None


def test_an_engine_that_still_serves_survives_the_silence_of_its_agent(world: World, gateway: FakeGateway) -> None:
    world.run(20)
    (replica,) = world.replicas("ready")
    for _ in range(20):
        gateway.replicas[str(replica.pk)] = ReplicaBeat(n=1, last_token_at=world.now - 1)
        gateway.beat()
        world.tick(silent=(world.agent,))
    replica.refresh_from_db()
    assert (world.host().state, replica.state) == ("lost", "ready")
    world.agent.restart()
    world.run(20)
    replica.refresh_from_db()
    assert (world.host().state, replica.state) == ("active", "ready")
    assert len(world.replicas()) == 1


def test_hosts_are_not_lost_because_the_loops_slept(world: World) -> None:
    world.run(20)
    world.now += 3600
    reconcile(world.client, now=world.now)
    assert world.host().state == "active"
    world.run(10)
    assert counts(world) == {"ready": 1}


def test_a_cordon_outlives_a_loss(world: World) -> None:
    world.run(20)
    host = world.host()
    type(host).objects.filter(pk=host.pk).update(state="cordoned")
    world.run(30, silent=(world.agent,))
    assert world.host().state == "lost"
    world.run(4)
    assert world.host().state == "cordoned"


def test_of_a_lost_host_only_what_serves_is_looked_at(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.run(20)
    revision = world.deployment.revisions.get()
    for _ in range(3):
        ended = replica_create(deployment=world.deployment, revision=revision, reason="x", host=world.host())
        Replica.objects.filter(pk=ended.pk).update(state="stopped")
    read: list[str] = []
    monkeypatch.setattr(
        "penstock.loops.reconcile.policy_state_read",
        lambda client, loop, key: read.append(key) if loop == "probe" else policy_state_read(client, loop, key),
    )
    world.run(24, silent=(world.agent,))
    assert set(read) == {str(world.replicas("failed")[0].pk)}
