"""Invoices are what an oracle makes of the raw rows, to the cent: in any order of arrival, with late records, once."""

from __future__ import annotations

import datetime
import random
from collections import defaultdict
from decimal import ROUND_HALF_EVEN, Decimal
from typing import Any

import pytest
from django.core.exceptions import ValidationError
from django.db.models import Sum

from capacity.models import (
    BooksState,
    CostProfile,
    GuaranteeDay,
    Invoice,
    LateUsage,
    Pool,
    Reservation,
    UsageRecord,
    UsageRollup,
)
from capacity.services import QUIET, invoice_issue, invoice_preview
from capacity.usage.books import finalise_minutes
from capacity.usage.guarantees import guarantees_judge
from capacity.usage.lines import Usage
from capacity.usage.writer import write_batch
from penstock.loops.invoices import issue_due
from tenants.models import AuditEntry, Tenant, WrittenOnceError
from tests import factories
from tests.factories import Traffic, batch, race

OCTOBER, NOVEMBER = datetime.date(2026, 10, 1), datetime.date(2026, 11, 1)
BEGIN = datetime.datetime(2026, 10, 1, tzinfo=datetime.UTC)
END = datetime.datetime(2026, 11, 1, tzinfo=datetime.UTC)
AFTER = END + datetime.timedelta(days=4)
T = BEGIN.timestamp()
MONTH_S = 31 * 86_400
CENT = Decimal("0.01")


def priced(of: Pool, price: float | None, version: int = 2) -> CostProfile:
    """A further version of the pool's price."""
    first = CostProfile.objects.get(pool=of, version=1)
    first.pk, first.version, first.price_per_1000_mu = None, version, price
    first._state.adding = True
    first.effective_from = BEGIN
    first.id = CostProfile._meta.pk.get_default()
    first.save()
    return first


def pair_of(of: Pool, tenant: Tenant, at_s: float, *, version: int = 1, **fields: Any) -> Any:
    admit, end = Traffic(tenant=str(tenant.pk), pool=str(of.pk)).pair(T + at_s, **fields)
    admit.profile_version = version
    return admit, end


def close(at: datetime.datetime = AFTER) -> None:
    finalise_minutes(at)
    # Guarantees are caught up with tick by tick, which is tested elsewhere.
    BooksState.objects.update(guaranteed_until=BooksState.objects.get().final_until)
    guarantees_judge()


def book(*pairs: Any, segment: str = "s", sequence: int = 1) -> None:
    write_batch(batch(*pairs, segment=segment, sequence=sequence, closed=True))


# ------------------------------------------------------------------------------------------------ the oracle
def owed(tenant: Tenant) -> dict[str, Decimal]:
    """What the raw rows of October come to, by currency: read from the tables, and reckoned here."""
    prices = {
        (str(pool), version): price
        for pool, version, price in CostProfile.objects.values_list("pool_id", "version", "price_per_1000_mu")
    }
    sums: dict[tuple[str, str, int], Decimal] = defaultdict(Decimal)
    rows = UsageRecord.objects.filter(tenant_id=tenant.pk, ended_at__gte=BEGIN, ended_at__lt=END)
    for row in rows:
        if row.service_class != "reserved":
            mu = Decimal(str(row.actual_mu)).quantize(Decimal("0.000000001"), ROUND_HALF_EVEN)
            sums[(str(row.pool_id), row.model, row.profile_version)] += mu
    total = Decimal(0)
    for (pool, _, version), mu in sums.items():
        total += (mu * Decimal(str(prices[(pool, version)] or 0)) / 1000).quantize(CENT, ROUND_HALF_EVEN)
    found = {"USD": total}
    for row in Reservation.objects.filter(tenant=tenant).exclude(price=None):
        days = GuaranteeDay.objects.filter(reservation=row, day__gte=OCTOBER, day__lt=NOVEMBER)
        minutes, breaches = sum(day.minutes for day in days), sum(day.breach_minutes for day in days)
        month = row.price * Decimal(str(row.mu_per_min)) / (31 * 24 * 60)
        kept = 1 - Decimal(breaches) / minutes
        share = Decimal(0 if kept >= Decimal("0.999") else "0.1" if kept >= Decimal("0.99") else "0.25")
        share = share if kept >= Decimal("0.95") else Decimal(1)
        charge = (month * minutes).quantize(CENT, ROUND_HALF_EVEN)
        credit = (month * minutes * share).quantize(CENT, ROUND_HALF_EVEN)
        found[row.currency] = found.get(row.currency, Decimal(0)) + charge - credit
    return found


