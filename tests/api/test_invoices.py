"""Invoices over the REST API: issuing once, previews, files, and who may see them."""

from __future__ import annotations

import base64
import csv
import datetime
import hashlib
import io
import json
from typing import Any
from urllib.parse import urlencode

import pytest
from django.db.models import QuerySet
from django.utils import timezone

from capacity.models import BooksState, CostProfile, Invoice, Pool
from capacity.services import invoice_issue
from capacity.usage.billing import begins, month_in
from capacity.usage.books import finalise_minutes
from capacity.usage.writer import write_batch
from tests import factories
from tests.api.callers import NOWHERE, TENANTS_OWN, codes, operators_only
from tests.api.conftest import World
from tests.factories import Traffic, batch

MONTH = month_in(begins(month_in(timezone.now())) - datetime.timedelta(days=1))
NAME = f"{MONTH:%Y-%m}"


@pytest.fixture
def pool(world: World) -> Pool:
    """Two requests of acme in the last month and one in this, at 4 per 1,000 MU; one of other's."""
    made = factories.pool(slug="chat")
    QuerySet(CostProfile).filter(pool=made).update(price_per_1000_mu=4.0)
    at = begins(MONTH).timestamp() + 86_400
    for tenant, count in ((world.acme, 2), (world.other, 1)):
        of = Traffic(tenant=str(tenant.pk), pool=str(made.pk))
        pairs = [of.pair(at + number, mu=500.0) for number in range(count)]
        write_batch(batch(*pairs, of.pair(timezone.now().timestamp() - 5, mu=125.0), segment=tenant.slug, closed=True))
    finalise_minutes(timezone.now())
    BooksState.objects.update(guaranteed_until=BooksState.objects.get().final_until)
    return made


@pytest.fixture
def issued(world: World, pool: Pool) -> dict[str, Invoice]:
    return {
        slug: invoice_issue(tenant=tenant, month=MONTH, actor="test").invoice
        for slug, tenant in (("acme", world.acme), ("other", world.other))
    }


@pytest.mark.parametrize("path", ["", "/{id}", "/{id}/export", "/preview"])
def test_members_read_their_own_and_operators_all(world: World, issued: dict[str, Invoice], path: str) -> None:
    path = path.replace("{id}", str(issued["acme"].pk))
    assert codes(world, "get", f"/tenants/acme/invoices{path}") == TENANTS_OWN
    if path != "/preview":
        assert codes(world, "get", f"/invoices{path}") == operators_only(200)


def test_anothers_invoice_does_not_exist(world: World, issued: dict[str, Invoice]) -> None:
    for pk in (issued["other"].pk, NOWHERE, "x"):
        for path in ("", "/export"):
            assert world.by("owner").get(f"/tenants/acme/invoices/{pk}{path}").status_code == 404
    (seen,) = world.by("viewer").get("/tenants/acme/invoices").json()["results"]
    assert (seen["name"], seen["month"], seen["totals"]) == ("INV-000001", NAME, {"USD": "4.00"})
    assert {"tenant", "issued_by"}.isdisjoint(seen)
    rows = world.by("operator").get("/invoices").json()["results"]
    assert [(row["tenant"], row["totals"]["USD"]) for row in rows] == [("other", "2.00"), ("acme", "4.00")]
    only = world.by("operator").get(f"/invoices?tenant=other&month={NAME}&kind=invoice").json()["results"]
    assert [row["tenant"] for row in only] == ["other"]
    assert world.by("operator").get("/invoices?month=2026-13").status_code == 400


def test_operators_issue_a_month_once(world: World, pool: Pool) -> None:
    body = {"tenant": "acme", "month": NAME}
    assert codes(world, "post", "/invoices", body) == operators_only(201)
    again = world.by("operator").post("/invoices", body, format="json")
    assert (again.status_code, again.json()["name"]) == (200, "INV-000001")
    assert Invoice.objects.count() == 1
    for month, code in ((f"{timezone.now():%Y-%m}", 400), ("soon", 400), ("0001-01", 400)):
        answer = world.by("operator").post("/invoices", {"tenant": "acme", "month": month}, format="json")
        assert answer.status_code == code, answer.json()
    answer = world.by("operator").post("/invoices", {"tenant": "acme", "month": "2020-01"}, format="json")
    assert "There is nothing to invoice to" in json.dumps(answer.json())


