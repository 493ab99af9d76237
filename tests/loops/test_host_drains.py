"""Hosts that are drained and removed, with scripted agents on a clock of its own."""

from __future__ import annotations

import json

import pytest
from django.db import IntegrityError, transaction

from capacity.models import Accelerator, Host
from capacity.services import host_cordon, host_drain, host_remove, host_uncordon
from serving.agents.envelopes import ReportRejected
from serving.gateway.loads import ReplicaBeat
from serving.models import Incident, Replica
from serving.services import deployment_remove, revision_create
from tenants.models import AuditEntry
from tenants.needed import StillNeeded
from tests import factories
from tests.loops.agent import BROKEN, ScriptedAgent
from tests.loops.conftest import BOSS, FakeGateway, World
from worker.spec import AcceleratorReport

pytestmark = pytest.mark.django_db
HELD = ("pending", "starting", "ready", "draining", "stopping")


def there(agent: ScriptedAgent, *states: str) -> list[Replica]:
    return list(Replica.objects.filter(host=agent.host_id, state__in=states or HELD).order_by("created_at"))


def born(world: World) -> None:
    """Let the loop make the replacements; they are as old as the world's clock says."""
    world.tick()
    Replica.objects.filter(host=None, state="pending").update(created_at=world.at)


def drained(world: World, seconds: float = 60.0) -> int:
    """Run until the first host holds nothing; the fewest replicas that were ready meanwhile."""
    fewest, end = 99, world.now + seconds
    while there(world.agent) and world.now < end:
        world.tick()
        fewest = min(fewest, len(world.replicas("ready")))
    return fewest


def test_replicas_are_replaced_elsewhere_before_they_stop(world: World) -> None:
    world.want(2)
    world.run(20)
    second = world.add_host("host-2")
    assert len(there(world.agent, "ready")) == 2
    assert host_drain(host=world.host(), actor=BOSS, reason="a new fan")
    world.tick()
    assert all("serves until its replacement is ready" in one.reason for one in there(world.agent, "ready"))
    assert drained(world) == 2, "a replica stopped before another had taken over"
    assert len(there(second, "ready")) == 2
    why = [entry.after["reason"] for entry in AuditEntry.objects.filter(action="replica.draining")]
    assert why == ["its host is being drained; enough others serve"] * 2
    host = world.host()
    assert (host.state, host.state_reason) == ("draining", "a new fan")
    world.run(20)
    assert there(world.agent) == [], "something was placed on a host that is being drained"


def test_a_drain_that_is_taken_back_leaves_things_as_they_were(world: World) -> None:
    world.want(2)
    world.run(20)
    before = {one.pk: one.reason for one in there(world.agent, "ready")}
    host_drain(host=world.host(), actor=BOSS)
    world.tick()
    assert {one.pk: one.reason for one in there(world.agent, "ready")} != before
    assert host_uncordon(host=world.host(), actor=BOSS)
    world.run(20)
    assert {one.pk for one in world.replicas("ready")} == set(before)
    assert {one.reason for one in world.replicas("ready")} == {"the engine answers"}


def test_without_room_elsewhere_streams_end_and_the_host_is_emptied_all_the_same(
    world: World, gateway: FakeGateway
) -> None:
    world.run(20)
    (old,) = there(world.agent, "ready")
    gateway.replicas[str(old.pk)] = ReplicaBeat(n=1, d=1.0)
    gateway.beat()
    host_drain(host=world.host(), actor=BOSS)
    born(world)
    world.run(26)
    old.refresh_from_db()
    assert old.state == "ready", "it did not wait for a host with room"
    for _ in range(6):
        gateway.beat()
        world.tick()
    old.refresh_from_db()
    assert (old.state, old.reason) == (
        "draining",
        "its host is being drained; no other host has had room for its replacement for 30 s",
    )
    (waiting,) = world.replicas("pending")
    assert "host-1: it is draining" in waiting.reason
    gateway.replicas[str(old.pk)] = ReplicaBeat(n=0)
    gateway.beat()
    world.run(10)
    assert there(world.agent) == []
    host_uncordon(host=world.host(), actor=BOSS)
    world.run(20)
    assert [one.pk for one in there(world.agent, "ready")] == [waiting.pk]


def test_one_finds_room_and_the_other_does_not(world: World) -> None:
    """The one without room is not waited for; the one that starts is."""
    world.want(2)
    world.agent.accelerators = tuple(
        AcceleratorReport(index=index, name="L4", uuid=f"GPU-{index}", memory_bytes=24 << 30) for index in (0, 1)
    )
    options = {"accelerators": 1}
    revision_create(deployment=world.deployment, runtime="simulated", actor=BOSS, options=options)
    world.run(20)
    second = world.add_host("host-2")
    second.accelerators = (AcceleratorReport(index=0, name="L4", uuid="GPU-9", memory_bytes=24 << 30),)
    second.behaviour = lambda order: ["starting"] * 30 + ["ready"]
    host_drain(host=world.host(), actor=BOSS)
    born(world)
    world.run(46)
    assert len(there(world.agent, "ready")) == 1, "both left, and only one is without room"
    assert len(there(second, "starting")) == 1
    world.run(30)
    assert there(world.agent) == []
    assert len(there(second, "ready")) == 1


def test_replacements_that_break_keep_the_old_ones_serving(world: World) -> None:
    world.run(20)
    second = world.add_host("host-2")
    second.behaviour = lambda order: BROKEN
    host_drain(host=world.host(), actor=BOSS)
    told = set()
    for _ in range(40):
        world.tick()
        (old,) = there(world.agent, "ready")
        told |= {word for word in ("next launch in", "1 to come") if word in old.reason}
    assert "next launch in" in told