def invoiced(tenant: Tenant) -> dict[str, Decimal]:
    found: dict[str, Decimal] = {}
    for one in Invoice.objects.filter(tenant=tenant, month=OCTOBER):
        for line in one.content["lines"]:
            found[line["currency"]] = found.get(line["currency"], Decimal(0)) + Decimal(line["amount"])
        in_lines: dict[str, Decimal] = defaultdict(Decimal)
        for line in one.content["lines"]:
            in_lines[line["currency"]] += Decimal(line["amount"])
        assert one.totals == in_lines
    return found


@pytest.mark.django_db
@pytest.mark.parametrize("seed", range(3))
def test_an_invoice_is_what_the_rows_come_to_in_any_order_and_however_late(seed: int) -> None:
    rng = random.Random(seed)
    tenants, pools = [factories.tenant() for _ in range(2)], [factories.pool() for _ in range(2)]
    for of in pools:
        priced(of, rng.choice([0.35, 1.7, 12.0, 0.0]), 2)
        priced(of, rng.choice([None, 0.1, 3.3333]), 3)
    promised = [
        Reservation.objects.create(
            tenant=rng.choice(tenants),
            pool=rng.choice(pools),
            profile=CostProfile.objects.filter(version=1).first(),
            mu_per_min=rng.choice([60.0, 0.1, 33.3]),
            starts_at=BEGIN,
            state="active",
            price=Decimal(rng.choice(["12.5", "0.07", "10.8"])),
            currency=rng.choice(["EUR", "USD"]),
        )
        for _ in range(2)
    ]
    for row in promised:
        for day in range(31):
            breaches = rng.choice([0, 0, 0, 15, 80])
            GuaranteeDay.objects.create(
                reservation=row, day=OCTOBER + datetime.timedelta(days=day), minutes=1440, breach_minutes=breaches
            )
    pairs = [
        pair_of(
            rng.choice(pools),
            rng.choice(tenants),
            rng.choice([rng.uniform(0, MONTH_S), rng.uniform(0, MONTH_S), 0.0, MONTH_S - 0.001, MONTH_S, -0.001]),
            version=rng.randrange(1, 4),
            mu=rng.choice([rng.uniform(0, 90), rng.randrange(5) / 8, 0.1, rng.uniform(0, 1e-6), 123_456.789_012_345]),
            service_class=rng.choice(["reserved", "best_effort"]),
            usage=Usage(input_tokens=rng.randrange(900), output_tokens=rng.randrange(90)),
        )
        for _ in range(90)
    ]
    rng.shuffle(pairs)
    late = [pairs.pop() for _ in range(rng.randrange(1, 15))]
    for number in range(4):
        book(*pairs[number::4], *pairs[:2], segment=f"s{number}")
    close()
    issue_due(now=AFTER, after_days=3, actor="loop")
    assert Invoice.objects.filter(month=OCTOBER, kind="invoice").count() == 2
    for tenant in tenants:
        assert invoiced(tenant) == owed(tenant)
    first = {one.pk: one.content for one in Invoice.objects.all()}
    for number, one in enumerate(late):
        book(one, segment=f"late{number}")
        if number % 4 == 3:
            close()
            issue_due(now=AFTER + QUIET * number, after_days=3, actor="loop")
    close()
    much_later = AFTER + datetime.timedelta(days=400)
    issue_due(now=much_later, after_days=3, actor="loop")
    assert not LateUsage.objects.filter(month=OCTOBER).exists()
    assert {one.pk: one.content for one in Invoice.objects.filter(sequence=0)} == first
    for tenant in tenants:
        assert invoiced(tenant) == owed(tenant)
        # Invoice = ledger = roll-ups.
        lines = [line for one in tenant.invoices.filter(month=OCTOBER) for line in one.content["lines"]]
        mu = sum(Decimal(line["mu"]) for line in lines)
        for period in ("minute", "hour", "day"):
            rows = UsageRollup.objects.filter(
                period=period, tenant_id=tenant.pk, starts_at__gte=BEGIN, starts_at__lt=END
            )
            sums = rows.aggregate(Sum("mu"), Sum("money"), Sum("requests"), Sum("output_tokens"))
            assert float(mu) == pytest.approx(sums["mu__sum"] or 0.0, rel=1e-9, abs=1e-6)
            assert sum(line["requests"] for line in lines) == (sums["requests__sum"] or 0)
            assert sum(line["output_tokens"] for line in lines) == (sums["output_tokens__sum"] or 0)
            usage = sum(Decimal(line["amount"]) for line in lines if line["kind"] == "usage")
            keys = {(line["pool_id"], line["model"], line["profile_version"]) for line in lines}
            assert abs(float(usage) - (sums["money__sum"] or 0.0)) <= 0.005 * len(keys) + 1e-6
    numbers = sorted(Invoice.objects.values_list("number", flat=True))
    assert numbers == list(range(1, len(numbers) + 1))


