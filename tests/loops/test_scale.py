"""Scale: decisions from synthetic ring buffers, written by compare-and-swap and with their reasons."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import pytest

from capacity.models import Reservation
from capacity.policy import autoscale
from capacity.policy.cost import CostProfile
from capacity.services import pool_update, profile_add
from penstock.loops.promises import Promises
from penstock.loops.scale import scale
from serving.models import Deployment, Incident, Replica, ScalingDecision
from serving.services import deployment_create, deployment_disable, deployment_enable, deployment_update, replica_create
from tenants.models import Tenant
from tests import factories
from tests.loops.conftest import BOSS, World

pytestmark = pytest.mark.django_db


class Traffic:
    """Writes the samples that the observe loop would, each second, and lets the scale loop tick every 5 s."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.key = f"penstock:ring:deployment:{world.deployment.pk}"

    def second(self, mu_per_s: float, **extra: float) -> None:
        sample = {
            "at": self.world.now,
            "offered_mu": mu_per_s,
            "offered_requests": mu_per_s,
            "queue_mu": 0.0,
            "in_flight": 0,
            "in_flight_mu": 0.0,
            "refused": 0,
            "completed": mu_per_s,
            "departed": mu_per_s,
            "ready": 1,
            "capacity_mu_per_min": 100.0,
        }
        self.world.client.lpush(self.key, json.dumps(sample | extra))
        self.world.client.ltrim(self.key, 0, 7199)

    def run(self, seconds: int, mu_per_s: float, **extra: float) -> None:
        for elapsed in range(1, seconds + 1):
            self.world.now += 1
            self.second(mu_per_s, **extra)
            if elapsed % 5 == 0:
                scale(self.world.client, now=self.world.now)
                settle(self.world)


def settle(world: World) -> None:
    """As many ready replicas as are wanted: the reconcile loop and the agents are not what is tested here."""
    revision = world.deployment.revisions.get()
    have = Replica.objects.filter(deployment=world.deployment, state="ready")
    for _ in range(desired(world) - have.count()):
        replica = replica_create(deployment=world.deployment, revision=revision, reason="x", host=world.host())
        Replica.objects.filter(pk=replica.pk).update(state="ready", address="http://127.0.0.1:1")
    surplus = have.order_by("-created_at")[: max(0, have.count() - desired(world))]
    Replica.objects.filter(pk__in=[replica.pk for replica in surplus]).update(state="stopped")


def desired(world: World) -> int:
    return Deployment.objects.get(pk=world.deployment.pk).desired_replicas


@pytest.fixture
def traffic(world: World) -> Traffic:
    Deployment.objects.update(cold_start_s=2.0)
    settle(world)
    return Traffic(world)


def test_load_above_one_replica_brings_more_within_seconds(world: World, traffic: Traffic) -> None:
    traffic.run(60, 0.5)
    assert desired(world) == 1
    before = world.now
    while desired(world) == 1 and world.now < before + 120:
        traffic.run(5, 5.0)
    assert world.now - before <= 30
    traffic.run(60, 5.0)
    assert desired(world) == 4
    risen = ScalingDecision.objects.filter(after__gt=1).order_by("at").first()
    assert risen is not None
    assert "needed" in risen.reason
    assert risen.inputs["observation"]["replica_mu_per_min"] == 100.0


def test_load_that_ends_lets_replicas_go_later(world: World, traffic: Traffic) -> None:
    traffic.run(90, 5.0)
    assert desired(world) == 4
    traffic.run(30, 0.0)
    assert desired(world) == 4
    traffic.run(500, 0.0)
    assert 1 <= desired(world) < 4
    assert ScalingDecision.objects.filter(after__lt=4, before=4).exists()


def test_the_maximum_holds_and_the_reason_says_so(world: World, traffic: Traffic) -> None:
    traffic.run(60, 50.0)
    assert desired(world) == 4
    newest = ScalingDecision.objects.order_by("-at").first()
    assert newest is not None
    assert "maximum" in newest.reason


def test_one_unchanged_decision_a_minute_is_kept(world: World, traffic: Traffic) -> None:
    traffic.run(180, 0.5)
    rows = ScalingDecision.objects.all()
    assert 3 <= rows.count() <= 4
    assert all(row.before == row.after == 1 for row in rows)


