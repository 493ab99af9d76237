"""A change of one's own password in the admin."""

from __future__ import annotations

import pytest
from django.http import HttpResponse
from django.test import Client

from tenants.models import AuditEntry, User
from tests.web.seed import PASSWORD, Seeded

NEW = "another-long-enough-password"


def change(client: Client, **fields: str) -> HttpResponse:
    form = {"old_password": PASSWORD, "new_password1": NEW, "new_password2": NEW, **fields}
    return client.post("/admin/password_change/", form)


def test_a_new_password_in_the_admin_leaves_an_entry(as_operator: Client, platform: Seeded) -> None:
    elsewhere = Client()
    elsewhere.force_login(platform.operator)
    answer = change(as_operator)
    assert (answer.status_code, answer["Location"]) == (302, "/admin/password_change/done/")
    entry = AuditEntry.objects.get(action="user.set_password")
    assert (entry.actor_id, entry.object_id) == (platform.operator.pk, str(platform.operator.pk))
    assert NEW not in str(list(AuditEntry.objects.values()))
    assert User.objects.get(pk=platform.operator.pk).check_password(NEW)
    assert as_operator.get("/console/").status_code == 200, "one's own session goes on"
    assert elsewhere.get("/console/").status_code == 302, "every other one has ended"


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"old_password": "wrong"}, "entered incorrectly"),
        ({"new_password1": "short", "new_password2": "short"}, "too short"),
        ({"new_password2": "something-else-here"}, "match"),
    ],
)
def test_a_password_that_cannot_be_is_said_at_its_field(
    as_operator: Client, platform: Seeded, fields: dict[str, str], said: str
) -> None:
    answer = change(as_operator, **fields)
    assert answer.status_code == 200
    assert said in answer.content.decode()
    assert not AuditEntry.objects.filter(action="user.set_password").exists()
    assert User.objects.get(pk=platform.operator.pk).check_password(PASSWORD)


def test_the_admins_passwords_are_for_operators(client: Client, platform: Seeded) -> None:
    client.force_login(platform.owner)
    assert client.get("/admin/password_change/")["Location"].startswith("/admin/login/")
    assert change(client).status_code == 302
    assert User.objects.get(pk=platform.owner.pk).check_password(PASSWORD)
