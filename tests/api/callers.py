"""One request by callers of every kind."""

from __future__ import annotations

from typing import Any

from tests.api.conftest import ROLES, SCOPES, World

NOWHERE = "01890000-0000-7000-8000-000000000000"


def codes(world: World, method: str, path: str, body: Any = None) -> dict[str, int]:
    """Status by caller, the operator last: a change that is refused to others finds things as they were."""
    clients = {
        **{who: world.by(who) for who in (*ROLES, "outsider", "nobody")},
        **{f"key:{scope}": world.by_key(scope) for scope in SCOPES},
        "operator": world.by("operator"),
    }
    return {who: getattr(client, method)(path, body, format="json").status_code for who, client in clients.items()}


def operators_only(code: int) -> dict[str, int]:
    others = (*ROLES, "outsider", *(f"key:{scope}" for scope in SCOPES))
    return {**dict.fromkeys(others, 403), "nobody": 401, "operator": code}


TENANTS_OWN = {
    **dict.fromkeys((*ROLES, "operator", "key:usage", "key:manage"), 200),
    "outsider": 404,
    "key:inference": 404,
    "nobody": 401,
}
"""Answers of an address that everybody in the tenant may read, and keys that may read at all."""
