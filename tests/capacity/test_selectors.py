"""Prices in force, what is sold and what was used: the reads that pages and loops share."""

from __future__ import annotations

import datetime
import uuid
from typing import Any

import pytest
from django.utils import timezone

from capacity.models import CostProfile, Pool, Reservation
from capacity.selectors import (
    profile_in_force,
    profiles_in_force,
    reference_mu_per_min,
    reservations_running,
    sold_mu_per_min,
    usage_rows,
    used_mu_per_min,
)
from capacity.usage.writer import write_batch
from serving.selectors import current_revisions, replicas_at_most
from serving.services import deployment_disable, deployment_update, revision_create
from tests import factories
from tests.factories import Traffic, batch

pytestmark = pytest.mark.django_db
DAY = datetime.timedelta(days=1)
AT = datetime.datetime(2026, 11, 20, 12, 3, tzinfo=datetime.UTC)


def price(pool: Pool, version: int, effective_from: datetime.datetime) -> CostProfile:
    hardware = factories.hardware()
    return CostProfile.objects.create(
        pool=pool, version=version, hardware_type=hardware, effective_from=effective_from, alpha=0.1, beta=0.2
    )


def test_the_price_in_force_is_the_newest_that_has_begun() -> None:
    pool, other = factories.pool(), factories.pool()
    unpriced = Pool.objects.create(slug="unpriced", name="unpriced", model=pool.model)
    now = timezone.now() + 10 * DAY
    second, corrected = price(pool, 2, now - DAY / 2), price(pool, 3, now - DAY / 2)
    price(pool, 4, now + DAY)
    assert profiles_in_force(at=now) == {pool.pk: corrected, other.pk: other.profiles.get()}
    assert profile_in_force(pool_id=pool.pk, at=now) == corrected != second
    assert profile_in_force(pool_id=pool.pk, at=now - DAY) == pool.profiles.get(version=1)
    assert profile_in_force(pool_id=pool.pk, at=now - 11 * DAY) is None
    assert profile_in_force(pool_id=unpriced.pk, at=now) is None


def test_a_pool_without_a_price_counts_in_reference_replicas() -> None:
    assert reference_mu_per_min(None) == 100.0
    assert reference_mu_per_min(CostProfile(replica_mu_per_min=80.0)) == 80.0


@pytest.mark.parametrize(
    ("fields", "is_sold"),
    [
        ({}, True),
        ({"ends_at": AT + DAY}, True),
        ({"ends_at": AT}, False),
        ({"starts_at": AT + DAY}, False),
        ({"state": "draft"}, True),
        ({"state": "requested"}, False),
        ({"state": "ended"}, False),
    ],
)
def test_sold_is_what_has_begun_and_not_ended(fields: dict[str, Any], is_sold: bool) -> None:
    pool, tenant = factories.pool(), factories.tenant()
    row = {"state": "active", "starts_at": AT - DAY, **fields}
    for mu in (30.0, 12.0):
        Reservation.objects.create(pool=pool, tenant=tenant, profile=pool.profiles.get(), mu_per_min=mu, **row)
    assert sold_mu_per_min(at=AT) == ({pool.pk: 42.0} if is_sold else {})
    assert reservations_running(at=AT).count() == (2 if is_sold else 0)


def test_usage_is_read_from_the_roll_ups_of_a_span_and_a_tenant() -> None:
    mine, other = Traffic(), Traffic()
    at = AT - datetime.timedelta(minutes=3)
    pairs = [mine.pair(at.timestamp() + 60 * minute, mu=float(minute)) for minute in range(5)]
    write_batch(batch(*pairs, other.pair(at.timestamp() + 5, mu=50.0)))
    rows = usage_rows(period="minute", since=at, until=at + datetime.timedelta(minutes=4))
    assert sorted(rows.values_list("mu", flat=True)) == [0.0, 1.0, 2.0, 3.0, 50.0]
    own = usage_rows(period="minute", since=at, until=AT, tenant_id=uuid.UUID(mine.tenant))
    assert sorted(own.values_list("mu", flat=True)) == [0.0, 1.0, 2.0]


@pytest.mark.parametrize("elapsed_s", [0, 1, 20, 59])
def test_an_even_flow_is_used_evenly_through_the_minute(elapsed_s: int) -> None:
    """One MU a second until now; what others used does not count for the tenant."""
    mine, other = Traffic(), Traffic()
    now = AT + datetime.timedelta(seconds=elapsed_s)
    pairs = [mine.pair(now.timestamp() - back, mu=1.0) for back in range(180)]
    write_batch(batch(*pairs, other.pair(now.timestamp(), mu=5.0)))
    used = used_mu_per_min(now=now, group="pool_id", tenant_id=uuid.UUID(mine.tenant))
    assert list(used) == [uuid.UUID(mine.pool)]
    assert used[uuid.UUID(mine.pool)] == pytest.approx(60.0, abs=1.5)
    everyone = used_mu_per_min(now=now, group="deployment_id")
    assert everyone[uuid.UUID(other.deployment)] == 5.0
    assert len(everyone) == 2


def test_a_pin_goes_before_the_maximum() -> None:
    served = factories.deployment(max_replicas=3)
    assert replicas_at_most(served) == 3
    for pinned in (2, 6):
        served = deployment_update(deployment=served, actor="t", pinned_replicas=pinned)
        assert replicas_at_most(served) == pinned
    deployment_disable(deployment=served, actor="t")
    served.refresh_from_db()
    assert replicas_at_most(served) == 0


def test_the_revisions_that_run_are_read_at_once(django_assert_num_queries: Any) -> None:
    first, second = factories.deployment(), factories.deployment()
    newest = revision_create(deployment=first, runtime="simulated", actor="t")
    with django_assert_num_queries(1):
        found = current_revisions([first, second])
    assert found == {first.pk: newest, second.pk: second.revisions.get()}
