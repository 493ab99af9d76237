"""A tenant recomputes its invoices from its usage file: what holds is equal to the cent, what was changed is found."""

from __future__ import annotations

import datetime
import hashlib
import json
from decimal import ROUND_HALF_EVEN, Decimal
from typing import Any

import pytest
from django.db.models import QuerySet

from capacity.models import BooksState, CostProfile, GuaranteeDay, Pool, Reservation
from capacity.policy.verification import Verification
from capacity.services import invoice_issue
from capacity.usage.books import finalise_minutes, usage_delete_old
from capacity.usage.chain import anchors_take
from capacity.usage.lines import Usage
from capacity.usage.writer import write_batch
from tests import factories
from tests.api.conftest import World
from tests.factories import Traffic, batch

OCTOBER = datetime.date(2026, 10, 1)
BEGIN = datetime.datetime(2026, 10, 1, tzinfo=datetime.UTC)
T = BEGIN.timestamp()
AFTER = BEGIN + datetime.timedelta(days=34)
Lines = list[dict[str, Any]]


def pair(of: Traffic, price: CostProfile, at_s: float, tokens: int, **fields: Any) -> Any:
    mu = price.base + price.beta * tokens + price.gamma * tokens * tokens / 2
    return of.pair(T + at_s, usage=Usage(output_tokens=tokens), mu=mu, **fields)


@pytest.fixture
def issued(world: World) -> World:
    """An invoice of acme for October and a note, with a reservation, a credit, and usage before and after the month."""
    pool: Pool = factories.pool(slug="chat")
    QuerySet(CostProfile).filter(pool=pool).update(price_per_1000_mu=7.5)
    price = CostProfile.objects.get(pool=pool)
    of = Traffic(tenant=str(world.acme.pk), pool=str(pool.pk))
    sold = Reservation.objects.create(
        tenant=world.acme,
        pool=pool,
        profile=price,
        mu_per_min=0.1,
        starts_at=BEGIN,
        state="active",
        price=Decimal("10.8"),
        currency="EUR",
    )
    GuaranteeDay.objects.create(reservation=sold, day=OCTOBER, minutes=1440, breach_minutes=40)
    pairs = [
        pair(of, price, at, 300 + number) for number, at in enumerate((-5, 0, 86_400, 31 * 86_400 - 1, 31 * 86_400))
    ]
    pairs += [pair(of, price, 70.0, 900, service_class="reserved")]
    write_batch(batch(*pairs, closed=True))
    anchors_take(now=AFTER - datetime.timedelta(days=1))
    close()
    assert invoice_issue(tenant=world.acme, month=OCTOBER, actor="test").is_new
    write_batch(batch(pair(of, price, 99.0, 40_000), segment="late", closed=True))
    GuaranteeDay.objects.update(breach_minutes=100)
    close()
    assert invoice_issue(tenant=world.acme, month=OCTOBER, actor="test").is_new
    return world


def close() -> None:
    finalise_minutes(AFTER)
    BooksState.objects.update(guaranteed_until=BooksState.objects.get().final_until)


def lines_of(world: World, query: str = "") -> Lines:
    answer = world.by("viewer").get(f"/tenants/acme/usage/file{query}")
    assert answer.status_code == 200, answer.content
    return [json.loads(line) for line in answer.getvalue().splitlines()]


def checked(lines: Lines) -> Verification:
    found = Verification()
    for line in json.loads(json.dumps(lines)):
        found.feed(line)
    found.finish()
    return found


def test_the_file_recomputes_what_was_issued(issued: World) -> None:
    lines = lines_of(issued)
    found = checked(lines)
    assert found.findings == []
    assert [(one.name, one.kind, one.verdict) for one in found.invoices] == [
        ("INV-000001", "invoice", "equal"),
        ("NOTE-000002", "debit_note", "equal"),
    ]
    # The same from the rows of the file alone.
    (price,) = (Decimal(str(line["price_per_1000_mu"])) for line in lines if line["kind"] == "price")
    october = [line for line in lines if line["kind"] == "record" and line["ended_at"].startswith("2026-10")]
    mu = sum(
        Decimal(str(line["actual_mu"])).quantize(Decimal("1e-9"), ROUND_HALF_EVEN)
        for line in october
        if line["service_class"] == "best_effort"
    )
    total = sum(Decimal(one.totals["USD"]) for one in found.invoices)
    assert total == (mu * price / 1000).quantize(Decimal("0.01"), ROUND_HALF_EVEN) > 0
    # 1,440 of 44,640 minutes at 1.08 a month are 0.03; first a quarter of it is credited, and then all.
    assert [one.totals["EUR"] for one in found.invoices] == ["0.02", "-0.02"]


