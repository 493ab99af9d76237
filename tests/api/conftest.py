"""Callers of every kind, and two tenants that must not see each other."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest
from django.core.cache import cache
from rest_framework.test import APIClient

from tenants.models import ApiKey, Membership, Tenant, User
from tenants.services import access_token_create, api_key_create, membership_add, tenant_create, user_create
from tests.replay import replayed

ROLES = ("owner", "admin", "developer", "viewer")
SCOPES = ("inference", "usage", "manage")


class Api(APIClient):
    """Speaks JSON, below ``/api/v1``."""

    def generic(self, method: str, path: str, *args: Any, **kwargs: Any) -> Any:
        return super().generic(method, path if path.startswith("/api/") else f"/api/v1{path}", *args, **kwargs)


@dataclass
class World:
    """``acme`` with a member of each role and keys of each scope; ``other`` with an owner of its own."""

    operator: User
    acme: Tenant
    other: Tenant
    members: dict[str, User] = field(default_factory=dict)
    outsider: User | None = None
    keys: dict[str, tuple[ApiKey, str]] = field(default_factory=dict)
    tokens: dict[str, str] = field(default_factory=dict)

    def by(self, who: str) -> Api:
        """A client that acts as ``operator``, a role of acme, ``outsider`` (owner of other), or ``nobody``."""
        client = Api()
        if who != "nobody":
            client.credentials(HTTP_AUTHORIZATION=f"Bearer {self.tokens[who]}")
        return client

    def by_key(self, scope: str) -> Api:
        """A client with an API key of acme with this scope alone."""
        client = Api()
        client.credentials(HTTP_AUTHORIZATION=f"Bearer {self.keys[scope][1]}")
        return client


@pytest.fixture
def world(db: None) -> World:
    return replayed("world of the API", make_world)


def make_world() -> World:
    operator = user_create(email="operator@penstock.example", actor="test", is_operator=True)
    made = World(operator, tenant_create(name="Acme", actor="test"), tenant_create(name="Other", actor="test"))
    for role in ROLES:
        made.members[role] = user_create(email=f"{role}@acme.example", actor="test")
        membership_add(tenant=made.acme, user=made.members[role], role=Membership.Role(role), actor="test")
    made.outsider = user_create(email="owner@other.example", actor="test")
    membership_add(tenant=made.other, user=made.outsider, role=Membership.Role.OWNER, actor="test")
    people = {**made.members, "operator": operator, "outsider": made.outsider}
    for who, user in people.items():
        made.tokens[who] = access_token_create(user=user, name="test", actor="test")[1]
    for scope in SCOPES:
        made.keys[scope] = api_key_create(tenant=made.acme, name=scope, scopes=[scope], actor="test")
    return made


@pytest.fixture(autouse=True)
def no_rate(settings: Any) -> None:
    """Counts of requests live in the test process, and nobody reaches the limit unless a test says so."""
    settings.CACHES = {"default": {"BACKEND": "django.core.cache.backends.locmem.LocMemCache"}}
    cache.clear()
