"""Limits of before they knew by whom they were set: the audit log tells."""

from __future__ import annotations

import datetime
from collections.abc import Iterator
from typing import Any

import pytest
from django.db import connection
from django.db.migrations.executor import MigrationExecutor
from django.utils import timezone

pytestmark = pytest.mark.django_db(transaction=True)

BEFORE, AFTER = [("tenants", "0005_keyed_fingerprints")], [("tenants", "0006_limits_set_by")]


@pytest.fixture
def before() -> Iterator[Any]:
    """The models as they were; afterwards all migrations are applied again."""
    executor = MigrationExecutor(connection)
    newest = executor.loader.graph.leaf_nodes()
    executor.migrate(BEFORE)
    try:
        yield MigrationExecutor(connection).loader.project_state(BEFORE).apps
    finally:
        MigrationExecutor(connection).migrate(newest)


def test_limits_are_whose_the_audit_log_says(before: Any) -> None:
    people = before.get_model("tenants", "User").objects
    operator = people.create(email="operator@example.org", is_operator=True)
    owner = people.create(email="owner@example.org")
    tenant = before.get_model("tenants", "Tenant").objects.create(name="Old", slug="old")
    limits, entries = before.get_model("tenants", "Limit").objects, before.get_model("tenants", "AuditEntry").objects
    keys = before.get_model("tenants", "ApiKey").objects
    clock = iter(range(1_000))
    start = timezone.now() - datetime.timedelta(days=1)

    def at() -> datetime.datetime:
        return start + datetime.timedelta(seconds=next(clock))

    def key(name: str) -> Any:
        return keys.create(tenant=tenant, name=name, public_id=name, digest="0" * 64, pepper=1)

    def limit(*actors: Any, of: Any = None, model: str = "") -> str:
        made = limits.create(
            tenant=tenant, api_key=of, kind="concurrency", model=model or f"m{next(clock)}", value=1, created_at=at()
        )
        for actor in actors:
            said = {"actor": actor} if isinstance(actor, str) else {"actor": actor.email, "actor_id": actor.pk}
            entries.create(action="limit.set", object_type="tenants.limit", object_id=str(made.pk), at=at(), **said)
        return str(made.pk)

    def rotated(old: Any, new: Any) -> None:
        after = {"replaced_by": str(new.pk)}
        entries.create(action="api_key.rotate", object_type="tenants.apikey", object_id=str(old.pk), after=after)

    first, second, third = key("first"), key("second"), key("third")
    rotated(first, second)
    rotated(second, third)
    wanted = {
        limit(operator): "operator",
        limit("demo"): "operator",
        limit(owner): "tenant",
        limit("API key ci (mu_abc_…)"): "tenant",
        limit(): "tenant",
        limit(owner, operator): "operator",
        limit(operator, owner): "tenant",
        limit(operator, of=first): "operator",
        limit(owner, of=key("other")): "tenant",
        limit(operator, of=first, model="chat"): "operator",
        limit(of=second, model="chat"): "operator",
        limit(of=third, model="chat"): "operator",
        limit(owner, of=first, model="code"): "tenant",
        limit(of=second, model="code"): "tenant",
        limit(operator, of=third, model="code"): "operator",
    }
    MigrationExecutor(connection).migrate(AFTER)
    migrated = MigrationExecutor(connection).loader.project_state(AFTER).apps.get_model("tenants", "Limit").objects
    assert {str(pk): set_by for pk, set_by in migrated.values_list("pk", "set_by")} == wanted
