"""Amounts go by the smallest part of their currency, and what was issued in hundredths of every currency stands."""

from __future__ import annotations

import copy
import datetime
import hashlib
import json
from decimal import ROUND_HALF_EVEN, Decimal
from typing import Any

import pytest
from django.db.models import QuerySet

from capacity.models import BooksState, CostProfile, GuaranteeDay, Invoice, Pool, Reservation
from capacity.policy.verification import Verification
from capacity.services import invoice_issue
from capacity.usage.attainment import months
from capacity.usage.books import finalise_minutes
from capacity.usage.lines import Usage
from capacity.usage.writer import write_batch
from tests import factories
from tests.api.conftest import World
from tests.factories import Traffic, batch

OCTOBER = datetime.date(2026, 10, 1)
BEGIN = datetime.datetime(2026, 10, 1, tzinfo=datetime.UTC)
AFTER = BEGIN + datetime.timedelta(days=34)
PRICE = "1537.25"
"""Of 1,000 MU, and of a reservation of 1 MU/min in a month."""


def used(world: World, tokens: int, segment: str = "s") -> float:
    """Book one request of acme in October; its MU."""
    price = CostProfile.objects.get()
    mu = float(price.base + price.beta * tokens + price.gamma * tokens * tokens / 2)
    of = Traffic(tenant=str(world.acme.pk), pool=str(price.pool_id))
    pair: Any = of.pair(BEGIN.timestamp() + 60.0, usage=Usage(output_tokens=tokens), mu=mu)
    write_batch(batch(pair, segment=segment, closed=True))
    finalise_minutes(AFTER)
    BooksState.objects.update(guaranteed_until=BooksState.objects.get().final_until)
    return mu


@pytest.fixture
def sold(world: World) -> Reservation:
    """A day of a reservation of acme, of which a quarter is credited; its currency is the test's to set."""
    pool: Pool = factories.pool(slug="chat")
    QuerySet(CostProfile).filter(pool=pool).update(price_per_1000_mu=float(PRICE))
    found = Reservation.objects.create(
        tenant=world.acme,
        pool=pool,
        profile=CostProfile.objects.get(),
        mu_per_min=1,
        starts_at=BEGIN,
        state="active",
        price=Decimal(PRICE),
        currency="EUR",
    )
    GuaranteeDay.objects.create(reservation=found, day=OCTOBER, minutes=1440, breach_minutes=40)
    return found


def in_currency(sold: Reservation, settings: Any, currency: str) -> None:
    settings.PENSTOCK_CURRENCY = currency
    Reservation.objects.filter(pk=sold.pk).update(currency=currency)
    sold.refresh_from_db()


def issue(world: World) -> Any:
    return invoice_issue(tenant=world.acme, month=OCTOBER, actor="test")


def in_parts(exact: Decimal, part: str) -> Decimal:
    return exact.quantize(Decimal(part), ROUND_HALF_EVEN)


def verdicts(world: World) -> tuple[list[str], list[str]]:
    """What the tenant's own check of its file finds, and says of each document."""
    answer = world.by("viewer").get("/tenants/acme/usage/file")
    found = Verification()
    for line in answer.getvalue().splitlines():
        found.feed(json.loads(line))
    found.finish()
    return [finding.message for finding in found.findings], [one.verdict for one in found.invoices]


@pytest.mark.parametrize(("currency", "part"), [("JPY", "1"), ("EUR", "0.01"), ("BHD", "0.001"), ("CLF", "0.0001")])
def test_amounts_are_whole_parts_of_their_currency(
    world: World, sold: Reservation, settings: Any, currency: str, part: str
) -> None:
    in_currency(sold, settings, currency)
    mu = used(world, 20_000)
    content = issue(world).invoice.content
    of_the_day = Decimal(PRICE) * 1440 / (31 * 24 * 60)
    expected = {
        "reservation": in_parts(of_the_day, part),
        "credit": -in_parts(of_the_day / 4, part),
        "usage": in_parts(Decimal(repr(mu)).quantize(Decimal("1e-9")) * Decimal(PRICE) / 1000, part),
    }
    assert {line["kind"]: line["amount"] for line in content["lines"]} == {k: str(v) for k, v in expected.items()}
    assert content["totals"] == {currency: str(sum(expected.values()))}
    (month,) = months([sold], OCTOBER)
    assert str(month.credit_amount) == str(-expected["credit"])
    assert verdicts(world) == ([], ["equal"])
    # What comes late is told in the same parts, and each document adds up to what is owed.
    more = used(world, 30_000, "late")
    note = issue(world).invoice.content
    both = sum(Decimal(repr(one)).quantize(Decimal("1e-9")) for one in (mu, more))
    owed = in_parts(both * Decimal(PRICE) / 1000, part) - expected["usage"]
    assert [line["amount"] for line in note["lines"]] == [str(owed)] == [note["totals"][currency]]
    assert verdicts(world) == ([], ["equal", "equal"])


def as_of_format_1(invoice: Invoice, mu: float) -> dict[str, Any]:
    """The invoice as versions issued it that knew hundredths alone, and put into the books with its hash."""
    content = copy.deepcopy(invoice.content)
    content["format"] = 1
    of_the_day = Decimal(PRICE) * 1440 / (31 * 24 * 60)
    billed = Decimal(repr(mu)).quantize(Decimal("1e-9")) * Decimal(PRICE) / 1000
    amounts = {"reservation": of_the_day, "credit": -of_the_day / 4, "usage": billed}
    for line in content["lines"]:
        line["amount"] = str(in_parts(amounts[line["kind"]], "0.01"))
    content["totals"] = {"JPY": str(sum(Decimal(line["amount"]) for line in content["lines"]))}
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    QuerySet(Invoice).filter(pk=invoice.pk).update(content=content, hash=hashlib.sha256(text.encode()).hexdigest())
    return content


def test_an_invoice_in_hundredths_of_a_yen_stands_and_is_corrected_as_it_was_reckoned(
    world: World, sold: Reservation, settings: Any
) -> None:
    in_currency(sold, settings, "JPY")
    mu = used(world, 20_000)
    content = as_of_format_1(issue(world).invoice, mu)
    first = Invoice.objects.get()
    assert not issue(world).is_new, "another rounding is no reason for a note"
    assert verdicts(world) == ([], ["equal"])
    more = used(world, 30_000, "late")
    note = issue(world)
    both = sum(Decimal(repr(one)).quantize(Decimal("1e-9")) for one in (mu, more))
    usage = next(line["amount"] for line in content["lines"] if line["kind"] == "usage")
    owed = in_parts(both * Decimal(PRICE) / 1000, "0.01") - Decimal(usage)
    assert (note.invoice.content["format"], note.invoice.content["totals"]) == (1, {"JPY": str(owed)})
    assert verdicts(world) == ([], ["equal", "equal"])
    kept = Invoice.objects.get(pk=first.pk)
    assert (kept.content, kept.hash) == (content, first.hash)


def test_a_format_that_is_not_known_here_is_not_called_wrong(world: World, sold: Reservation, settings: Any) -> None:
    used(world, 20_000)
    invoice = issue(world).invoice
    content = {**invoice.content, "format": 3}
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    QuerySet(Invoice).filter(pk=invoice.pk).update(content=content, hash=hashlib.sha256(text.encode()).hexdigest())
    assert verdicts(world) == ([], ["not recomputed: it is of a format that a later version checks"])
