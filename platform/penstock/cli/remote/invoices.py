"""``penstock invoices show|preview|issue``: documents with their lines."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import Any

from penstock.cli.remote import output
from penstock.cli.remote.api import Api
from penstock.cli.remote.nouns import Refused, ask, find, list_path, place_of, told
from penstock.cli.remote.nouns_of_tenants import INVOICES
from penstock.cli.remote.profile import load

_COLUMNS = ("line", "pool", "of", "class", "quantity", "price", "amount", "currency")
_KINDS = {"invoice": "invoice", "credit_note": "credit note", "debit_note": "debit note"}


def run(arguments: argparse.Namespace) -> int:
    return told(lambda: _run(arguments))


def _run(arguments: argparse.Namespace) -> int:
    api = Api(load())
    if arguments.act == "preview":
        path = list_path(api, INVOICES, arguments.tenant)
        return _preview(api.get(f"{path}/preview", {"month": arguments.month} if arguments.month else {}), arguments)
    if arguments.act == "issue":
        if not arguments.yes:
            ask(f"issue {arguments.month} to {arguments.tenant}? What was issued stands; notes alone correct it.")
        row = api.post("/invoices", {"tenant": arguments.tenant, "month": arguments.month})
    else:
        path = place_of(api, INVOICES, arguments)
        row = find(api, path, INVOICES, arguments.row)
        row = row if "content" in row else api.get(f"{path}/{row['id']}")
    if arguments.json:
        output.as_json(row)
        return 0
    content = row["content"]
    corrects = f", corrects {content['corrects']}" if content["corrects"] else ""
    print(output.clean(f"{content['name']}: {_KINDS[content['kind']]} to {content['tenant_name']}{corrects}"))
    _tell(content)
    print(f"issued {content['issued_at']}, hash {row['hash']}")
    return 0


def _preview(found: dict[str, Any], arguments: argparse.Namespace) -> int:
    if arguments.json:
        output.as_json(found)
        return 0
    if found["is_empty"] and not found["lines"]:
        raise Refused(f"nothing was used or reserved in {found['month']}")
    print(output.clean(f"preview of {found['month']}: no invoice, {found['waits_for'] or 'it can be issued'}"))
    _tell(found)
    if found["documents"]:
        print(output.clean(f"issued of it: {', '.join(found['documents'])}"))
    if found["is_empty"]:
        print("nothing of it has a price: there will be no invoice")
    return 0


def _tell(content: Mapping[str, Any]) -> None:
    period = content["period"]
    print(f"from {period['since']} to before {period['until']} ({period['time_zone']})")
    output.table([_row(line) for line in content["lines"]], _COLUMNS, nothing="no lines")
    for currency, total in content["totals"].items():
        print(output.clean(f"total {total} {currency}"))


def _row(line: Mapping[str, Any]) -> dict[str, Any]:
    quantities = {
        "usage": f"{line['mu']} MU",
        "reservation": f"{line['mu_per_min']} MU/min, {line['minutes']} min",
        "credit": f"{line['breach_minutes']} breach min, {line['credit_share']} of the price",
    }
    is_usage = line["kind"] == "usage"
    unit = "1000 MU" if is_usage else "MU/min and month"
    return {
        "line": line["kind"],
        "pool": line["pool"],
        "of": f"{line['model']} v{line['profile_version']}" if is_usage else f"…{line['reservation'][-12:]}",
        "class": line["service_class"] or None,
        "quantity": quantities[line["kind"]],
        "price": None if line["price"] is None else f"{line['price']} per {unit}",
        "amount": line["amount"],
        "currency": line["currency"],
    }
