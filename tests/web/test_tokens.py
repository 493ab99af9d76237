"""The page of one's own access tokens."""

from __future__ import annotations

import re

import pytest
from django.test import Client
from rest_framework.test import APIClient

from tenants.models import AccessToken, AuditEntry, User
from tenants.services import access_token_create
from tests import factories


@pytest.fixture
def person(db: None) -> User:
    return factories.user()


@pytest.fixture
def page(client: Client, person: User) -> Client:
    client.force_login(person)
    return client


def test_a_token_is_made_shown_once_and_works(page: Client, person: User) -> None:
    assert "No token yet" in page.get("/tokens").content.decode()
    answer = page.post("/tokens", {"name": "laptop", "days": "30"})
    assert answer.headers["Cache-Control"].find("no-store") >= 0
    found = re.search(r"pst_\w+", answer.content.decode())
    assert found is not None
    api = APIClient()
    api.credentials(HTTP_AUTHORIZATION=f"Bearer {found[0]}")
    assert api.get("/api/v1/me").json()["user"]["email"] == person.email
    again = page.get("/tokens").content.decode()
    assert found[0] not in again
    assert "laptop" in again
    assert AuditEntry.objects.get(action="access_token.create").actor == person.email


def test_a_form_that_is_wrong_says_why(page: Client) -> None:
    nameless = page.post("/tokens", {"name": " ", "days": "30"})
    assert nameless.status_code == 400
    assert "A token needs a name" in nameless.content.decode()
    long = page.post("/tokens", {"name": "x" * 200, "days": "30"})
    assert long.status_code == 400
    assert "at most 120 characters" in long.content.decode()
    answer = page.post("/tokens", {"name": "x", "days": "9999"})
    assert answer.status_code == 400
    assert "Choose one of the periods" in answer.content.decode()
    assert not AccessToken.objects.exists()


def test_tokens_without_an_end_are_possible(page: Client) -> None:
    page.post("/tokens", {"name": "server", "days": ""})
    assert AccessToken.objects.get().expires_at is None


def test_one_revokes_ones_own_and_nobody_elses(page: Client, person: User) -> None:
    own, _ = access_token_create(user=person, name="mine", actor=person)
    other, _ = access_token_create(user=factories.user(), name="theirs", actor="test")
    assert page.post(f"/tokens/{other.pk}/revoke").status_code == 404
    answer = page.post(f"/tokens/{own.pk}/revoke", follow=True)
    assert "mine is revoked" in answer.content.decode()
    assert "theirs" not in answer.content.decode()
    own.refresh_from_db()
    other.refresh_from_db()
    assert own.revoked_at is not None
    assert other.revoked_at is None
    assert page.get(f"/tokens/{own.pk}/revoke").status_code == 405


def test_a_visitor_cannot_revoke(client: Client, person: User) -> None:
    own, _ = access_token_create(user=person, name="mine", actor=person)
    assert client.post(f"/tokens/{own.pk}/revoke").status_code == 302
    own.refresh_from_db()
    assert own.revoked_at is None