# ------------------------------------------------------------------------------------------------ one by one
@pytest.fixture
def acme(db: None) -> Tenant:
    return factories.tenant(name="Acme")


@pytest.fixture
def chat(db: None) -> Pool:
    of = factories.pool(slug="chat")
    priced(of, 2.0)
    return of


def lines(of: Invoice) -> list[tuple[str, str]]:
    return [(line["kind"], line["amount"]) for line in of.content["lines"]]


def test_each_request_counts_in_the_price_it_was_admitted_with(acme: Tenant, chat: Pool) -> None:
    priced(chat, 3.0, 3)
    book(
        pair_of(chat, acme, 5.0, version=2, mu=1000.0),
        pair_of(chat, acme, 9.0, version=3, mu=1000.0),
        pair_of(chat, acme, 9.0, version=1, mu=1000.0),
        pair_of(chat, acme, 9.0, version=3, mu=500.0, service_class="reserved"),
    )
    close()
    made = invoice_issue(tenant=acme, month=OCTOBER, actor="test").invoice
    told = [(line["profile_version"], line["service_class"], line["amount"]) for line in made.content["lines"]]
    assert told == [
        (1, "best_effort", "0.00"),
        (2, "best_effort", "2.00"),
        (3, "best_effort", "3.00"),
        (3, "reserved", "0.00"),
    ]
    assert (made.content["totals"], made.name) == ({"USD": "5.00"}, "INV-000001")
    assert made.content["period"]["until"] == "2026-11-01T00:00:00Z"


