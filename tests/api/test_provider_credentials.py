"""Credentials of external providers over the REST API: written by operators, never read."""

from __future__ import annotations

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext

from serving.models import ProviderCredential
from serving.services import provider_credential_set
from tenants.crypto import decrypt
from tenants.models import AuditEntry
from tests.api.callers import codes, operators_only
from tests.api.conftest import World

SECRET = "sk-very-secret"
NEW = {"provider": "openai", "secret": SECRET, "base_url": "https://api.example.com/v1"}


@pytest.fixture
def stored(world: World) -> ProviderCredential:
    return provider_credential_set(name="main", provider="openai", secret=SECRET, actor="test")


def test_credentials_are_for_operators(world: World, stored: ProviderCredential) -> None:
    path = "/provider-credentials/main"
    assert codes(world, "get", "/provider-credentials") == operators_only(200)
    assert codes(world, "get", path) == operators_only(200)
    assert codes(world, "put", path, {"secret": "x"}) == operators_only(200)
    assert codes(world, "put", "/provider-credentials/new", NEW) == operators_only(201)
    assert codes(world, "delete", path) == operators_only(204)


def test_the_secret_is_kept_and_never_shown(world: World) -> None:
    operator = world.by("operator")
    made = operator.put("/provider-credentials/main", NEW, format="json")
    assert made.status_code == 201
    for answer in (made, operator.get("/provider-credentials"), operator.get("/provider-credentials/main")):
        assert SECRET not in answer.content.decode()
        assert "secret" not in str(answer.json())
    assert decrypt(bytes(ProviderCredential.objects.get().secret)) == SECRET.encode()
    assert SECRET not in str(AuditEntry.objects.values_list("after", flat=True))


def test_what_is_left_out_stays(world: World, stored: ProviderCredential) -> None:
    answer = world.by("operator").put("/provider-credentials/main", {"base_url": "https://x.example"}, format="json")
    assert answer.status_code == 200
    assert (answer.json()["provider"], answer.json()["base_url"]) == ("openai", "https://x.example")
    stored.refresh_from_db()
    assert decrypt(bytes(stored.secret)) == SECRET.encode()


def test_what_is_wrong_is_told_at_its_field(world: World, stored: ProviderCredential) -> None:
    operator = world.by("operator")
    for name, body, field in (
        ("new", {"provider": "openai"}, "secret"),
        ("new", {"secret": "x"}, "provider"),
        ("main", {"base_url": "ftp://x"}, "base_url"),
        ("main", {"secret": ""}, "secret"),
        ("n" * 121, NEW, "name"),
    ):
        answer = operator.put(f"/provider-credentials/{name}", body, format="json")
        assert answer.status_code == 400, (name, body)
        assert [error["field"] for error in answer.json()["errors"]] == [field]
    assert ProviderCredential.objects.count() == 1


def test_changes_can_insist_on_a_version(world: World, stored: ProviderCredential) -> None:
    operator, path = world.by("operator"), "/provider-credentials/main"
    stale = {"if-match": operator.get(path).headers["ETag"]}
    assert operator.put(path, {"secret": "other"}, format="json", headers=stale).status_code == 200
    assert operator.put(path, {"secret": "third"}, format="json", headers=stale).status_code == 412
    assert operator.delete(path, headers=stale).status_code == 412
    assert operator.put("/provider-credentials/new", NEW, format="json", headers=stale).status_code == 412
    assert operator.delete(path, headers={"if-match": operator.get(path).headers["ETag"]}).status_code == 204
    assert operator.delete(path).status_code == 404
    assert AuditEntry.objects.filter(action="provider_credential.remove").count() == 1


def test_names_that_no_credential_has_are_not_found(world: World) -> None:
    for name in ("none", "%00", "%ED%A0%80"):
        assert world.by("operator").get(f"/provider-credentials/{name}").status_code == 404


def test_the_list_asks_a_constant_number_of_queries(world: World, stored: ProviderCredential) -> None:
    def asked() -> int:
        with CaptureQueriesContext(connection) as queries:
            assert world.by("operator").get("/provider-credentials?provider=openai").status_code == 200
        return len(queries)

    asked()
    few = asked()
    for number in range(4):
        provider_credential_set(name=f"n{number}", provider="openai", secret="x", actor="test")
    assert asked() == few
