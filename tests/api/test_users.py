"""People over the REST API: for operators."""

from __future__ import annotations

from urllib.parse import urlsplit

from django.test import Client

from tenants.models import AuditEntry, IdempotentAnswer, SignInLink, User
from tenants.services import user_create
from tests.api.callers import NOWHERE, codes, operators_only
from tests.api.conftest import World
from tests.api.test_foundation import problem

PASSWORD = "a-long-enough-password"


def test_only_operators_see_and_change_people(world: World) -> None:
    path = f"/users/{user_create(email='extra@example.org', actor='test').pk}"
    assert codes(world, "get", "/users") == codes(world, "get", path) == operators_only(200)
    assert codes(world, "post", "/users", {"email": "new@example.org"}) == operators_only(201)
    assert codes(world, "post", f"{path}/sign-in-link") == operators_only(201)
    assert codes(world, "post", f"{path}/deactivate")["operator"] == 200
    world.by("operator").post(f"{path}/activate")
    for act in ("activate", "deactivate"):
        assert codes(world, "post", f"{path}/{act}") == operators_only(200)
    for method in ("patch", "put", "delete"):
        assert getattr(world.by("operator"), method)(path, {"is_operator": True}, format="json").status_code == 405
    assert world.by("operator").get(f"/users/{NOWHERE}").status_code == 404
    assert User.objects.filter(email="new@example.org").count() == 1


def test_people_are_found(world: World) -> None:
    operator = world.by("operator")
    rows = operator.get("/users?search=OTHER.example").json()["results"]
    assert [row["email"] for row in rows] == ["owner@other.example"]
    assert operator.get("/users?is_operator=true").json()["count"] == 1
    assert operator.get("/users?is_active=false").json()["count"] == 0
    assert [row["email"] for row in operator.get("/users?ordering=-email&page_size=1").json()["results"]] == [
        "viewer@acme.example"
    ]
    assert "password" not in str(rows)


def test_an_account_with_a_password_signs_in(world: World) -> None:
    sent = {"email": "New@Example.org", "name": "New", "password": PASSWORD}
    made = world.by("operator").post("/users", sent, format="json", headers={"idempotency-key": "u1"})
    again = world.by("operator").post("/users", sent, format="json", headers={"idempotency-key": "u1"})
    assert (made.status_code, again.status_code, made.json()) == (201, 201, again.json())
    told = {name: made.json()[name] for name in ("email", "name", "is_operator", "is_active")}
    assert told == {"email": "new@example.org", "name": "New", "is_operator": False, "is_active": True}
    assert made.headers["ETag"]
    assert PASSWORD not in made.content.decode() + str(list(AuditEntry.objects.values()))
    assert PASSWORD.encode() not in bytes(IdempotentAnswer.objects.get().body)
    answer = Client().post("/sign-in/", {"email": "new@example.org", "password": PASSWORD})
    assert answer.status_code == 302
    assert AuditEntry.objects.filter(action="user.create").latest("at").actor == "operator@penstock.example"


def test_an_account_without_a_password_signs_in_by_a_link_shown_once(world: World) -> None:
    operator = world.by("operator")
    made = operator.post("/users", {"email": "new@example.org"}, format="json").json()
    assert not User.objects.get(pk=made["id"]).has_usable_password()
    answers = [operator.post(f"/users/{made['id']}/sign-in-link", headers={"idempotency-key": "l1"}) for _ in range(2)]
    assert answers[0].json() == answers[1].json()
    url = urlsplit(answers[0].json()["sign_in_url"])
    token = url.path.rsplit("/", 1)[1]
    shown = str(list(AuditEntry.objects.values())) + operator.get(f"/users/{made['id']}").content.decode()
    assert token not in shown
    assert SignInLink.objects.get().digest not in shown
    client = Client()
    assert client.post(url.path).status_code == 302
    assert client.session["_auth_user_id"] == made["id"]


def test_whoever_is_kept_out_gets_no_link(world: World) -> None:
    operator, viewer = world.by("operator"), world.members["viewer"]
    etag = operator.get(f"/users/{viewer.pk}").headers["ETag"]
    problem(operator.post(f"/users/{viewer.pk}/deactivate", headers={"if-match": '"x"'}), 412, "changed")
    kept_out = operator.post(f"/users/{viewer.pk}/deactivate", headers={"if-match": etag})
    assert kept_out.json()["is_active"] is False
    assert kept_out.headers["ETag"] != etag
    assert world.by("viewer").get("/me").status_code == 401
    refused = problem(operator.post(f"/users/{viewer.pk}/sign-in-link"), 409, "conflict")
    assert "activate them first" in refused["detail"]
    assert operator.post(f"/users/{viewer.pk}/activate").json()["is_active"] is True
    assert world.by("viewer").get("/me").status_code == 401, "what let them in before ended for good"
    assert operator.post(f"/users/{viewer.pk}/sign-in-link").status_code == 201


def test_the_last_active_operator_stays(world: World) -> None:
    path = f"/users/{world.operator.pk}/deactivate"
    body = problem(world.by("operator").post(path), 400, "invalid")
    assert "last active operator" in body["detail"]
    user_create(email="second@penstock.example", actor="test", is_operator=True)
    assert world.by("operator").post(path).status_code == 200
    assert world.by("operator").get("/users").status_code == 401


def test_what_is_wrong_is_said_at_its_field(world: World) -> None:
    for sent, field in (
        ({}, "email"),
        ({"email": "x"}, "email"),
        ({"email": "VIEWER@acme.example"}, "email"),
        ({"email": "a@b.example", "password": "short"}, "password"),
        ({"email": "a@b.example", "name": "x" * 121}, "name"),
    ):
        body = problem(world.by("operator").post("/users", sent, format="json"), 400, "invalid")
        assert {error["field"] for error in body["errors"]} == {field}