def test_what_comes_late_is_a_note_and_the_invoice_stands(acme: Tenant, chat: Pool, settings: Any) -> None:
    book(pair_of(chat, acme, 5.0, version=2, mu=1000.0))
    close()
    issue_due(now=AFTER, after_days=3, actor="loop")
    invoice = Invoice.objects.get()
    book(pair_of(chat, acme, 6.0, version=2, mu=250.0), segment="late")
    close()
    settings.PENSTOCK_CURRENCY = "EUR"
    came = LateUsage.objects.get().at
    assert issue_due(now=came + QUIET / 2, after_days=3, actor="loop") == 0
    assert issue_due(now=came + QUIET, after_days=3, actor="loop") == 1
    note = Invoice.objects.get(sequence=1)
    assert (note.kind, note.name, note.content["corrects"]) == ("debit_note", "NOTE-000002", "INV-000001")
    assert (note.totals, lines(note)) == ({"USD": Decimal("0.50")}, [("usage", "0.50")])
    assert (note.content["lines"][0]["mu"], note.content["lines"][0]["requests"]) == ("250", 1)
    assert Invoice.objects.get(sequence=0).content == invoice.content
    assert issue_due(now=came + 2 * QUIET, after_days=3, actor="loop") == 0
    assert [
        *AuditEntry.objects.filter(object_type="capacity.invoice").order_by("at").values_list("action", flat=True)
    ] == [
        "invoice.issue",
        "invoice.correct",
    ]
    with pytest.raises(WrittenOnceError):
        Invoice.objects.update(content={})
    with pytest.raises(WrittenOnceError):
        invoice.save()


def test_late_usage_that_breaks_a_guarantee_is_credited(acme: Tenant, chat: Pool) -> None:
    row = reserved(acme, chat)
    GuaranteeDay.objects.create(reservation=row, day=OCTOBER, minutes=1440, breach_minutes=0)
    close()
    invoice = invoice_issue(tenant=acme, month=OCTOBER, actor="test").invoice
    charge = Decimal("12.50") * 60 * 1440 / (31 * 1440)
    assert lines(invoice) == [("reservation", str(charge.quantize(CENT)))]
    GuaranteeDay.objects.update(breach_minutes=30)
    note = invoice_issue(tenant=acme, month=OCTOBER, actor="test").invoice
    assert (note.kind, note.totals) == ("credit_note", {"EUR": -(charge / 4).quantize(CENT)})
    assert invoice_issue(tenant=acme, month=OCTOBER, actor="test") == (note, False)


def reserved(tenant: Tenant, of: Pool, **fields: Any) -> Reservation:
    known: dict[str, Any] = {"mu_per_min": 60.0, "starts_at": BEGIN, "price": Decimal("12.50"), "currency": "EUR"}
    return Reservation.objects.create(
        tenant=tenant, pool=of, profile=CostProfile.objects.get(pool=of, version=1), state="active", **known | fields
    )


def test_the_minute_in_which_terms_changed_is_charged_once(acme: Tenant, chat: Pool) -> None:
    changed = BEGIN + datetime.timedelta(days=3, seconds=20)
    old = reserved(acme, chat, ends_at=changed)
    new = reserved(acme, chat, starts_at=changed, renews=old, price=Decimal(3))
    for row, minutes in ((old, 3 * 1440 + 1), (new, 28 * 1440)):
        GuaranteeDay.objects.create(reservation=row, day=OCTOBER, minutes=minutes)
    close()
    made = invoice_issue(tenant=acme, month=OCTOBER, actor="test").invoice
    found = {Decimal(line["price"]): line["minutes"] for line in made.content["lines"]}
    assert found == {Decimal("12.5"): 3 * 1440 + 1, Decimal(3): 28 * 1440 - 1}


def test_the_first_minute_after_one_that_never_began_is_charged(acme: Tenant, chat: Pool) -> None:
    begins = BEGIN + datetime.timedelta(days=3, seconds=20)
    old = reserved(acme, chat, starts_at=BEGIN + datetime.timedelta(days=2), ends_at=begins)
    Reservation.objects.filter(pk=old.pk).update(state="cancelled")
    new = reserved(acme, chat, starts_at=begins, renews=old)
    GuaranteeDay.objects.create(reservation=new, day=OCTOBER, minutes=28 * 1440)
    close()
    (line,) = invoice_issue(tenant=acme, month=OCTOBER, actor="test").invoice.content["lines"]
    assert line["minutes"] == 28 * 1440


