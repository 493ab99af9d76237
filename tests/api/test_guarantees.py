"""The guarantee ledger over the REST API: months with attainment and credit, minutes, files, and who may see them."""

from __future__ import annotations

import csv
import datetime
import io
import json
from decimal import Decimal
from typing import Any

import pytest

from capacity.models import CostProfile, Reservation
from capacity.usage.books import finalise_minutes
from capacity.usage.guarantees import guarantees_judge
from capacity.usage.writer import write_batch
from tenants.models import Tenant
from tests import factories
from tests.api.callers import NOWHERE, TENANTS_OWN, codes, operators_only
from tests.api.conftest import World
from tests.factories import Traffic, batch
from tests.replay import replayed

NOON = datetime.datetime(2026, 11, 20, 12, 0, tzinfo=datetime.UTC)
T = NOON.timestamp()
MONTH = 30 * 24 * 60


def sold(tenant: Tenant, pool: Any, **fields: Any) -> Reservation:
    return Reservation.objects.create(
        tenant=tenant,
        pool=pool,
        profile=CostProfile.objects.get(pool=pool),
        state="active",
        **{"mu_per_min": 60.0, "starts_at": NOON, **fields},
    )


@pytest.fixture
def kept(world: World) -> dict[str, Reservation]:
    return replayed("guarantees of the API", lambda: make_kept(world))


def make_kept(world: World) -> dict[str, Reservation]:
    """A hundred minutes of acme's reservation, of which two are in breach, and as many of other's that were kept."""
    pool = factories.pool(slug="chat")
    rows = {
        "acme": sold(world.acme, pool, price=Decimal("12.50"), currency="EUR"),
        "other": sold(world.other, pool, mu_per_min=5.0),
    }
    of = Traffic(tenant=str(world.acme.pk), pool=str(pool.pk))
    minutes: list[dict[str, Any]] = [{}, {"outcome": "engine_lost", "status": 502}, {}, {"duration_s": 9.0}]
    pairs = [
        of.pair(T + 60 * minute + 5, **{"service_class": "reserved", "duration_s": 1.0, "mu": 2.0, **fields})
        for minute, fields in enumerate(minutes)
    ]
    write_batch(batch(*pairs, watermark=T + 6000, closed=True))
    finalise_minutes(NOON + datetime.timedelta(minutes=101))
    assert guarantees_judge() == 100
    return rows


@pytest.mark.parametrize("path", ["", "/{id}/minutes", "/{id}/minutes/export"])
def test_members_read_their_tenants_guarantees_and_operators_all(
    world: World, kept: dict[str, Reservation], path: str
) -> None:
    path = path.replace("{id}", str(kept["acme"].pk))
    assert codes(world, "get", f"/tenants/acme/guarantees{path}") == TENANTS_OWN
    assert codes(world, "get", f"/guarantees{path}") == operators_only(200)


def test_anothers_reservation_does_not_exist(world: World, kept: dict[str, Reservation]) -> None:
    for pk in (kept["other"].pk, NOWHERE, "x"):
        for path in ("minutes", "minutes/export"):
            assert world.by("owner").get(f"/tenants/acme/guarantees/{pk}/{path}").status_code == 404
    seen = world.by("outsider").get("/tenants/other/guarantees?month=2026-11").json()["results"]
    assert [(row["id"], row["breach_minutes"]) for row in seen] == [(str(kept["other"].pk), 0)]
    assert "tenant" not in seen[0]


def test_a_month_has_its_attainment_and_its_credit(world: World, kept: dict[str, Reservation]) -> None:
    (row,) = world.by("viewer").get("/tenants/acme/guarantees?month=2026-11").json()["results"]
    assert (row["minutes"], row["breach_minutes"], row["attainment"]) == (100, 2, 0.98)
    # 98 % is at least 95 % and less than 99 %: a quarter of what the hundred minutes cost.
    assert row["credit_share"] == 0.25
    assert row["credit_amount"] == str(round(Decimal("12.50") * 60 * 100 / MONTH / 4, 2))
    assert (row["entitled_mu"], row["used_mu"], row["unserved_mu"], row["slow_mu"]) == (6000.0, 8.0, 2.0, 2.0)
    rows = world.by("operator").get("/guarantees?month=2026-11").json()["results"]
    assert {row["tenant"]: row["credit_amount"] for row in rows} == {"acme": row["credit_amount"], "other": None}


def test_a_month_is_credited_as_it_was_sold(world: World, kept: dict[str, Reservation]) -> None:
    Reservation.objects.filter(pk=kept["acme"].pk).update(credit_tiers=[[0.99, 0.5], [0.9, 1.0]])
    (row,) = world.by("viewer").get("/tenants/acme/guarantees?month=2026-11").json()["results"]
    assert (row["credit_share"], row["credit_tiers"]) == (0.5, [[0.99, 0.5], [0.9, 1.0]])


def test_a_month_without_a_promise_is_empty_and_a_wrong_one_is_told(world: World, kept: dict[str, Reservation]) -> None:
    assert world.by("viewer").get("/tenants/acme/guarantees?month=2026-12").json()["results"] == []
    for month in ("2026-13", "november", "0001-01", "9999-12"):
        answer = world.by("viewer").get(f"/tenants/acme/guarantees?month={month}")
        assert answer.status_code == 400
        assert answer.json()["errors"][0]["field"] == "month"


def test_minutes_are_listed_filtered_and_paged(world: World, kept: dict[str, Reservation]) -> None:
    path = f"/tenants/acme/guarantees/{kept['acme'].pk}/minutes"
    breaches = world.by("viewer").get(f"{path}?is_breach=true").json()["results"]
    assert [row["starts_at"] for row in breaches] == ["2026-11-20T12:03:00Z", "2026-11-20T12:01:00Z"]
    assert breaches[1]["reason"].startswith("1 unserved of 1 requests")
    page = world.by("viewer").get(f"{path}?page_size=60").json()
    rest = world.by("viewer").get(page["next"].removeprefix("http://testserver")).json()
    starts = [row["starts_at"] for row in (*page["results"], *rest["results"])]
    assert len(set(starts)) == 100
    assert starts == sorted(starts, reverse=True)
    assert len(world.by("viewer").get(f"{path}?since=2026-11-20T13:30:00Z").json()["results"]) == 10


def test_minutes_come_as_a_file(world: World, kept: dict[str, Reservation]) -> None:
    path = f"/tenants/acme/guarantees/{kept['acme'].pk}/minutes/export"
    rows = list(csv.DictReader(io.StringIO(world.by("viewer").get(path).getvalue().decode())))
    assert (len(rows), rows[-2]["is_breach"], rows[-1]["used_mu"]) == (100, "true", "2.0")
    lines = world.by("viewer").get(f"{path}?format=ndjson&is_breach=true").getvalue().splitlines()
    assert [json.loads(line)["slow"] for line in lines] == [1, 0]
