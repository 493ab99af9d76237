"""Requests, receipts, roll-ups and exports over the REST API, for tenants and for operators."""

from __future__ import annotations

import base64
import csv
import datetime
import json
import uuid
from collections.abc import Iterator
from contextlib import aclosing
from typing import Any
from urllib.parse import quote_plus

import pytest
from asgiref.sync import async_to_sync
from django.db import connection
from django.test import AsyncClient
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from capacity.api.exports import SlicedResponse
from capacity.models import Pool, UsageRecord, UsageRollup
from capacity.policy.cost import CostProfile
from capacity.services import profile_add
from capacity.usage.books import finalise_minutes
from capacity.usage.reads import in_slices
from capacity.usage.writer import write_batch
from tests import factories
from tests.api.callers import TENANTS_OWN, codes, operators_only
from tests.api.conftest import World
from tests.api.test_foundation import problem
from tests.factories import Traffic, batch

AT = datetime.datetime(2026, 11, 20, 12, 3, tzinfo=datetime.UTC)


def stamp(minutes: float) -> float:
    return AT.timestamp() + 60 * minutes


@pytest.fixture
def pool(world: World) -> Pool:
    return factories.pool()


@pytest.fixture
def mine(world: World, pool: Pool) -> Traffic:
    """Three requests of acme, a minute apart, and one of other."""
    traffic = Traffic(tenant=str(world.acme.pk), key=str(world.keys["inference"][0].pk), pool=str(pool.pk))
    pairs = [traffic.pair(stamp(number), mu=1.0 + number, client_request_id=f"c{number}") for number in range(3)]
    foreign = Traffic(tenant=str(world.other.pk)).pair(stamp(1), mu=9.0)
    write_batch(batch(*pairs, foreign))
    return traffic


def text_of(answer: Any) -> str:
    assert answer.status_code == 200, answer.content
    return answer.getvalue().decode()


# ------------------------------------------------------------------------------------------------ who
@pytest.mark.parametrize("path", ["", "/export", "/export?format=ndjson", "/rollups"])
def test_members_read_their_tenants_usage_and_operators_all(world: World, mine: Traffic, path: str) -> None:
    assert codes(world, "get", f"/tenants/acme/usage{path}") == TENANTS_OWN
    assert codes(world, "get", f"/usage{path}") == operators_only(200)


def test_a_receipt_is_for_its_tenant(world: World, mine: Traffic) -> None:
    own = UsageRecord.objects.filter(tenant_id=world.acme.pk)[0]
    assert codes(world, "get", f"/tenants/acme/usage/{own.pk}") == TENANTS_OWN
    assert codes(world, "get", f"/usage/{own.pk}") == operators_only(200)
    foreign = UsageRecord.objects.get(tenant_id=world.other.pk)
    assert world.by("owner").get(f"/tenants/acme/usage/{foreign.pk}").status_code == 404
    assert world.by("owner").get("/tenants/acme/usage/x").status_code == 404


def test_nothing_of_another_tenant_is_in_what_a_tenant_reads(world: World, mine: Traffic) -> None:
    seen = world.by("outsider").get("/tenants/other/usage").json()["results"]
    assert [row["actual_mu"] for row in seen] == [9.0]
    assert {"tenant_id", "error", "gateway", "replica_id"}.isdisjoint(seen[0])
    assert len(text_of(world.by("outsider").get("/tenants/other/usage/export")).splitlines()) == 2
    spans = "since=2026-11-20T00:00:00Z&until=2026-11-21T00:00:00Z"
    sums = world.by("outsider").get(f"/tenants/other/usage/rollups?{spans}").json()["results"]
    assert [row["mu"] for row in sums] == [9.0]
    assert len(world.by("operator").get("/usage").json()["results"]) == 4
    platform = world.by("operator").get("/usage?tenant=other").json()["results"][0]
    assert (platform["tenant_id"], platform["gateway"]) == (str(world.other.pk), "gw-1")


# ------------------------------------------------------------------------------------------------ rows
def test_pages_go_on_where_they_ended(world: World, mine: Traffic) -> None:
    viewer = world.by("viewer")
    first = viewer.get("/tenants/acme/usage?page_size=2").json()
    assert [row["client_request_id"] for row in first["results"]] == ["c2", "c1"]
    write_batch(batch(mine.pair(stamp(5)), sequence=2))
    second = viewer.get(first["next"].removeprefix("http://testserver")).json()
    assert [row["client_request_id"] for row in second["results"]] == ["c0"]
    assert second["next"] is None


