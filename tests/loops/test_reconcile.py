"""Reconcile with scripted agents on a clock of its own: convergence, drains, crash loops, lost hosts, recovery."""

from __future__ import annotations

import itertools
import threading
from datetime import timedelta
from typing import Any

import pytest

from capacity.selectors import profiles_in_force
from penstock.loops.reconcile import PATIENCE, Tick, _reconcile_deployment, reconcile
from serving.gateway.loads import ReplicaBeat
from serving.gateway.state import policy_state_read
from serving.models import Deployment, Incident, Replica, Revision
from serving.policy import replicas as policy
from serving.services import (
    deployment_create,
    deployment_disable,
    deployment_retry,
    deployment_update,
    incident_open,
    replica_create,
    revision_create,
)
from tenants.models import AuditEntry, Change
from tests.factories import race
from tests.loops.agent import BROKEN, HEALTHY
from tests.loops.conftest import BOSS, FakeGateway, World
from worker.spec import AcceleratorReport

pytestmark = pytest.mark.django_db


def counts(world: World) -> dict[str, int]:
    found: dict[str, int] = {}
    for replica in world.replicas():
        found[replica.state] = found.get(replica.state, 0) + 1
    return found


def explained(world: World) -> dict[str, object]:
    return policy_state_read(world.client, "reconcile", str(world.deployment.pk)) or {}


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


def test_a_crash_is_replaced_at_once_and_its_incident_closes(world: World) -> None:
    world.run(20)
    (old,) = world.replicas("ready")
    world.agent.engines[str(old.pk)].phase = "failed"
    crashed_at = world.now
    world.tick()
    assert Incident.objects.get().kind == "crash"
    world.run(12)
    (new,) = world.replicas("ready")
    incident = Incident.objects.get()
    assert new.pk != old.pk
    assert incident.closed_at is not None
    assert incident.closed_at.timestamp() - crashed_at <= 12
    assert "serving again after" in incident.timeline[-1]["what"]


def test_a_crash_loop_backs_off_and_ends_in_a_clear_reason(world: World) -> None:
    world.agent.behaviour = lambda order: BROKEN
    world.run(240)
    assert counts(world) == {"failed": PATIENCE.limit}
    made = [replica.state_since.timestamp() for replica in world.replicas("failed")]
    gaps = [after - before for before, after in itertools.pairwise(made)]
    assert gaps == sorted(gaps)
    whole = Incident.objects.get(replica_id=None)
    assert (whole.kind, whole.closed_at, whole.deployment_id) == ("start_failed", None, world.deployment.pk)
    assert "out of memory" in whole.summary
    assert explained(world)["gave_up"] is True
    assert Incident.objects.count() == PATIENCE.limit + 1


def test_retry_starts_again_and_closes_the_incidents(world: World) -> None:
    world.agent.behaviour = lambda order: BROKEN
    world.run(240)
    world.agent.behaviour = lambda order: HEALTHY
    world.run(30)
    assert world.replicas("ready") == []
    deployment_retry(deployment=world.deployment, actor=BOSS)
    world.run(20)
    (ready,) = world.replicas("ready")
    assert ready.attempt == 1
    assert not Incident.objects.filter(closed_at=None).exists()
    assert explained(world)["gave_up"] is False


def test_what_heals_by_itself_is_found_out_within_the_hour(world: World) -> None:
    world.agent.behaviour = lambda order: BROKEN
    world.run(240)
    world.agent.behaviour = lambda order: HEALTHY
    world.now += PATIENCE.forget_s
    world.run(20)
    assert len(world.replicas("ready")) == 1


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


def other_deployment(world: World) -> Deployment:
    return deployment_create(pool=world.pool, name="another", runtime="simulated", actor=BOSS)


def test_a_deployment_that_nobody_can_read_stops_no_other(
    world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    poison = other_deployment(world)
    plan = policy.plan

    def picky(want: Any, alive: Any, failures: Any, **kwargs: Any) -> Any:
        if want.maximum == poison.max_replicas:
            raise ValueError("two is no number")
        return plan(want, alive, failures, **kwargs)

    monkeypatch.setattr(policy, "plan", picky)
    world.run(20)
    assert counts(world) == {"ready": 1}
    assert not poison.replicas.exists()
    assert "another failed (ValueError: two is no number" in caplog.text
    assert "Traceback" not in caplog.text


def test_orders_that_cannot_be_made_hold_up_no_other_host(world: World, caplog: pytest.LogCaptureFixture) -> None:
    broken = world.add_host("a-host-before-the-other")
    strange = other_deployment(world)
    row = Revision(deployment=strange, number=9, runtime="simulated", options=["no", "object"], is_current=False)
    Revision.objects.bulk_create([row])
    replica_create(deployment=strange, revision=row, reason="by hand", host=world.host(broken))
    Deployment.objects.filter(pk=strange.pk).update(is_enabled=False)
    world.run(20)
    assert counts(world) == {"ready": 1}
    assert "the orders of host a-host-before-the-other failed" in caplog.text


def test_an_incident_that_opened_during_the_pass_closes_all_the_same(world: World) -> None:
    world.run(20)
    later = world.at + timedelta(seconds=5)
    (replica,) = world.replicas()
    incident = incident_open(kind="crash", summary="x", replica=replica, now=later)
    reconcile(world.client, now=world.now)
    incident.refresh_from_db()
    assert incident.closed_at == later


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


@pytest.mark.django_db(transaction=True)
def test_passes_that_overlap_make_no_replica_too_many(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both have read that nothing runs before either writes."""
    world.want(2)
    world.deployment.refresh_from_db()
    both, plan = threading.Barrier(2), policy.plan

    def overlapping(*args: Any, **kwargs: Any) -> Any:
        made = plan(*args, **kwargs)
        both.wait(10)
        return made

    monkeypatch.setattr(policy, "plan", overlapping)
    revision = world.deployment.revisions.get()
    profiles = profiles_in_force(at=world.at)
    outcomes = race(*[lambda: _reconcile_deployment(Tick(world.client, world.now, profiles), world.deployment)] * 2)
    assert outcomes == [None, None]
    assert Replica.objects.filter(deployment=world.deployment, revision=revision).count() == 2


def test_racing_passes_make_no_replica_too_many(world: World) -> None:
    for _ in range(3):
        reconcile(world.client, now=world.now)
        reconcile(world.client, now=world.now)
    assert Replica.objects.filter(deployment=world.deployment).count() == 1
    assert Deployment.objects.get(pk=world.deployment.pk).desired_replicas == 1
