"""What every address of the REST API has in common."""

from __future__ import annotations

import datetime
from collections.abc import Callable
from ipaddress import ip_network
from typing import Any

import pytest
from django.core.cache import cache
from django.test import Client
from django.utils import timezone
from drf_spectacular.generators import SchemaGenerator
from redis.exceptions import RedisError
from rest_framework.test import APIClient

from tenants.api.throttles import CallerThrottle
from tenants.models import AccessToken, ApiKey, AuditEntry, IdempotentAnswer, Tenant
from tenants.services import access_token_create, access_token_revoke, api_key_update, user_set_active
from tests.api.conftest import Api, World

NEW = {"name": "ci"}


def problem(answer: Any, status: int, code: str) -> dict[str, Any]:
    assert answer.status_code == status, answer.content
    assert answer.headers["Content-Type"] == "application/problem+json"
    body: dict[str, Any] = answer.json()
    assert (body["status"], body["code"]) == (status, code)
    assert body["title"]
    assert body["detail"]
    assert body["hint"]
    return body


# ------------------------------------------------------------------------------------------------ who is asking
def test_nobody_is_told_to_sign_in(world: World) -> None:
    answer = world.by("nobody").get("/tenants")
    problem(answer, 401, "not_authenticated")
    assert answer.headers["WWW-Authenticate"].startswith("Bearer")


@pytest.mark.parametrize("text", ["", "Bearer", "Bearer x", "Basic abc", "Bearer pst_abc_def", "Bearer mu_abc_def"])
def test_a_header_that_is_no_token_is_refused(world: World, text: str) -> None:
    client = Api()
    client.credentials(HTTP_AUTHORIZATION=text)
    assert client.get("/tenants").status_code == 401


def test_another_secret_of_a_known_token_is_refused(world: World) -> None:
    client = Api()
    client.credentials(HTTP_AUTHORIZATION=f"Bearer {world.tokens['owner'][:-1]}!")
    assert client.get("/tenants").status_code == 401


def test_a_revoked_an_expired_and_a_deactivated_persons_token_end(world: World) -> None:
    token = AccessToken.objects.get(user=world.members["viewer"])
    assert world.by("viewer").get("/tenants").status_code == 200
    token.refresh_from_db()
    assert token.last_used_at is not None
    assert access_token_revoke(token=token, actor="test")
    assert not access_token_revoke(token=token, actor="test")
    problem(world.by("viewer").get("/tenants"), 401, "authentication_failed")
    soon = timezone.now() + datetime.timedelta(seconds=60)
    made, text = access_token_create(user=world.members["viewer"], name="short", actor="test", expires_at=soon)
    client = Api()
    client.credentials(HTTP_AUTHORIZATION=f"Bearer {text}")
    assert client.get("/tenants").status_code == 200
    AccessToken.objects.filter(pk=made.pk).update(
        created_at=soon - datetime.timedelta(days=2), expires_at=timezone.now() - datetime.timedelta(seconds=1)
    )
    assert client.get("/tenants").status_code == 401
    user_set_active(user=world.members["admin"], is_active=False, actor="test")
    assert world.by("admin").get("/tenants").status_code == 401


def test_a_session_may_read_and_needs_a_csrf_token_to_write(world: World) -> None:
    client = APIClient(enforce_csrf_checks=True)
    client.force_login(world.members["owner"])
    assert client.get("/api/v1/tenants").status_code == 200
    answer = client.post("/api/v1/tenants/acme/keys", NEW, format="json")
    problem(answer, 403, "permission_denied")
    client.cookies["csrftoken"] = "a" * 32
    answer = client.post("/api/v1/tenants/acme/keys", NEW, format="json", headers={"x-csrftoken": "a" * 32})
    assert answer.status_code == 201


def test_keys_do_what_their_scope_says(world: World) -> None:
    assert world.by_key("inference").get("/tenants/acme").status_code == 404
    assert world.by_key("usage").get("/tenants/acme").status_code == 200
    problem(world.by_key("usage").get("/tenants/acme/keys"), 403, "permission_denied")
    assert world.by_key("manage").get("/tenants/acme/keys").status_code == 200
    assert world.by_key("manage").get("/tenants/other/keys").status_code == 404
    assert [row["slug"] for row in world.by_key("manage").get("/tenants").json()["results"]] == ["acme"]
    assert world.by_key("manage").post("/tenants", {"name": "New"}, format="json").status_code == 403


