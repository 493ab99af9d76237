"""Issuing invoices and the notes that correct them: each once, numbered without a gap, and never changed."""

from __future__ import annotations

import datetime
import uuid
from typing import Any, NamedTuple

from django.conf import settings
from django.core.exceptions import ValidationError
from django.db import transaction
from django.db.models import F
from django.utils import timezone

from capacity.models import BooksState, GuaranteeMinute, Invoice, LateUsage, UsageChain
from capacity.policy.invoice import (
    FORMAT,
    Line,
    difference,
    digest,
    following,
    has_price,
    kind_of_note,
    read_line,
    told_line,
    told_period,
    totals_of,
)
from capacity.services.promising import name_of
from capacity.usage.billing import begins, month_in, month_lines
from tenants.audit import Actor, audit
from tenants.models import Tenant

QUIET = datetime.timedelta(hours=1)
"""Late usage often comes in many batches: one note is made when no more has come for so long."""


class NothingToInvoice(ValidationError):
    """Nothing of the month has a price."""


class Issued(NamedTuple):
    """``is_new``: it was made by this call. ``invoice``: that, or the newest document of the month."""

    invoice: Invoice
    is_new: bool


class Preview(NamedTuple):
    """What the books say of a month now. ``documents``: what was issued of it, oldest first; ``waits_for``: why it
    cannot be issued yet, empty where it can.
    """

    lines: tuple[Line, ...]
    documents: list[Invoice]
    waits_for: str
    currency: str

    @property
    def is_empty(self) -> bool:
        return not has_price(self.lines)


def invoice_preview(*, tenant: Tenant, month: datetime.date, now: datetime.datetime | None = None) -> Preview:
    """The month as an invoice would say it now. Nothing is written."""
    documents = list(Invoice.objects.filter(tenant=tenant, month=month).order_by("sequence"))
    currency, document_format = _currency(documents), _format(documents)
    lines = month_lines(tenant_id=tenant.pk, month=month, currency=currency, document_format=document_format)
    books = BooksState.objects.filter(pk=1).first()
    return Preview(lines, documents, _waits_for(books, tenant, month, now or timezone.now()), currency)


def invoice_issue(
    *, tenant: Tenant, month: datetime.date, actor: Actor, now: datetime.datetime | None = None
) -> Issued:
    """Issue the invoice of a month or, where it has been issued, a note of what has changed since, if anything has.

    ``month``: its first day. Whoever asks a second time gets what there is. Raises ValidationError where the month has
    to wait, and NothingToInvoice.
    """
    issued = _issue(tenant, month, actor, now or timezone.now())
    if issued is None:
        raise NothingToInvoice(nothing_to_invoice(tenant, month))
    return issued


@transaction.atomic
def _issue(tenant: Tenant, month: datetime.date, actor: Actor, at: datetime.datetime) -> Issued | None:
    # Held until the end: of two who issue, the second sees what the first has made; and late records wait, or are seen.
    books = BooksState.objects.select_for_update().filter(pk=1).first()
    if reason := _waits_for(books, tenant, month, at):
        raise ValidationError(reason)
    LateUsage.objects.filter(tenant_id=tenant.pk, month=month).delete()
    documents = list(Invoice.objects.filter(tenant=tenant, month=month).order_by("sequence"))
    currency, document_format = _currency(documents), _format(documents)
    lines = month_lines(tenant_id=tenant.pk, month=month, currency=currency, document_format=document_format)
    if not documents and not has_price(lines):
        return None
    if documents:
        lines = difference(lines, [lines_in(one) for one in documents])
        if not lines:
            return Issued(documents[-1], False)
    made = _made(tenant, month, documents, lines, currency, actor, at)
    made.save()
    audit(
        actor=actor,
        action="invoice.correct" if documents else "invoice.issue",
        target=made,
        tenant_id=tenant.pk,
        after={"month": f"{month:%Y-%m}", "kind": made.kind, "totals": made.content["totals"], "hash": made.hash},
    )
    return Issued(made, True)


