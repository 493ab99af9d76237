"""Open invitations of before those who left took theirs with them: an upgrade revokes them, and tells."""

from __future__ import annotations

import datetime
from collections.abc import Iterator
from typing import Any

import pytest
from django.db import connection
from django.db.migrations.executor import MigrationExecutor
from django.utils import timezone

pytestmark = pytest.mark.django_db(transaction=True)

BEFORE = [("tenants", "0008_mu_limits_and_members")]
AFTER = [("tenants", "0009_invitations_of_those_who_left")]


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


def test_what_those_who_left_had_sent_is_revoked(before: Any) -> None:
    people, invitations = before.get_model("tenants", "User").objects, before.get_model("tenants", "Invitation").objects
    tenants, members = before.get_model("tenants", "Tenant").objects, before.get_model("tenants", "Membership").objects
    one, two = (tenants.create(name=name, slug=name.lower()) for name in ("One", "Two"))
    now = timezone.now()

    def person(name: str, *of: Any, **fields: Any) -> Any:
        made = people.create(email=f"{name}@example.org", **fields)
        for tenant in of:
            members.create(tenant=tenant, user=made, role="admin")
        return made

    def invitation(name: str, sender: Any, tenant: Any = one, **fields: Any) -> str:
        given = {"expires_at": now + datetime.timedelta(days=1), "role": "viewer", "digest": name.ljust(64, "0")}
        made = invitations.create(tenant=tenant, email=f"{name}@example.net", invited_by=sender, **given | fields)
        return str(made.pk)

    member, operator = person("member", one), person("operator", is_operator=True)
    gone, left = person("gone", one, is_active=False), person("left", two)
    gone_operator = person("gone-operator", is_operator=True, is_active=False)
    ended = {
        invitation("a", gone): one,
        invitation("b", left): one,
        invitation("c", gone_operator, two): two,
    }
    stays = [
        invitation("d", member),
        invitation("e", operator, two),
        invitation("f", None),
        invitation("g", left, two),
        invitation("h", gone, accepted_at=now),
        invitation(
            "i",
            gone,
            created_at=now - datetime.timedelta(days=9),
            expires_at=now - datetime.timedelta(days=1),
        ),
    ]
    MigrationExecutor(connection).migrate(AFTER)
    after = MigrationExecutor(connection).loader.project_state(AFTER).apps
    rows = {str(row.pk): row for row in after.get_model("tenants", "Invitation").objects.all()}
    assert {pk for pk, row in rows.items() if row.revoked_at is not None} == set(ended)
    assert set(rows) == {*ended, *stays}
    entries = after.get_model("tenants", "AuditEntry").objects.filter(action="invitation.revoke")
    assert {(e.object_id, e.tenant_id, e.actor) for e in entries} == {
        (pk, tenant.pk, "an upgrade") for pk, tenant in ended.items()
    }
