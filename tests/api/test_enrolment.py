"""Enrolment tokens over the REST API, and hosts that come in with them."""

from __future__ import annotations

from typing import Any

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext

from capacity.models import EnrolmentToken, Host
from capacity.services import enrolment_token_create, enrolment_token_revoke
from tenants.crypto import decrypt
from tenants.models import AuditEntry
from tests import factories
from tests.api.callers import codes, operators_only
from tests.api.conftest import Api, World
from tests.api.test_foundation import problem
from worker.config import load_config

NEW = {"name": "row 7", "uses": 2, "labels": {"zone": "a"}}
HOST = {"name": "rack-1", "hardware": "NVIDIA L4", "memory_bytes": 24 << 30}
BROKER = "rediss://agent:pw@state.example.org:6380/0"


@pytest.fixture
def reachable(settings: Any) -> None:
    settings.PENSTOCK_AGENT_REDIS_URL = BROKER


def with_token(text: str) -> Api:
    client = Api()
    client.credentials(HTTP_AUTHORIZATION=f"Bearer {text}")
    return client


def test_operators_alone_have_to_do_with_tokens(world: World) -> None:
    token, _ = enrolment_token_create(name="t", actor="t")
    for path in ("/enrolment-tokens", f"/enrolment-tokens/{token.pk}"):
        assert codes(world, "get", path) == operators_only(200)
    made = operators_only(201)
    assert codes(world, "post", "/enrolment-tokens", NEW) == made
    assert codes(world, "post", f"/enrolment-tokens/{token.pk}/revoke") == operators_only(200)


def test_a_token_is_made_once_and_shown_once(world: World) -> None:
    operator = world.by("operator")
    new = {**NEW, "hardware_type": factories.hardware().slug}
    made = [operator.post("/enrolment-tokens", new, format="json", headers={"idempotency-key": "k"}) for _ in range(2)]
    assert made[0].json() == made[1].json()
    text = made[0].json()["secret"]
    assert text.startswith(f"pse_{made[0].json()['public_id']}_")
    seen = operator.get(f"/enrolment-tokens/{made[0].json()['id']}").json()
    assert {name: seen[name] for name in ("name", "uses_left", "labels", "hardware_type", "created_by")} == {
        "name": "row 7",
        "uses_left": 2,
        "labels": {"zone": "a"},
        "hardware_type": "cpu",
        "created_by": "operator@penstock.example",
    }
    told = operator.get("/enrolment-tokens").content.decode() + str(seen) + str(list(AuditEntry.objects.values()))
    digest = EnrolmentToken.objects.get().digest
    assert text.split("_")[2] not in told
    assert digest not in told


@pytest.mark.parametrize(
    ("fields", "at"),
    [
        ({"name": ""}, "name"),
        ({"uses": 0}, "uses"),
        ({"hardware_type": "none"}, "hardware_type"),
        ({"labels": {"zone": []}}, "labels.zone"),
        ({"expires_at": "2020-01-01T00:00:00Z"}, "expires_at"),
    ],
)
def test_a_bad_token_is_refused_at_its_field(world: World, fields: dict[str, Any], at: str) -> None:
    body = problem(world.by("operator").post("/enrolment-tokens", {**NEW, **fields}, format="json"), 400, "invalid")
    assert [error["field"] for error in body["errors"]] == [at]


def test_a_token_is_revoked_at_the_version_known(world: World, reachable: None) -> None:
    operator = world.by("operator")
    made = operator.post("/enrolment-tokens", NEW, format="json")
    path = f"/enrolment-tokens/{made.json()['id']}"
    assert operator.get("/enrolment-tokens?usable=true").json()["count"] == 1
    problem(operator.post(f"{path}/revoke", headers={"if-match": '"old"'}), 412, "changed")
    answer = operator.post(f"{path}/revoke", headers={"if-match": made.headers["ETag"]})
    assert (answer.json()["is_usable"], answer.json()["revoked_at"] is None) == (False, False)
    assert operator.get("/enrolment-tokens?usable=true").json()["count"] == 0
    assert operator.get("/enrolment-tokens?usable=false").json()["count"] == 1
    problem(with_token(made.json()["secret"]).post("/enrol", HOST, format="json"), 401, "authentication_failed")