def test_requests_that_ended_at_once_are_on_one_page_only(world: World, mine: Traffic) -> None:
    write_batch(batch(*(mine.pair(stamp(9)) for _ in range(5)), sequence=2))
    url, seen = "/tenants/acme/usage?page_size=2", []
    while url:
        page = world.by("viewer").get(url).json()
        seen += [row["id"] for row in page["results"]]
        url = (page["next"] or "").removeprefix("http://testserver")
    assert len(seen) == len(set(seen)) == 8


@pytest.mark.parametrize(
    ("query", "seen"),
    [
        ("client_request_id=c1", ["c1"]),
        ("since=2026-11-20T12:04:00Z", ["c2", "c1"]),
        ("until=2026-11-20T12:04:00Z", ["c0"]),
        ("outcome=completed", ["c2", "c1", "c0"]),
        ("outcome=timeout", []),
        ("model=demo-sim", ["c2", "c1", "c0"]),
        ("service_class=reserved", []),
        ("stream=false", []),
        (f"deployment={uuid.UUID(int=1)}", []),
        (f"key={uuid.UUID(int=1)}", []),
    ],
)
def test_requests_are_filtered(world: World, mine: Traffic, query: str, seen: list[str]) -> None:
    rows = world.by("developer").get(f"/tenants/acme/usage?{query}").json()["results"]
    assert [row["client_request_id"] for row in rows] == seen
    lines = text_of(world.by("developer").get(f"/tenants/acme/usage/export?format=ndjson&{query}")).splitlines()
    assert [json.loads(line)["client_request_id"] for line in lines] == seen


def test_own_ids_filter_too(world: World, mine: Traffic) -> None:
    for query in (f"key={mine.key}", f"deployment={mine.deployment}", f"pool={mine.pool}"):
        assert len(world.by("viewer").get(f"/tenants/acme/usage?{query}").json()["results"]) == 3


@pytest.mark.parametrize(
    ("path", "at"),
    [
        ("/tenants/acme/usage?key=x", "key"),
        ("/tenants/acme/usage?since=yesterday", "since"),
        ("/tenants/acme/usage?since=0001-01-01T00:00:00%2B14:00", "since"),
        ("/tenants/acme/usage?until=9999-12-31T23:59:59-14:00", "until"),
        ("/tenants/acme/usage?client_request_id=%00", "client_request_id"),
        ("/tenants/acme/usage?outcome=fine", "outcome"),
        ("/tenants/acme/usage/export?format=xls", "format"),
        ("/tenants/acme/usage/export?until=x", "until"),
        ("/tenants/acme/usage/rollups?period=year", "period"),
        ("/tenants/acme/usage/rollups?group=tenant", "group"),
        ("/tenants/acme/usage/rollups?until=0001-01-01T00:00:00Z", "until"),
        ("/tenants/acme/usage/rollups?since=2026-11-20T00:00:00Z&until=2026-11-20T00:00:00Z", "since"),
        ("/usage?tenant=none", "tenant"),
        ("/usage/rollups?tenant=none", "tenant"),
    ],
)
def test_a_bad_question_is_refused_at_its_field(world: World, path: str, at: str) -> None:
    body = problem(world.by("operator").get(path), 400, "invalid")
    assert [error["field"] for error in body["errors"]] == [at]


def test_lists_ask_no_more_with_more_rows(world: World, mine: Traffic) -> None:
    for path in ("/tenants/acme/usage", "/usage", "/usage/rollups?since=2026-11-20T00:00:00Z"):
        operator = world.by("operator")
        operator.get(path)
        counts = []
        for sequence in (2, 3):
            with CaptureQueriesContext(connection) as queries:
                assert operator.get(path).status_code == 200
            counts.append(len(queries))
            write_batch(batch(*(mine.pair(stamp(sequence)) for _ in range(4)), segment=f"{path}.{sequence}"))
        assert counts[0] == counts[1] <= 5


@pytest.mark.parametrize(
    "position",
    ["abc", "a%00b", "2026-11-20", "0001-01-01 00:00:00+23:59", "9999-12-31 23:59:59-23:59", "nan", "\N{BULLET}"],
)
def test_a_cursor_that_is_none_is_not_found(world: World, mine: Traffic, position: str) -> None:
    for cursor in ("x", base64.b64encode(f"p={quote_plus(position)}".encode()).decode()):
        answer = world.by("viewer").get("/tenants/acme/usage", {"cursor": cursor})
        assert "cursor" in problem(answer, 404, "not_found")["detail"].lower()
        for path in ("/audit", "/usage", "/incidents", "/decisions"):
            problem(world.by("operator").get(path, {"cursor": cursor}), 404, "not_found")


