"""Recomputes a tenant's invoices from its usage file: from records, prices and minutes that were promised, exactly.

An invoice speaks of the tenant's chain of records up to a place, and each of its notes up to a later one. Read up to
there, the records of the month must come to what the documents until then say together, line by line.
"""

from __future__ import annotations

import datetime
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

from capacity.policy.invoice import (
    FORMATS,
    Line,
    Promised,
    Used,
    billed_mu,
    difference,
    digest,
    lines_of,
    minutes_of,
    number,
    read_line,
    told_line,
    totals_of,
)

Find = Callable[[str, str, str], None]
"""What kind of thing does not hold, where, and in words."""

_COUNTS = ("input_tokens", "cached_tokens", "output_tokens")


@dataclass(slots=True)
class Document:
    """An invoice or a note of the file. ``verdict``: ``equal``, ``differs``, or why it was not recomputed."""

    name: str
    kind: str
    month: str
    totals: dict[str, str]
    currency: str
    place: int
    chain_hash: str
    lines: tuple[Line, ...]
    is_pending: bool
    document_format: int
    verdict: str = "equal"


@dataclass(slots=True)
class _Sum:
    requests: int = 0
    tokens: list[int] = field(default_factory=lambda: [0, 0, 0])
    mu: Decimal = Decimal(0)


UsedKey = tuple[str, str, int, str]
"""Pool, served model, version of the price, class."""


