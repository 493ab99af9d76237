"""``penstock NOUN VERB``: lists, rows, and what is done to them."""

from __future__ import annotations

import argparse
import itertools
import os
import sys
import uuid
from collections.abc import Callable, Iterable
from typing import Any

from penstock.cli.remote import output
from penstock.cli.remote.api import Api, ApiError
from penstock.cli.remote.profile import NotSignedIn, load
from penstock.cli.remote.resources import Resource, Verb


class Refused(Exception):
    """The command line cannot be carried out; the message says what to change."""


def run(arguments: argparse.Namespace) -> int:
    return told(lambda: _run(arguments))


def told(act: Callable[[], int]) -> int:
    """``act()``, with what goes wrong in words. 1: it was refused or failed; 3: not signed in; 130: interrupted."""
    try:
        return act()
    except NotSignedIn as error:
        _complain(str(error))
        return 3
    except Refused as error:
        _complain(str(error))
        return 1
    except ApiError as error:
        _complain(str(error))
        for field, message in error.fields if len(error.fields) > 1 else ():
            print(output.clean(f"  {field or 'request'}: {message}"), file=sys.stderr)
        if error.hint:
            print(output.clean(f"  {error.hint}"), file=sys.stderr)
        return 3 if error.status == 401 else 1
    except BrokenPipeError:
        # Whoever read the output has left. Python would complain of it again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (EOFError, KeyboardInterrupt):
        print(file=sys.stderr)
        return 130


def _complain(text: str) -> None:
    print(output.clean(f"penstock: {text}", keep=" \n"), file=sys.stderr)


def _run(arguments: argparse.Namespace) -> int:
    api, resource = Api(load()), arguments.resource
    path = place_of(api, resource, arguments)
    if arguments.verb_name == "list":
        return _list(api, path, resource, arguments)
    if arguments.verb_name == "show":
        row = find(api, path, resource, arguments.row)
        output.as_json(row) if arguments.json else output.details(row)
        return 0
    return _do(api, path, resource, arguments.verb, arguments)


def place_of(api: Api, resource: Resource, arguments: argparse.Namespace) -> str:
    """Where the rows are: those of one tenant, or, for operators who name none, of all."""
    verb, tenant = getattr(arguments, "verb", None), getattr(arguments, "tenant", "")
    at = verb.at if verb else ""
    if resource.platform_path and at != "tenant":
        names_one = tenant or os.environ.get("PENSTOCK_TENANT", "")
        if at == "platform" or (not names_one and is_operator(api)):
            return resource.platform_path
    for name, holder in resource.under.items():
        if called := getattr(arguments, name, ""):
            path = list_path(api, holder, tenant)
            return f"{path}/{find(api, path, holder, called)['id']}/{resource.noun}"
    return list_path(api, resource, tenant)


def is_operator(api: Api) -> bool:
    return bool(api.get("/me")["is_operator"])


def list_path(api: Api, resource: Resource, tenant: str) -> str:
    if not resource.is_of_tenant:
        return resource.path
    return resource.path.replace("{tenant}", tenant or os.environ.get("PENSTOCK_TENANT", "") or only_tenant(api))


def only_tenant(api: Api) -> str:
    """The slug of the one tenant that the caller sees. Raises Refused when there are others."""
    seen = [row["slug"] for row in itertools.islice(api.every("/tenants"), 20)]
    if len(seen) == 1:
        return str(seen[0])
    raise Refused(f"say which tenant: --tenant {'|'.join(seen)}" if seen else "you have no part in any tenant")


def find(api: Api, path: str, resource: Resource, called: str) -> dict[str, Any]:
    """The row with this id, or the only one with this name. Raises Refused."""
    try:
        found: dict[str, Any] = api.get(f"{path}/{uuid.UUID(called)}")
        return found
    except ValueError:
        pass
    for name in resource.names:
        rows = [row for row in api.every(path) if output.value_at(row, name) == called]
        living = [row for row in rows if row.get("is_usable", True)] or rows
        if len(living) == 1:
            return living[0]
        if living:
            ids = "\n  ".join(str(row["id"]) for row in living)
            raise Refused(f"{len(living)} {resource.noun} are called {called!r}: give an id\n  {ids}")
    raise Refused(f"no {resource.noun} called {called!r}: penstock {resource.noun} list shows what there is")


def _list(api: Api, path: str, resource: Resource, arguments: argparse.Namespace) -> int:
    query = {field.name: getattr(arguments, field.name) for field in resource.filters}
    rows = api.every(path, {name: value for name, value in query.items() if value is not None})
    return _show(itertools.islice(rows, arguments.limit), resource.columns, resource.nothing, arguments)


def _show(rows: Iterable[dict[str, Any]], columns: tuple[str, ...], nothing: str, arguments: argparse.Namespace) -> int:
    if arguments.json:
        output.as_json(list(rows))
    else:
        output.table(rows, columns, nothing=nothing)
    return 0


def _do(api: Api, path: str, resource: Resource, verb: Verb, arguments: argparse.Namespace) -> int:
    given = {field.name: getattr(arguments, field.name) for field in verb.fields}
    body = {name: None if value == "" else value for name, value in given.items() if value is not None}
    row = {} if verb.is_on_list else find(api, path, resource, arguments.row)
    if verb.name == "set" and not body:
        raise Refused(f"nothing to change: give one of {', '.join(field.flag for field in verb.fields)}")
    if not verb.is_undoable and not arguments.yes:
        ask(f"{verb.name} {getattr(arguments, 'row', resource.noun)}? It cannot be undone.")
    place = verb.path
    for name in [name for name in body if f"{{{name}}}" in place]:
        place = place.replace(f"{{{name}}}", str(body.pop(name)))
    target = path + place if verb.is_on_list else f"{path}/{row['id']}{place}"
    if verb.columns:
        return _show(api.every(target, body), verb.columns, resource.nothing, arguments)
    calls: dict[str, Callable[[], Any]] = {
        "GET": lambda: api.get(target, body),
        "POST": lambda: api.post(target, body),
        "PATCH": lambda: api.patch(target, body),
        "PUT": lambda: api.put(target, body),
        "DELETE": lambda: api.delete(target, body),
    }
    answer = calls[verb.method]()
    if arguments.json:
        output.as_json(answer)
    elif verb.secret and isinstance(answer, dict):
        print("shown this once, keep it:", file=sys.stderr)
        print(answer[verb.secret])
    elif isinstance(answer, dict):
        output.details(answer)
    else:
        print("done", file=sys.stderr)
    return 0


def ask(question: str) -> None:
    if not sys.stdin.isatty():
        raise Refused(f"{question} Say --yes to do it without being asked.")
    if input(f"{question} [y/N] ").strip().lower() not in ("y", "yes"):
        raise Refused("left as it was")
