"""Who the caller is, and a person's own tokens."""

from __future__ import annotations

import datetime

import pytest
from django.utils import timezone

from tenants.models import AccessToken, AuditEntry
from tenants.services import access_token_create, user_set_active, user_set_password
from tests.api.conftest import ROLES, SCOPES, Api, World
from tests.api.test_foundation import problem

PEOPLE = ("operator", *ROLES, "outsider")


@pytest.mark.parametrize("who", PEOPLE)
def test_a_person_is_told_who_they_are(world: World, who: str) -> None:
    me = world.by(who).get("/me").json()
    assert me["key"] is None
    assert me["is_operator"] is (who == "operator")
    assert me["api_url"].endswith("/v1")
    assert me["scopes"] == []
    found = {role["tenant"]["slug"]: role["role"] for role in me["roles"]}
    assert found == {"operator": {}, "outsider": {"other": "owner"}}.get(who, {"acme": who})
    assert me["user"]["email"].startswith(who if who != "outsider" else "owner@other")


@pytest.mark.parametrize("scope", SCOPES)
def test_a_key_of_any_scope_is_told_what_it_is(world: World, scope: str) -> None:
    me = world.by_key(scope).get("/me").json()
    assert me["user"] is None
    assert me["key"]["tenant"]["slug"] == "acme"
    assert (me["key"]["name"], me["scopes"], me["roles"], me["is_operator"]) == (scope, [scope], [], False)
    assert "secret" not in str(me)
    assert "digest" not in str(me)


def test_nobody_is_nobody(world: World) -> None:
    problem(world.by("nobody").get("/me"), 401, "not_authenticated")
    problem(world.by("nobody").get("/me/tokens"), 401, "not_authenticated")
    problem(world.by("nobody").post("/me/tokens", {"name": "x"}, format="json"), 401, "not_authenticated")


@pytest.mark.parametrize("scope", SCOPES)
def test_a_key_has_no_tokens(world: World, scope: str) -> None:
    key = world.by_key(scope)
    for answer in (key.get("/me/tokens"), key.post("/me/tokens", {"name": "x"}, format="json")):
        body = problem(answer, 403, "permission_denied")
        assert "belong to people" in body["detail"]
    assert not AccessToken.objects.filter(name="x").exists()


@pytest.mark.parametrize("who", PEOPLE)
def test_everybody_sees_their_own_tokens_only(world: World, who: str) -> None:
    rows = world.by(who).get("/me/tokens").json()["results"]
    assert [row["public_id"] for row in rows] == [world.tokens[who].split("_")[1]]
    assert rows[0]["is_usable"]
    others = AccessToken.objects.exclude(public_id=rows[0]["public_id"]).first()
    assert others is not None
    assert world.by(who).get(f"/me/tokens/{others.pk}").status_code == 404
    assert world.by(who).post(f"/me/tokens/{others.pk}/revoke").status_code == 404


def test_a_token_is_shown_once_works_and_is_revoked(world: World) -> None:
    owner = world.by("owner")
    answer = owner.post("/me/tokens", {"name": "laptop"}, format="json")
    assert answer.status_code == 201
    made = answer.json()
    assert made["secret"].startswith(f"pst_{made['public_id']}_")
    seen = owner.get(f"/me/tokens/{made['id']}")
    assert "secret" not in seen.json()
    assert made["secret"] not in str(owner.get("/me/tokens").json())
    assert made["secret"].split("_")[2] not in str(list(AuditEntry.objects.values()))
    fresh = Api()
    fresh.credentials(HTTP_AUTHORIZATION=f"Bearer {made['secret']}")
    assert fresh.get("/me").json()["user"]["email"] == "owner@acme.example"
    stale = owner.post(f"/me/tokens/{made['id']}/revoke", headers={"if-match": '"other"'})
    problem(stale, 412, "changed")
    etag = owner.get(f"/me/tokens/{made['id']}").headers["ETag"]
    ended = owner.post(f"/me/tokens/{made['id']}/revoke", headers={"if-match": etag})
    assert ended.json()["is_usable"] is False
    assert fresh.get("/me").status_code == 401
    assert AuditEntry.objects.get(action="access_token.revoke").actor == "owner@acme.example"


def test_a_token_is_made_once(world: World) -> None:
    owner = world.by("owner")
    answers = [
        owner.post("/me/tokens", {"name": "ci"}, format="json", headers={"idempotency-key": "t1"}) for _ in range(2)
    ]
    assert len({answer.json()["secret"] for answer in answers}) == 1
    assert AccessToken.objects.filter(name="ci").count() == 1


def test_what_is_wrong_with_a_token_is_said_at_its_field(world: World) -> None:
    past = {"name": " ", "expires_at": "2020-01-01T00:00:00Z"}
    body = problem(world.by("viewer").post("/me/tokens", past, format="json"), 400, "invalid")
    assert [error["field"] for error in body["errors"]] == ["name"]
    body = problem(world.by("viewer").post("/me/tokens", {**past, "name": "x"}, format="json"), 400, "invalid")
    assert [error["field"] for error in body["errors"]] == ["expires_at"]


def test_a_token_makes_none_that_outlives_it(world: World) -> None:
    ends = timezone.now() + datetime.timedelta(hours=1)
    _, text = access_token_create(user=world.members["owner"], name="short", actor="test", expires_at=ends)
    short = Api()
    short.credentials(HTTP_AUTHORIZATION=f"Bearer {text}")
    for asked in (None, (ends + datetime.timedelta(seconds=1)).isoformat()):
        body = problem(short.post("/me/tokens", {"name": "x", "expires_at": asked}, format="json"), 400, "invalid")
        assert [error["field"] for error in body["errors"]] == ["expires_at"]
    assert not AccessToken.objects.filter(name="x").exists()
    made = short.post("/me/tokens", {"name": "x", "expires_at": ends.isoformat()}, format="json")
    assert made.status_code == 201
    assert world.by("owner").post("/me/tokens", {"name": "y"}, format="json").status_code == 201, "it never ends itself"


def test_a_new_password_ends_the_tokens(world: World) -> None:
    owner = world.members["owner"]
    assert world.by("owner").get("/me").status_code == 200
    user_set_password(user=owner, password="a fine long one", actor=owner)
    problem(world.by("owner").get("/me"), 401, "authentication_failed")
    assert AuditEntry.objects.get(action="access_token.revoke").actor == "owner@acme.example"
    assert world.by("admin").get("/me").status_code == 200, "others' go on"


def test_whoever_is_let_in_again_makes_new_tokens(world: World) -> None:
    user = world.members["viewer"]
    user_set_active(user=user, is_active=False, actor="test")
    user_set_active(user=user, is_active=True, actor="test")
    problem(world.by("viewer").get("/me"), 401, "authentication_failed")
    assert not AccessToken.objects.get(user=user).is_usable
