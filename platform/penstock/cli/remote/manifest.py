"""A manifest: objects of an installation as a file, what is wrong with it, and what it would change. Pure.

A manifest says what there should be and never removes what it does not name; of an object, it says only the fields that
it names.
"""

from __future__ import annotations

import datetime
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from penstock.cli.remote.manifest_kinds import (
    AGREED,
    DRAINING,
    HAS_BEGUN,
    INVITED,
    IS_ONE_OF,
    MERGED,
    PARTS,
    SECTIONS,
    SET_BY,
    STATES,
    Key,
    Kind,
)
from penstock.cli.remote.manifest_shapes import misfit, moment

_ALL = {**SECTIONS, **PARTS}
_REFERENCES = (
    ("pools", "model", "models", "model"),
    ("pools", "hardware_type", "hardware-types", "hardware type"),
    ("pools", "tenants", "tenants", "tenant"),
    ("deployments", "pool", "pools", "pool"),
    ("reservations", "pool", "pools", "pool"),
    ("reservations", "tenant", "tenants", "tenant"),
)
_SLUG = re.compile(r"[-a-zA-Z0-9_]+")


@dataclass(frozen=True)
class Entry:
    """One object of a manifest; ``where`` it stands there, for messages."""

    section: str
    tenant: str
    names: tuple[str, ...]
    fields: Mapping[str, Any]
    where: str

    @property
    def key(self) -> Key:
        return (self.section, self.tenant, *self.names)

    @property
    def kind(self) -> Kind:
        return _ALL[self.section]

    def __str__(self) -> str:
        called = " ".join(name for name in self.names if name)
        return f"{self.kind.one} {self.tenant + '/' if self.tenant else ''}{called}"


class ManifestError(Exception):
    """What is wrong with a manifest, each with where it is."""

    def __init__(self, *problems: str) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


@dataclass(frozen=True)
class Step:
    """One thing to do. ``before`` and ``after`` hold the fields that differ; ``before`` is empty for a new object."""

    act: Literal["create", "change"]
    entry: Entry
    before: Mapping[str, Any] = field(default_factory=dict)
    after: Mapping[str, Any] = field(default_factory=dict)


def read(document: Any) -> list[Entry]:
    """The objects of a parsed manifest, in the order in which they are made. Raises ManifestError with all problems."""
    problems: list[str] = []
    if not isinstance(document, dict) or not document:
        raise ManifestError(f"a manifest is a mapping with some of: {', '.join(SECTIONS)}")
    problems += [
        f"{name}: no such section; there are {', '.join(SECTIONS)}" for name in document if name not in SECTIONS
    ]
    found: list[Entry] = []
    for section in SECTIONS:
        for where, row in _rows(document.get(section), section, problems):
            parts = {name: row.pop(name) for name in PARTS if section == "tenants" and name in row}
            entry = _entry(section, "", row, where, problems)
            if entry is None:
                continue
            found.append(entry)
            for part, below in parts.items():
                for place, inner in _rows(below, f"{where}.{part}", problems):
                    one = _entry(part, entry.names[0], inner, place, problems)
                    found += [one] if one is not None else []
    problems += _twice(found)
    if problems:
        raise ManifestError(*problems)
    return found


def owned(entries: Iterable[Entry], set_by: str) -> list[Entry]:
    """``entries`` with the limits that do not say whose they are as limits of ``set_by``, and reservations that do not
    say it as sold by an operator, requested by a tenant. Raises ManifestError."""
    found = []
    for entry in entries:
        if entry.section == "limits" and not entry.names[2]:
            found.append(replace(entry, names=(*entry.names[:2], set_by, *entry.names[3:])))
        elif entry.section == "reservations" and "state" not in entry.fields:
            state = "sold" if set_by == "operator" else "requested"
            found.append(replace(entry, fields={**entry.fields, "state": state}))
        else:
            found.append(entry)
    if problems := list(_twice(found)):
        raise ManifestError(*problems)
    return found