def test_a_key_is_held_to_its_networks(world: World) -> None:
    key = world.keys["manage"][0]
    api_key_update(key=key, allowed_ips=["10.0.0.0/8"], actor="test")
    assert world.by_key("manage").get("/tenants").status_code == 401
    api_key_update(key=key, allowed_ips=["127.0.0.0/8"], actor="test")
    assert world.by_key("manage").get("/tenants").status_code == 200


def test_behind_a_trusted_proxy_a_keys_networks_are_its_clients(world: World, settings: Any) -> None:
    settings.PENSTOCK_TRUSTED_PROXIES = (ip_network("10.0.0.5/32"),)
    api_key_update(key=world.keys["manage"][0], allowed_ips=["10.0.0.0/8"], actor="test")

    def status(peer: str, forwarded_for: str) -> int:
        client = world.by_key("manage")
        answer = client.get("/tenants", REMOTE_ADDR=peer, HTTP_X_FORWARDED_FOR=forwarded_for)
        return int(answer.status_code)

    assert status("10.0.0.5", "203.0.113.7") == 401
    assert status("10.0.0.5", "10.9.9.9, 203.0.113.7") == 401, "what the client itself invents is not believed"
    assert status("10.0.0.5", "203.0.113.7, 10.9.9.9") == 200
    assert status("203.0.113.7", "10.9.9.9") == 401, "nor what comes by no proxy of ours"


# ------------------------------------------------------------------------------------------------ problems
def test_every_field_error_is_told_at_its_field(world: World) -> None:
    body = problem(
        world.by("owner").post(
            "/tenants/acme/keys", {"scopes": ["inference", "fly"], "allowed_ips": "x"}, format="json"
        ),
        400,
        "invalid",
    )
    assert {error["field"] for error in body["errors"]} == {"name", "scopes[1]", "allowed_ips"}
    body = problem(
        world.by("owner").post("/tenants/acme/keys", {"name": "x", "allowed_ips": ["nowhere"]}, format="json"),
        400,
        "invalid",
    )
    assert body["errors"][0]["field"] == "allowed_ips", "what a service refuses has its field, too"


def test_broken_json_other_media_and_methods(world: World) -> None:
    owner = world.by("owner")
    problem(owner.post("/tenants/acme/keys", "{", content_type="application/json"), 400, "parse_error")
    problem(owner.post("/tenants/acme/keys", "a=b", content_type="text/plain"), 415, "unsupported_media_type")
    problem(owner.put("/tenants/acme/keys", NEW, format="json"), 405, "method_not_allowed")