def test_a_lost_host_returns_to_its_drain(world: World) -> None:
    world.run(20)
    host_drain(host=world.host(), actor=BOSS)
    world.run(60)
    world.run(40, silent=(world.agent,))
    assert world.host().state == "lost"
    assert not host_drain(host=world.host(), actor=BOSS)
    world.run(6)
    assert world.host().state == "draining"
    assert host_cordon(host=world.host(), actor=BOSS), "a drain is stopped half way by a cordon"


def test_a_drain_goes_on_while_its_host_is_lost_and_serves(world: World, gateway: FakeGateway) -> None:
    """Its engine outlives its agent: the replacement is waited for, and is not the one too many."""
    world.run(20)
    (old,) = there(world.agent, "ready")
    second = world.add_host("host-2")
    second.behaviour = lambda order: ["starting"] * 30 + ["ready"]
    host_drain(host=world.host(), actor=BOSS)
    began = world.host().state_since
    gateway.replicas[str(old.pk)] = ReplicaBeat(n=1)
    states = []
    for _ in range(45):
        gateway.replicas[str(old.pk)] = ReplicaBeat(n=1, last_token_at=world.now)
        gateway.beat()
        world.tick(silent=(world.agent,))
        states.append((world.host().state, old.pk in {one.pk for one in there(world.agent, "ready")}))
    assert ("lost", True) in states, "its replica left before its replacement was ready"
    old.refresh_from_db()
    assert (old.state, old.reason) == ("draining", "its host is being drained; enough others serve")
    assert len(there(second, "ready")) == 1
    assert not world.replicas("failed", "stopped", "stopping")
    gateway.replicas[str(old.pk)] = ReplicaBeat(n=0)
    gateway.beat()
    world.run(30)
    assert there(world.agent) == []
    assert len(world.replicas("ready")) == 1
    host = world.host()
    assert (host.state, host.state_since) == ("draining", began), "the page counts from the drain on"


def test_a_host_is_removed_when_nothing_holds_it(world: World) -> None:
    world.run(20)
    host = world.host()
    with pytest.raises(StillNeeded) as refused:
        host_remove(host=host, actor=BOSS, force=True)
    assert "Drain it first" in refused.value.hint
    assert [one.detail for one in refused.value.references] == [world.deployment.name]
    host_drain(host=host, actor=BOSS)
    drained(world, 90)
    assert host_remove(host=world.host(), actor=BOSS)
    assert not host_remove(host=host, actor=BOSS)
    with pytest.raises(ReportRejected, match="not enrolled"):
        world.deliver(world.agent)
    gone = Host.everything.get(pk=host.pk)
    assert gone.removed_at is not None
    assert not Host.objects.filter(pk=host.pk).exists()
    world.run(4, silent=(world.agent,))
    gone.refresh_from_db()
    assert bytes(gone.secret) == b""
    # Its history stands, and its name is free, once.
    assert Replica.objects.filter(host=host.pk, host__name="host-1").exists()
    factories.host(name="host-1")
    with pytest.raises(IntegrityError), transaction.atomic():
        Host.objects.create(name="host-1", hardware_type=gone.hardware_type, secret=b"x")
    entry = AuditEntry.objects.get(action="host.remove")
    assert (entry.object_name, entry.after["reason"]) == ("host-1", "No replica holds any of it.")
    assert (entry.before["removed_at"], entry.after["removed_at"]) == (None, gone.removed_at.isoformat())


def test_a_lost_host_is_removed_by_force_and_its_agent_is_told_to_stop(world: World) -> None:
    world.agent.accelerators = (AcceleratorReport(index=0, name="L4", uuid="GPU-0", memory_bytes=24 << 30),)
    world.run(20)
    second = world.add_host("host-2")
    # A gateway still gets answers: the engine outlives its agent, and stays in rotation.
    (old,) = there(world.agent, "ready")
    gateway = FakeGateway(world.client)
    for _ in range(14):
        gateway.replicas[str(old.pk)] = ReplicaBeat(n=1, last_token_at=world.now)
        gateway.beat()
        world.tick(silent=(world.agent,))
    assert (world.host().state, len(there(world.agent, "ready"))) == ("lost", 1)
    with pytest.raises(StillNeeded) as refused:
        host_remove(host=world.host(), actor=BOSS)
    assert "Force it" in refused.value.hint
    lost = world.host()
    assert host_remove(host=lost, actor=BOSS, force=True)
    world.run(20, silent=(world.agent,))
    old.refresh_from_db()
    assert (old.state, old.reason) == ("failed", "its host is lost: host-1 was removed")
    assert len(there(second, "ready")) == 1
    assert not Incident.objects.filter(kind="host_lost", closed_at=None).exists()
    assert not Accelerator.objects.filter(host=lost.pk).exists()
    # The machine comes back after all: what it was told last is to run nothing.
    kept = json.loads(world.client.get(f"agent:orders:{world.agent.host_id}") or "")  # type: ignore[arg-type]
    assert kept["host_id"] == world.agent.host_id
    assert world.agent.engines
    world.agent.step(world.now)
    assert world.agent.engines == {}


def test_replicas_of_a_removed_deployment_end_what_they_have_in_hand(world: World, gateway: FakeGateway) -> None:
    world.run(20)
    (old,) = world.replicas("ready")
    gateway.replicas[str(old.pk)] = ReplicaBeat(n=1, d=1.0)
    gateway.beat()
    assert deployment_remove(deployment=world.deployment, actor=BOSS, confirm=world.deployment.name)
    for _ in range(5):
        gateway.beat()
        world.tick()
    old.refresh_from_db()
    assert old.state == "draining"
    gateway.replicas[str(old.pk)] = ReplicaBeat(n=0)
    gateway.beat()
    world.run(8)
    assert world.replicas("stopped") == [old]
    assert world.agent.engines == {}
