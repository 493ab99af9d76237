"""``penstock sell`` and ``penstock calculate``: from a request's shape to MU/min, and from MU/min to a promise."""

from __future__ import annotations

import argparse
import datetime
import os
from typing import Any
from urllib.parse import quote

from penstock.cli.remote import output
from penstock.cli.remote.api import Api, ApiError
from penstock.cli.remote.manifest import Step
from penstock.cli.remote.manifest_shapes import moment
from penstock.cli.remote.nouns import Refused, is_operator, only_tenant, told
from penstock.cli.remote.profile import load

_SHAPE = ("input_tokens", "cached_share", "output_tokens")
_TERMS = ("starts_at", "ends_at", "burst_mu", "price", "currency", "note", "override_reason")


def run(arguments: argparse.Namespace) -> int:
    return told(lambda: _sell(arguments) if arguments.act == "sell" else _calculate(arguments))


def _sell(arguments: argparse.Namespace) -> int:
    api, pool = Api(load()), quote(arguments.pool)
    mu = arguments.mu_per_min
    if mu is None:
        body = _shape(arguments)
        if not body or arguments.requests_per_min is None:
            raise Refused("say how much: --mu-per-min, or a request with --input-tokens … and --requests-per-min")
        found = api.post(f"/pools/{pool}/calculate", body | {"requests_per_min": arguments.requests_per_min})
        mu = found["mu_per_min"]
    if arguments.dry_run:
        query = {"mu_per_min": mu, "starts_at": arguments.starts_at, "ends_at": arguments.ends_at}
        answer = api.get(f"/pools/{pool}/availability", query)
        output.as_json(answer) if arguments.json else print(output.clean(answer["reason"]))
        return 0 if answer["verdict"] == "fits" else 1
    terms = {name: getattr(arguments, name) for name in _TERMS if getattr(arguments, name) is not None}
    made = api.post("/reservations", {"tenant": arguments.tenant, "pool": arguments.pool, "mu_per_min": mu, **terms})
    output.as_json(made) if arguments.json else output.details(made)
    return 0


def verdict(api: Api, step: Step) -> dict[str, Any] | None:
    """The ledger's word on a step of a manifest that sells more or longer than there is; None for any other. Each is
    asked by itself: what the others of the file take is told when they are sold."""
    entry = step.entry
    if entry.section != "reservations" or entry.fields.get("state") != "sold":
        return None
    wanted, before = entry.fields, step.before
    mu, starts_at = wanted.get("mu_per_min", 0.0), wanted.get("starts_at")
    is_sold = step.act == "change" and "state" not in step.after
    if is_sold and "mu_per_min" in step.after:
        mu -= before["mu_per_min"]
    elif is_sold and "ends_at" in step.after and before["ends_at"] is not None:
        starts_at = before["ends_at"]
    elif is_sold:
        return None
    if mu <= 0:
        return None
    begins = moment(starts_at)
    if begins is not None and begins <= datetime.datetime.now(datetime.UTC):
        starts_at = None
    query = {"mu_per_min": mu, "starts_at": starts_at, "ends_at": wanted.get("ends_at")}
    try:
        answer: dict[str, Any] = api.get(f"/pools/{quote(entry.names[1])}/availability", query)
    except ApiError as error:
        if error.status != 404:
            raise
        return {"verdict": "unknown", "reason": "the pool is not there yet: the ledger is asked when it is"}
    return answer


def _calculate(arguments: argparse.Namespace) -> int:
    api = Api(load())
    body = _shape(arguments)
    rates = {name: getattr(arguments, name) for name in ("requests_per_min", "mu_per_min")}
    given = {name: value for name, value in rates.items() if value is not None}
    if not body or len(given) != 1:
        raise Refused("give a request (--input-tokens, --output-tokens, --units) and one of --requests-per-min and "
                      "--mu-per-min")  # fmt: skip
    tenant = arguments.tenant or os.environ.get("PENSTOCK_TENANT", "")
    if not tenant and not is_operator(api):
        tenant = only_tenant(api)
    path = f"/tenants/{quote(tenant)}" if tenant else ""
    found = api.post(f"{path}/pools/{quote(arguments.pool)}/calculate", body | given)
    output.as_json(found) if arguments.json else output.details(found)
    return 0


def _shape(arguments: argparse.Namespace) -> dict[str, Any]:
    body = {name: getattr(arguments, name) for name in _SHAPE if getattr(arguments, name) is not None}
    return body | ({"units": arguments.units} if arguments.units else {})
