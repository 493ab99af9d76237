"""``penstock apply -f FILE`` and ``penstock export``: an installation's objects as a file."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from penstock.cli.remote import output
from penstock.cli.remote.api import Api, ApiError
from penstock.cli.remote.manifest import Entry, ManifestError, Step, difference, owned, read
from penstock.cli.remote.manifest_kinds import IS_ONE_OF, PARTS, SECTIONS
from penstock.cli.remote.nouns import Refused, told
from penstock.cli.remote.profile import load
from penstock.cli.remote.sell import verdict
from penstock.cli.remote.stock import Builder, Rows, Stock, known_names

_HEAD = """\
# What this installation of Penstock is told to be. Secrets are not in it: keys that are made anew get new ones.
# penstock apply -f THIS --dry-run shows what differs; penstock apply -f THIS changes it.
"""


def run(arguments: argparse.Namespace) -> int:
    return told(lambda: _apply(arguments) if arguments.act == "apply" else _export(arguments))


def _apply(arguments: argparse.Namespace) -> int:
    entries = _read(arguments.file)
    api = Api(load())
    stock = Stock(api)
    if any(entry.section in ("limits", "reservations") for entry in entries):
        entries = _owned(arguments.file, entries, "operator" if stock.is_operator else "tenant")
    sections = [section for section in SECTIONS if any(entry.section == section for entry in entries)]
    there = stock.rows(sections, tenants=())
    tenants = {entry.tenant for entry in entries if entry.tenant and ("tenants", "", entry.tenant) in there}
    for tenant in sorted(tenants):
        there |= _parts(stock, tenant, entries)
    try:
        steps = difference(entries, there, known_names(there, api, entries))
    except ManifestError as error:
        raise _refused(arguments.file, error) from None
    if arguments.dry_run:
        return _show(steps, len(entries), api, as_json=arguments.json)
    return _carry_out(steps, Builder(api, stock), len(entries), as_json=arguments.json)


def _parts(stock: Stock, tenant: str, entries: Sequence[Entry]) -> Rows:
    """What stands within a tenant, as far as ``entries`` speak of it."""
    own = [entry for entry in entries if entry.tenant == tenant]
    holders = {
        (section, tenant, entry.names[place])
        for entry in own
        if entry.section == "limits"
        for section, place in (("keys", 3), ("members", 4))
        if entry.names[place]
    }
    needed = {entry.section for entry in own} | {holder[0] for holder in holders}
    there: Rows = {}
    for part in PARTS:
        if part in needed:
            there |= stock.limits(tenant, holders) if part == "limits" else stock.part(tenant, part)
    return there


def _owned(place: str, entries: Sequence[Entry], set_by: str) -> list[Entry]:
    try:
        return owned(entries, set_by)
    except ManifestError as error:
        raise _refused(place, error) from None


def _carry_out(steps: Sequence[Step], builder: Builder, total: int, *, as_json: bool) -> int:
    done: list[dict[str, Any]] = []
    try:
        for step in steps:
            done.append(_take(step, builder, done, len(steps), is_quiet=as_json))
    finally:
        # However it ends: what was made has secrets that are told this once.
        if as_json:
            output.as_json(done)
    if not as_json:
        print(f"{_count(steps)}, {total - len(steps)} as they were", file=sys.stderr)
    return 0


def _take(step: Step, builder: Builder, done: Sequence[Any], total: int, *, is_quiet: bool) -> dict[str, Any]:
    try:
        secret = builder.do(step)
    except ApiError as error:
        word = "is not made" if step.act == "create" else "is changed in part or not at all"
        print(output.clean(f"penstock: {step.entry.where}: {step.entry} {word}"), file=sys.stderr)
        rest = f"{len(done)} done, {total - len(done)} left. Apply it again when that is put right: done stays done."
        error.hint = f"{error.hint}\n  {rest}" if error.hint else rest
        raise
    if not is_quiet:
        print("\n".join(_lines(step)))
        if secret:
            print("shown this once, keep it:", file=sys.stderr)
            print(secret)
    return _as_row(step) | ({"secret": secret} if secret else {})


def _show(steps: Sequence[Step], total: int, api: Api, *, as_json: bool) -> int:
    """The plan, with the ledger's word on each sale: 1 where one does not fit."""
    answers = [verdict(api, step) for step in steps]
    if as_json:
        asked = zip(steps, answers, strict=True)
        output.as_json([_as_row(step) | ({"verdict": answer} if answer else {}) for step, answer in asked])
    else:
        for step, answer in zip(steps, answers, strict=True):
            print("\n".join(_lines(step)))
            if answer:
                print(output.clean(f"    {answer['reason']}"))
        print(f"{_count(steps, 'to ')}, {total - len(steps)} as they are", file=sys.stderr)
    refused = [
        step
        for step, answer in zip(steps, answers, strict=True)
        if answer and answer["verdict"] not in ("fits", "unknown") and not step.entry.fields.get("override_reason")
    ]
    return 1 if refused else 0


