"""The tenant's overview: its reservation against its use, and what was refused."""

from __future__ import annotations

import uuid
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from django.test import Client
from django.utils import timezone

from capacity.models import (
    BooksState,
    GuaranteeMinute,
    Model,
    Pool,
    RefusalRollup,
    Reservation,
    UsageRollup,
)
from penstock.web.refusal_words import WORDS, words_of
from penstock.web.tenant_capacity import Gauge, gauge_of
from tenants.models import Membership, Tenant
from tests import factories
from tests.web.seed import Seeded

ADDRESSES = ("/t/northwind/", "/t/northwind/series.json?pool=chat-32b", "/t/northwind/refusals.json")
GAUGE = "/t/northwind/gauge?pool=chat-32b"


@pytest.fixture
def owner(client: Client, platform: Seeded) -> Client:
    client.force_login(platform.owner)
    return client


def gauge(*, reserved: float, used: float, burst: float = 0.0, best: float = 0.0) -> Gauge:
    rows = (Reservation(mu_per_min=reserved, burst_mu=1.0),)
    return Gauge(pool=Pool(), reservations=rows, used=used, burst=burst, best=best, lent=None, claw_back_s=None)


@pytest.mark.parametrize(
    ("made", "kinds", "most"),
    [
        (gauge(reserved=150.0, used=100.0), ["track", "used"], 200.0),
        (gauge(reserved=150.0, used=150.0, burst=20.0, best=75.0), ["track", "used", "burst", "best"], 300.0),
        (gauge(reserved=150.0, used=0.0), ["track"], 200.0),
        (gauge(reserved=0.8, used=0.4, best=0.1), ["track", "used", "best"], 1.0),
        # Nothing of it is too small to be told, but too small to be drawn.
        (gauge(reserved=1e6, used=1e-6), ["track"], 1.25e6),
    ],
)
def test_the_gauge_draws_what_there_is_on_a_round_scale(made: Gauge, kinds: list[str], most: float) -> None:
    assert [arc.kind for arc in made.arcs] == kinds
    assert made.most == pytest.approx(most)
    assert made.most >= made.total
    assert all(path.startswith("M") and "nan" not in path for path in (arc.path for arc in made.arcs))


def rollup(of: Tenant, pool: Pool, at: datetime, of_class: str, mu: float) -> None:
    same = {"key_id": uuid.uuid4(), "deployment_id": uuid.uuid4()}
    UsageRollup.objects.create(
        period="minute", starts_at=at, tenant_id=of.pk, pool_id=pool.pk, service_class=of_class, mu=mu, **same
    )


def test_use_beyond_the_rate_is_burst_and_beyond_the_reservation_best_effort(platform: Seeded) -> None:
    pool, tenant = platform.chat.pool, platform.northwind
    UsageRollup.objects.filter(period="minute").delete()
    now = datetime(2026, 11, 26, 10, 30, 30, tzinfo=UTC)
    Reservation.objects.filter(tenant=tenant).update(starts_at=now - timedelta(days=1))
    # Of the minute before, a half counts.
    minute = now.replace(second=0)
    rollup(tenant, pool, minute, "reserved", 80.0)
    rollup(tenant, pool, minute - timedelta(minutes=1), "reserved", 180.0)
    rollup(tenant, pool, minute, "best_effort", 25.0)
    rollup(platform.alder, pool, minute, "reserved", 900.0)
    told = gauge_of(tenant, pool, now)
    assert (told.reserved, told.used, told.burst, told.best, told.idle) == (150.0, 150.0, 20.0, 25.0, 0.0)
    assert told.lent is None
    row = Reservation.objects.get(tenant=tenant, state="active")
    GuaranteeMinute.objects.filter(starts_at__gte=now - timedelta(minutes=20)).delete()
    GuaranteeMinute.objects.create(reservation=row, starts_at=minute - timedelta(minutes=2), lent_mu=31.0)
    assert gauge_of(tenant, pool, now).lent == 31.0
    # Two reservations of one pool are one gauge.
    Reservation.objects.create(
        tenant=tenant,
        pool=pool,
        profile=row.profile,
        mu_per_min=30.0,
        starts_at=now - timedelta(hours=1),
        state="active",
    )
    told = gauge_of(tenant, pool, now)
    assert (told.reserved, told.used, told.burst) == (180.0, 170.0, 0.0)


def test_usage_is_drawn_apart_against_what_is_reserved(owner: Client, platform: Seeded) -> None:
    lines = owner.get("/t/northwind/series.json?range=1h&pool=chat-32b").json()
    at = -3
    assert lines["sold"][at] == 150.0
    # By the seed: 42 of 62 parts of its requests stay inside the reservation.
    assert lines["reserved"][at] / lines["used"][at] == pytest.approx(0.42 / 0.62, abs=0.01)
    assert lines["best"][at] == pytest.approx(lines["used"][at] - lines["reserved"][at])
    assert sum(value or 0.0 for value in lines["breached"]) == 0.0
    row = Reservation.objects.get(tenant=platform.northwind, state="active")
    theirs = Reservation.objects.get(tenant=platform.alder, state="active")
    for broken, minutes in ((row, 2), (theirs, 5)):
        for back in range(10, 10 + minutes):
            minute = timezone.now().replace(second=0, microsecond=0) - timedelta(minutes=back)
            GuaranteeMinute.objects.filter(reservation=broken, starts_at=minute).update(is_breach=True)
    lines = owner.get("/t/northwind/series.json?range=1h&pool=chat-32b").json()
    assert sum(value or 0.0 for value in lines["breached"]) == 2.0
    assert BooksState.objects.get().guaranteed_until is not None


