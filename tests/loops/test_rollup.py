"""Rolling up: what there was of pools and accelerators, minute by minute and in means of hours."""

from __future__ import annotations

import uuid
from datetime import UTC, datetime, timedelta

import pytest
import redis
from django.utils import timezone

from capacity.models import Accelerator, AcceleratorRollup, HardwareType, PoolRollup, RefusalRollup, Reservation
from capacity.services import pool_create
from capacity.usage.lines import refusal_counts_key
from capacity.usage.refusals import refusal_minutes_delete_old
from capacity.usage.rollups import rollup_minutes_delete_old
from penstock.accelerators import count_accelerators
from penstock.loops.rollup import roll_up
from serving.gateway.state import deployment_ring, ring_push
from serving.models import Deployment
from serving.policy.observation import minute_means
from tests import factories

pytestmark = pytest.mark.django_db

NOON = datetime(2026, 11, 20, 12, tzinfo=UTC)


def sample(at: float, capacity: float, offered: float) -> dict[str, float]:
    return {"at": at, "capacity_mu_per_min": capacity, "offered_mu": offered}


def test_means_of_a_minute_are_of_what_was_seen_in_it() -> None:
    # A look each second: 100 MU/min for half of the minute, 50 for the rest, and 2 MU more at each look.
    looks = [sample(float(at), 100.0 if at < 30 else 50.0, 2.0) for at in range(-5, 70)]
    assert minute_means(looks, starts_at=0.0) == (75.0, 120.0)
    # The loop stood still for 20 s: what came meanwhile is in the sample that follows, and is divided by all of it.
    paused = [sample(0.0, 100.0, 0.0), sample(1.0, 100.0, 1.0), sample(21.0, 100.0, 20.0), sample(22.0, 100.0, 1.0)]
    assert minute_means(reversed(paused), starts_at=0.0) == (100.0, 60.0)
    assert minute_means(paused, starts_at=60.0) is None
    assert minute_means([sample(5.0, 40.0, 3.0)], starts_at=0.0) == (40.0, 0.0)


def looked(client: redis.Redis, of: Deployment, since: datetime, seconds: int, *, have: float, offered: float) -> None:
    for second in range(seconds):
        at = (since + timedelta(seconds=second)).timestamp()
        ring_push(client, {deployment_ring(str(of.pk)): sample(at, have, offered / 60.0)}, keep=7200)


def test_minutes_that_are_over_are_written_once_and_hours_are_their_means(state: redis.Redis) -> None:
    first = factories.deployment(min_replicas=1, max_replicas=3)
    second = factories.deployment(pool=first.pool, min_replicas=1, max_replicas=2)
    begins = NOON - timedelta(minutes=2)
    looked(state, first, begins, 180, have=200.0, offered=90.0)
    looked(state, second, begins + timedelta(minutes=1), 120, have=100.0, offered=30.0)
    # 12:01:00: 11:58 to 12:00 are over.
    now = NOON + timedelta(minutes=1)
    assert roll_up(state, now=now) == 3
    assert roll_up(state, now=now + timedelta(seconds=15)) == 0
    rows = PoolRollup.objects.filter(period="minute").order_by("starts_at")
    assert [(row.starts_at, row.have, round(row.offered, 6), row.could) for row in rows] == [
        (begins, 200.0, 90.0, 500.0),
        (NOON - timedelta(minutes=1), 300.0, 120.0, 500.0),
        (NOON, 300.0, 120.0, 500.0),
    ]
    hours = PoolRollup.objects.filter(period="hour").order_by("starts_at")
    assert [(row.starts_at, row.minutes, row.have, round(row.offered, 6)) for row in hours] == [
        (NOON - timedelta(hours=1), 2, 250.0, 105.0),
        (NOON, 1, 300.0, 120.0),
    ]
    Deployment.objects.update(max_replicas=1, min_replicas=0)
    looked(state, first, NOON + timedelta(minutes=1), 60, have=0.0, offered=0.0)
    roll_up(state, now=NOON + timedelta(minutes=2))
    hour = PoolRollup.objects.get(period="hour", starts_at=NOON)
    assert (hour.minutes, hour.have, hour.could) == (2, 150.0, 350.0)
    assert rollup_minutes_delete_old(before=NOON) == 2
    assert PoolRollup.objects.filter(period="hour").count() == 2