def _count(steps: Sequence[Step], before: str = "") -> str:
    made = sum(step.act == "create" for step in steps)
    words = ("to create", "to change") if before else ("created", "changed")
    return f"{made} {words[0]}, {len(steps) - made} {words[1]}"


def _as_row(step: Step) -> dict[str, Any]:
    entry = step.entry
    names = dict(zip(entry.kind.names, entry.names, strict=True))
    tenant = {"tenant": entry.tenant} if entry.tenant else {}
    return {"act": step.act, "kind": entry.kind.one, **tenant, **names, "before": step.before, "after": step.after}


def _lines(step: Step) -> list[str]:
    sign = "+" if step.act == "create" else "~"
    found = [f"{sign} {step.entry}"]
    for name, value in step.after.items():
        change = _text(value) if step.act == "create" else f"{_text(step.before.get(name))} → {_text(value)}"
        found.append(f"    {name}: {change}")
    return [output.clean(line) for line in found]


def _text(value: Any) -> str:
    return (
        "–" if value is None else value if isinstance(value, str) and value else json.dumps(value, ensure_ascii=False)
    )


def _read(place: str) -> list[Entry]:
    import yaml  # 30 ms that the other commands need not pay

    try:
        text = sys.stdin.read() if place == "-" else Path(place).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise Refused(f"{place} cannot be read: {error}") from None
    try:
        document = yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise Refused(f"{place} is neither YAML nor JSON: {error}") from None
    try:
        return read(document)
    except ManifestError as error:
        raise _refused(place, error) from None


def _refused(place: str, error: ManifestError) -> Refused:
    called = "the manifest" if place == "-" else place
    return Refused("\n  ".join([f"{called} cannot be applied:", *error.problems]))


def _export(arguments: argparse.Namespace) -> int:
    import yaml

    if strangers := [name for name in arguments.sections if name not in SECTIONS]:
        raise Refused(f"{strangers[0]}: no such section; there are {', '.join(SECTIONS)}")
    api = Api(load())
    stock = Stock(api)
    is_operator = stock.is_operator
    wanted = arguments.sections or (list(SECTIONS) if is_operator else ["tenants", "reservations"])
    rows = stock.rows([section for section in SECTIONS if section in wanted], tenants=())
    document: dict[str, list[dict[str, Any]]] = {}
    for (section, _, *names), fields in rows.items():
        told = {field: value for field, value in fields.items() if field in SECTIONS[section].fields}
        called = {name: value for name, value in zip(SECTIONS[section].names, names, strict=True) if value}
        if IS_ONE_OF in fields:
            alike = f"{fields[IS_ONE_OF]} reservations of {' '.join(called.values())} are called alike"
            print(output.clean(f"penstock: {alike} and left out: give each a note of its own"), file=sys.stderr)
            continue
        row = {**called, **_without_empty(told)}
        if section == "tenants":
            for part in PARTS:
                row |= _exported_part(stock, names[0], part, is_operator=is_operator)
        document.setdefault(section, []).append(row)
    if arguments.json:
        output.as_json(document)
    else:
        print(_HEAD + yaml.safe_dump(document, sort_keys=False, allow_unicode=True, width=120), end="")
    return 0


def _exported_part(stock: Stock, tenant: str, part: str, *, is_operator: bool) -> dict[str, Any]:
    try:
        rows = stock.part(tenant, part)
    except ApiError as error:
        if error.status != 403:
            raise
        print(output.clean(f"penstock: {part} of {tenant} are left out: {error}"), file=sys.stderr)
        return {}
    if part == "limits" and not is_operator:
        # What the operator has set is not the tenant's to apply.
        rows = {key: fields for key, fields in rows.items() if key[4] == "tenant"}
    names = PARTS[part].names
    found = [
        {name: called for name, called in zip(names, key[2:], strict=True) if called}
        | _without_empty({name: value for name, value in fields.items() if name in PARTS[part].fields})
        for key, fields in rows.items()
    ]
    return {part: found} if found else {}


def _without_empty(fields: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if value is not None}
