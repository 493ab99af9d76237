"""``penstock usage verify`` and ``penstock invoices verify``: check a tenant's usage and invoices here."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from capacity.policy.verification import Verification
from penstock.cli.remote import output
from penstock.cli.remote.api import Api
from penstock.cli.remote.nouns import Refused, list_path, told
from penstock.cli.remote.nouns_of_tenants import USAGE
from penstock.cli.remote.profile import load

_COLUMNS = ("pool", "price version", "class", "requests", "input tokens", "cached tokens", "output tokens", "mu")

_DOCUMENT = ("document", "kind", "month", "totals", "recomputed")


def run(arguments: argparse.Namespace) -> int:
    return told(lambda: _run(arguments))


def _run(arguments: argparse.Namespace) -> int:
    if arguments.file and (arguments.since or arguments.keep or arguments.tenant):
        raise Refused("a FILE is checked as it is: --since, --keep and --tenant say what to fetch")
    found = Verification(known=_known(arguments.anchors) if arguments.anchors else {})
    try:
        for line in _lines(arguments):
            found.feed(json.loads(line))
        found.finish()
    except ValueError as error:
        raise Refused(f"this is no usage file: {error}") from None
    if arguments.json:
        output.as_json(_as_json(found))
    else:
        _tell(found)
    return 1 if found.findings else 0


def _known(name: str) -> dict[int, str]:
    """Anchors as ``penstock anchors list --json`` prints them."""
    try:
        rows = json.loads(Path(name).read_bytes())
        return {int(row["sequence"]): str(row["hash"]) for row in rows}
    except OSError as error:
        raise Refused(f"{name} cannot be read: {error.strerror}") from None
    except (ValueError, TypeError, LookupError):
        raise Refused(f"{name} holds no anchors: penstock anchors list --json > {name} keeps them") from None


def _lines(arguments: argparse.Namespace) -> Iterator[bytes]:
    if arguments.file == "-":
        yield from sys.stdin.buffer
    elif arguments.file:
        try:
            with Path(arguments.file).open("rb") as file:
                yield from file
        except OSError as error:
            raise Refused(f"{arguments.file} cannot be read: {error.strerror}") from None
    else:
        api = Api(load())
        path = f"{list_path(api, USAGE, arguments.tenant)}/file"
        lines = api.lines(path, {"since": arguments.since})
        yield from _kept(lines, arguments.keep) if arguments.keep else lines


def _kept(lines: Iterable[bytes], name: str) -> Iterator[bytes]:
    try:
        with Path(name).open("wb") as file:
            for line in lines:
                file.write(line)
                yield line
    except OSError as error:
        raise Refused(f"{name} cannot be written: {error.strerror}") from None


def _billed(found: Verification) -> list[dict[str, Any]]:
    return [
        {
            "pool": found.pool_names.get(pool, pool),
            "price version": version,
            "class": service_class,
            "requests": sums.requests,
            "input tokens": sums.input_tokens,
            "cached tokens": sums.cached_tokens,
            "output tokens": sums.output_tokens,
            "mu": sums.exact_mu,
        }
        for (pool, version, service_class), sums in sorted(found.billed.items())
    ]


def _invoiced(found: Verification) -> list[dict[str, Any]]:
    return [
        {
            "document": one.name,
            "kind": one.kind.replace("_", " "),
            "month": one.month,
            "totals": ", ".join(f"{total} {currency}" for currency, total in one.totals.items()) or "0.00",
            "recomputed": one.verdict,
        }
        for one in found.invoices
    ]


def _as_json(found: Verification) -> dict[str, Any]:
    return {
        "tenant": found.tenant,
        "holds": not found.findings,
        "records": found.records,
        "anchors": found.anchors_checked,
        "days": found.days_checked,
        "sequence": found.sequence,
        "hash": found.hash,
        "billed": [{name.replace(" ", "_"): value for name, value in row.items()} for row in _billed(found)],
        "invoices": [
            {"name": one.name, "kind": one.kind, "month": one.month, "totals": one.totals, "verdict": one.verdict}
            for one in found.invoices
        ],
        "findings": [dataclasses.asdict(finding) for finding in found.findings],
        "more_findings": found.more,
    }


def _tell(found: Verification) -> None:
    output.table(_billed(found), _COLUMNS, nothing="no records")
    if found.invoices:
        print()
        output.table(_invoiced(found), _DOCUMENT, nothing="")
    checked = (
        f"{found.records} records of {found.tenant} up to {found.sequence} ({found.hash[:16]}…), "
        f"{found.anchors_checked} anchors, {found.days_checked} daily sums, "
        f"{sum(one.verdict in ('equal', 'differs') for one in found.invoices)} of {len(found.invoices)} invoices"
    )
    if not found.findings:
        print(output.clean(f"{checked}: all of it holds"))
        return
    for finding in found.findings:
        print(output.clean(f"{finding.what} at {finding.where}: {finding.message}"))
    rest = f", and {found.more} more" if found.more else ""
    print(output.clean(f"{checked}: {len(found.findings)} things do not hold{rest}"), file=sys.stderr)