def test_a_pin_is_kept(world: World, traffic: Traffic) -> None:
    deployment_update(deployment=world.deployment, actor=BOSS, pinned_replicas=3)
    traffic.run(60, 50.0)
    assert desired(world) == 3


def test_nothing_is_decided_without_fresh_samples(world: World, traffic: Traffic) -> None:
    traffic.run(5, 5.0)
    seen = ScalingDecision.objects.count()
    world.now += 60
    scale(world.client, now=world.now)
    assert ScalingDecision.objects.count() == seen


def test_a_disabled_deployment_is_left_alone(world: World, traffic: Traffic) -> None:
    deployment_disable(deployment=world.deployment, actor=BOSS)
    traffic.run(30, 50.0)
    assert ScalingDecision.objects.count() == 0


def test_a_crash_is_no_reason_to_want_fewer(world: World, traffic: Traffic) -> None:
    traffic.run(90, 5.0)
    assert desired(world) == 4
    Replica.objects.filter(state="ready").update(state="failed")
    world.now += 5
    for _ in range(5):
        traffic.second(5.0)
    scale(world.client, now=world.now)
    assert desired(world) == 4


def test_long_requests_count_against_the_slots(world: World, traffic: Traffic) -> None:
    """16 slots at 40 s a request of 1 MU let 24 MU/min through, however strong the engine is."""
    traffic.run(60, 1.0, in_flight=40.0)
    newest = ScalingDecision.objects.order_by("-at").first()
    assert newest is not None
    assert newest.inputs["observation"]["replica_mu_per_min"] == pytest.approx(24.0, rel=0.05)


def test_who_hangs_up_makes_nobody_elses_request_longer(world: World, traffic: Traffic) -> None:
    """Half of the requests are cancelled: 16 slots at 20 s each let 48 MU/min through, not 24."""
    traffic.run(60, 1.0, in_flight=20.0, completed=0.5)
    newest = ScalingDecision.objects.order_by("-at").first()
    assert newest is not None
    assert newest.inputs["observation"]["replica_mu_per_min"] == pytest.approx(48.0, rel=0.05)


def test_what_was_counted_at_an_older_price_is_left_out(world: World, traffic: Traffic) -> None:
    """A request of 10 MU became one of 1 MU: 16 slots at 40 s let 24 of the new MU/min through."""
    traffic.run(60, 10.0, in_flight=40.0, offered_requests=1.0, departed=1.0)
    prices = CostProfile(version=2, base=0.0, alpha=0.001, beta=0.02, gamma=0.0, epsilon=0.0, cached_factor=0.1)
    profile_add(
        pool=world.pool,
        hardware_type=world.host().hardware_type,
        profile=prices,
        actor=BOSS,
        replica_mu_per_min=100.0,
        effective_from=world.at,
    )
    traffic.run(65, 1.0, in_flight=40.0)
    newest = ScalingDecision.objects.order_by("-at").first()
    assert newest is not None
    assert newest.inputs["config"]["profile_version"] > 1
    assert newest.inputs["observation"]["replica_mu_per_min"] == pytest.approx(24.0, rel=0.05)


def test_a_deployment_that_nobody_can_read_stops_no_other(
    world: World, traffic: Traffic, caplog: pytest.LogCaptureFixture
) -> None:
    poison = deployment_create(pool=world.pool, name="a poison", runtime="simulated", actor=BOSS)
    world.now += 1
    world.client.lpush(f"penstock:ring:deployment:{poison.pk}", json.dumps({"at": world.now}))
    traffic.second(1.0)
    scale(world.client, now=world.now)
    assert "the scaling of a poison failed (KeyError: 'offered_requests'" in caplog.text
    assert {decision.deployment_id for decision in ScalingDecision.objects.all()} == {world.deployment.pk}


def test_who_was_overtaken_changes_nothing(world: World, traffic: Traffic, monkeypatch: pytest.MonkeyPatch) -> None:
    decide = autoscale.decide

    def overtaken(*args: Any) -> Any:
        Deployment.objects.update(desired_replicas=3)
        return decide(*args)

    monkeypatch.setattr(autoscale, "decide", overtaken)
    for _ in range(5):
        world.now += 1
        traffic.second(50.0)
    assert scale(world.client, now=world.now) == 0
    assert desired(world) == 3
    assert not ScalingDecision.objects.exists()


