"""Invoices of months that are over, and notes where usage came after these."""

from __future__ import annotations

import datetime
import logging

from django.core.exceptions import ValidationError
from django.db.models import Exists, OuterRef, Q

from capacity.models import BooksState, Invoice, LateUsage
from capacity.policy.invoice import following
from capacity.services import QUIET, NothingToInvoice, invoice_issue
from capacity.usage.billing import begins, first_month, tenants_of
from penstock.loops.isolation import isolated
from tenants.models import Tenant

log = logging.getLogger(__name__)


def issue_due(*, now: datetime.datetime, after_days: int, actor: str) -> int:
    """Issue what is due: the months that ended ``after_days`` ago and are final, and corrections of what was issued.

    A negative ``after_days`` leaves it to operators. Returns how many documents were made.
    """
    if after_days < 0:
        return 0
    made, is_whole = 0, True
    for month in _due(now, after_days):
        issued, is_month_whole = _issue_month(month, now=now, actor=actor)
        made += issued
        # A tenant that has to wait, or fails, is tried again; the others' later months do not wait for it.
        is_whole &= is_month_whole
        if is_whole:
            # Whoever is the second to come here has found all of it issued.
            behind = Q(invoiced_until=None) | Q(invoiced_until__lt=following(month))
            BooksState.objects.filter(behind, pk=1).update(invoiced_until=following(month))
    return made + _correct(now=now, actor=actor)


def _due(now: datetime.datetime, after_days: int) -> list[datetime.date]:
    """The months that are due and not done with, the first one first."""
    books = BooksState.objects.filter(pk=1).first()
    if books is None or books.final_until is None or books.guaranteed_until is None:
        return []
    known_until = min(books.final_until, books.guaranteed_until, now - datetime.timedelta(days=after_days))
    month = books.invoiced_until or books.billed_from or first_month()
    due: list[datetime.date] = []
    while month is not None and begins(following(month)) <= known_until:
        due.append(month)
        month = following(month)
    return due


def _issue_month(month: datetime.date, *, now: datetime.datetime, actor: str) -> tuple[int, bool]:
    """How many were issued, and whether nothing of the month is left to be done."""
    known = set(Invoice.objects.filter(month=month, sequence=0).values_list("tenant", flat=True))
    made, is_whole = 0, True
    for tenant in Tenant.objects.filter(pk__in=[pk for pk in tenants_of(month) if pk not in known]):
        is_new = None
        with isolated(f"issuing the invoice of {tenant.slug} for {month:%Y-%m}", raising=()):
            is_new = _issue(tenant, month, now=now, actor=actor)
        made += bool(is_new)
        is_whole &= is_new is not None
    return made, is_whole


def _correct(*, now: datetime.datetime, actor: str) -> int:
    """Look again at months of which usage came late, when no more has come for a while."""
    made = 0
    books = BooksState.objects.filter(pk=1).first()
    if books is not None and books.billed_from is not None:
        LateUsage.objects.filter(month__lt=books.billed_from).delete()
    due = Q(Exists(Invoice.objects.filter(tenant=OuterRef("tenant_id"), month=OuterRef("month"))))
    if books is not None and books.invoiced_until is not None:
        due |= Q(month__lt=books.invoiced_until)
    for late in LateUsage.objects.filter(due, at__lte=now - QUIET).order_by("month", "tenant_id"):
        tenant = Tenant.objects.filter(pk=late.tenant_id).first()
        if tenant is None:
            continue
        with isolated(f"correcting the invoice of {tenant.slug} for {late.month:%Y-%m}", raising=()):
            made += bool(_issue(tenant, late.month, now=now, actor=actor))
    return made


def _issue(tenant: Tenant, month: datetime.date, *, now: datetime.datetime, actor: str) -> bool | None:
    """Whether a document was made; None where the month has to wait."""
    try:
        return invoice_issue(tenant=tenant, month=month, actor=actor, now=now).is_new
    except NothingToInvoice:
        return False
    except ValidationError as error:
        log.debug("no invoice yet: %s", "; ".join(error.messages))
        return None
