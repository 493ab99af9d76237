"""The tenant's usage: sums, filters, chart, receipts and files, of its own requests alone."""

from __future__ import annotations

import csv
import io
import re
import uuid
from datetime import timedelta
from html import unescape

import msgspec
import pytest
import redis
from django.test import Client
from django.utils import timezone

from capacity.models import HardwareType, Pool, UsageRecord, UsageRollup
from capacity.services import pool_create, pool_remove
from capacity.usage.lines import Charge, Refusal, refusals_key
from serving.models import Deployment
from serving.services import deployment_remove
from tenants.models import Tenant, User
from tests.web.open_pool import open_pool
from tests.web.seed import api_key, people, usage_record


@pytest.fixture
def tenant(db: None) -> Tenant:
    return people()[4]


@pytest.fixture
def sold(tenant: Tenant) -> Pool:
    return open_pool()


@pytest.fixture
def owner(client: Client, tenant: Tenant) -> Client:
    client.force_login(User.objects.get(email="owner@northwind.example"))
    return client


def shown(answer: object) -> str:
    return unescape(answer.content.decode())  # type: ignore[attr-defined]


@pytest.fixture
def used(tenant: Tenant, sold: Pool) -> UsageRecord:
    """One request of Northwind's key, one of a member's in the playground, and one of Alder."""
    key = api_key(tenant, "core")
    viewer = User.objects.get(email="viewer@northwind.example")
    alder = Tenant.objects.get(slug="alder")
    record = usage_record(tenant, key.pk, sold, client_request_id="order-77")
    usage_record(
        tenant, viewer.pk, sold, model="other", outcome="engine_lost", status=502, error="secret of the engine"
    )
    usage_record(alder, api_key(alder, "theirs").pk, sold, model="alders")
    deployment = Deployment.objects.get()
    minute = timezone.now().replace(second=0, microsecond=0) - timedelta(minutes=1)
    for owner_id, key_id, requests in ((tenant.pk, key.pk, 3), (tenant.pk, viewer.pk, 2), (alder.pk, uuid.uuid4(), 50)):
        UsageRollup.objects.create(
            period="minute",
            starts_at=minute,
            tenant_id=owner_id,
            key_id=key_id,
            pool_id=sold.pk,
            deployment_id=deployment.pk,
            service_class="best_effort",
            requests=requests,
            mu=requests * 6.0,
            input_tokens=requests * 100,
            output_tokens=requests * 10,
        )
    return record


def test_a_prefix_stands_apart_from_its_number(owner: Client, used: UsageRecord) -> None:
    UsageRollup.objects.filter(requests=3).update(requests=948_700, input_tokens=1_281_000_000)
    assert "949 k requests and 1.3 G tokens in the last 1 h" in shown(owner.get("/t/northwind/usage/?range=1h"))


def test_usage_shows_ones_own_with_who_sent_it(owner: Client, used: UsageRecord) -> None:
    page = shown(owner.get("/t/northwind/usage/"))
    assert "5 requests and 550 tokens" in page
    assert "30 MU of chat-32b" in page
    assert "viewer@northwind.example" in page
    assert "alders" not in page
    assert "secret of the engine" not in page


@pytest.mark.parametrize(
    ("query", "found"),
    [
        ("", 2),
        ("?outcome=failed", 1),
        ("?outcome=completed", 1),
        ("?outcome=timeout", 0),
        ("?model=other", 1),
        ("?model=alders", 0),
        ("?q=order-77", 1),
        ("?q=nothing", 0),
        ("?key=nonsense&outcome=nonsense&range=nonsense&before=nonsense&metric=nonsense", 2),
    ],
)
def test_filters_leave_what_they_say(owner: Client, used: UsageRecord, query: str, found: int) -> None:
    page = shown(owner.get(f"/t/northwind/usage/{query}"))
    assert len(re.findall(r'title="Receipt of ', page)) == found
    rows = list(csv.reader(io.StringIO(b"".join(owner.get(f"/t/northwind/usage/export{query}")).decode())))
    assert len(rows) == found + 1


