"""The loop issues every month that is due, to every tenant, whatever else happens at that moment."""

from __future__ import annotations

import datetime
import uuid
from collections.abc import Callable
from contextlib import AbstractContextManager
from decimal import Decimal
from importlib import import_module
from typing import Any

import pytest
from django.apps import apps
from django.core.exceptions import ValidationError
from django.utils import timezone

from capacity.models import BooksState, GuaranteeDay, GuaranteeHour, GuaranteeMinute, Invoice, LateUsage, Pool
from capacity.policy.guarantee import UNTOLD
from capacity.policy.invoice import following
from capacity.services import QUIET, invoice_preview, profile_add
from capacity.usage.billing import begins
from capacity.usage.books import finalise_minutes
from capacity.usage.guarantees import guarantees_judge
from capacity.usage.reads import terms_of
from capacity.usage.refusals import Kind, refusals_write
from penstock.loops.invoices import issue_due
from tenants.models import Tenant
from tests import factories
from tests.capacity.test_invoices import AFTER, BEGIN, END, NOVEMBER, OCTOBER, book, close, pair_of, priced, reserved


@pytest.fixture
def acme(db: None) -> Tenant:
    return factories.tenant(name="Acme")


@pytest.fixture
def chat(db: None) -> Pool:
    of = factories.pool(slug="chat")
    priced(of, 2.0)
    return of


def test_where_nothing_was_ever_promised_the_ledger_waits_for_nothing(acme: Tenant, chat: Pool) -> None:
    book(pair_of(chat, acme, 5.0, version=2, mu=1000.0))
    finalise_minutes(AFTER)
    assert guarantees_judge() == 0
    assert issue_due(now=AFTER, after_days=3, actor="loop") == 1
    # One that begins later is judged from its beginning.
    row = reserved(acme, chat, starts_at=AFTER + datetime.timedelta(minutes=5))
    finalise_minutes(AFTER + datetime.timedelta(minutes=10))
    while guarantees_judge():
        pass
    assert GuaranteeMinute.objects.filter(reservation=row).count() == 4
    assert BooksState.objects.get().guaranteed_until == BooksState.objects.get().final_until


def test_who_has_to_wait_is_not_passed_over(acme: Tenant, chat: Pool) -> None:
    row = reserved(acme, chat)
    GuaranteeDay.objects.create(reservation=row, day=OCTOBER, minutes=1440)
    other = factories.tenant(name="Other")
    book(pair_of(chat, other, 5.0, version=2, mu=1000.0))
    close()
    # Late usage of another tenant in the same pool opens the minute of this one's reservation.
    GuaranteeMinute.objects.create(reservation=row, starts_at=BEGIN, entitled_mu=60.0, is_stale=True)
    assert issue_due(now=AFTER, after_days=3, actor="loop") == 1
    GuaranteeMinute.objects.update(is_stale=False)
    assert issue_due(now=AFTER, after_days=3, actor="loop") == 1
    assert set(Invoice.objects.values_list("tenant", flat=True)) == {acme.pk, other.pk}
    assert BooksState.objects.get().invoiced_until == NOVEMBER


def test_late_usage_of_months_that_are_not_invoiced_is_looked_at_once(acme: Tenant, chat: Pool) -> None:
    BooksState.objects.create(billed_from=OCTOBER, invoiced_until=NOVEMBER, final_until=END, guaranteed_until=END)
    book(pair_of(chat, acme, -86_400.0, version=2, mu=1000.0))
    late = LateUsage.objects.get()
    assert issue_due(now=late.at + QUIET, after_days=3, actor="loop") == 0
    assert not LateUsage.objects.exists()


def test_months_before_an_upgrade_are_not_invoiced_either_where_nothing_was_used(acme: Tenant, chat: Pool) -> None:
    GuaranteeDay.objects.create(reservation=reserved(acme, chat), day=OCTOBER, minutes=1440)
    import_module("capacity.migrations.0012_invoices").bill_this_month(apps, None)
    this = timezone.now().astimezone(datetime.UTC).date().replace(day=1)
    assert BooksState.objects.get().billed_from == this
    # Of a month whose records are not all there any more nobody can say what it came to.
    BooksState.objects.update(deleted_until=begins(this) + datetime.timedelta(minutes=1))
    import_module("capacity.migrations.0012_invoices").bill_this_month(apps, None)
    assert BooksState.objects.get().billed_from == following(this)


def test_late_usage_of_months_that_are_not_due_costs_no_queries(
    chat: Pool, django_assert_num_queries: Callable[[int], AbstractContextManager[Any]]
) -> None:
    BooksState.objects.create(invoiced_until=OCTOBER, final_until=END, guaranteed_until=END)
    for _ in range(3):
        LateUsage.objects.create(tenant_id=factories.tenant().pk, month=NOVEMBER, at=END)
    with django_assert_num_queries(3):
        assert issue_due(now=END + QUIET, after_days=3, actor="loop") == 0
    assert LateUsage.objects.count() == 3


def test_refusals_that_are_told_late_are_credited(acme: Tenant, chat: Pool) -> None:
    row = reserved(acme, chat)
    GuaranteeDay.objects.create(reservation=row, day=OCTOBER, minutes=60)
    GuaranteeHour.objects.create(reservation=row, starts_at=BEGIN, minutes=60)
    GuaranteeMinute.objects.create(reservation=row, starts_at=BEGIN, entitled_mu=60.0)
    close()
    assert issue_due(now=AFTER, after_days=3, actor="loop") == 1
    of = [Kind(tenant.pk, uuid.UUID(int=1), chat.pk, UNTOLD[0], 503) for tenant in (acme, factories.tenant())]
    refusals_write({(BEGIN, of[0]): 3, (BEGIN, of[1]): 2, (AFTER, of[1]): 1})
    refusals_write({(BEGIN, of[0]._replace(reason="requests_per_min")): 3})
    assert set(LateUsage.objects.values_list("tenant_id", "month")) == {(kind.tenant_id, OCTOBER) for kind in of}
    close()
    assert issue_due(now=LateUsage.objects.first().at + QUIET, after_days=3, actor="loop") == 1
    note = Invoice.objects.get(sequence=1)
    assert (note.tenant, note.kind) == (acme, "credit_note")
    assert not LateUsage.objects.exists()


def test_no_price_is_so_large_that_nothing_can_be_reckoned_with_it(acme: Tenant, chat: Pool) -> None:
    newest = chat.profiles.get(version=2)
    known: dict[str, Any] = {"pool": chat, "hardware_type": newest.hardware_type, "profile": terms_of(newest)}
    with pytest.raises(ValidationError, match="Give at most 1,000,000,000"):
        profile_add(**known, price_per_1000_mu=1e90, actor="test")
    profile_add(**known, price_per_1000_mu=1e9, actor="test")
    book(pair_of(chat, acme, 5.0, version=3, mu=1e15))
    assert invoice_preview(tenant=acme, month=OCTOBER).lines[0].amount == Decimal(10) ** 21
