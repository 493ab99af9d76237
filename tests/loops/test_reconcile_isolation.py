"""What cannot be read stops nobody else, and passes that overlap make nothing twice."""

from __future__ import annotations

import threading
from datetime import timedelta
from typing import Any

import pytest

from capacity.selectors import profiles_in_force
from penstock.loops.reconcile import Tick, _reconcile_deployment, reconcile
from serving.models import Deployment, Replica, Revision
from serving.policy import replicas as policy
from serving.services import (
    deployment_create,
    incident_open,
    replica_create,
)
from tests.factories import race
from tests.loops.conftest import BOSS, World, counts

pytestmark = pytest.mark.django_db


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


@pytest.mark.django_db(transaction=True)
def test_passes_that_overlap_make_no_replica_too_many(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both have read that nothing runs before either writes."""
    world.want(2)
    world.deployment.refresh_from_db()
    both, plan = threading.Barrier(2), policy.plan

    def overlapping(*args: Any, **kwargs: Any) -> Any:
        made = plan(*args, **kwargs)
        both.wait(60)
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