def test_filters_by_key_and_by_member(owner: Client, used: UsageRecord) -> None:
    viewer = User.objects.get(email="viewer@northwind.example")
    for caller, requests in ((used.key_id, 3), (viewer.pk, 2)):
        page = shown(owner.get(f"/t/northwind/usage/?key={caller}"))
        assert f"{requests} requests" in page
        assert len(re.findall(r'title="Receipt of ', page)) == 1


@pytest.mark.parametrize(
    ("metric", "column", "total"),
    [("mu", "mu", 30.0), ("tokens", "input_tokens", 500.0), ("requests", "requests", 5.0)],
)
def test_the_chart_adds_up_to_what_was_used(
    owner: Client, used: UsageRecord, metric: str, column: str, total: float
) -> None:
    lines = owner.get(f"/t/northwind/usage/series.json?range=1h&metric={metric}&pool={used.pool_id}").json()
    assert sum(lines[column]) == pytest.approx(total)  # buckets of one minute, in units per minute
    assert owner.get("/t/northwind/usage/series.json?metric=odd").status_code == 404
    assert owner.get("/t/northwind/usage/series.json?pool=nobodys").status_code == 404
    assert owner.get(f"/t/northwind/usage/series.json?pool={uuid.uuid4()}").status_code == 404


def test_the_chart_of_a_removed_pool_stays_and_its_slug_is_another_pools(owner: Client, used: UsageRecord) -> None:
    old = Pool.objects.get()
    deployment_remove(deployment=Deployment.objects.get(), actor="t")
    pool_remove(pool=old, actor="t")
    hardware = HardwareType.objects.get()
    new = pool_create(model=old.model, slug=old.slug, hardware_type=hardware, is_public=True, actor="t")
    like = UsageRollup.objects.filter(tenant_id=used.tenant_id).values().first()
    assert like is not None
    fresh = {"id": None, "pool_id": new.pk, "deployment_id": uuid.uuid4(), "mu": 7.0}
    UsageRollup.objects.create(**{**like, **fresh})
    page = shown(owner.get("/t/northwind/usage/?range=1h"))
    assert {f"pool={pool.pk}" for pool in (old, new)} <= set(re.findall(r"pool=[^&\"]+", page))
    for pool, total in ((old, 30.0), (new, 7.0)):
        page = shown(owner.get(f"/t/northwind/usage/?range=1h&pool={pool.pk}"))
        drawn = re.search(r'data-src="([^"]+)"', page)
        assert drawn is not None
        assert sum(owner.get(drawn[1]).json()["mu"]) == pytest.approx(total)


def test_a_removed_pool_has_a_chart_for_those_alone_that_used_it(owner: Client, used: UsageRecord) -> None:
    pool = Pool.objects.get()
    Pool.objects.update(removed_at=timezone.now())
    path = f"usage/series.json?range=1h&pool={pool.pk}"
    assert sum(owner.get(f"/t/northwind/{path}").json()["mu"]) == pytest.approx(30.0)
    assert owner.get(f"/t/alder/{path}").status_code == 404
    stranger = Client()
    stranger.force_login(User.objects.get(email="owner@alder.example"))
    assert sum(stranger.get(f"/t/alder/{path}").json()["mu"]) == pytest.approx(300.0)
    # Open to everybody while it was there, and used by nobody; then known from roll-ups alone, which are kept longest.
    other = Pool.objects.create(slug="other", name="other", model=pool.model, removed_at=timezone.now())
    path = f"/t/northwind/usage/series.json?pool={other.pk}"
    assert owner.get(path).status_code == 404
    like = UsageRollup.objects.filter(tenant_id=used.tenant_id).values().first()
    assert like is not None
    UsageRollup.objects.create(**{**like, "id": None, "pool_id": other.pk})
    assert owner.get(path).status_code == 200


def test_a_private_pool_of_others_has_no_chart(owner: Client, sold: Pool) -> None:
    sold.is_public = False
    sold.save()
    sold.tenants.add(Tenant.objects.get(slug="alder"))
    assert owner.get(f"/t/northwind/usage/series.json?pool={sold.pk}").status_code == 404