def test_what_no_view_sees_is_told_as_a_problem_too(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    owner = world.by("owner")
    assert (
        "PENSTOCK_ALLOWED_HOSTS"
        in problem(owner.get("/tenants", headers={"host": "elsewhere!"}), 400, "bad_request")["detail"]
    )
    problem(owner.get("/nothing-here"), 404, "not_found")
    problem(owner.post("/tenants/acme/keys", {"name": "x" * 3_000_000}, format="json"), 413, "too_large")
    monkeypatch.setattr("tenants.api.keys.KeysViewSet.list", lambda *args, **kwargs: 1 / 0)
    owner.raise_request_exception = False
    answer = owner.get("/tenants/acme/keys")
    assert "division" not in str(problem(answer, 500, "internal_error"))


@pytest.mark.parametrize(
    "body", ['{"name": "x", "scopes": ["\\ud800"]}', '{"name": "\\udfffx"}', '{"\\ud800": 1, "name": "x"}']
)
def test_half_a_character_is_refused(world: World, body: str) -> None:
    answer = world.by("owner").post("/tenants/acme/keys", body, content_type="application/json")
    assert "surrogate" in problem(answer, 400, "parse_error")["detail"]
    whole = '{"name": "\\ud83d\\ude00"}'
    answer = world.by("owner").post("/tenants/acme/keys", whole, content_type="application/json")
    assert answer.json()["name"] == "\N{GRINNING FACE}"


@pytest.mark.parametrize("query", ["search=%5Cud800", "%5Cud800=x", "usable=%5Cud800", "ordering=%5Cud800"])
def test_half_a_character_is_refused_in_a_query_of_any_charset(world: World, query: str) -> None:
    torn = "text/plain; charset=raw_unicode_escape"
    answer = world.by("owner").generic("GET", f"/tenants/acme/keys?{query}", content_type=torn)
    assert "surrogate" in problem(answer, 400, "parse_error")["detail"]


def test_ids_that_are_none_are_not_found(world: World) -> None:
    problem(world.by("owner").get("/tenants/acme/keys/x"), 404, "not_found")
    problem(world.by("owner").get("/tenants/acme/keys/01890000-0000-7000-8000-000000000000"), 404, "not_found")
    for path in ("/tenants/a%00b", "/tenants/a%00b/keys", "/tenants/acme/keys/%00"):
        problem(world.by("owner").get(path), 404, "not_found")


def test_a_fault_of_ours_is_no_problem_document_and_shows_nothing(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError("secret detail")

    monkeypatch.setattr("tenants.api.keys.KeysViewSet.get_queryset", fail)
    client = Client(raise_request_exception=False, headers={"authorization": f"Bearer {world.tokens['owner']}"})
    answer = client.get("/api/v1/tenants/acme/keys")
    assert answer.status_code == 500
    assert b"secret detail" not in answer.content


def test_what_clashes_at_the_same_moment_is_told_at_its_field(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def clash(**_: Any) -> None:
        Tenant.objects.create(name="Again", slug="acme")

    monkeypatch.setattr("tenants.api.tenants.tenant_create", clash)
    answer = world.by("operator").post("/tenants", {"name": "Acme"}, format="json")
    body = problem(answer, 400, "invalid")
    assert body["errors"][0]["field"] == "slug"
    assert "UNIQUE" not in body["detail"]
    assert "duplicate" not in body["detail"]
    assert world.by("operator").get("/tenants/acme").status_code == 200


# ------------------------------------------------------------------------------------------------ once
def test_a_creation_with_a_key_happens_once(world: World) -> None:
    owner = world.by("owner")
    answers = [
        owner.post("/tenants/acme/keys", NEW, format="json", headers={"idempotency-key": "k1"}) for _ in range(3)
    ]
    assert {answer.status_code for answer in answers} == {201}
    assert len({answer.json()["secret"] for answer in answers}) == 1
    assert "Idempotency-Replayed" not in answers[0].headers
    assert answers[1].headers["Idempotency-Replayed"] == "true"
    assert ApiKey.objects.filter(name="ci").count() == 1
    assert answers[0].json()["secret"].encode() not in bytes(IdempotentAnswer.objects.get().body)


def test_the_same_key_for_another_request_is_refused(world: World) -> None:
    owner = world.by("owner")
    owner.post("/tenants/acme/keys", NEW, format="json", headers={"idempotency-key": "k1"})
    answer = owner.post("/tenants/acme/keys", {"name": "x"}, format="json", headers={"idempotency-key": "k1"})
    problem(answer, 422, "idempotency_key_reused")
    other = world.by("admin").post("/tenants/acme/keys", NEW, format="json", headers={"idempotency-key": "k1"})
    assert "Idempotency-Replayed" not in other.headers, "keys of one caller are not those of another"


def test_a_refused_creation_may_be_corrected_and_sent_again(world: World) -> None:
    owner = world.by("owner")
    bad = owner.post(
        "/tenants/acme/keys", {"name": "x", "allowed_ips": ["no"]}, format="json", headers={"idempotency-key": "k2"}
    )
    assert bad.status_code == 400
    good = owner.post("/tenants/acme/keys", NEW, format="json", headers={"idempotency-key": "k2"})
    assert good.status_code == 201


# ------------------------------------------------------------------------------------------------ versions
def test_a_change_can_insist_on_the_version_it_knows(world: World) -> None:
    owner = world.by("owner")
    seen = owner.get("/tenants/acme")
    assert seen.headers["ETag"]
    changed = owner.patch("/tenants/acme", {"name": "A"}, format="json", headers={"if-match": seen.headers["ETag"]})
    assert changed.status_code == 200
    assert changed.headers["ETag"] != seen.headers["ETag"]
    assert owner.get("/tenants/acme").headers["ETag"] == changed.headers["ETag"]
    stale = owner.patch("/tenants/acme", {"name": "B"}, format="json", headers={"if-match": seen.headers["ETag"]})
    problem(stale, 412, "changed")
    assert Tenant.objects.get(slug="acme").name == "A"
    assert owner.patch("/tenants/acme", {"name": "C"}, format="json").status_code == 200, "without one it just happens"


def test_changes_leave_an_audit_entry_with_whoever_asked(world: World) -> None:
    world.by("owner").patch("/tenants/acme", {"name": "A"}, format="json")
    assert AuditEntry.objects.filter(action="tenant.update").latest("at").actor == "owner@acme.example"
    world.by_key("manage").post("/tenants/acme/keys", {"name": "ci", "scopes": ["manage"]}, format="json")
    assert AuditEntry.objects.filter(action="api_key.create").latest("at").actor.startswith("API key manage")


# ------------------------------------------------------------------------------------------------ pages and rates
def test_lists_have_pages_filters_and_orders(world: World) -> None:
    owner = world.by("owner")
    for number in range(5):
        owner.post("/tenants/acme/keys", {"name": f"n{number}"}, format="json")
    page = owner.get("/tenants/acme/keys?page_size=3&ordering=-name").json()
    assert page["count"] == 8
    assert [row["name"] for row in page["results"]] == ["usage", "n4", "n3"]
    assert "page=2" in page["next"]
    assert owner.get("/tenants/acme/keys?search=N4").json()["count"] == 1
    problem(owner.get("/tenants/acme/keys?page=99"), 404, "not_found")


def test_one_caller_cannot_ask_for_ever(world: World, settings: Any) -> None:
    settings.PENSTOCK_API_RATE = "3/min"
    owner = world.by("owner")
    assert [owner.get("/tenants").status_code for _ in range(4)] == [200, 200, 200, 429]
    answer = owner.get("/tenants")
    problem(answer, 429, "throttled")
    assert 1 <= int(answer.headers["Retry-After"]) <= 60
    assert world.by("admin").get("/tenants").status_code == 200


def statuses(ask: Callable[[int], Any], times: int = 4) -> list[int]:
    return [ask(number).status_code for number in range(times)]


def test_nobody_gets_a_new_count_by_naming_another_address(world: World, settings: Any) -> None:
    settings.PENSTOCK_API_RATE = "3/min"
    nobody = world.by("nobody")
    tries = statuses(lambda number: nobody.get("/tenants", HTTP_X_FORWARDED_FOR=f"198.51.100.{number}" + " " * 5000))
    assert tries == [401, 401, 401, 429]
    settings.PENSTOCK_TRUSTED_PROXIES = (ip_network("127.0.0.0/8"),)
    assert statuses(lambda number: nobody.get("/tenants", HTTP_X_FORWARDED_FOR=f"198.51.100.{number}")) == [401] * 4
    kept = " ".join(cache._cache)  # type: ignore[attr-defined]  # of the tests' cache in memory
    assert "198.51.100" not in kept
    assert "127.0.0.1" not in kept


def test_wrong_tokens_are_counted_by_address(world: World, settings: Any) -> None:
    settings.PENSTOCK_API_RATE = "3/min"
    client = Api()
    client.credentials(HTTP_AUTHORIZATION="Bearer pst_abc_def")
    assert statuses(lambda _: client.get("/tenants")) == [401, 401, 401, 429]
    assert world.by("owner").get("/tenants").status_code == 200, "whoever has a token has a count of their own"
    cache.clear()
    client.credentials(HTTP_AUTHORIZATION="Bearer pse_abc_def")
    assert statuses(lambda _: client.post("/enrol", {}, format="json")) == [401, 401, 401, 429]


def test_refusals_are_counted(world: World, settings: Any) -> None:
    settings.PENSTOCK_API_RATE = "3/min"
    viewer = world.by("viewer")
    assert statuses(lambda _: viewer.post("/tenants/acme/keys", NEW, format="json")) == [403, 403, 403, 429]
    usage = world.by_key("usage")
    assert statuses(lambda _: usage.get("/hosts")) == [403, 403, 403, 429]


def test_the_document_is_made_once(db: None, monkeypatch: pytest.MonkeyPatch) -> None:
    anybody = APIClient()
    first = anybody.get("/api/schema")
    monkeypatch.setattr(SchemaGenerator, "get_schema", None)
    again = anybody.get("/api/schema?version=2")
    assert (first.status_code, again.content) == (200, first.content)


def test_without_the_shared_state_nobody_is_held_back(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    class Down:
        def get(self, *_: Any) -> None:
            raise RedisError("down")

    monkeypatch.setattr(CallerThrottle, "cache", Down())
    assert world.by("owner").get("/tenants").status_code == 200
