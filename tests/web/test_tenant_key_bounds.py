"""What the pages of keys and tokens share with the REST API: how long lists are, and what a name may hold."""

from __future__ import annotations

from html import unescape

import pytest
from django.test import Client

from tenants.models import AccessToken, ApiKey, Tenant, User
from tenants.services import api_key_create
from tests.web.seed import people

GIVEN = {"name": "kept", "scopes": ["inference"]}


@pytest.fixture
def tenant(db: None) -> Tenant:
    return people()[4]


@pytest.fixture
def owner(client: Client, tenant: Tenant) -> Client:
    client.force_login(User.objects.get(email="owner@northwind.example"))
    return client


def networks(count: int) -> str:
    return "\n".join(f"2001:db8:{number:x}:ffff:ffff:ffff:ffff:ffff/128" for number in range(count))


def test_a_key_has_as_many_networks_as_the_api_lets_it(owner: Client, tenant: Tenant) -> None:
    path = "/t/northwind/keys/new"
    few = "\n".join(f"10.0.{number}.0/24" for number in range(101))
    answer = owner.post(path, {**GIVEN, "allowed_ips": few})
    assert answer.status_code == 400
    assert "A key names at most 100 networks; these are 101." in unescape(answer.content.decode())
    assert not ApiKey.objects.exists()
    assert owner.post(path, {**GIVEN, "allowed_ips": networks(100)}).status_code == 200
    assert len(ApiKey.objects.get().allowed_ips) == 100


def test_a_key_that_stands_is_changed_within_the_same_bounds(owner: Client, tenant: Tenant) -> None:
    key, _ = api_key_create(tenant=tenant, name="k", actor="a test")
    few = "\n".join(f"10.0.{number}.0/24" for number in range(101))
    for given, why in (
        ({"allowed_ips": few}, "A key names at most 100 networks"),
        ({"scopes": ["inference"] * 4}, "Name each scope once"),
    ):
        answer = owner.post(f"/t/northwind/keys/{key.pk}/edit", {**GIVEN, **given})
        assert answer.status_code == 400
        assert why in unescape(answer.content.decode())
    key.refresh_from_db()
    assert (key.name, key.allowed_ips, key.scopes) == ("k", [], ["inference"])


def test_no_name_holds_a_nul(owner: Client, tenant: Tenant) -> None:
    for path in ("/t/northwind/quick-start", "/t/northwind/keys/new", "/tokens"):
        answer = owner.post(path, {**GIVEN, "name": "a\0b", "days": "30"})
        assert answer.status_code == 400, path
        told = unescape(answer.content.decode())
        assert "Leave out NUL characters." in told or "Null characters are not allowed." in told
    assert not ApiKey.objects.exists()
    assert not AccessToken.objects.exists()


def test_an_address_with_a_nul_is_asked_about_without_it(client: Client, tenant: Tenant) -> None:
    answer = client.post("/sign-in/", {"email": "nobody\0@northwind.example", "password": "a-long-enough-password"})
    assert answer.status_code == 422
    assert "\0" not in answer.content.decode()