def test_currencies_are_kept_apart(acme: Tenant, chat: Pool) -> None:
    GuaranteeDay.objects.create(reservation=reserved(acme, chat), day=OCTOBER, minutes=1440)
    unpriced = reserved(acme, chat, price=None, currency="")
    GuaranteeDay.objects.create(reservation=unpriced, day=OCTOBER, minutes=1440)
    book(pair_of(chat, acme, 5.0, version=2, mu=1000.0))
    close()
    made = invoice_issue(tenant=acme, month=OCTOBER, actor="test").invoice
    assert made.totals == {"EUR": Decimal("24.19"), "USD": Decimal("2.00")}
    assert lines(made) == [("reservation", "24.19"), ("reservation", "0.00"), ("usage", "2.00")]


def test_a_month_without_anything_that_has_a_price_is_not_invoiced(acme: Tenant, chat: Pool) -> None:
    book(pair_of(chat, acme, 5.0, version=1, mu=1000.0))
    close()
    with pytest.raises(ValidationError, match="There is nothing to invoice to Acme for 2026-10"):
        invoice_issue(tenant=acme, month=OCTOBER, actor="test")
    assert issue_due(now=AFTER, after_days=3, actor="loop") == 0
    assert BooksState.objects.get().invoiced_until == NOVEMBER
    # Late usage that has a price makes it one.
    book(pair_of(chat, acme, 6.0, version=2, mu=10.0), segment="late")
    close()
    assert issue_due(now=LateUsage.objects.get().at + QUIET, after_days=3, actor="loop") == 1
    assert Invoice.objects.get().kind == "invoice"


def test_a_month_is_issued_when_it_is_final_and_some_days_are_over(acme: Tenant, chat: Pool) -> None:
    book(pair_of(chat, acme, 5.0, version=2, mu=1000.0))
    with pytest.raises(ValidationError, match="not final yet"):
        invoice_issue(tenant=acme, month=OCTOBER, actor="test", now=AFTER)
    finalise_minutes(AFTER)
    with pytest.raises(ValidationError, match="not in the guarantee ledger yet"):
        invoice_issue(tenant=acme, month=OCTOBER, actor="test", now=AFTER)
    close()
    for month, said in ((NOVEMBER, "is not over"), (datetime.date(2027, 1, 1), "has not begun")):
        with pytest.raises(ValidationError, match=said):
            invoice_issue(tenant=acme, month=month, actor="test", now=AFTER)
    assert issue_due(now=END + datetime.timedelta(days=2), after_days=3, actor="loop") == 0
    assert issue_due(now=AFTER, after_days=-1, actor="loop") == 0
    preview = invoice_preview(tenant=acme, month=OCTOBER, now=AFTER)
    assert (preview.waits_for, preview.documents, preview.is_empty) == ("", [], False)
    assert issue_due(now=AFTER, after_days=3, actor="loop") == 1
    BooksState.objects.update(billed_from=NOVEMBER)
    with pytest.raises(ValidationError, match="the first month that can be issued is 2026-11"):
        invoice_issue(tenant=acme, month=datetime.date(2026, 9, 1), actor="test", now=AFTER)


@pytest.mark.django_db(transaction=True)
def test_many_who_issue_at_once_make_one_invoice_and_one_note() -> None:
    acme, chat = factories.tenant(), factories.pool()
    priced(chat, 2.0)
    book(pair_of(chat, acme, 5.0, version=2, mu=1000.0))
    close()

    def issue() -> bool:
        return invoice_issue(tenant=acme, month=OCTOBER, actor="test").is_new

    late = pair_of(chat, acme, 6.0, version=2, mu=500.0)
    outcomes = race(*([issue] * 5), lambda: book(late, segment="late"))
    assert [outcome for outcome in outcomes if isinstance(outcome, Exception)] == []
    close()
    issue()
    assert sum(one.totals["USD"] for one in Invoice.objects.all()) == Decimal("3.00")
    numbers = [*Invoice.objects.order_by("number").values_list("number", "sequence")]
    assert numbers in ([(1, 0)], [(1, 0), (2, 1)])
