"""``penstock logs``: the end of an engine's log, and what is added to it."""

from __future__ import annotations

import argparse
import sys
import time
from typing import Any

from penstock.cli.remote import output
from penstock.cli.remote.api import Api, ApiError
from penstock.cli.remote.nouns import Refused, told
from penstock.cli.remote.profile import load

_LOOK_S = 1.0
_LIVE_WITHIN_S = 8.0
"""The agent looks every two seconds whether somebody reads a log, and reports each second."""
_OVER = ("stopped", "failed")


def run(arguments: argparse.Namespace) -> int:
    return told(lambda: _run(arguments))


def _run(arguments: argparse.Namespace) -> int:
    api = Api(load())
    replica = _replica(api, arguments.name)
    path, most = f"/replicas/{replica['id']}/logs", max(1, arguments.lines)
    answer = _first(api, path, most)
    _print(answer["lines"] if arguments.lines else [])
    if not answer["is_live"]:
        print(output.clean(f"penstock: {answer['note']}"), file=sys.stderr)
    while arguments.follow:
        time.sleep(_LOOK_S)
        answer = _again(api, path, answer, most=5000)
        if answer["has_gap"]:
            print("penstock: some lines are missing here", file=sys.stderr)
        _print(answer["lines"])
    return 0


def _first(api: Api, path: str, most: int) -> dict[str, Any]:
    end = time.monotonic() + _LIVE_WITHIN_S
    while True:
        found: dict[str, Any] = api.get(path, {"lines": most})
        if found["is_live"] or time.monotonic() > end:
            return found
        time.sleep(_LOOK_S)


def _again(api: Api, path: str, before: dict[str, Any], *, most: int) -> dict[str, Any]:
    """What came since ``before``. An installation that is away for a while is waited for."""
    try:
        found: dict[str, Any] = api.get(path, {"lines": most, "after": before["position"]})
    except ApiError as error:
        if error.status and error.status < 500:
            raise
        print(output.clean(f"penstock: {error}; trying again"), file=sys.stderr)
        return {**before, "lines": [], "has_gap": False}
    if not found["is_live"]:
        return {**before, "lines": [], "has_gap": False}
    return found


def _replica(api: Api, called: str) -> dict[str, Any]:
    """The replica with this id (or its end), or the one of the deployment of this name. Raises Refused."""
    rows = list(api.every("/replicas"))
    by_id = [
        row for row in rows if str(row["id"]).replace("-", "").endswith(called.replace("-", "")) and len(called) >= 6
    ]
    if len(by_id) == 1:
        return by_id[0]
    named = [row for row in rows if row["deployment_name"] == called]
    living = [row for row in named if row["state"] not in _OVER] or named[:1]
    if len(living) == 1:
        return living[0]
    if living:
        ids = "\n  ".join(f"{row['id']}  {row['state']}  {row['host_name'] or '–'}" for row in living)
        raise Refused(f"{called} has {len(living)} replicas, name one:\n  {ids}")
    raise Refused(f"no replica or deployment called {called!r}: penstock replicas list shows what there is")


def _print(lines: list[str]) -> None:
    for line in lines:
        print(output.clean(line, keep=" \t"))
    sys.stdout.flush()
