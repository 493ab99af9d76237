"""``penstock calibrate``: measure what a request costs on a deployment's hardware, and watch it being measured."""

from __future__ import annotations

import argparse
import shlex
import sys
import time
from collections.abc import Mapping
from typing import Any

from penstock.cli.remote import output
from penstock.cli.remote.api import Api, ApiError
from penstock.cli.remote.nouns import Refused, told
from penstock.cli.remote.profile import load

_LOOK_S = 1.0
_UNDER_WAY = ("queued", "draining", "measuring")
_BAR = 24
_TERMS = ("base", "alpha", "beta", "gamma", "epsilon", "cached_factor")


def run(arguments: argparse.Namespace) -> int:
    return told(lambda: _run(arguments))


def _run(arguments: argparse.Namespace) -> int:
    if arguments.effective_from and not arguments.adopt:
        raise Refused("--from says when it becomes the price: give --adopt with it")
    api = Api(load())
    row = _under_way(api, arguments.deployment)
    if row is not None:
        _say(f"a calibration of {row['deployment_name']} is under way already, asked for by {row['requested_by']}")
        if not arguments.wait:
            raise Refused(f"look at it with: penstock calibrate {arguments.deployment} --wait")
    else:
        row = api.post("/calibrations", _body(arguments))
        shapes = len(row["order"]["shapes"])
        _say(f"calibration {row['id']} is asked for: {shapes} shapes of requests, then the knee")
    if arguments.wait:
        try:
            row = _watch(api, row)
        except KeyboardInterrupt:
            _say(f"\nit goes on by itself; find it again: penstock calibrate {arguments.deployment} --wait")
            return 130
    row = api.get(f"/calibrations/{row['id']}")
    if arguments.json:
        output.as_json(row)
    elif arguments.wait:
        for line in summary(row):
            print(output.clean(line))
    else:
        print(row["id"])
    if arguments.wait and row["state"] in ("failed", "cancelled"):
        raise ApiError(f"it was not calibrated: {row['reason']}", hint="The replica is back in rotation.")
    return 0


def _body(arguments: argparse.Namespace) -> dict[str, Any]:
    return {
        "deployment": arguments.deployment,
        "grid": arguments.grid,
        "allow_outage": arguments.allow_outage,
        "adopt_when_fitted": arguments.adopt,
        "adopt_from": arguments.effective_from.isoformat() if arguments.effective_from else None,
    }


def _under_way(api: Api, deployment: str) -> dict[str, Any] | None:
    """The calibration of a deployment, by name or id, that is not over yet."""
    rows = api.every("/calibrations", {"is_under_way": True})
    return next((row for row in rows if deployment in (row["deployment_name"], row["deployment_id"])), None)


def _watch(api: Api, row: dict[str, Any]) -> dict[str, Any]:
    """Show the progress until it is over; on a terminal as one line that moves, else a line for each change."""
    moves, shown = sys.stderr.isatty(), ""
    while True:
        row = api.get(f"/calibrations/{row['id']}")
        line = progress_line(row)
        if line != shown:
            shown = line
            if moves:
                print(f"\r\x1b[2K{output.clean(line)}", end="", file=sys.stderr, flush=True)
            else:
                _say(line)
        if row["state"] not in _UNDER_WAY:
            if moves:
                print(file=sys.stderr)
            return row
        time.sleep(_LOOK_S)


def progress_line(row: Mapping[str, Any]) -> str:
    """A calibration as one line: its state, how far it is, and what is being measured."""
    if row["state"] != "measuring":
        return f"{row['state']}: {row['reason']}" if row["reason"] else str(row["state"])
    progress = row["progress"] or {}
    share = min(1.0, max(0.0, float(progress.get("share") or 0.0)))
    done = round(share * _BAR)
    what = " ".join(str(progress.get(name) or "") for name in ("step", "detail")).strip() or row["reason"]
    return f"measuring [{'#' * done}{'.' * (_BAR - done)}] {share:4.0%} {what}"


def summary(row: Mapping[str, Any]) -> list[str]:
    """What was found, for people."""
    lines = [f"{row['deployment_name']} on {row['hardware_name'] or 'no hardware'}: {row['state']}, {row['reason']}"]
    terms, knee = row["fit"].get("terms"), row["knee"]
    if terms:
        lines += [f"  {name:<14} {terms[name]:.6g}{'' if name == 'cached_factor' else ' engine ms'}" for name in _TERMS]
        fit = row["fit"]
        lines.append(
            f"  R² {fit['r2']:.4f}, mean error {fit['mean_error']:.1%}, largest {fit['max_error']:.1%} "
            f"over {len(fit['points'])} shapes"
        )
        lines += [f"  without {one['term']}: {one['reason']}" for one in fit["dropped"]]
        lines += [f"  note: {one['text']}" for one in fit["warnings"]]
    if knee:
        share = f", {knee['share']:.0%} of saturation" if knee.get("share") else ""
        lines.append(f"  knee: {knee['rate_per_s']:.3g} requests/s{share}; {knee['target_concurrency']} at once")
        lines += [f"  note: {text}" for text in knee["warnings"]]
        limit = knee.get("supply_limit")
        if limit:
            lines.append(f"  {limit['text']}")
        if limit and limit["recommended"]:
            pool, name = shlex.quote(row["pool_name"]), shlex.quote(row["deployment_name"])
            more = f"penstock deploy {pool} --name {name} --target-concurrency {limit['recommended']}"
            lines.append(f"  raise it with: {more}")
    if row["adopted_version"]:
        lines.append(f"  it is version {row['adopted_version']} of the price, from {row['effective_from']}")
    elif row["state"] == "fitted":
        lines.append(f"  adopt it with: penstock calibrations adopt {row['id']}")
    return lines


def _say(text: str) -> None:
    print(output.clean(text, keep=" \n"), file=sys.stderr, flush=True)