def lines_in(invoice: Invoice) -> list[Line]:
    """The lines of a document."""
    return [read_line(told) for told in invoice.content["lines"]]


def nothing_to_invoice(tenant: Tenant, month: datetime.date) -> str:
    """What is said of a month without anything that has a price."""
    return (
        f"There is nothing to invoice to {tenant} for {month:%Y-%m}: nothing that it used or reserved then has a price."
    )


def _currency(documents: list[Invoice]) -> str:
    """Of the prices of usage: as the month's invoice says, whatever the setting has become since."""
    return str(documents[0].content["currency"] if documents else settings.PENSTOCK_CURRENCY)


def _format(documents: list[Invoice]) -> int:
    """As the month's invoice has it: what is reckoned in another way is no correction of it."""
    return int(documents[0].content["format"]) if documents else FORMAT


def _waits_for(books: BooksState | None, tenant: Tenant, month: datetime.date, now: datetime.datetime) -> str:
    name, until = f"{month:%Y-%m}", begins(following(month))
    if month > month_in(now):
        return f"{name} has not begun."
    if now < until:
        return f"{name} is not over: it can be issued when its last minutes are final."
    if books is not None and books.billed_from is not None and month < books.billed_from:
        first = f"{books.billed_from:%Y-%m}"
        return f"{name} was booked before invoices were kept: the first month that can be issued is {first}."
    if books is None or books.final_until is None or books.final_until < until:
        return f"The last minutes of {name} are not final yet: a gateway may still bring usage."
    if books.guaranteed_until is None or books.guaranteed_until < until:
        return f"The last minutes of {name} are not in the guarantee ledger yet: try again in a minute."
    # The few that are stale first, by their index: a month of a reservation has many minutes.
    stale = GuaranteeMinute.objects.filter(is_stale=True, starts_at__gte=begins(month), starts_at__lt=until).order_by()
    judged_anew = set(stale.values_list("reservation", flat=True).distinct())
    if judged_anew and tenant.reservations.filter(pk__in=judged_anew).exists():
        return f"Late usage of {name} is being judged by the guarantee ledger: try again in a minute."
    return ""


def _made(
    tenant: Tenant,
    month: datetime.date,
    documents: list[Invoice],
    lines: tuple[Line, ...],
    currency: str,
    actor: Actor,
    at: datetime.datetime,
) -> Invoice:
    kind = Invoice.Kind(kind_of_note(lines)) if documents else Invoice.Kind.INVOICE
    made = Invoice(
        number=_next_number(),
        tenant=tenant,
        month=month,
        sequence=len(documents),
        kind=kind,
        issued_at=at,
        issued_by=name_of(actor),
    )
    made.content = {
        "format": _format(documents),
        "name": made.name,
        "number": made.number,
        "kind": str(kind),
        "tenant_id": str(tenant.pk),
        "tenant": tenant.slug,
        "tenant_name": tenant.name,
        "month": f"{month:%Y-%m}",
        "period": told_period(month),
        "issued_at": at.astimezone(datetime.UTC).isoformat(timespec="microseconds"),
        "corrects": documents[0].name if documents else None,
        "currency": currency,
        "lines": [told_line(line) for line in lines],
        "totals": {name: f"{total:f}" for name, total in totals_of(lines).items()},
        "chain": _chain_end(tenant.pk),
    }
    made.hash = digest(made.content)
    return made


def _next_number() -> int:
    """The caller holds the row."""
    BooksState.objects.filter(pk=1).update(invoice_number=F("invoice_number") + 1)
    return BooksState.objects.values_list("invoice_number", flat=True).get(pk=1)


def _chain_end(tenant_id: uuid.UUID) -> dict[str, Any]:
    """Up to which record of the tenant's chain the document speaks."""
    head = UsageChain.objects.filter(tenant_id=tenant_id).first()
    return {"sequence": head.sequence if head else 0, "hash": head.hash if head else ""}