def test_the_hash_is_of_what_is_told(world: World, issued: dict[str, Invoice]) -> None:
    row = world.by("viewer").get(f"/tenants/acme/invoices/{issued['acme'].pk}").json()
    text = json.dumps(row["content"], sort_keys=True, separators=(",", ":"))
    assert hashlib.sha256(text.encode()).hexdigest() == row["hash"]
    (line,) = row["content"]["lines"]
    assert (line["mu"], line["price"], line["amount"], line["requests"]) == ("1000", "4", "4.00", 2)
    assert row["content"]["chain"]["sequence"] == 3


def test_this_month_is_a_preview(world: World, issued: dict[str, Invoice]) -> None:
    told: dict[str, Any] = world.by("viewer").get("/tenants/acme/invoices/preview").json()
    assert (told["status"], told["totals"], told["documents"]) == ("preview", {"USD": "0.50"}, [])
    assert told["waits_for"].endswith("it can be issued when its last minutes are final.")
    last = world.by("viewer").get(f"/tenants/acme/invoices/preview?month={NAME}").json()
    assert (last["waits_for"], last["totals"], last["documents"]) == ("", {"USD": "4.00"}, ["INV-000001"])
    assert world.by("viewer").get("/tenants/acme/invoices/preview?month=x").status_code == 400
    empty = world.by("viewer").get("/tenants/acme/invoices/preview?month=2020-01").json()
    assert (empty["is_empty"], empty["lines"], empty["totals"]) == (True, [], {})


def test_a_document_comes_as_a_file(world: World, issued: dict[str, Invoice]) -> None:
    path = f"/tenants/acme/invoices/{issued['acme'].pk}/export"
    answer = world.by("viewer").get(path)
    assert answer["Content-Disposition"] == 'attachment; filename="INV-000001.csv"'
    (row,) = csv.DictReader(io.StringIO(answer.getvalue().decode()))
    assert (row["document"], row["month"], row["amount"], row["mu"]) == ("INV-000001", NAME, "4.00", "1000")
    told = json.loads(world.by("viewer").get(f"{path}?format=json").content)
    assert (told["hash"], told["content"]) == (issued["acme"].hash, issued["acme"].content)
    assert world.by("viewer").get(f"{path}?format=pdf").status_code == 400


def test_what_is_credited_is_a_number_in_a_spreadsheet(world: World, issued: dict[str, Invoice]) -> None:
    content = issued["acme"].content
    lines = [{**content["lines"][0], "amount": "-4.00", "mu": "-0.000000001", "model": "=cmd|' /C calc'!A0"}]
    note = Invoice.objects.create(
        number=9, tenant=world.acme, month=MONTH, sequence=1, kind="credit_note", content={**content, "lines": lines}
    )
    answer = world.by("viewer").get(f"/tenants/acme/invoices/{note.pk}/export")
    (row,) = csv.DictReader(io.StringIO(answer.getvalue().decode()))
    assert (row["amount"], row["mu"], row["model"]) == ("-4.00", "-0.000000001", "'=cmd|' /C calc'!A0")


@pytest.mark.parametrize("path", ["/invoices", "/tenants/acme/invoices"])
def test_documents_come_in_pages(world: World, issued: dict[str, Invoice], path: str) -> None:
    content = issued["acme"].content
    for number in range(3, 6):
        known = {"month": datetime.date(2020, number, 1), "sequence": 0, "kind": "invoice", "content": content}
        Invoice.objects.create(number=number, tenant=world.acme, **known)
    found, page = [], world.by("operator").get(f"{path}?page_size=2").json()
    while page["next"]:
        found += page["results"]
        page = world.by("operator").get(page["next"].removeprefix("http://testserver")).json()
    numbers = [row["number"] for row in (*found, *page["results"])]
    assert numbers == sorted(Invoice.objects.filter(number__in=numbers).values_list("number", flat=True), reverse=True)
    assert len(numbers) >= 4
    for place in ("x", "1e3", str(2**64), "2026-11-01T00:00:00Z"):
        cursor = base64.b64encode(urlencode({"p": place}).encode()).decode()
        assert world.by("operator").get(path, {"cursor": cursor}).status_code == 404


@pytest.mark.parametrize("month", ["9999-12", "9999-01", "1969-12", "0000-01", "2026-13"])
def test_a_month_beyond_the_calendar_is_refused(world: World, month: str) -> None:
    answer = world.by("operator").post("/invoices", {"tenant": "acme", "month": month}, format="json")
    assert (answer.status_code, answer.json()["errors"][0]["field"]) == (400, "month")