def test_a_cursor_may_name_its_moment_in_any_time_zone(world: World, mine: Traffic) -> None:
    # PostgreSQL itself reads no offset above 16 h.
    there = (AT + datetime.timedelta(minutes=2)).astimezone(datetime.timezone(datetime.timedelta(hours=23)))
    cursor = base64.b64encode(f"p={quote_plus(str(there))}".encode()).decode()
    rows = world.by("viewer").get("/tenants/acme/usage", {"cursor": cursor}).json()["results"]
    assert [row["client_request_id"] for row in rows] == ["c1", "c0"]


# ------------------------------------------------------------------------------------------------ receipts
def test_roll_ups_sum_by_pool_and_by_what_is_asked(world: World, mine: Traffic) -> None:
    viewer = world.by("viewer")
    span = "since=2026-11-20T12:00:00Z&until=2026-11-20T13:00:00Z"
    minutes = viewer.get(f"/tenants/acme/usage/rollups?period=minute&{span}").json()
    assert minutes["count"] == 3
    assert [row["mu"] for row in minutes["results"]] == [3.0, 2.0, 1.0]
    (hour,) = viewer.get(f"/tenants/acme/usage/rollups?period=hour&group=key&{span}").json()["results"]
    assert hour == {
        "starts_at": "2026-11-20T12:00:00Z",
        "pool_id": mine.pool,
        "key_id": mine.key,
        "requests": 3,
        "failed": 0,
        "input_tokens": 300,
        "cached_tokens": 120,
        "output_tokens": 60,
        "mu": 6.0,
        "money": 0.0,
        "mean_ttft_ms": pytest.approx(500),
        "mean_duration_ms": pytest.approx(1500),
        "is_final": False,
    }
    for group, value in (("deployment", mine.deployment), ("service_class", "best_effort")):
        (row,) = viewer.get(f"/tenants/acme/usage/rollups?group={group}&{span}").json()["results"]
        assert row["service_class" if group == "service_class" else "deployment_id"] == value
    assert viewer.get(f"/tenants/acme/usage/rollups?key={uuid.UUID(int=1)}&{span}").json()["count"] == 0
    finalise_minutes(timezone.now())
    UsageRollup.objects.update(is_final=True)
    assert viewer.get(f"/tenants/acme/usage/rollups?{span}").json()["results"][0]["is_final"] is True


def test_roll_ups_say_what_it_costs_beyond_reservations(world: World, mine: Traffic, pool: Pool) -> None:
    terms = CostProfile(version=2, base=0.1, alpha=0.1, beta=0.1, gamma=0.0, epsilon=0.0, cached_factor=0.1)
    priced = profile_add(
        pool=pool, hardware_type=factories.hardware(), profile=terms, price_per_1000_mu=500.0, actor=factories.ACTOR
    )
    paid, covered = (mine.pair(stamp(0), mu=10.0, service_class=kind) for kind in ("best_effort", "reserved"))
    for admit, _ in (paid, covered):
        admit.profile_version = priced.version
    write_batch(batch(paid, covered, sequence=2))
    span = "since=2026-11-20T12:00:00Z&until=2026-11-20T13:00:00Z"
    rows = world.by("viewer").get(f"/tenants/acme/usage/rollups?group=service_class&{span}").json()["results"]
    told = {row["service_class"]: (row["mu"], row["money"]) for row in rows}
    assert told == {"best_effort": (16.0, 5.0), "reserved": (10.0, 0.0)}


def test_mu_of_two_pools_are_never_added(world: World, mine: Traffic) -> None:
    other = Traffic(tenant=mine.tenant, key=mine.key)
    write_batch(batch(other.pair(stamp(0), mu=50.0), sequence=2))
    span = "since=2026-11-20T12:00:00Z&until=2026-11-20T13:00:00Z"
    rows = world.by("viewer").get(f"/tenants/acme/usage/rollups?group=key&{span}").json()["results"]
    assert {row["pool_id"]: row["mu"] for row in rows} == {mine.pool: 6.0, other.pool: 50.0}


def test_operators_sum_by_tenant(world: World, mine: Traffic) -> None:
    span = "since=2026-11-20T12:00:00Z&until=2026-11-20T13:00:00Z"
    operator = world.by("operator")
    rows = operator.get(f"/usage/rollups?group=tenant&{span}").json()["results"]
    assert {row["tenant_id"]: row["mu"] for row in rows} == {str(world.acme.pk): 6.0, str(world.other.pk): 9.0}
    assert operator.get(f"/usage/rollups?tenant=acme&{span}").json()["count"] == 1
    assert operator.get(f"/usage/rollups?tenant={uuid.UUID(int=3)}&{span}").json()["count"] == 0


