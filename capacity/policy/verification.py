"""Checks a tenant's usage file line by line: its chain, its anchors, its prices, its sums. Trusts nothing but hashes.

The file is lines of JSON objects in this order (``kind``): one ``header``, then ``price`` (a version of a pool's
price), ``anchor``, ``rollup`` (a final day's sums, UTC), ``promised`` (a reservation in a month), ``invoice`` (or a
note), ``record`` in the order of the chain, and one ``end``.

What is checked: the records follow one another without a gap and their hashes hold; each anchor that the file reaches
is what the chain has there; each record's MU is what its tokens cost under its version of the price; the records of
each whole day add up to its roll-ups; each invoice is what the records, prices and promised minutes of its month come
to (``invoice_check``); the file was not cut off. Memory grows with days and pools, not with records.
"""

from __future__ import annotations

import datetime
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from capacity.policy.chain import link
from capacity.policy.cost import CostProfile, request_cost
from capacity.policy.invoice_check import Document, InvoiceCheck

FORMAT = 2
_READ = (1, FORMAT)
"""The first format had no invoices."""
_TOLERANCE = 1e-9
_MOST_FINDINGS = 100
_TIMES = ("admitted_at", "first_byte_at", "ended_at")
_NOT_HASHED = frozenset({"kind", "sequence", "hash", "sealed"})

DayKey = tuple[str, str, str]
"""Day (ISO, UTC), pool, service class."""


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that does not hold. ``where``: a record's place, a day, or a part of the file."""

    what: str
    where: str
    message: str


@dataclass(slots=True)
class Sums:
    requests: int = 0
    input_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    mu: float = 0.0
    _lost: float = 0.0

    def add(self, row: Mapping[str, Any], mu: float) -> None:
        """Add a record. Neumaier's sum: a million small amounts lose nothing."""
        self.requests += 1
        self.input_tokens += row["input_tokens"]
        self.cached_tokens += row["cached_tokens"]
        self.output_tokens += row["output_tokens"]
        total = self.mu + mu
        self._lost += (self.mu - total) + mu if abs(self.mu) >= abs(mu) else (mu - total) + self.mu
        self.mu = total

    @property
    def exact_mu(self) -> float:
        return self.mu + self._lost


