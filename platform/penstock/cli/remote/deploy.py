"""``penstock deploy``: from a model to replicas that serve, showing their states on the way."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import quote

from penstock.cli.remote import output
from penstock.cli.remote.api import Api, ApiError
from penstock.cli.remote.nouns import Refused, told
from penstock.cli.remote.profile import load
from penstock.cli.remote.stock import next_revision

_LOOK_S = 1.0
_OVER = ("stopped", "failed")
_REVISION = ("runtime", "options", "target_concurrency")
_BOUNDS = ("min_replicas", "max_replicas", "pinned_replicas")


def run(arguments: argparse.Namespace) -> int:
    return told(lambda: _run(arguments))


def _run(arguments: argparse.Namespace) -> int:
    api = Api(load())
    pool = _pool(api, arguments.source, arguments.hardware_type or "")
    name = arguments.name or pool["slug"]
    row = next((one for one in api.every("/deployments", {"name": name})), None)
    row = _make(api, pool, name, arguments) if row is None else _revise(api, row, pool, arguments)
    if not arguments.no_wait:
        wait(api, row, seconds=arguments.timeout)
    row = api.get(f"/deployments/{row['id']}")
    output.as_json(row) if arguments.json else print(row["name"])
    return 0


def _make(api: Api, pool: Mapping[str, Any], name: str, arguments: argparse.Namespace) -> dict[str, Any]:
    given = _given(arguments, *_REVISION, *_BOUNDS)
    most = given.get("max_replicas", 1)
    if "min_replicas" in given and "max_replicas" not in given:
        given["max_replicas"] = max(most, given["min_replicas"])
    made: dict[str, Any] = api.post("/deployments", {"name": name, "pool": pool["slug"], **given})
    _say(f"deployment {name} is made: it serves the pool {pool['slug']}")
    _tell_runtime(made["revision"])
    return made


def _revise(api: Api, row: dict[str, Any], pool: Mapping[str, Any], arguments: argparse.Namespace) -> dict[str, Any]:
    """A deployment of that name is there: what is given changes it."""
    name, path = row["name"], f"/deployments/{row['id']}"
    if row["pool"] != pool["slug"]:
        raise Refused(f"{name} serves the pool {row['pool']}, not {pool['slug']}: give another --name")
    current = row["revision"] or {}
    following = next_revision(current, _given(arguments, *_REVISION))
    if any(current.get(field) != value for field, value in following.items()):
        made = api.post(f"{path}/revisions", following)
        _say(f"{name}: revision {made['number']} takes over from revision {current.get('number', 0)}")
        _tell_runtime(made)
    bounds = {field: value for field, value in _given(arguments, *_BOUNDS).items() if row[field] != value}
    if bounds:
        api.patch(path, bounds)
    if not row["is_enabled"]:
        api.post(f"{path}/enable")
        _say(f"{name} is enabled again")
    found: dict[str, Any] = api.get(path)
    return found


def _tell_runtime(revision: Mapping[str, Any]) -> None:
    _say(f"runtime {revision['runtime']}: {revision['runtime_reason']}")


def _given(arguments: argparse.Namespace, *names: str) -> dict[str, Any]:
    found = {name: getattr(arguments, name) for name in names if getattr(arguments, name) is not None}
    return {name: None if value == "" else value for name, value in found.items()}


# ------------------------------------------------------------------ from a model to a pool
def _pool(api: Api, source: str, hardware_type: str) -> dict[str, Any]:
    """The pool that ``source`` names: by itself, by its model, or made for a hub id or folder. Raises Refused."""
    pools = list(api.every("/pools"))
    named = [row for row in pools if source in (row["slug"], row["name"], row["id"])]
    if len(named) == 1:
        return dict(named[0])
    models = list(api.every("/models"))
    model = next(
        (row for row in models if source in (row["slug"], row["name"], row["artifact_value"], row["id"])), None
    )
    if model is None:
        model = _model(api, source)
    of_model = [row for row in pools if row["model"] == model["slug"]]
    if len(of_model) > 1:
        raise Refused(f"{source} has several pools, name one: {', '.join(row['slug'] for row in of_model)}")
    if of_model:
        return dict(of_model[0])
    hardware = _hardware(api, hardware_type)
    made: dict[str, Any] = api.post("/pools", {"model": model["slug"], "hardware_type": hardware, "is_public": True})
    _say(f"pool {made['slug']} is made, with a default price for {hardware}: every tenant may use it")
    return made


def _model(api: Api, source: str) -> dict[str, Any]:
    if source.startswith(("/", "./", "../")):
        body = {"name": source.rstrip("/").rpartition("/")[2], "artifact_kind": "path", "artifact_value": source}
        if not source.startswith("/"):
            raise Refused(f"{source}: a host's agent reads it, so give the whole path on the hosts")
    elif source.count("/") == 1 and all(source.split("/")):
        body = {"name": source.partition("/")[2], "artifact_kind": "hub", "artifact_value": source}
    else:
        raise Refused(
            f"no pool and no model is called {source!r}: name one of them, a hub id (org/name) or a folder (/path)"
        )
    made: dict[str, Any] = api.post("/models", body)
    _say(f"model {made['slug']} is made: {source}")
    return made


def _hardware(api: Api, wanted: str) -> str:
    kinds = [row["slug"] for row in api.every("/hardware-types")]
    if wanted:
        return wanted
    if len(kinds) == 1:
        return str(kinds[0])
    hosts = {row["hardware_type"] for row in api.every("/hosts") if row["state"] == "active"}
    if len(hosts) == 1:
        return str(hosts.pop())
    if not kinds:
        raise Refused("there is no host yet: penstock enrolment-tokens create NAME begins one")
    raise Refused(f"say what the price is for: --hardware-type {'|'.join(kinds)}")


# ------------------------------------------------------------------ until it serves
def wait(api: Api, row: Mapping[str, Any], *, seconds: float) -> None:
    """Show each replica's states until as many of the current revision are ready as are wanted.

    Raises Refused when the ``seconds`` are over, or when all that could become ready have failed.
    """
    path, end, shown = f"/deployments/{row['id']}", time.monotonic() + seconds, dict[str, str]()
    while True:
        now = api.get(path)
        number = (now["revision"] or {}).get("number")
        replicas = [one for one in api.every(f"/deployments/{row['id']}/replicas") if one["revision_number"] == number]
        for one in replicas:
            line = state_line(one)
            if shown.get(one["id"]) != line:
                shown[one["id"]] = line
                _say(line)
        wanted = _wanted(now)
        if not now["is_enabled"]:
            raise Refused(f"{now['name']} was disabled meanwhile")
        if sum(one["state"] == "ready" for one in replicas) >= wanted:
            _say(f"{now['name']} serves: {wanted} of {wanted} replicas ready" if wanted else f"{now['name']} sleeps")
            return
        failed = [one for one in replicas if one["state"] == "failed"]
        if failed and not any(one["state"] not in _OVER for one in replicas) and now["starting_replicas"] == 0:
            raise ApiError(
                f"{now['name']} does not serve: {failed[0]['reason']}",
                hint=f"penstock logs {failed[0]['id']} shows why; "
                f"penstock deployments retry {now['name']} tries again.",
            )
        if time.monotonic() > end:
            raise ApiError(
                f"{now['name']} is not ready after {seconds:.0f} s; it goes on by itself",
                hint=f"penstock deploy {quote(now['pool'])} --name {now['name']} waits on.",
            )
        time.sleep(_LOOK_S)


def _wanted(row: Mapping[str, Any]) -> int:
    """Replicas that are to be ready before a deployment counts as serving; 0: it is told to have none."""
    pinned = row["pinned_replicas"]
    return int(pinned) if pinned is not None else int(row["min_replicas"])


def state_line(replica: Mapping[str, Any]) -> str:
    """One replica as a line: where it is, its state, how far it is, and why."""
    progress = replica["progress"] or {}
    share = progress.get("share")
    how_far: Sequence[str] = [
        str(replica["phase"] or "") if replica["state"] == "starting" else "",
        str(progress.get("step") or ""),
        f"{share:.0%}" if isinstance(share, int | float) else "",
    ]
    state = " ".join([replica["state"], *(word for word in dict.fromkeys(how_far) if word)])
    where = f" on {replica['host_name']}" if replica["host_name"] else ""
    why = f": {replica['reason']}" if replica["reason"] and replica["state"] not in ("starting", "ready") else ""
    return f"  replica {replica['id'][-8:]}{where} {state}{why}"


def _say(text: str) -> None:
    print(output.clean(text, keep=" "), file=sys.stderr, flush=True)
