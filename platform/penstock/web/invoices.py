"""What the invoice pages show, of all tenants or of one: what was issued, a document, and a month so far."""

from __future__ import annotations

import datetime
from collections.abc import Iterable
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from django.db.models import QuerySet
from django.http import QueryDict

from capacity.models import Invoice
from capacity.policy.invoice import Line, following, totals_of
from capacity.policy.money import amount_text
from capacity.services import invoice_preview, lines_in
from capacity.usage.attainment import month_of
from capacity.usage.billing import begins
from penstock.web.guarantees import choose_month
from tenants.models import Tenant

_SHOWN = 50
_LARGEST = 2**63 - 1


@dataclass(frozen=True, slots=True)
class Row:
    """A line as the page has it: texts, with units of their own."""

    what: str
    detail: str
    quantity: str
    unit: str
    price: str
    price_unit: str
    amount: str


@dataclass(frozen=True, slots=True)
class Section:
    """The lines of one currency, and their total."""

    currency: str
    rows: list[Row]
    total: str


def money(amount: Decimal, currency: str) -> str:
    """An amount for people: thousands set apart, the decimals of its currency, a real minus sign."""
    return amount_text(amount, currency).replace("-", "−")


def totals_text(totals: dict[str, Decimal]) -> str:
    """Totals of all currencies in one text."""
    if not totals:
        return "0"
    return ", ".join(f"{money(total, currency)} {currency}" for currency, total in totals.items())


def list_context(rows: QuerySet[Invoice], given: QueryDict) -> dict[str, Any]:
    """A page of the documents of ``rows``, the highest number first; ``?month=2026-11`` and ``?before=<number>``."""
    month, before = _month(given.get("month", "")), _number(given.get("before", ""))
    of_month = rows.filter(month=month) if month else rows
    ordered = of_month.order_by("-number").select_related("tenant")
    shown = list((ordered.filter(number__lt=before) if before else ordered)[: _SHOWN + 1])
    return {
        "rows": [(one, totals_text(one.totals)) for one in shown[:_SHOWN]],
        "older": shown[_SHOWN - 1].number if len(shown) > _SHOWN else "",
        "is_paged": before is not None,
        "month": f"{month:%Y-%m}" if month else "",
        "is_never": not shown and not rows.exists(),
    }


def document_context(invoice: Invoice) -> dict[str, Any]:
    """A document, and the others of its month."""
    others = Invoice.objects.filter(tenant=invoice.tenant_id, month=invoice.month).exclude(pk=invoice.pk)
    return {
        "invoice": invoice,
        "content": invoice.content,
        "sections": _sections(lines_in(invoice)),
        "others": [(one, totals_text(one.totals)) for one in others.order_by("sequence")],
        **_period(invoice.month),
    }


def preview_context(tenant: Tenant, given: QueryDict) -> dict[str, Any]:
    """What the month of ``?month=2026-11`` comes to by what is booked now; without one, this month."""
    choice = choose_month(given)
    found = invoice_preview(tenant=tenant, month=choice.month)
    return {
        "choice": choice,
        "found": found,
        "sections": _sections(found.lines),
        "total": totals_text(totals_of(found.lines)),
        "others": [(one, totals_text(one.totals)) for one in found.documents],
        **_period(choice.month),
    }


def _period(month: datetime.date) -> dict[str, Any]:
    last = following(month) - datetime.timedelta(days=1)
    return {"since": begins(month), "first_day": month, "last_day": last}


def _sections(lines: Iterable[Line]) -> list[Section]:
    found: dict[str, list[Line]] = {}
    for line in lines:
        found.setdefault(line.currency, []).append(line)
    return [
        Section(currency, [_row(line) for line in of], money(totals_of(of)[currency], currency))
        for currency, of in sorted(found.items())
    ]


def _row(line: Line) -> Row:
    amount = money(line.amount, line.currency)
    if line.kind == "usage":
        is_paid_for = line.service_class == "reserved"
        detail = f"{line.model}, {line.service_class.replace('_', '-')}, price v{line.profile_version}"
        detail += f", {_count(line.requests)} request{'' if abs(line.requests) == 1 else 's'}"
        price = "within a reservation" if is_paid_for else _price(line)
        unit = "per 1,000 MU" if line.price is not None else ""
        return Row(line.pool, detail, _plain(line.mu), "MU", price, unit, amount)
    size = "" if line.mu_per_min is None else f"{_plain(line.mu_per_min)} MU/min"
    name = f"…{line.reservation[-6:]}"
    if line.kind == "credit":
        share = "" if line.credit_share is None else f"{_plain(line.credit_share * 100)} % of what it costs"
        quantity = _count(line.breach_minutes)
        return Row(
            f"Credit, {line.pool}", f"guarantee of reservation {name}", quantity, "breach min", share, "", amount
        )
    price = _price(line)
    unit = "per MU/min and month" if line.price is not None else ""
    return Row(f"Reservation, {line.pool}", f"{size}, {name}", _count(line.minutes), "min", price, unit, amount)


def _price(line: Line) -> str:
    return "no price" if line.price is None else amount_text(line.price, line.currency)


def _plain(value: Decimal) -> str:
    """All of its digits that say something."""
    text = f"{value:,.12f}".rstrip("0").rstrip(".")
    return text.replace("-", "−")


def _count(value: int) -> str:
    return f"{value:,}".replace("-", "−")


def _month(text: str) -> datetime.date | None:
    try:
        return month_of(text)
    except ValueError:
        return None


def _number(text: str) -> int | None:
    return min(int(text), _LARGEST) if text.isascii() and text.isdecimal() and len(text) < 25 else None
