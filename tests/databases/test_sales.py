"""A hundred sales at once never sell more than there is: a thread and a connection each, on both databases."""

from __future__ import annotations

import datetime
import random

import pytest
from django.utils import timezone

from capacity.models import Pool, Reservation
from capacity.policy.ledger import outlook
from capacity.services import (
    CannotSell,
    reservation_approve,
    reservation_cancel,
    reservation_change,
    reservation_request,
    reservation_sell,
)
from penstock.selling import stock_of
from serving.services import deployment_update
from tenants.models import AuditEntry
from tests import factories, selling
from tests.factories import race

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.slow]

AT_ONCE = 100
DAY = datetime.timedelta(days=1)


def outcome(sale) -> str:
    try:
        sale()
    except CannotSell as error:
        return error.answer.verdict
    return "sold"


def test_a_hundred_sales_at_once_sell_all_there_is_and_no_more() -> None:
    """Four replicas of 100 MU/min, one of them spare: of a hundred sales of 10, thirty fit."""
    selling.host("node-1")
    pool = selling.pool()
    selling.serve(pool)
    tenant = factories.tenant()
    before = Pool.objects.get(pk=pool.pk).version

    def sell() -> str:
        own = Pool.objects.get(pk=pool.pk)
        return outcome(lambda: reservation_sell(tenant=tenant, pool=own, mu_per_min=10.0, actor="t"))

    outcomes = race(*[sell] * AT_ONCE)
    assert set(outcomes) == {"sold", "without_spare"}, outcomes
    assert outcomes.count("sold") == 30
    assert Reservation.objects.filter(state="active").count() == 30
    assert Pool.objects.get(pk=pool.pk).version == before + 30
    assert AuditEntry.objects.filter(action="reservation.sell").count() == 30


def test_two_pools_on_the_same_accelerators_never_sell_one_twice() -> None:
    """Six accelerators for two pools that may run six replicas each: what both have sold needs six at most."""
    selling.host("gpu-1", accelerators=4)
    selling.host("gpu-2", accelerators=2)
    pools = [selling.pool(name, keep_spare=False) for name in ("Chat", "Code")]
    for pool in pools:
        selling.serve(pool, accelerators=1, most=6)
    tenant = factories.tenant()

    def sell(index: int) -> str:
        own = Pool.objects.get(pk=pools[index % 2].pk)
        return outcome(lambda: reservation_sell(tenant=tenant, pool=own, mu_per_min=25.0, actor="t"))

    outcomes = race(*[lambda i=index: sell(i) for index in range(AT_ONCE)])  # type: ignore[misc]
    assert all(isinstance(out, str) for out in outcomes), outcomes
    sold = [sum(Reservation.objects.filter(pool=pool).values_list("mu_per_min", flat=True)) for pool in pools]
    # 24 sales of 25 fill the six of them: each pool's part of it is in whole accelerators.
    assert sum(-(-mu // 100) for mu in sold) == 6
    assert sum(sold) == 600


def test_growth_approvals_and_cancellations_at_once_keep_the_promise_as_well() -> None:
    selling.host("node-1")
    pool = selling.pool()
    deployment = selling.serve(pool)
    tenant, now = factories.tenant(), timezone.now()
    rows = [
        reservation_sell(tenant=tenant, pool=pool, mu_per_min=10.0, starts_at=now + DAY, actor="t") for _ in range(10)
    ]
    wishes = [
        reservation_request(tenant=tenant, pool=pool, mu_per_min=30.0, starts_at=now + DAY, actor="t")
        for _ in range(10)
    ]
    calls = [
        *(lambda r=row: reservation_change(reservation=r, mu_per_min=40.0, actor="t") for row in rows[1:]),
        *(lambda r=row: reservation_approve(reservation=r, actor="t") for row in wishes),
        lambda: reservation_cancel(reservation=rows[0], actor="t"),
        lambda: deployment_update(deployment=deployment, max_replicas=5, actor="t"),
    ]
    random.Random(4).shuffle(calls)
    outcomes = race(*[lambda c=call: outcome(c) for call in calls])  # type: ignore[misc]
    assert set(outcomes) <= {"sold", "without_spare", "short"}, outcomes
    pool.refresh_from_db()
    deployment.refresh_from_db()
    assert deployment.max_replicas == 5
    (first, *_, last) = outlook(stock_of(pool, now=now), since=now.timestamp(), until=None)
    assert first.sold == 0
    assert 300 <= last.sold <= last.sellable == 400