def sell(
    world: World, mu: float, *, after_s: float = 0.0, for_s: float | None = None, tenant: Tenant | None = None
) -> None:
    """What is sold of the world's pool, whether or not it fits."""
    starts = world.now + after_s
    Reservation.objects.create(
        tenant=tenant or factories.tenant(),
        pool=world.pool,
        profile=world.pool.profiles.order_by("-version")[0],
        mu_per_min=mu,
        state="draft" if after_s > 0 else "active",
        starts_at=datetime.fromtimestamp(starts, UTC),
        ends_at=None if for_s is None else datetime.fromtimestamp(starts + for_s, UTC),
    )


def newest() -> ScalingDecision:
    return ScalingDecision.objects.order_by("-at")[0]


def test_what_is_sold_runs_before_anybody_asks_for_it(world: World, traffic: Traffic) -> None:
    """150 MU/min need two replicas of 100, and N−1 one more; what starts in a minute is warm when it does."""
    sell(world, 150.0, after_s=60.0, for_s=60.0)
    traffic.run(30, 0.0)
    assert desired(world) == 1
    traffic.run(20, 0.0)
    assert desired(world) == 3
    assert "150 MU/min sold (100 each, one spare)" in newest().reason
    pool_update(pool=world.pool, keep_spare=False, actor=BOSS)
    traffic.run(600, 0.0)
    assert desired(world) == 1


def test_a_promise_beyond_the_maximum_opens_an_incident_until_it_is_kept(world: World, traffic: Traffic) -> None:
    sell(world, 450.0)
    traffic.run(20, 0.0)
    assert desired(world) == 4
    assert "needs 6, 2 more than there may be" in newest().reason
    incident = Incident.objects.get(kind="promise_short")
    assert "needs 6 replicas, and it may have 4. Raise its maximum, or sell less." in incident.summary
    traffic.run(20, 0.0)
    assert Incident.objects.filter(kind="promise_short").count() == 1
    deployment_update(deployment=world.deployment, max_replicas=6, actor=BOSS)
    traffic.run(10, 0.0)
    incident.refresh_from_db()
    assert incident.closed_at is not None
    assert desired(world) == 6


def test_the_incident_of_a_deployment_that_stops_is_closed(world: World, traffic: Traffic) -> None:
    sell(world, 450.0)
    traffic.run(10, 0.0)
    deployment_disable(deployment=world.deployment, actor=BOSS)
    traffic.run(5, 0.0)
    short = Incident.objects.get(kind="promise_short", evidence__has_key="most")
    assert short.closed_at is not None


def test_a_sold_pool_that_nothing_serves_is_an_incident_until_something_does(world: World, traffic: Traffic) -> None:
    traffic.run(10, 0.0)
    deployment_disable(deployment=world.deployment, actor=BOSS)
    traffic.run(5, 0.0)
    assert not Incident.objects.exists(), "nothing is sold"
    sell(world, 100.0, after_s=60.0)
    traffic.run(10, 0.0)
    assert not Incident.objects.exists(), "and later what is sold has not begun"
    traffic.run(60, 0.0)
    incident = Incident.objects.get(kind="promise_short", closed_at=None)
    assert incident.deployment_id == world.deployment.pk
    assert "100 MU/min" in incident.summary
    assert "no deployment serves it" in incident.summary
    traffic.run(10, 0.0)
    assert Incident.objects.count() == 1, "it is told once"
    deployment_enable(deployment=world.deployment, actor=BOSS)
    traffic.run(5, 0.0)
    incident.refresh_from_db()
    assert incident.closed_at is not None


def test_a_pool_that_cannot_be_told_of_stops_no_scaling(
    world: World, traffic: Traffic, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: Any) -> None:
        raise ValueError("poison")

    monkeypatch.setattr(Promises, "unserved", fail)
    sell(world, 450.0)
    traffic.run(10, 0.0)
    assert desired(world) > 1
    assert "the look for what is sold and not served failed (ValueError: poison" in caplog.text


def test_a_promise_is_parted_between_the_deployments_of_its_pool(world: World, traffic: Traffic) -> None:
    pool_update(pool=world.pool, keep_spare=False, actor=BOSS)
    deployment_create(pool=world.pool, name="second", runtime="simulated", max_replicas=4, actor=BOSS)
    sell(world, 400.0)
    traffic.run(10, 0.0)
    assert desired(world) == 2
