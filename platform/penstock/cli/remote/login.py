"""``penstock login``, ``logout`` and ``whoami``."""

from __future__ import annotations

import argparse
import getpass
import sys
from typing import Any

from penstock.cli.remote import output, web
from penstock.cli.remote.api import Api
from penstock.cli.remote.nouns import Refused, told
from penstock.cli.remote.profile import Profile, forget, load, place, save


def run(arguments: argparse.Namespace) -> int:
    acts = {"login": _login, "logout": _logout, "whoami": _whoami}
    return told(lambda: acts[arguments.act](arguments))


def _login(arguments: argparse.Namespace) -> int:
    url = arguments.url.rstrip("/")
    if not web.is_address(url):
        raise Refused(f"{arguments.url!r} is not an address: give the console's, e.g. https://penstock.example.org")
    if sys.stdin.isatty():
        print(f"Make an access token at {url}/tokens and paste it here; it is not shown.", file=sys.stderr)
        token = getpass.getpass("token: ").strip()
    else:
        token = sys.stdin.readline().strip()
    if not token:
        raise Refused("no token was given: paste one, or pipe it in: penstock login URL < token-file")
    profile = Profile(url, token)
    who = Api(profile).get("/me")
    try:
        kept = save(profile)
    except OSError as error:
        raise Refused(
            f"the token cannot be kept in {place()}: {error.strerror}. Set PENSTOCK_URL and PENSTOCK_TOKEN."
        ) from None
    print(f"signed in to {url} as {_name(who)}; kept in {kept}", file=sys.stderr)
    return 0


def _logout(arguments: argparse.Namespace) -> int:
    print("signed out; the token itself lives on until it is revoked" if forget() else "not signed in", file=sys.stderr)
    return 0


def _whoami(arguments: argparse.Namespace) -> int:
    profile = load()
    who = Api(profile).get("/me")
    if arguments.json:
        output.as_json({"url": profile.url, **who})
        return 0
    roles = [f"{one['role']} of {one['tenant']['slug']}" for one in who["roles"]]
    told_of = {"installation": profile.url, "who": _name(who), "operator": who["is_operator"], "roles": roles}
    output.details({**told_of, "scopes": who["scopes"]} if who["key"] else told_of)
    return 0


def _name(who: dict[str, Any]) -> str:
    if who["user"]:
        return str(who["user"]["email"])
    return f"the API key {who['key']['name']} of {who['key']['tenant']['slug']}"