def test_a_receipt_explains_what_a_request_cost(owner: Client, used: UsageRecord) -> None:
    page = shown(owner.get(f"/t/northwind/usage/{used.pk}"))
    # 600 × 0.00002 + 500 × 0.0006 MU, and the cached 400 at the price of the profile.
    assert "600 input tokens that were not cached" in page
    assert "0.0120" in page
    assert "0.3000" in page
    assert "order-77" in page
    assert "gw-1" not in page
    failed = UsageRecord.objects.get(outcome="engine_lost")
    assert "secret of the engine" not in shown(owner.get(f"/t/northwind/usage/{failed.pk}"))
    operator = Client()
    operator.force_login(User.objects.get(email="operator@penstock.example"))
    assert "secret of the engine" in shown(operator.get(f"/t/northwind/usage/{failed.pk}"))


def test_a_receipt_names_the_limits_that_a_request_met(owner: Client, tenant: Tenant, sold: Pool) -> None:
    charges = [
        ["l1", "key", "tokens_per_min", "demo", 1000.0, 700.0, 345.0, True],
        ["r1", "reservation", "mu_per_min", "", 20.0, 2.5, 1.25, False],
        ["r1.allowance", "allowance", "mu_per_min", "", 40.0, 6.5, 0.0, False],
    ]
    key = api_key(tenant, "limited")
    page = shown(owner.get(f"/t/northwind/usage/{usage_record(tenant, key.pk, sold, charges=charges).pk}"))
    assert "tokens / min of the key, for demo" in page
    assert "345" in page
    assert "Reservation, in MU" in page
    assert "Allowance of the reservation, in MU" in page
    assert page.count("no room") == 2
    assert "stood in its way" not in page


@pytest.mark.parametrize(
    ("outcomes", "said"),
    [
        (["completed"], ""),
        (["engine_lost", "completed"], "2 attempts were made"),
        (["made_way", "completed"], "2 attempts were made"),
        (["made_way"], "1 attempt was made"),
    ],
)
def test_a_receipt_says_what_was_tried(
    owner: Client, tenant: Tenant, sold: Pool, outcomes: list[str], said: str
) -> None:
    attempts = [{"replica": str(uuid.uuid4()), "outcome": outcome} for outcome in outcomes]
    key = api_key(tenant, "limited")
    page = shown(owner.get(f"/t/northwind/usage/{usage_record(tenant, key.pk, sold, attempts=attempts).pk}"))
    assert said in page
    assert ("attempt" in page) == bool(said)
    assert ("goes back in the queue" in page) == ("made_way" in outcomes)


def test_a_refused_request_has_a_page_that_says_why(
    owner: Client, tenant: Tenant, sold: Pool, state: redis.Redis
) -> None:
    refusal = Refusal(
        id=str(uuid.uuid4()),
        at=timezone.now().timestamp(),
        tenant=str(tenant.pk),
        key=str(api_key(tenant, "limited").pk),
        pool=str(sold.pk),
        deployment=str(uuid.uuid4()),
        model="demo",
        dialect="chat",
        status=429,
        reason="concurrency",
        message="Limit of 2 concurrent requests reached.",
        retry_after_s=1.5,
        charges=(Charge("l1", "tenant", "concurrency", "", 2.0, 1.0, 0.0, is_charged=False),),
    )
    state.lpush(refusals_key(str(tenant.pk)), msgspec.json.encode(refusal))
    page = shown(owner.get(f"/t/northwind/usage/{refusal.id}"))
    assert "Limit of 2 concurrent requests reached." in page
    assert "nothing is billed" in page
    assert "concurrent requests of the tenant" in page
    assert "try again after 1.500 s" in page
    elsewhere = Client()
    elsewhere.force_login(User.objects.get(email="operator@penstock.example"))
    assert elsewhere.get(f"/t/alder/usage/{refusal.id}").status_code == 404