def test_a_host_comes_in_with_what_its_agent_needs(
    world: World, reachable: None, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    token, text = enrolment_token_create(name="t", labels={"zone": "a"}, actor="t")
    answer = with_token(text).post("/enrol", HOST, format="json")
    assert answer.status_code == 201
    host = Host.objects.get(name="rack-1")
    assert (host.hardware_type.slug, host.labels) == ("nvidia-l4", {"zone": "a"})
    file = tmp_path / "agent.json"
    file.write_bytes(answer.content)
    file.chmod(0o600)
    config = load_config(file)
    assert (config.host_id, config.name, config.secret) == (str(host.pk), "rack-1", decrypt(host.secret))
    assert (config.broker_url, config.state_url) == (BROKER, BROKER)
    token.refresh_from_db()
    assert token.uses_left == 0
    assert answer.json()["secret"] not in str(list(AuditEntry.objects.values()))


def test_a_host_that_lost_the_answer_gets_it_again(world: World, reachable: None) -> None:
    _, text = enrolment_token_create(name="t", actor="t")
    client = with_token(text)
    first, second = (
        client.post("/enrol", HOST, format="json", headers={"idempotency-key": "boot-1"}) for _ in range(2)
    )
    assert first.json() == second.json()
    assert second.headers["Idempotency-Replayed"] == "true"
    body = problem(client.post("/enrol", {**HOST, "name": "rack-2"}, format="json"), 400, "invalid")
    assert "used up" in body["detail"]
    assert Host.objects.count() == 1


@pytest.mark.parametrize(
    ("fields", "at"),
    [({"name": "a b"}, "name"), ({"name": "taken"}, "name"), ({"hardware": ""}, "hardware"), ({"name": None}, "name")],
)
def test_a_bad_enrolment_is_refused_at_its_field(
    world: World, reachable: None, fields: dict[str, Any], at: str
) -> None:
    factories.host(name="taken")
    token, text = enrolment_token_create(name="t", actor="t")
    body = problem(with_token(text).post("/enrol", {**HOST, **fields}, format="json"), 400, "invalid")
    assert [error["field"] for error in body["errors"]] == [at]
    token.refresh_from_db()
    assert token.uses_left == 1


def test_nothing_but_an_enrolment_token_enrols(world: World, reachable: None) -> None:
    refused = codes(world, "post", "/enrol", HOST)
    assert set(refused.values()) == {401}
    answer = world.by("nobody").post("/enrol", HOST, format="json")
    problem(answer, 401, "not_authenticated")
    assert answer.headers["WWW-Authenticate"].startswith("Bearer")
    token, text = enrolment_token_create(name="t", actor="t")
    for path in ("/tenants", "/hosts", "/enrolment-tokens"):
        assert with_token(text).get(path).status_code == 401, "and it does nothing else"
    enrolment_token_revoke(token=token, actor="t")
    assert with_token(text).post("/enrol", HOST, format="json").status_code == 401


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("", "is not set"),
        ("unix:///data/state/valkey.sock", "reach"),
        ("redis://agent:pw@localhost:6379/0", "reach"),
        ("redis://agent:pw@127.0.0.1", "reach"),
        ("redis://agent:pw@[::1]:6379", "reach"),
        ("redis://agent:pw@[::1", "cannot be read"),
        ("rediss://control:plane@state.example.org:6380/0", "login of REDIS_URL"),
        ("rediss://control:plane@state.internal:6380/1", "login of REDIS_URL"),
    ],
)
def test_no_host_is_told_what_it_cannot_reach_or_must_not_have(world: World, settings: Any, url: str, why: str) -> None:
    settings.REDIS_URL = "rediss://control:plane@state.example.org:6380/0"
    settings.PENSTOCK_AGENT_REDIS_URL = url
    token, text = enrolment_token_create(name="t", actor="t")
    body = problem(with_token(text).post("/enrol", HOST, format="json"), 409, "broker_not_reachable")
    assert why in body["detail"]
    assert "PENSTOCK_AGENT_REDIS_URL" in body["hint"]
    token.refresh_from_db()
    assert (token.uses_left, Host.objects.count()) == (1, 0)


def test_without_a_user_for_agents_the_state_is_nobodys_but_the_control_planes(world: World, settings: Any) -> None:
    settings.REDIS_URL = "rediss://state.example.org:6380/0"
    settings.PENSTOCK_AGENT_REDIS_URL = "rediss://state.example.org:6380/0?db=1"
    _, text = enrolment_token_create(name="t", actor="t")
    problem(with_token(text).post("/enrol", HOST, format="json"), 409, "broker_not_reachable")


def test_the_list_asks_no_more_with_more_rows(world: World) -> None:
    operator = world.by("operator")
    counts = []
    for _ in range(2):
        for _ in range(3):
            enrolment_token_create(name="t", hardware_type=factories.hardware(), actor=world.operator)
        with CaptureQueriesContext(connection) as queries:
            assert operator.get("/enrolment-tokens").status_code == 200
        counts.append(len(queries))
    assert counts[0] >= counts[1]