@dataclass(slots=True)
class InvoiceCheck:
    """Feed it the file's parts as they come; records in the order of the chain."""

    find: Find
    documents: list[Document] = field(default_factory=list)
    _prices: dict[tuple[str, int], Decimal | None] = field(default_factory=dict)
    _pools: dict[str, str] = field(default_factory=dict)
    _promised: dict[str, list[Promised]] = field(default_factory=dict)
    _sums: dict[str, dict[UsedKey, _Sum]] = field(default_factory=dict)
    _next: int = 0
    _place: int = 0
    _hash: str = ""

    def price(self, line: Mapping[str, Any]) -> None:
        given = line.get("price_per_1000_mu")
        self._pools[line["pool_id"]] = str(line["pool"])
        self._prices[(line["pool_id"], line["version"])] = None if given is None else number(given)

    def promised(self, line: Mapping[str, Any]) -> None:
        """A reservation in a month, as the guarantee ledger has it."""
        month = _month(line["month"])
        price = None if line["price"] is None else Decimal(line["price"])
        credit = None
        if price is not None:
            # As the guarantee ledger reckons it, by all of its minutes.
            whole = price * Decimal(line["mu_per_min"]) * Decimal(line["minutes"]) / Decimal(minutes_of(month))
            credit = whole * Decimal(line["credit_share"])
        self._promised.setdefault(line["month"], []).append(
            Promised(
                reservation=line["reservation"],
                pool_id=line["pool_id"],
                pool=line["pool"],
                mu_per_min=number(line["mu_per_min"]),
                minutes=line["minutes"] - line["shared_minutes"],
                breach_minutes=line["breach_minutes"],
                price=price,
                currency=line["currency"],
                credit_share=number(line["credit_share"]),
                credit=credit,
            )
        )

    def document(self, line: Mapping[str, Any], *, tenant_id: str) -> None:
        """An invoice or a note; oldest first. What it says of itself is checked here."""
        content = line["content"]
        try:
            lines = tuple(read_line(told) for told in content["lines"])
        except (ValueError, ArithmeticError) as error:
            raise ValueError(f"an invoice cannot be read: {error}") from error
        found = Document(
            name=str(content["name"]),
            kind=str(content["kind"]),
            month=str(content["month"]),
            totals=dict(content["totals"]),
            currency=str(content["currency"]),
            place=int(content["chain"]["sequence"]),
            chain_hash=str(content["chain"]["hash"]),
            lines=lines,
            is_pending=bool(line["is_pending"]),
            document_format=content["format"],
        )
        if found.document_format not in FORMATS:
            found.verdict = "not recomputed: it is of a format that a later version checks"
        _month(found.month)
        if digest(content) != line["hash"]:
            self._differs(found, "its hash is not of what it says")
        if content["tenant_id"] != tenant_id:
            self._differs(found, "it is another tenant's")
        if found.totals != {currency: f"{total:f}" for currency, total in totals_of(lines).items()}:
            self._differs(found, "its totals are not the sums of its lines")
        if self.documents and found.place < self.documents[-1].place:
            raise ValueError("the invoices do not come in the order in which they were issued")
        self.documents.append(found)
        self._sums.setdefault(found.month, {})

    def record(self, row: Mapping[str, Any], *, place: int, chain_hash: str) -> None:
        """The next record, and its place and hash in the chain."""
        self._look(place)
        self._place, self._hash = place, chain_hash
        ended: datetime.datetime = row["ended_at"].astimezone(datetime.UTC)
        sums = self._sums.get(f"{ended:%Y-%m}")
        if sums is None:
            return
        key = (str(row["pool_id"]), str(row["model"]), int(row["profile_version"]), str(row["service_class"]))
        one = sums.setdefault(key, _Sum())
        one.requests += 1
        one.tokens = [known + row[name] for known, name in zip(one.tokens, _COUNTS, strict=True)]
        one.mu += billed_mu(row["actual_mu"])

    def begin(self, *, after: int, after_hash: str, whole_from: str) -> None:
        """Where the chain begins in the file, and the first day of which it has every record."""
        self._place, self._hash = after, after_hash
        for one in self.documents:
            if f"{one.month}-01" < whole_from and one.verdict == "equal":
                one.verdict = "not recomputed: the file has not all of the month's records"

    def finish(self) -> None:
        """All records are read."""
        self._look(None)
        for month in self._sums:
            of_month = [one for one in self.documents if one.month == month]
            last = of_month[-1]
            if last.is_pending or not _is_recomputed(last):
                continue
            day = _month(month)
            now = lines_of(
                month=day,
                used=(),
                promised=self._promised.get(month, ()),
                currency=last.currency,
                document_format=of_month[0].document_format,
            )
            told = [[line for line in one.lines if line.kind != "usage"] for one in of_month]
            for line in difference(now, told):
                self._differs(last, f"{_named(line)} is {_off(line)} off what was promised")

    def _look(self, place: int | None) -> None:
        """Compare the documents that speak of the chain up to before ``place``."""
        while self._next < len(self.documents):
            one = self.documents[self._next]
            if place is not None and one.place >= place:
                return
            self._next += 1
            if not _is_recomputed(one):
                continue
            if one.place != self._place or (one.place and one.chain_hash != self._hash):
                self._differs(one, f"the chain of records is another one at {one.place} than it says")
            told = [
                [line for line in known.lines if line.kind == "usage"]
                for known in self.documents[: self._next]
                if known.month == one.month
            ]
            first = next(known for known in self.documents if known.month == one.month)
            now = lines_of(
                month=_month(one.month),
                used=self._used(one.month),
                promised=(),
                currency=one.currency,
                document_format=first.document_format,
            )
            for line in difference(now, told):
                self._differs(one, f"{_named(line)} is {_off(line)} off what the records come to")

    def _used(self, month: str) -> list[Used]:
        return [
            Used(
                pool_id=key[0],
                pool=self._pools.get(key[0], ""),
                model=key[1],
                profile_version=key[2],
                service_class=key[3],
                requests=one.requests,
                input_tokens=one.tokens[0],
                cached_tokens=one.tokens[1],
                output_tokens=one.tokens[2],
                mu=one.mu,
                price=self._prices.get((key[0], key[2])),
            )
            for key, one in self._sums[month].items()
        ]

    def _differs(self, one: Document, message: str) -> None:
        one.verdict = "differs"
        self.find("invoice", one.name, message)


def _is_recomputed(one: Document) -> bool:
    return one.verdict in ("equal", "differs")


def _month(text: str) -> datetime.date:
    return datetime.datetime.strptime(text, "%Y-%m").date()


def _named(line: Line) -> str:
    what = f"{line.model} v{line.profile_version} {line.service_class}" if line.kind == "usage" else line.reservation
    return f"{line.kind} of {line.pool or line.pool_id}, {what}"


def _off(line: Line) -> str:
    told = told_line(line)
    parts = [f"{told['amount']} {line.currency}"] if line.amount else []
    parts += [f"{told['mu']} MU"] if line.mu else []
    names = ("requests", *_COUNTS, "minutes", "breach_minutes")
    parts += [f"{told[name]} {name.replace('_', ' ')}" for name in names if told[name]]
    return " and ".join(parts)
