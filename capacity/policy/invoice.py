"""What a tenant owes for a month: lines and totals of an invoice, and of the note that corrects it afterwards.

A month is half-open and in UTC: from its first moment until before that of the next. Usage belongs to the minute in
which a request ended, as everywhere in the books.

- **Usage**: MU by pool, served model, version of the price and service class, times what 1,000 MU cost in that version.
  Versions are never edited, so the price is the one in force when the request was admitted. What ran within a
  reservation is paid for by that, and stands at nothing.
- **Reservations**: their price per MU/min and month, by the minutes of the guarantee ledger that were promised.
- **Credits** of the guarantee ledger, never more than what their reservation costs in the month.

**Rounding, once**: a request's MU count to nine decimals; each line is exact until its amount is rounded to the
smallest part of its currency, half to even; totals add amounts of lines. Currencies are never added to each other, nor
converted.

A month keeps the format of its invoice. In format 1 amounts are in hundredths whatever the currency: such an invoice
stands as it was issued, and the notes that correct it are reckoned as it was.
"""

from __future__ import annotations

import datetime
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from decimal import ROUND_HALF_EVEN, Context, Decimal, localcontext
from typing import Any

from capacity.policy.money import minor_unit

FORMAT = 2
FORMATS = (1, FORMAT)
"""Those that can be read, reckoned and checked."""
RESERVED = "reserved"
"""The service class of what a reservation pays for."""

_NANO = Decimal("1e-9")
_HUNDREDTH = Decimal("0.01")
_EXACT = Context(prec=80, rounding=ROUND_HALF_EVEN)
_ORDER = {"reservation": 0, "credit": 1, "usage": 2}
_DECIMALS = ("amount", "mu", "price", "mu_per_min", "credit_share")
_TEXTS = ("currency", "pool_id", "pool", "model", "service_class", "reservation")
_COUNTS = ("requests", "input_tokens", "cached_tokens", "output_tokens", "minutes", "breach_minutes")


@dataclass(frozen=True, slots=True)
class Used:
    """Usage of a month. ``price``: money per 1,000 MU in that version, None where it has none."""

    pool_id: str
    pool: str
    model: str
    profile_version: int
    service_class: str
    requests: int
    input_tokens: int
    cached_tokens: int
    output_tokens: int
    mu: Decimal
    price: Decimal | None


@dataclass(frozen=True, slots=True)
class Promised:
    """A reservation in a month. ``price``: money per MU/min and month; ``minutes`` are charged; ``credit``: of the
    guarantee ledger, not rounded yet, None where there is no price.
    """

    reservation: str
    pool_id: str
    pool: str
    mu_per_min: Decimal
    minutes: int
    breach_minutes: int
    price: Decimal | None
    currency: str
    credit_share: Decimal
    credit: Decimal | None


@dataclass(frozen=True, slots=True)
class Line:
    """One line. ``price``: per 1,000 MU for usage, per MU/min and month for a reservation; None: it has none.

    In a note that corrects, counts, MU and the amount are differences.
    """

    kind: str
    currency: str
    amount: Decimal
    pool_id: str
    pool: str
    price: Decimal | None = None
    model: str = ""
    profile_version: int | None = None
    service_class: str = ""
    requests: int = 0
    input_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    mu: Decimal = Decimal(0)
    reservation: str = ""
    mu_per_min: Decimal | None = None
    minutes: int = 0
    breach_minutes: int = 0
    credit_share: Decimal | None = None

    @property
    def key(self) -> tuple[Any, ...]:
        """What makes it the same line in another document of the month."""
        return (self.kind, self.currency, self.pool_id, self.reservation, self.model, *self._version)

    @property
    def _version(self) -> tuple[Any, ...]:
        return (self.profile_version or 0, self.service_class)

    @property
    def is_nothing(self) -> bool:
        return not self.amount and not self.mu and not any(getattr(self, name) for name in _COUNTS)


LINE_COLUMNS = tuple(field.name for field in fields(Line))


def billed_mu(mu: float) -> Decimal:
    """A request's MU as they are billed: the number as it is written, to nine decimals, half to even."""
    return Decimal(repr(float(mu))).quantize(_NANO, context=_EXACT)


def number(value: float) -> Decimal:
    """A stored number as it is written."""
    return Decimal(repr(float(value)))


def rounded(amount: Decimal, currency: str, document_format: int = FORMAT) -> Decimal:
    """To what a document of this format counts in, half to even: the smallest part of the currency."""
    part = _HUNDREDTH if document_format == 1 else minor_unit(currency)
    # Without the sign of what was rounded to nothing.
    return amount.quantize(part, context=_EXACT) + 0


def following(month: datetime.date) -> datetime.date:
    """The first day of the month after."""
    return (month.replace(day=28) + datetime.timedelta(days=4)).replace(day=1)


def minutes_of(month: datetime.date) -> int:
    """Minutes of the month that begins with this day."""
    return (following(month) - month).days * 24 * 60


def lines_of(
    *,
    month: datetime.date,
    used: Iterable[Used],
    promised: Iterable[Promised],
    currency: str,
    document_format: int = FORMAT,
) -> tuple[Line, ...]:
    """The lines of a month, in the order of the document. ``currency``: of the prices of usage; ``document_format``: of
    the month's invoice."""
    with localcontext(_EXACT):
        found = [_usage(one, currency, document_format) for one in used]
        for one in promised:
            found += _promised(one, month, currency, document_format)
    return ordered(line for line in found if not line.is_nothing)


