"""The invoice pages, of operators and of a tenant: lists, documents, previews, issuing, and nothing yet."""

from __future__ import annotations

import datetime
import re

import pytest
from django.db.models import QuerySet
from django.test import Client
from django.urls import reverse
from django.utils import timezone

from capacity.models import BilledDay, BooksState, Invoice
from capacity.usage.billing import begins, month_in
from tests.web.acting import text
from tests.web.seed import Seeded

LAST = month_in(begins(month_in(timezone.now())) - datetime.timedelta(days=1))


@pytest.fixture(params=["operator", "owner"])
def pages(request: pytest.FixtureRequest, client: Client, platform: Seeded) -> tuple[str, str]:
    """The addresses of the list and of Northwind's invoice, for who is signed in."""
    row = Invoice.objects.get(kind="invoice")
    if request.param == "operator":
        client.force_login(platform.operator)
        return reverse("operators:invoices"), reverse("operators:invoice", args=[row.pk])
    client.force_login(platform.owner)
    return reverse("tenant-invoices", args=["northwind"]), reverse("tenant-invoice", args=["northwind", row.pk])


def test_documents_are_listed_and_lead_to_their_lines(client: Client, pages: tuple[str, str]) -> None:
    invoice, note = Invoice.objects.order_by("number")
    listed = text(client.get(pages[0]))
    assert f'href="{pages[1]}"' in listed
    assert f"corrects {invoice.name}" in listed
    assert "Debit note" in listed
    page = text(client.get(pages[1]))
    for line in invoice.content["lines"]:
        assert f"{float(line['amount']):,.2f}".replace("-", "−") in page
    assert re.search(r"\b1\.90\s+<[^>]*>per 1,000 MU", page), "a price has its hundredths"
    for currency, total in invoice.totals.items():
        assert f'<b>{total:,}</b> <span class="u">{currency}</span>' in page
    assert invoice.hash in page
    assert note.name in page
    assert "whole days in UTC" in page


def test_a_month_filters_and_pages_go_on(client: Client, pages: tuple[str, str]) -> None:
    assert Invoice.objects.first().name in text(client.get(pages[0], {"month": f"{LAST:%Y-%m}"}))
    assert "Nothing was issued of 2020-01" in text(client.get(pages[0], {"month": "2020-01"}))
    assert "Debit note" not in text(client.get(pages[0], {"before": "2"}))
    for odd in ({"before": "9" * 400}, {"before": "x"}, {"month": "2026-13"}):
        assert client.get(pages[0], odd).status_code == 200


def test_this_month_is_marked_as_a_preview(client: Client, platform: Seeded) -> None:
    client.force_login(platform.viewer)
    path = reverse("tenant-month-preview", args=["northwind"])
    page = text(client.get(path))
    assert "This is no invoice" in page
    assert "demo-sim" in page
    last = text(client.get(path, {"month": f"{LAST:%Y-%m}"}))
    assert "Issued of it:" in last
    assert "Nothing in 2020-01" in text(client.get(path, {"month": "2020-01"}))


def test_an_operator_issues_a_month_after_the_question(client: Client, platform: Seeded) -> None:
    client.force_login(platform.operator)
    until = timezone.now()
    known = {"final_until": until, "guaranteed_until": until, "invoice_number": 2}
    BooksState.objects.update_or_create(pk=1, defaults=known)
    BilledDay.objects.filter(tenant_id=platform.northwind.pk, day=LAST).update(mu_whole=90_000)
    path = reverse("operators:invoice-issue")
    asked = {"tenant": "northwind", "month": f"{LAST:%Y-%m}"}
    assert f"{LAST:%Y-%m} comes to" in text(client.get(path, asked))
    page = text(client.post(path, asked, follow=True))
    assert "NOTE-000003 is issued." in page
    assert "Nothing has changed since NOTE-000003." in text(client.post(path, asked, follow=True))
    for given, said in (
        ({**asked, "tenant": "nobody"}, "There is no tenant with this slug."),
        ({**asked, "month": f"{until:%Y-%m}"}, "is not over"),
        ({**asked, "month": "9999-12"}, "Give a month between 1970 and 9998."),
        ({**asked, "tenant": "alder", "month": "2020-01"}, "There is nothing to invoice to Alder Health for 2020-01"),
    ):
        answer = client.post(path, given)
        assert (answer.status_code, said in text(answer)) == (400, True)
    assert Invoice.objects.count() == 3
    assert client.get(path, {**asked, "month": "9999-12"}).status_code == 200


def test_where_nothing_was_issued_the_pages_say_so(client: Client, platform: Seeded, pages: tuple[str, str]) -> None:
    QuerySet(Invoice).all().delete()
    assert "Nothing was issued yet" in text(client.get(pages[0]))


def test_another_tenants_invoice_is_not_found(client: Client, platform: Seeded) -> None:
    row = Invoice.objects.first()
    client.force_login(platform.stranger)
    assert client.get(reverse("tenant-invoice", args=["alder", row.pk])).status_code == 404
    assert client.get(reverse("tenant-invoice", args=["northwind", row.pk])).status_code == 404