def test_any_value_of_an_invoice_that_is_changed_is_found(issued: World) -> None:
    lines = lines_of(issued)
    for at, line in enumerate(lines):
        if line["kind"] != "invoice":
            continue
        for number, told in enumerate(line["content"]["lines"]):
            for name, value in told.items():
                changed = json.loads(json.dumps(lines))
                changed[at]["content"]["lines"][number][name] = other(name, value)
                try:
                    found = {finding.what for finding in checked(changed).findings}
                except ValueError:
                    continue
                assert "invoice" in found, f"{name} was changed, and nothing was found"


def other(name: str, value: Any) -> Any:
    if name == "kind":
        return "credit" if value == "usage" else "usage"
    if isinstance(value, int):
        return value + 1
    if isinstance(value, str) and value[-1:].isdigit():
        return value[:-1] + str((int(value[-1]) + 1) % 10)
    return {"currency": "GBP"}.get(name, f"{value or ''}1")


def test_an_invoice_that_is_written_anew_with_its_hash_is_found(issued: World) -> None:
    for name, by in (("amount", Decimal("0.01")), ("mu", Decimal("0.000000001")), ("requests", 1)):
        lines = lines_of(issued)
        document = next(line for line in lines if line["kind"] == "invoice")
        usage = next(line for line in document["content"]["lines"] if line["service_class"] == "best_effort")
        usage[name] = usage[name] + by if name == "requests" else str(Decimal(usage[name]) + by)
        totals = document["content"]["totals"]
        if name == "amount":
            totals["USD"] = str(Decimal(totals["USD"]) + by)
        text = json.dumps(document["content"], sort_keys=True, separators=(",", ":"))
        document["hash"] = hashlib.sha256(text.encode()).hexdigest()
        found = checked(lines)
        assert {finding.what for finding in found.findings} == {"invoice"}
        assert "differs" in {one.verdict for one in found.invoices}
        assert "off what the records come to" in found.findings[0].message


def test_a_row_a_price_or_a_promise_that_is_changed_is_found_in_the_invoice(issued: World) -> None:
    for kind, name, value in (
        ("record", "actual_mu", 3.5),
        ("record", "service_class", "reserved"),
        ("record", "ended_at", "2026-09-03T10:00:00Z"),
        ("price", "price_per_1000_mu", 7.6),
        ("promised", "minutes", 2880),
        ("promised", "price", "11"),
        ("promised", "credit_share", 0.0),
    ):
        lines = lines_of(issued)
        row = [line for line in lines if line["kind"] == kind][2 if kind == "record" else 0]
        row[name] = value
        assert "invoice" in {finding.what for finding in checked(lines).findings}, (kind, name)


def test_numbers_with_which_nothing_can_be_reckoned_are_refused(issued: World) -> None:
    for kind, name, value in (("price", "price_per_1000_mu", 1e300), ("promised", "price", "1e400000")):
        lines = lines_of(issued)
        last = [line for line in lines if line["kind"] == "invoice"][-1]
        place = last["content"]["chain"]["sequence"]
        # The chain ends where the document speaks of it: it is compared when all is read.
        kept = [line for line in lines if line is last or line["kind"] != "invoice"]
        kept = [line for line in kept if line["kind"] != "record" or line["sequence"] <= place]
        for line in kept:
            if line["kind"] == kind:
                line[name] = value
        with pytest.raises(ValueError, match=r"Invalid|Overflow"):
            checked(kept)


def test_records_that_came_since_wait_for_a_note(issued: World) -> None:
    price = CostProfile.objects.get()
    of = Traffic(tenant=str(issued.acme.pk), pool=str(price.pool_id))
    write_batch(batch(pair(of, price, 99.0, 50_000), segment="later", closed=True))
    found = checked(lines_of(issued))
    assert (found.findings, [one.verdict for one in found.invoices]) == ([], ["equal", "equal"])


def test_a_month_of_which_records_are_gone_is_not_recomputed(issued: World) -> None:
    assert usage_delete_old(before=AFTER, actor="retention") > 0
    found = checked(lines_of(issued))
    assert found.findings == []
    assert {one.verdict for one in found.invoices} == {"not recomputed: the file has not all of the month's records"}