def ordered(lines: Iterable[Line]) -> tuple[Line, ...]:
    """By currency; reservations with their credits first, then usage by pool."""
    return tuple(
        sorted(
            lines,
            key=lambda line: (
                line.currency,
                line.kind == "usage",
                line.pool,
                line.pool_id,
                line.reservation,
                _ORDER[line.kind],
                line.model,
                line._version,
            ),
        )
    )


def _usage(one: Used, currency: str, document_format: int) -> Line:
    is_paid_for = one.service_class == RESERVED
    amount = Decimal(0) if is_paid_for or one.price is None else one.mu * one.price / 1000
    return Line(
        kind="usage",
        currency=currency,
        amount=rounded(amount, currency, document_format),
        pool_id=one.pool_id,
        pool=one.pool,
        price=None if is_paid_for else one.price,
        model=one.model,
        profile_version=one.profile_version,
        service_class=one.service_class,
        requests=one.requests,
        input_tokens=one.input_tokens,
        cached_tokens=one.cached_tokens,
        output_tokens=one.output_tokens,
        mu=one.mu,
    )


def _promised(one: Promised, month: datetime.date, currency: str, document_format: int) -> list[Line]:
    exact, owned = Decimal(0), one.currency or currency
    if one.price is not None:
        exact = one.price * one.mu_per_min * one.minutes / minutes_of(month)
    charge = Line(
        kind="reservation",
        currency=owned,
        amount=rounded(exact, owned, document_format),
        pool_id=one.pool_id,
        pool=one.pool,
        price=one.price,
        reservation=one.reservation,
        mu_per_min=one.mu_per_min,
        minutes=one.minutes,
    )
    back = rounded(one.credit or Decimal(0), owned, document_format)
    if not back:
        return [charge]
    credit = replace(
        charge,
        kind="credit",
        amount=-min(back, charge.amount),
        breach_minutes=one.breach_minutes,
        minutes=0,
        credit_share=one.credit_share,
    )
    return [charge, credit]


def totals_of(lines: Iterable[Line]) -> dict[str, Decimal]:
    """The sum of amounts by currency."""
    found: dict[str, Decimal] = {}
    with localcontext(_EXACT):
        for line in lines:
            # With as many decimals as amounts of the currency have.
            known = found.get(line.currency)
            found[line.currency] = line.amount if known is None else known + line.amount
    return dict(sorted(found.items()))


def has_price(lines: Iterable[Line]) -> bool:
    """Whether anything in the month has a price. Without one there is nothing to invoice."""
    return any(line.price is not None for line in lines)


def difference(now: Sequence[Line], before: Iterable[Sequence[Line]]) -> tuple[Line, ...]:
    """What is to be added to the documents ``before`` so that they say what is known ``now``, line by line."""
    with localcontext(_EXACT):
        summed: dict[tuple[Any, ...], Line] = {}
        for line in (line for lines in before for line in lines):
            known = summed.get(line.key)
            summed[line.key] = line if known is None else _added(known, line, 1)
        found = [_added(line, summed.pop(line.key), -1) if line.key in summed else line for line in now]
        # What is no more: all of it is taken back.
        found += [_added(replace(line, **_NOTHING), line, -1) for line in summed.values()]
    return ordered(line for line in found if not line.is_nothing)


_NOTHING: dict[str, Any] = {**dict.fromkeys(_COUNTS, 0), "mu": Decimal(0), "amount": Decimal(0)}


def _added(line: Line, other: Line, times: int) -> Line:
    changed: dict[str, Any] = {
        name: getattr(line, name) + times * getattr(other, name) for name in (*_COUNTS, "mu", "amount")
    }
    return replace(line, **changed)


def kind_of_note(lines: Iterable[Line]) -> str:
    """``debit_note`` where more is owed in any currency, else ``credit_note``."""
    return "debit_note" if any(total > 0 for total in totals_of(lines).values()) else "credit_note"


def told_line(line: Line) -> dict[str, Any]:
    """A line as documents hold it: decimals as text, so that no digit is lost."""
    return {name: _text(value) for name, value in asdict(line).items()} | {"amount": f"{line.amount:f}"}


def read_line(told: Mapping[str, Any]) -> Line:
    """What ``told_line`` made. Raises KeyError, ValueError and ArithmeticError for anything else."""
    values = {name: told[name] for name in LINE_COLUMNS}
    is_sound = values["kind"] in _ORDER and type(values["profile_version"]) in (int, type(None))
    is_sound &= all(type(values[name]) is int for name in _COUNTS)
    is_sound &= all(isinstance(values[name], str) for name in _TEXTS)
    is_sound &= all(values[name] is None or isinstance(values[name], str) for name in _DECIMALS)
    if not is_sound or values["amount"] is None or values["mu"] is None:
        raise ValueError("it is no line of an invoice")
    for name in _DECIMALS:
        values[name] = None if values[name] is None else Decimal(values[name])
        if values[name] is not None and not values[name].is_finite():
            raise ValueError("it is no line of an invoice")
    return Line(**values)


def _text(value: Any) -> Any:
    if not isinstance(value, Decimal):
        return value
    # Zeros at the end say nothing but in money.
    return f"{value:f}" if value.as_tuple().exponent == -2 else f"{value.normalize(_EXACT):f}"


def told_period(month: datetime.date) -> dict[str, str]:
    """The month's half-open period."""
    since, until = (f"{day.isoformat()}T00:00:00Z" for day in (month, following(month)))
    return {"since": since, "until": until, "time_zone": "UTC"}


def digest(content: Mapping[str, Any]) -> str:
    """SHA-256 of a document: JSON without spaces, keys sorted, UTF-8; as lower-case hex."""
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()
