"""A manifest: objects of an installation as a file, what is wrong with it, and what it would change. Pure.

A manifest says what there should be and never removes what it does not name; of an object, it says only the fields that
it names.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

Shape = Literal["text", "whole", "number", "switch", "texts", "names", "prices", "tiers"]
INVITED = "is_invited"
"""Marks the member who has not come yet, in what there is."""
DRAINING = "is_draining"
"""Marks the host that is being drained, in what there is: no manifest puts it to use again."""
Key = tuple[str, ...]
"""Kind, tenant (empty where it belongs to none), and the object's own names."""


@dataclass(frozen=True)
class Kind:
    """``names`` call an object. ``fixed`` fields are given when it is made and stay; ``first`` are not told later."""

    one: str
    names: tuple[str, ...]
    fields: Mapping[str, Shape]
    fixed: tuple[str, ...] = ()
    first: tuple[str, ...] = ()
    required: tuple[str, ...] = ()
    """Of one that is made."""
    optional_names: tuple[str, ...] = ()
    empty: tuple[str, ...] = ()
    """Fields that may be null."""
    sets: tuple[str, ...] = ()
    """Lists whose order says nothing."""


TENANTS = Kind(
    "tenant", ("slug",), {"name": "text", "is_active": "switch", "best_effort": "switch"}, required=("name",)
)
LIMITS = Kind(
    "limit",
    ("kind", "model", "set_by"),
    {"value": "whole"},
    required=("value",),
    optional_names=("model", "set_by"),
)
SET_BY = ("operator", "tenant")
"""Whose a limit is."""
KEYS = Kind(
    "key",
    ("name",),
    {"scopes": "texts", "models_allowed": "texts", "allowed_ips": "texts", "expires_at": "text"},
    first=("expires_at",),
    empty=("expires_at",),
    sets=("scopes", "models_allowed", "allowed_ips"),
)
MEMBERS = Kind("member", ("email",), {"role": "text"}, required=("role",))
HOSTS = Kind("host", ("name",), {"labels": "names", "is_cordoned": "switch"})
MODELS = Kind(
    "model",
    ("slug",),
    {
        "name": "text",
        "artifact_kind": "text",
        "artifact_value": "text",
        "artifact_revision": "text",
        "parameters": "whole",
        "context_tokens": "whole",
    },
    fixed=("artifact_kind",),
    required=("name", "artifact_kind"),
    empty=("parameters", "context_tokens"),
)
POOLS = Kind(
    "pool",
    ("slug",),
    {
        "name": "text",
        "model": "text",
        "hardware_type": "text",
        "is_public": "switch",
        "tenants": "texts",
        "ttft_objective_ms": "whole",
        "tpot_objective_ms": "whole",
        "tolerable_wait_s": "number",
        "slo_share": "number",
        "oversell_factor": "number",
        "keep_spare": "switch",
        "best_effort": "switch",
        "adopts_calibrations": "switch",
        "adoption_error_limit": "number",
        "price": "prices",
    },
    fixed=("model",),
    required=("model", "hardware_type"),
    sets=("tenants",),
)
DEPLOYMENTS = Kind(
    "deployment",
    ("name",),
    {
        "pool": "text",
        "is_enabled": "switch",
        "min_replicas": "whole",
        "max_replicas": "whole",
        "pinned_replicas": "whole",
        "runtime": "text",
        "options": "names",
        "target_concurrency": "whole",
    },
    fixed=("pool",),
    required=("pool",),
    empty=("pinned_replicas",),
)
SECTIONS: Mapping[str, Kind] = {
    "tenants": TENANTS,
    "hosts": HOSTS,
    "models": MODELS,
    "pools": POOLS,
    "deployments": DEPLOYMENTS,
}
"""In the order in which they are made."""
PARTS: Mapping[str, Kind] = {"members": MEMBERS, "keys": KEYS, "limits": LIMITS}
"""What stands within a tenant."""
PRICE: Mapping[str, Shape] = {
    **dict.fromkeys(("base", "alpha", "beta", "gamma", "epsilon", "cached_factor", "replica_mu_per_min"), "number"),
    "modalities": "names",
    "long_input_tiers": "tiers",
    "calibrated": "switch",
}
"""What a price is made of."""
MERGED = ("price", "options")
"""Of these, only what is named counts and is changed; of options, null takes one away."""
_ALL = {**SECTIONS, **PARTS}
_REFERENCES = (
    ("pools", "model", "models", "model"),
    ("pools", "hardware_type", "hardware-types", "hardware type"),
    ("pools", "tenants", "tenants", "tenant"),
    ("deployments", "pool", "pools", "pool"),
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
    """``entries`` with the limits that do not say whose they are as limits of ``set_by``. Raises ManifestError."""
    found = [
        replace(entry, names=(*entry.names[:2], set_by)) if entry.section == "limits" and not entry.names[2] else entry
        for entry in entries
    ]
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
    entries: Sequence[Entry], current: Mapping[Key, Mapping[str, Any]], known: Mapping[str, Iterable[str]]
) -> list[Step]:
    """What makes ``current`` as ``entries`` say. ``known``: names that may be referred to, by section.

    Raises ManifestError for what cannot be done.
    """
    steps: list[Step] = []
    problems: list[str] = []
    for entry in entries:
        there = current.get(entry.key)
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
    if problems:
        raise ManifestError(*problems)
    return steps