def test_refusals_are_told_by_reason_with_what_to_do(owner: Client, platform: Seeded) -> None:
    page = owner.get("/t/northwind/?range=1h").content.decode()
    assert "No room for best effort" in page
    assert "Limit of tokens/min" in page
    assert "Clients that wait as retry-after says are admitted" in page
    assert "triage" not in page, "a key of another tenant"
    told = owner.get("/t/northwind/?range=1h").context["refusals"]
    lines = owner.get("/t/northwind/refusals.json?range=1h").json()
    drawn = sum(value or 0.0 for name in ("limit", "room", "other") for value in lines[name])
    # The chart leaves the newest minute out, which is not over.
    assert drawn <= sum(row.requests for row in told) <= drawn + 30
    assert sum(value or 0.0 for value in lines["room"]) > 0
    day = owner.get("/t/northwind/refusals.json?range=7d").json()
    assert len(day["t"]) == 168


def test_what_is_not_known_by_name_is_told_by_its_code() -> None:
    assert words_of("some_new_rule", 429)[0::2] == ("Some new rule", "other")
    assert words_of("some_fault", 503).group == "room"
    assert all(words.advice.endswith(".") and words.name for words in WORDS.values())


def test_a_tenant_whose_every_request_is_refused_sees_why(client: Client, platform: Seeded) -> None:
    fresh = factories.tenant(name="Fresh")
    person = factories.user()
    Membership.objects.create(tenant=fresh, user=person, role="viewer")
    client.force_login(person)
    assert "Refused requests" not in client.get(f"/t/{fresh.slug}/").content.decode()
    RefusalRollup.objects.create(
        period="minute",
        starts_at=timezone.now().replace(second=0, microsecond=0) - timedelta(minutes=5),
        tenant_id=fresh.pk,
        key_id=uuid.uuid4(),
        reason="model_not_found",
        status=404,
        requests=3,
    )
    page = client.get(f"/t/{fresh.slug}/?range=1h").content.decode()
    assert "No such model" in page
    assert "Name one of those that GET /v1/models lists." in page


def test_without_a_reservation_the_gauge_says_how_to_get_one(owner: Client, platform: Seeded) -> None:
    asks = 'href="/t/northwind/reservations/new"'
    page = owner.get("/t/northwind/gauge?pool=demo-sim").content.decode()
    assert "Nothing of demo-sim is reserved" in page
    assert "best effort" in page
    assert asks in page
    Pool.objects.filter(slug="demo-sim").update(best_effort=False)
    assert "without one, requests are refused" in owner.get("/t/northwind/gauge?pool=demo-sim").content.decode()
    owner.force_login(platform.viewer)
    page = owner.get("/t/northwind/gauge?pool=demo-sim").content.decode()
    assert asks not in page
    assert "An admin of Northwind Bank can ask for one" in page


def test_the_overview_opens_with_the_pool_that_is_reserved(owner: Client, platform: Seeded) -> None:
    assert owner.get("/t/northwind/").context["pool"].slug == "chat-32b"
    assert owner.get("/t/northwind/?pool=demo-sim").context["pool"].slug == "demo-sim"


@pytest.mark.parametrize("address", [*ADDRESSES, GAUGE])
def test_nobody_else_sees_any_of_it(client: Client, platform: Seeded, address: str) -> None:
    for person in (platform.stranger, factories.user()):
        client.force_login(person)
        answer = client.get(address)
        assert answer.status_code == 404
        assert b"core-banking" not in answer.content
    client.logout()
    assert client.get(address).status_code == 302
    for person in (platform.owner, platform.viewer, platform.operator):
        client.force_login(person)
        assert client.get(address).status_code == 200


@pytest.mark.parametrize("address", ["gauge", "series.json"])
def test_a_name_that_no_database_can_hold_is_no_pool(owner: Client, platform: Seeded, address: str) -> None:
    assert owner.get(f"/t/northwind/{address}?pool=a%00b").status_code == 404


def test_lines_hold_nothing_of_others(owner: Client, platform: Seeded) -> None:
    def all_of() -> list[Any]:
        return [
            owner.get("/t/northwind/series.json?range=1h&pool=chat-32b").json()["used"][:-2],
            owner.get("/t/northwind/refusals.json?range=1h").json()["room"][:-2],
        ]

    assert max(max(line) for line in all_of()) > 0.0
    minute = timezone.now().replace(second=0, microsecond=0) - timedelta(minutes=9)
    rollup(platform.alder, platform.chat.pool, minute, "reserved", 1e6)
    RefusalRollup.objects.create(
        period="minute",
        starts_at=minute,
        tenant_id=platform.alder.pk,
        key_id=uuid.uuid4(),
        pool_id=platform.chat.pool_id,
        reason="capacity_exceeded",
        status=429,
        requests=10**6,
    )
    assert max(max(line) for line in all_of()) < 1e5


def test_a_pool_that_the_tenant_may_not_use_has_no_gauge_and_no_lines(owner: Client, platform: Seeded) -> None:
    Pool.objects.create(slug="theirs", name="theirs", model=Model.objects.get(slug="simulated"), is_public=False)
    for address in ("gauge?pool=theirs", "series.json?pool=theirs", "gauge", "gauge?pool=none"):
        assert owner.get(f"/t/northwind/{address}").status_code == 404