def _twice(entries: Iterable[Entry]) -> Iterator[str]:
    seen: dict[Key, str] = {}
    for entry in entries:
        if entry.key in seen:
            yield f"{entry.where}: {entry} stands at {seen[entry.key]} already"
        seen.setdefault(entry.key, entry.where)


def difference(
    entries: Sequence[Entry],
    current: Mapping[Key, Mapping[str, Any]],
    known: Mapping[str, Iterable[str]],
    now: datetime.datetime | None = None,
) -> list[Step]:
    """What makes ``current`` as ``entries`` say. ``known``: names that may be referred to, by section.

    Raises ManifestError for what cannot be done.
    """
    now = datetime.datetime.now(datetime.UTC) if now is None else now
    steps: list[Step] = []
    problems: list[str] = []
    for entry in entries:
        there = current.get(entry.key)
        if entry.section == "reservations":
            problems += _unsaid(entry, there)
            ends_at = moment(entry.fields.get("ends_at"))
            if there is None and ends_at is not None and ends_at <= now:
                continue  # It is over: what was promised is not sold again.
        if there is None:
            if entry.section == "hosts":
                problems.append(f"{entry.where}: no {entry}; hosts enrol themselves: penstock enrolment-tokens create")
            problems += [
                f"{entry.where}.{name}: a new {entry.kind.one} needs it"
                for name in entry.kind.required
                if name not in entry.fields
            ]
            steps.append(Step("create", entry, after=dict(entry.fields)))
            continue
        kind = entry.kind
        after = {
            name: value
            for name, value in entry.fields.items()
            if name not in kind.first and not _is_same(name, value, there, kind, entry.fields)
        }
        if after and there.get(INVITED):
            called = f"{entry.names[0]} --tenant {entry.tenant}"
            problems.append(
                f"{entry.where}.role: invited as {there.get('role')}: penstock invitations revoke {called}, then apply"
            )
        problems += [
            f"{entry.where}.{name}: it is {there.get(name)!r} and cannot be changed; make another {kind.one}"
            for name in kind.fixed
            if name in after
        ]
        if after:
            steps.append(Step("change", entry, {name: there.get(name) for name in after}, after))
    problems += _dangling(entries, known)
    problems += _without_holder(entries, current)
    if problems:
        raise ManifestError(*problems)
    return steps


def _dangling(entries: Sequence[Entry], known: Mapping[str, Iterable[str]]) -> Iterator[str]:
    for section, name, target, one in _REFERENCES:
        there = {*known.get(target, ()), *(entry.names[0] for entry in entries if entry.section == target)}
        for entry in entries:
            called_by = dict(zip(entry.kind.names, entry.names, strict=True)) | dict(entry.fields)
            if entry.section != section or name not in called_by:
                continue
            value = called_by[name]
            for called in value if isinstance(value, list) else [value]:
                if called not in there:
                    yield f"{entry.where}.{name}: no {one} is called {called!r}"


def _unsaid(entry: Entry, there: Mapping[str, Any] | None) -> Iterator[str]:
    """What cannot be told of a reservation."""
    is_requested = entry.fields.get("state") == "requested"
    if is_requested and (said := [name for name in AGREED if entry.fields.get(name) not in (None, "")]):
        yield f"{entry.where}.{said[0]}: an operator says it when it is sold; state: sold"
    if there is None:
        return
    if there.get(IS_ONE_OF):
        yield f"{entry.where}: {there[IS_ONE_OF]} reservations are called {entry}: give each a note of its own"
    elif is_requested and there.get("state") == "requested":
        kind = entry.kind
        for name, value in entry.fields.items():
            if name not in kind.first and not _is_same(name, value, there, kind, entry.fields):
                yield (
                    f"{entry.where}.{name}: it was asked for with {there.get(name)!r}: take that back "
                    "(penstock reservations cancel), then apply"
                )