def test_accelerators_are_counted_by_what_holds_them_and_what_is_sold_of_them(state: redis.Redis) -> None:
    kind = HardwareType.objects.create(slug="h200", name="H200", memory_bytes=141 * 10**9)
    pool = pool_create(model=factories.model(), hardware_type=kind, actor=factories.ACTOR)
    served = factories.deployment(pool=pool, runtime="vllm", max_replicas=4, options={"accelerators": 2})
    hosts = [factories.host(name=f"gpu-{number}") for number in range(3)]
    for host in hosts:
        type(host).objects.filter(pk=host.pk).update(hardware_type=kind)
        for index in range(4):
            Accelerator.objects.create(
                host=host, index=index, uuid=f"{host.name}-{index}", name="H200", memory_bytes=141 * 10**9
            )
    Accelerator.objects.filter(host=hosts[0], index=3).update(is_healthy=False)
    type(hosts[2]).objects.filter(pk=hosts[2].pk).update(state="lost")
    for state_name, host, indexes in (
        ("starting", hosts[0], [0, 1]),
        ("failed", hosts[0], [2]),
        ("starting", hosts[2], [0]),
    ):
        made = factories.replica(served)
        type(made).objects.filter(pk=made.pk).update(state=state_name, host=host, accelerators=indexes)
    now = (timezone.now() + timedelta(minutes=1)).replace(minute=0, second=20) + timedelta(hours=1)
    Reservation.objects.create(
        tenant=factories.tenant(),
        pool=pool,
        profile=pool.profiles.get(),
        mu_per_min=1.5 * pool.profiles.get().replica_mu_per_min,
        starts_at=now - timedelta(days=1),
        state="active",
    )
    (counted,) = count_accelerators(now=now)
    # 8 on hosts that are there, one of them failing; two are held; a replica and a half of two each are sold.
    assert (counted.hardware, counted.have, counted.used, counted.sold, counted.free) == (kind, 7, 2, 3.0, 5)
    assert roll_up(state, now=now) == 1
    assert roll_up(state, now=now + timedelta(seconds=15)) == 0
    Accelerator.objects.filter(is_healthy=False).update(is_healthy=True)
    assert roll_up(state, now=now + timedelta(seconds=60)) == 1
    hour = AcceleratorRollup.objects.get(period="hour")
    assert (hour.minutes, hour.have, hour.used, hour.sold) == (2, 7.5, 2.0, 3.0)


def test_where_there_is_no_accelerator_nothing_is_written(state: redis.Redis) -> None:
    factories.host()
    assert roll_up(state, now=NOON) == 0
    assert not AcceleratorRollup.objects.exists()


def counted(client: redis.Redis, at: datetime, field: str, count: int) -> None:
    client.hincrby(refusal_counts_key(int(at.timestamp() // 60)), field, count)


def test_refusals_become_minutes_and_hours_as_the_gateways_count_on(state: redis.Redis) -> None:
    tenant, key, pool = (str(uuid.UUID(int=number)) for number in (1, 2, 3))
    limit, unknown = f"{tenant}|{key}|{pool}|requests_per_min|429", f"{tenant}|{key}||model_not_found|404"
    at = NOON + timedelta(minutes=5)
    for field, count in ((limit, 7), (unknown, 1), ("no such field", 3), (f"x|{key}|{pool}|a|429", 1)):
        counted(state, at, field, count)
    assert roll_up(state, now=at + timedelta(seconds=20)) == 2
    assert roll_up(state, now=at + timedelta(seconds=35)) == 0
    counted(state, at, limit, 3)
    counted(state, at + timedelta(minutes=1), limit, 5)
    assert roll_up(state, now=at + timedelta(seconds=70)) == 2
    # A state that lost its data counts from zero: what was seen stays.
    state.delete(refusal_counts_key(int(at.timestamp() // 60)))
    counted(state, at, limit, 1)
    assert roll_up(state, now=at + timedelta(seconds=80)) == 0
    rows = RefusalRollup.objects.order_by("period", "starts_at", "reason")
    told = [(row.period, row.starts_at, row.reason, row.status, row.pool_id, row.requests) for row in rows]
    assert told == [
        ("hour", NOON, "model_not_found", 404, None, 1),
        ("hour", NOON, "requests_per_min", 429, uuid.UUID(pool), 15),
        ("minute", at, "model_not_found", 404, None, 1),
        ("minute", at, "requests_per_min", 429, uuid.UUID(pool), 10),
        ("minute", at + timedelta(minutes=1), "requests_per_min", 429, uuid.UUID(pool), 5),
    ]
    assert refusal_minutes_delete_old(before=NOON + timedelta(hours=1)) == 3
    assert RefusalRollup.objects.count() == 2


def test_what_was_refused_while_the_loops_stood_still_is_fetched_later(state: redis.Redis) -> None:
    field = f"{uuid.UUID(int=1)}|{uuid.UUID(int=2)}||invalid_json|400"
    counted(state, NOON - timedelta(minutes=90), field, 4)
    assert roll_up(state, now=NOON + timedelta(minutes=9)) == 0
    assert roll_up(state, now=NOON + timedelta(minutes=10)) == 1
    assert RefusalRollup.objects.get(period="hour").requests == 4
