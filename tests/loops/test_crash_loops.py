"""Replicas that crash or never start: replaced, backed off from, given up with a reason, tried again."""

from __future__ import annotations

import itertools

import pytest

from penstock.loops.reconcile import PATIENCE
from serving.models import Incident
from serving.services import deployment_retry
from tests.loops.agent import BROKEN, HEALTHY
from tests.loops.conftest import BOSS, World, counts, explained

pytestmark = pytest.mark.django_db


def give_up(world: World) -> None:
    """Let every start fail until no further one is tried; in long steps, for only the back-off has to pass."""
    world.agent.behaviour = lambda order: BROKEN
    for _ in range(80):
        world.tick(8.0)
        if explained(world)["gave_up"]:
            return
    pytest.fail("it is tried for ever")


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
    give_up(world)
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
    give_up(world)
    world.agent.behaviour = lambda order: HEALTHY
    world.now += PATIENCE.forget_s
    world.run(20)
    assert len(world.replicas("ready")) == 1