def _without_holder(entries: Sequence[Entry], current: Mapping[Key, Mapping[str, Any]]) -> Iterator[str]:
    """Limits of keys and members that are not there."""
    made = {entry.key for entry in entries}
    for entry in entries:
        if entry.section != "limits":
            continue
        key, member = entry.names[3], entry.names[4]
        if key and ("keys", entry.tenant, key) not in current and ("keys", entry.tenant, key) not in made:
            yield f"{entry.where}.key: {entry.tenant} has no usable key that is called {key!r}"
        if member:
            there = current.get(("members", entry.tenant, member))
            if there is None or there.get(INVITED):
                yield f"{entry.where}.member: {member} is no member of {entry.tenant} yet: apply when they have come"


def merged(there: Any, named: Mapping[str, Any]) -> dict[str, Any]:
    """``there`` with what is named in it changed; what is named null is left out."""
    kept = {**there, **named} if isinstance(there, dict) else dict(named)
    return {name: value for name, value in kept.items() if value is not None}


def _is_same(name: str, wanted: Any, there: Mapping[str, Any], kind: Kind, fields: Mapping[str, Any]) -> bool:
    stands = there.get(name)
    if name == "is_cordoned" and there.get(DRAINING):
        return True
    if name == "options" and fields.get("runtime", there.get("runtime")) != there.get("runtime"):
        return False  # Those of another runtime mean other things.
    if name == "starts_at" and there.get(HAS_BEGUN):
        return True
    if name == "state" and stands == "sold":
        return True  # A request that was approved is what was asked for.
    if name == "burst_mu" and wanted is None:
        return True  # What it comes to is worked out from the rest.
    if kind.fields.get(name) == "moment" and stands is not None:
        return moment(wanted) == moment(stands)
    if name in MERGED and isinstance(wanted, dict):
        return merged(stands, wanted) == (stands or {})
    if name in kind.sets and isinstance(wanted, list) and isinstance(stands, list):
        return sorted(wanted) == sorted(stands)
    return bool(wanted == stands)


def _rows(value: Any, where: str, problems: list[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    if value is None:
        return
    if not isinstance(value, list):
        problems.append(f"{where}: it is a list of objects")
        return
    for number, row in enumerate(value):
        if isinstance(row, dict) and all(isinstance(name, str) for name in row):
            yield f"{where}[{number}]", dict(row)
        else:
            problems.append(f"{where}[{number}]: it is an object with names and values")


def _entry(section: str, tenant: str, row: dict[str, Any], where: str, problems: list[str]) -> Entry | None:
    kind = _ALL[section]
    names = tuple(row.pop(name, "" if name in kind.optional_names else None) for name in kind.names)
    if section in ("members", "limits"):  # Addresses differ by more than the case of their letters.
        names = (*names[:-1], names[-1].lower() if isinstance(names[-1], str) else names[-1])
    wrong = [
        f"{where}.{name}: {'say how it is called' if called is None else 'it is a text'}"
        for name, called in zip(kind.names, names, strict=True)
        if not isinstance(called, str) or (not called and name not in kind.optional_names)
    ]
    if kind.names == ("slug",) and isinstance(names[0], str) and names[0] and not _SLUG.fullmatch(names[0]):
        wrong.append(f"{where}.slug: letters, digits, - and _ alone")
    if section == "limits" and isinstance(names[2], str) and names[2] not in ("", *SET_BY):
        wrong.append(f"{where}.set_by: it is one of {', '.join(SET_BY)}; left out: yours")
    if section == "limits" and all(isinstance(name, str) and name for name in names[3:]):
        wrong.append(f"{where}.member: a limit is of a key or of a member, not of both")
    if section == "reservations" and row.get("state", STATES[0]) not in STATES:
        wrong.append(f"{where}.state: it is one of {', '.join(STATES)}; left out: sold by operators, else requested")
    for name, value in row.items():
        if name not in kind.fields:
            known = ", ".join((*kind.names, *kind.fields, *(PARTS if section == "tenants" else ())))
            wrong.append(f"{where}.{name}: no such field; a {kind.one} has {known}")
        elif not (value is None and name in kind.empty) and (why := misfit(kind.fields[name], value)):
            wrong.append(f"{where}.{name}: {why}")
    problems += wrong
    return None if wrong else Entry(section, tenant, names, row, where)
