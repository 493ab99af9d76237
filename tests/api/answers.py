"""What each kind of caller is answered, in one table."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tests.api.conftest import Api, World

PEOPLE = ("operator", "owner", "admin", "developer", "viewer", "outsider", "nobody")
SCOPES = ("inference", "usage", "manage")
EVERYBODY = (*PEOPLE, *SCOPES)
OPERATORS_ONLY = dict.fromkeys(EVERYBODY, 403) | {"operator": 200, "nobody": 401}
"""Answers of an address of the platform's own."""
TENANTS_OWN = dict.fromkeys(EVERYBODY, 200) | {"outsider": 404, "inference": 404, "nobody": 401}
"""Answers of an address that everybody in the tenant may read, and keys that may read at all."""


def codes(world: World, call: Callable[[Api], Any]) -> dict[str, int]:
    """Status codes of ``call`` by kind of caller: the people and the API keys of acme by scope."""
    clients = {who: world.by(who) for who in PEOPLE} | {scope: world.by_key(scope) for scope in SCOPES}
    return {who: call(client).status_code for who, client in clients.items()}