# ------------------------------------------------------------------------------------------------ exports
def test_csv_and_lines_of_json_hold_the_same(world: World, mine: Traffic) -> None:
    admin = world.by("admin")
    answer = admin.get("/tenants/acme/usage/export")
    assert answer.headers["Content-Type"] == "text/csv"
    assert answer.headers["Content-Disposition"] == 'attachment; filename="usage-acme.csv"'
    assert answer.headers["Cache-Control"] == "no-store"
    rows = list(csv.DictReader(text_of(answer).splitlines()))
    lines = admin.get("/tenants/acme/usage/export?format=ndjson", headers={"accept": "text/html"})
    assert lines.headers["Content-Type"] == "application/x-ndjson"
    objects = [json.loads(line) for line in text_of(lines).splitlines()]
    assert objects == admin.get("/tenants/acme/usage").json()["results"]
    for row, same in zip(rows, objects, strict=True):
        assert list(row) == list(same)
        assert row["id"] == same["id"]
        assert float(row["actual_mu"]) == same["actual_mu"]
        assert row["stream"] == "true"
        assert datetime.datetime.fromisoformat(row["ended_at"]) == datetime.datetime.fromisoformat(same["ended_at"])


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1+1", "@SUM(A1)", "\t=1", "\r=1"])
def test_a_cell_is_never_a_formula(world: World, mine: Traffic, text: str) -> None:
    write_batch(batch(mine.pair(stamp(9), client_request_id=text), sequence=2))
    written = text_of(world.by("owner").get("/tenants/acme/usage/export"))
    (first, *_) = list(csv.DictReader(written.splitlines(keepends=True)))
    assert first["client_request_id"].startswith("'")
    newest = text_of(world.by("owner").get("/tenants/acme/usage/export?format=ndjson")).splitlines()[0]
    assert json.loads(newest)["client_request_id"] == text


@pytest.fixture
def many(world: World, mine: Traffic) -> int:
    """10,000 requests, of which each ten ended at the same moment."""
    row = UsageRecord.objects.filter(tenant_id=world.acme.pk)[0]
    fields = {field.attname: getattr(row, field.attname) for field in UsageRecord._meta.concrete_fields}
    # Copies have no place in a chain.
    fields |= {"chain_sequence": None, "chain_hash": ""}
    UsageRecord.objects.bulk_create(
        UsageRecord(
            **{**fields, "id": uuid.uuid4(), "ended_at": AT + datetime.timedelta(hours=1, milliseconds=number // 10)}
        )
        for number in range(10_000)
    )
    return 10_003


def test_an_export_is_made_slice_by_slice(world: World, many: int) -> None:
    with CaptureQueriesContext(connection) as before:
        answer = world.by("owner").get("/tenants/acme/usage/export?format=ndjson")
    assert not [query for query in before if "capacity_usagerecord" in query["sql"]], "nothing is read ahead"
    parts: Iterator[bytes] = iter(answer.streaming_content)
    with CaptureQueriesContext(connection) as one:
        first = next(parts)
    assert len(one) == 1
    assert len(first.splitlines()) == 1000, "the first part needs one slice alone"
    lines = first.splitlines() + [line for part in parts for line in part.splitlines()]
    ids = [json.loads(line)["id"] for line in lines]
    assert len(ids) == len(set(ids)) == many
    ends = [datetime.datetime.fromisoformat(json.loads(line)["ended_at"]) for line in lines]
    assert ends == sorted(ends, reverse=True)


def test_it_is_sent_slice_by_slice_through_the_asynchronous_stack(world: World, many: int) -> None:
    headers = {"authorization": f"Bearer {world.tokens['owner']}"}

    async def first_part() -> tuple[int, bytes]:
        answer = await AsyncClient().get("/api/v1/tenants/acme/usage/export?format=ndjson", headers=headers)
        async with aclosing(aiter(answer)) as parts:
            async for part in parts:
                return answer.status_code, part
        return answer.status_code, b""

    with CaptureQueriesContext(connection) as queries:
        status, part = async_to_sync(first_part)()
    assert (status, len(part.splitlines())) == (200, 1000)
    assert len([query for query in queries if "capacity_usagerecord" in query["sql"]]) == 1


def test_slices_end_where_the_rows_end(world: World, mine: Traffic) -> None:
    rows = UsageRecord.objects.filter(tenant_id=world.acme.pk)
    assert [len(found) for found in in_slices(rows, ("id",), size=2)] == [2, 1]
    assert [len(found) for found in in_slices(rows, ("id",), size=3)] == [3]
    assert list(in_slices(rows.none(), ("id",))) == []


def test_an_asynchronous_server_sends_each_part_when_it_is_made() -> None:
    made: list[int] = []

    def parts() -> Iterator[bytes]:
        for number in range(3):
            made.append(number)
            yield b"x"

    async def first() -> list[int]:
        async for _ in SlicedResponse(parts()):
            return list(made)
        return []

    assert async_to_sync(first)() == [0]