def _dangling(entries: Sequence[Entry], known: Mapping[str, Iterable[str]]) -> Iterator[str]:
    for section, name, target, one in _REFERENCES:
        there = {*known.get(target, ()), *(entry.names[0] for entry in entries if entry.section == target)}
        for entry in entries:
            if entry.section != section or name not in entry.fields:
                continue
            value = entry.fields[name]
            for called in value if isinstance(value, list) else [value]:
                if called not in there:
                    yield f"{entry.where}.{name}: no {one} is called {called!r}"


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
    if section == "members":  # Addresses differ by more than the case of their letters.
        names = tuple(name.lower() if isinstance(name, str) else name for name in names)
    wrong = [
        f"{where}.{name}: {'say how it is called' if called is None else 'it is a text'}"
        for name, called in zip(kind.names, names, strict=True)
        if not isinstance(called, str) or (not called and name not in kind.optional_names)
    ]
    if kind.names == ("slug",) and isinstance(names[0], str) and names[0] and not _SLUG.fullmatch(names[0]):
        wrong.append(f"{where}.slug: letters, digits, - and _ alone")
    if section == "limits" and isinstance(names[2], str) and names[2] not in ("", *SET_BY):
        wrong.append(f"{where}.set_by: it is one of {', '.join(SET_BY)}; left out: yours")
    for name, value in row.items():
        if name not in kind.fields:
            known = ", ".join((*kind.names, *kind.fields, *(PARTS if section == "tenants" else ())))
            wrong.append(f"{where}.{name}: no such field; a {kind.one} has {known}")
        elif not (value is None and name in kind.empty) and (why := _misfit(kind.fields[name], value)):
            wrong.append(f"{where}.{name}: {why}")
    problems += wrong
    return None if wrong else Entry(section, tenant, names, row, where)


def _misfit(shape: Shape, value: Any) -> str:
    """Why ``value`` has not this shape; empty if it has."""
    if why := _unwritable(value):
        return why
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    fits: dict[Shape, tuple[bool, str]] = {
        "text": (isinstance(value, str), "it is a text (in quotes, if it looks like a number or a time)"),
        "whole": (is_number and isinstance(value, int), "it is a whole number"),
        "number": (is_number, "it is a number"),
        "switch": (isinstance(value, bool), "it is true or false"),
        "texts": (isinstance(value, list) and all(isinstance(one, str) for one in value), "it is a list of texts"),
        "names": (isinstance(value, dict), "it is values by name"),
        "prices": (isinstance(value, dict), "it is numbers by name"),
        "tiers": (isinstance(value, list), "it is a list of pairs [from input tokens, factor]"),
    }
    is_fit, why = fits[shape]
    if is_fit and shape == "prices":
        wrong = [f"{name}: {_misfit(PRICE[name], one)}" for name, one in value.items() if name in PRICE]
        wrong += [f"{name}: no such part; there are {', '.join(PRICE)}" for name in value if name not in PRICE]
        return "; ".join(one for one in wrong if not one.endswith(": "))
    return "" if is_fit else why


def _unwritable(value: Any) -> str:
    """Why JSON cannot hold ``value``; empty if it can."""
    if isinstance(value, dict):
        if any(not isinstance(name, str) for name in value):
            return "names are texts: put them in quotes"
        return next((why for one in value.values() if (why := _unwritable(one))), "")
    if isinstance(value, list):
        return next((why for one in value if (why := _unwritable(one))), "")
    if isinstance(value, float) and not math.isfinite(value):
        return "numbers are finite"
    if value is None or isinstance(value, str | int | float):
        return ""
    return f"a {type(value).__name__} cannot be sent: put it in quotes"
