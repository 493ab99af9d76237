"""Invoices of all tenants, and issuing them."""

from __future__ import annotations

import datetime
import uuid
from typing import Any

from django import forms
from django.core.exceptions import ValidationError
from django.http import HttpResponse
from django.shortcuts import get_object_or_404
from django.urls import reverse
from django.utils import timezone

from capacity.models import Invoice
from capacity.policy.invoice import totals_of
from capacity.services import invoice_issue, invoice_preview
from capacity.usage.attainment import month_of
from capacity.usage.billing import begins, month_in
from penstock.web.access import UserRequest
from penstock.web.invoices import document_context, list_context, totals_text
from penstock.web.operators.forms import PageForm
from penstock.web.operators.frame import ask, done, form_page, read_page, show
from tenants.models import Tenant

CURRENT = "operators:invoices"


class IssueForm(PageForm):
    tenant = forms.SlugField(label="Tenant", max_length=60, help_text="Its slug.")
    month = forms.RegexField(
        r"^\d{4}-(0[1-9]|1[0-2])$", label="Month", help_text="As 2026-10, in UTC. It must be over, and final."
    )

    def clean_tenant(self) -> Tenant:
        found = Tenant.objects.filter(slug=self.cleaned_data["tenant"]).first()
        if found is None:
            raise ValidationError("There is no tenant with this slug.")
        return found

    def clean_month(self) -> datetime.date:
        if not "1970-01" <= self.cleaned_data["month"] < "9999-01":
            raise ValidationError("Give a month between 1970 and 9998.")
        return month_of(self.cleaned_data["month"])


@read_page
def invoices(request: UserRequest) -> HttpResponse:
    """What was issued to all tenants, newest first."""
    return show(request, "operators/invoices.html", list_context(Invoice.objects.all(), request.GET), current=CURRENT)


@read_page
def invoice(request: UserRequest, invoice_id: uuid.UUID) -> HttpResponse:
    """One document."""
    row = get_object_or_404(Invoice.objects.select_related("tenant"), pk=invoice_id)
    return show(request, "operators/invoice.html", document_context(row), current=CURRENT)


@form_page
def issue(request: UserRequest) -> HttpResponse:
    """Issue the invoice of a month, or a note of what has changed since."""
    last = month_in(begins(month_in(timezone.now())) - datetime.timedelta(days=1))
    given = {
        "month": f"{last:%Y-%m}",
        **{name: request.GET.get(name, "") for name in ("tenant", "month") if name in request.GET},
    }
    form = IssueForm(request.POST) if request.method == "POST" else IssueForm(initial=given)
    made = form.attempt(lambda values: invoice_issue(actor=request.user, **values)) if form.is_bound else None
    if made is not None:
        row = made.invoice
        text = f"{row.name} is issued." if made.is_new else f"Nothing has changed since {row.name}."
        return done(request, text, reverse("operators:invoice", args=[row.pk]))
    effects = [
        *_forecast(given),
        "It gets the next number, and stands: nothing changes or deletes it.",
        "Where the month has been issued before, a note is made of what has changed since, if anything has.",
        "The tenant sees it at once.",
    ]
    return ask(
        request,
        title="Issue an invoice",
        effects=effects,
        verb="Issue",
        back=reverse("operators:invoices"),
        current=CURRENT,
        form=form,
    )


def _is_countable(month: datetime.date) -> bool:
    """Whether there is a month after it, and invoices could be of it."""
    return 1970 <= month.year < datetime.MAXYEAR


def _forecast(given: dict[str, Any]) -> list[str]:
    """What the month that was named comes to."""
    tenant = Tenant.objects.filter(slug=given.get("tenant", "").replace("\0", "")).first()
    try:
        month = month_of(given["month"])
    except ValueError:
        return []
    if tenant is None or not _is_countable(month):
        return []
    found = invoice_preview(tenant=tenant, month=month)
    if found.waits_for:
        return [found.waits_for]
    issued = f", of which {found.documents[0].name} and its notes have been issued" if found.documents else ""
    return [f"{month:%Y-%m} comes to {totals_text(totals_of(found.lines))} for {tenant}{issued}."]