@dataclass(slots=True)
class Verification:
    """Feed it the file's lines, then ask ``findings`` after ``finish``. ``billed`` sums MU by pool, version, class."""

    known: Mapping[int, str] = field(default_factory=dict)
    """Hashes by place that whoever checks has kept: the file is held to these, too."""
    findings: list[Finding] = field(default_factory=list)
    more: int = 0
    """Findings beyond those that are kept."""
    records: int = 0
    anchors_checked: int = 0
    days_checked: int = 0
    tenant: str = ""
    sequence: int = 0
    hash: str = ""
    billed: dict[tuple[str, int, str], Sums] = field(default_factory=dict)
    pool_names: dict[str, str] = field(default_factory=dict)
    _tenant_id: str = ""
    _whole_from: str = ""
    _prices: dict[tuple[str, int], CostProfile] = field(default_factory=dict)
    _anchors: dict[int, tuple[str, str]] = field(default_factory=dict)
    _rollups: dict[DayKey, Mapping[str, Any]] = field(default_factory=dict)
    _days: dict[DayKey, Sums] = field(default_factory=dict)
    _has_ended: bool = False
    _invoices: InvoiceCheck = field(init=False)
    _has_begun: bool = False

    def __post_init__(self) -> None:
        self._invoices = InvoiceCheck(self._find)

    @property
    def invoices(self) -> list[Document]:
        """The invoices and notes of the file, oldest first, with what was found of each."""
        return self._invoices.documents

    def feed(self, line: Mapping[str, Any]) -> None:
        """Take the next line. Raises ValueError for one that is not of such a file."""
        try:
            self._take(line)
        except (KeyError, TypeError, AttributeError, ArithmeticError) as error:
            raise ValueError(f"a line is not of a usage file: {error!r}") from error

    def _take(self, line: Mapping[str, Any]) -> None:
        kind = line["kind"]
        if (kind == "header") == bool(self._tenant_id):
            raise ValueError("the file must begin with its header, and have one")
        if kind == "header":
            self._header(line)
        elif kind == "price":
            self._price(line)
        elif kind == "anchor":
            self._anchors[int(line["sequence"])] = (str(line["hash"]), str(line["day"]))
        elif kind == "rollup":
            self._rollups[(str(line["day"]), line["pool_id"], line["service_class"])] = line
        elif kind == "promised":
            self._invoices.promised(line)
        elif kind == "invoice":
            self._invoices.document(line, tenant_id=self._tenant_id)
        elif kind == "record":
            self._record(line)
        elif kind == "end":
            self._end(line)
        else:
            raise ValueError(f"a line of kind {kind!r} is not known")

    def finish(self) -> None:
        """The file is read: compare its days, and see that it was whole. Raises ValueError as ``feed`` does."""
        if not self._tenant_id:
            raise ValueError("the file is empty")
        if not self._has_ended:
            self._find("file", "end", "the file was cut off: its last line is missing")
            return
        self._begin_records()
        try:
            self._invoices.finish()
        except ArithmeticError as error:
            raise ValueError(f"the invoices cannot be reckoned: {error!r}") from error
        for place in self._anchors:
            self._find("anchor", self._anchors[place][1], f"record {place}, which was anchored, is not in the file")
        for key in sorted(self._rollups.keys() | {key for key in self._days if key[0] in self._rolled_days()}):
            self._compare(key)

    def _header(self, line: Mapping[str, Any]) -> None:
        if line["format"] not in _READ:
            raise ValueError(f"the file has format {line['format']}, this version reads {', '.join(map(str, _READ))}")
        self._tenant_id, self.tenant = str(line["tenant_id"]), str(line["tenant"])
        self._whole_from = str(line["whole_from"])
        self.sequence, self.hash = int(line["after_sequence"]), str(line["after_hash"])

    def _price(self, line: Mapping[str, Any]) -> None:
        self.pool_names[line["pool_id"]] = str(line["pool"])
        self._invoices.price(line)
        self._prices[(line["pool_id"], line["version"])] = CostProfile(
            version=line["version"],
            base=float(line["base"]),
            alpha=float(line["alpha"]),
            beta=float(line["beta"]),
            gamma=float(line["gamma"]),
            epsilon=float(line["epsilon"]),
            cached_factor=float(line["cached_factor"]),
            modalities=line["modalities"],
            long_input_tiers=tuple((start, factor) for start, factor in line["long_input_tiers"]),
        )

    def _begin_records(self) -> None:
        """Once, when all that stands before the records is read."""
        if not self._has_begun:
            self._has_begun = True
            self._invoices.begin(after=self.sequence, after_hash=self.hash, whole_from=self._whole_from)

    def _record(self, line: Mapping[str, Any]) -> None:
        self._begin_records()
        self.records += 1
        place = str(line["sequence"])
        if line["sequence"] != self.sequence + 1:
            self._find("chain", place, f"record {self.sequence + 1} is missing before it")
        row = {name: value for name, value in line.items() if name not in _NOT_HASHED}
        row |= {name: _moment(row[name]) for name in _TIMES} | {"tenant_id": self._tenant_id}
        expected = link(self.hash, int(line["sequence"]), row, str(line["sealed"]))
        if expected != line["hash"]:
            self._find(
                "chain", place, f"request {line['id']} is not what was booked, or does not follow the one before"
            )
        # Go on from what the file says: one change is one finding.
        self.sequence, self.hash = int(line["sequence"]), str(line["hash"])
        if (anchor := self._anchors.pop(self.sequence, None)) is not None:
            self.anchors_checked += 1
            if anchor[0] != self.hash:
                self._find("anchor", anchor[1], f"the chain ends otherwise at record {place} than was anchored")
        if self.sequence in self.known:
            self.anchors_checked += 1
            if self.known[self.sequence] != self.hash:
                self._find("anchor", place, f"the chain was another one when you kept its hash at record {place}")
        self._invoices.record(row, place=self.sequence, chain_hash=self.hash)
        self._bill(row, place)

    def _bill(self, row: Mapping[str, Any], place: str) -> None:
        mu = float(row["actual_mu"])
        key = (str(row["pool_id"]), int(row["profile_version"]), str(row["service_class"]))
        self.billed.setdefault(key, Sums()).add(row, mu)
        day = row["ended_at"].astimezone(datetime.UTC).date().isoformat()
        if day >= self._whole_from:
            self._days.setdefault((day, key[0], key[2]), Sums()).add(row, mu)
        price = self._prices.get(key[:2])
        if price is None:
            self._find("price", place, f"version {key[1]} of the price of pool {key[0]} is not in the file")
            return
        expected = _expected_mu(row, price)
        if not math.isclose(mu, expected, rel_tol=_TOLERANCE, abs_tol=_TOLERANCE):
            self._find("price", place, f"request {row['id']} was billed {mu:.9g} MU, its tokens cost {expected:.9g} MU")

    def _rolled_days(self) -> set[str]:
        return {day for day, _, _ in self._rollups}

    def _compare(self, key: DayKey) -> None:
        day, pool, service_class = key
        if day < self._whole_from:
            return
        self.days_checked += 1
        rollup, sums = self._rollups.get(key), self._days.get(key, Sums())
        where = f"{day}, {self.pool_names.get(pool, pool)}, {service_class}"
        if rollup is None:
            self._find("sum", where, f"{sums.requests} records, and no roll-up")
            return
        for name in ("requests", "input_tokens", "cached_tokens", "output_tokens"):
            if rollup[name] != getattr(sums, name):
                self._find("sum", where, f"{name}: the records have {getattr(sums, name)}, the roll-up {rollup[name]}")
        if not math.isclose(rollup["mu"], sums.exact_mu, rel_tol=_TOLERANCE, abs_tol=_TOLERANCE):
            self._find("sum", where, f"MU: the records have {sums.exact_mu:.9g}, the roll-up {rollup['mu']:.9g}")

    def _end(self, line: Mapping[str, Any]) -> None:
        self._has_ended = True
        if (line["sequence"], line["hash"], line["records"]) != (self.sequence, self.hash, self.records):
            self._find("file", "end", f"the file ends at record {self.sequence}, its chain at {line['sequence']}")

    def _find(self, what: str, where: str, message: str) -> None:
        if len(self.findings) < _MOST_FINDINGS:
            self.findings.append(Finding(what, where, message))
        else:
            self.more += 1


def _expected_mu(row: Mapping[str, Any], price: CostProfile) -> float:
    units = row["units"]
    has_tokens = bool(row["input_tokens"] or row["output_tokens"])
    # A gateway that was lost had counted tokens so far, and no rows: these are known at the end.
    if not has_tokens and (not units or row["outcome"] == "gateway_lost"):
        return 0.0
    return request_cost(
        price,
        input_tokens=row["input_tokens"],
        cached_tokens=row["cached_tokens"],
        output_tokens=row["output_tokens"],
        units=units,
    )


def _moment(value: Any) -> datetime.datetime | None:
    if value is None or isinstance(value, datetime.datetime):
        return value
    return datetime.datetime.fromisoformat(value)
