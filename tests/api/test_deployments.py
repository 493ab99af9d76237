"""Deployments and their revisions over the REST API, for every kind of caller."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext

from serving.models import Deployment, Replica, Revision
from serving.services import replica_transition, revision_create
from tenants.models import AuditEntry, Change
from tests import factories
from tests.api.callers import NOWHERE, codes, operators_only
from tests.api.conftest import World


@pytest.fixture
def served(world: World) -> Deployment:
    return factories.deployment(name="org/model-1", max_replicas=3)


def test_a_pool_and_a_name_are_enough(world: World) -> None:
    pool = factories.pool()
    answer = world.by("operator").post("/deployments", {"pool": pool.slug, "name": "org/m"}, format="json")
    assert answer.status_code == 201, answer.content
    made = answer.json()
    assert (made["name"], made["pool"], made["min_replicas"], made["max_replicas"]) == ("org/m", pool.slug, 1, 1)
    assert (made["pinned_replicas"], made["desired_replicas"], made["is_enabled"]) == (None, 1, True)
    assert (made["revision"]["number"], made["revision"]["runtime"]) == (1, "vllm")
    assert made["revision"]["target_concurrency"] == 16
    path = f"/deployments/{made['id']}"
    seen = world.by("operator").get(path)
    assert seen.json() == made
    assert seen.headers["ETag"] == answer.headers["ETag"]
    assert AuditEntry.objects.get(action="deployment.create").actor == "operator@penstock.example"


def test_a_model_without_weights_is_simulated_and_a_pool_is_found_by_id(world: World) -> None:
    pool = factories.pool(model=factories.model(artifact_kind="none"))
    body = {
        "pool": str(pool.pk),
        "name": "sim",
        "min_replicas": 0,
        "max_replicas": 4,
        "options": {"memory_bytes": 1},
        "target_concurrency": 8,
    }
    made = world.by("operator").post("/deployments", body, format="json").json()
    assert made["revision"] | {"runtime": "simulated", "options": {"memory_bytes": 1}} == made["revision"]
    assert (made["min_replicas"], made["max_replicas"], made["revision"]["target_concurrency"]) == (0, 4, 8)


def test_what_is_wrong_is_told_at_its_field(world: World, served: Deployment) -> None:
    operator, pool = world.by("operator"), factories.pool().slug

    def wrong(body: dict[str, Any]) -> dict[str, str]:
        answer = operator.post("/deployments", body, format="json")
        assert answer.status_code == 400, answer.content
        assert answer.headers["Content-Type"] == "application/problem+json"
        return {error["field"]: error["message"] for error in answer.json()["errors"]}

    assert set(wrong({})) == {"pool", "name"}
    assert "no such pool" in wrong({"pool": "nothing", "name": "n"})["pool"]
    assert set(wrong({"pool": pool, "name": served.name})) == {"name"}
    assert set(wrong({"pool": pool, "name": "n", "min_replicas": 2})) == {"max_replicas"}
    assert set(wrong({"pool": pool, "name": "n", "options": {"accelerators": -1}})) == {"options"}
    assert set(wrong({"pool": pool, "name": "n", "runtime": "other"})) == {"runtime"}
    assert not Deployment.objects.filter(name="n").exists()


@pytest.mark.parametrize("value", ['"a\\u0000b"', "1e999"])
def test_options_that_a_database_cannot_store_are_refused(world: World, served: Deployment, value: str) -> None:
    operator, path = world.by("operator"), f"/deployments/{served.pk}/revisions"
    answer = operator.post(path, f'{{"options": {{"a": {value}}}}}', content_type="application/json")
    assert answer.status_code == 400
    assert answer.json()["errors"][0]["field"] == "options"
    answer = operator.post(
        path, '{"runtime": "simulated", "options": {"a": "C:\\\\u0000"}}', content_type="application/json"
    )
    assert answer.status_code == 201, "a backslash is none of these"


@pytest.mark.parametrize(("levels", "status"), [(98, 201), (99, 400), (900, 400), (100_000, 400)])
def test_a_body_is_nested_so_deep_and_no_deeper(world: World, served: Deployment, levels: int, status: int) -> None:
    """The body and the options are a level each."""
    text = '{"runtime": "simulated", "options": {"a": ' + "[" * levels + "]" * levels + "}}"
    answer = world.by("operator").post(f"/deployments/{served.pk}/revisions", text, content_type="application/json")
    assert answer.status_code == status
    if status == 400:
        assert "100 levels" in answer.json()["detail"]


def test_options_is_no_method_of_the_api(world: World, served: Deployment) -> None:
    for who in ("operator", "viewer"):
        answer = world.by(who).options(f"/deployments/{served.pk}")
        assert answer.status_code == 405
        assert answer.headers["Allow"] == "GET, HEAD, PATCH, DELETE"
    assert world.by("nobody").options("/deployments").status_code == 401


def test_a_creation_happens_once(world: World) -> None:
    body = {"pool": factories.pool().slug, "name": "once"}
    answers = [
        world.by("operator").post("/deployments", body, format="json", headers={"idempotency-key": "k"})
        for _ in range(2)
    ]
    assert [answer.status_code for answer in answers] == [201, 201]
    assert answers[0].json() == answers[1].json()
    assert Deployment.objects.filter(name="once").count() == 1


def test_deployments_are_for_operators(world: World, served: Deployment) -> None:
    path = f"/deployments/{served.pk}"
    earlier = served.revisions.get()
    revision_create(deployment=served, runtime="simulated", actor="test")
    assert codes(world, "get", "/deployments") == operators_only(200)
    assert codes(world, "get", path) == operators_only(200)
    assert codes(world, "patch", path, {"max_replicas": 4}) == operators_only(200)
    for verb in ("disable", "enable", "retry"):
        assert codes(world, "post", f"{path}/{verb}") == operators_only(200)
    body = {"pool": served.pool.slug, "name": "new"}
    assert codes(world, "post", "/deployments", body) == operators_only(201)
    assert codes(world, "get", f"{path}/revisions") == operators_only(200)
    assert codes(world, "get", f"{path}/revisions/{earlier.pk}") == operators_only(200)
    assert codes(world, "post", f"{path}/revisions", {}) == operators_only(201)
    assert codes(world, "post", f"{path}/revisions/{earlier.pk}/restore") == operators_only(201)


def test_bounds_and_pin_change_and_only_what_is_sent(world: World, served: Deployment) -> None:
    operator, path = world.by("operator"), f"/deployments/{served.pk}"
    pinned = operator.patch(path, {"pinned_replicas": 5}, format="json").json()
    assert (pinned["pinned_replicas"], pinned["desired_replicas"], pinned["max_replicas"]) == (5, 5, 3)
    freed = operator.patch(path, {"pinned_replicas": None, "min_replicas": 2}, format="json").json()
    assert (freed["pinned_replicas"], freed["min_replicas"], freed["desired_replicas"]) == (None, 2, 3)
    answer = operator.patch(path, {"max_replicas": 1}, format="json")
    assert answer.status_code == 400
    assert answer.json()["errors"][0]["field"] == "max_replicas"
    assert operator.patch(path, {"min_replicas": 10**9}, format="json").status_code == 400


def test_a_change_can_insist_on_a_version(world: World, served: Deployment) -> None:
    operator, path = world.by("operator"), f"/deployments/{served.pk}"
    stale = {"if-match": operator.get(path).headers["ETag"]}
    changed = operator.patch(path, {"max_replicas": 4}, format="json", headers=stale)
    assert changed.status_code == 200
    assert operator.patch(path, {"max_replicas": 5}, format="json", headers=stale).status_code == 412
    assert operator.post(f"{path}/disable", headers=stale).status_code == 412
    assert operator.post(f"{path}/disable", headers={"if-match": changed.headers["ETag"]}).status_code == 200
    served.refresh_from_db()
    assert (served.max_replicas, served.is_enabled) == (4, False)


def test_disable_enable_and_retry(world: World, served: Deployment) -> None:
    operator, path = world.by("operator"), f"/deployments/{served.pk}"
    before = Change.objects.count()
    assert operator.post(f"{path}/disable").json()["is_enabled"] is False
    assert operator.post(f"{path}/disable").json()["is_enabled"] is False
    assert Change.objects.count() == before + 1, "gateways are told once"
    assert operator.post(f"{path}/enable").json()["is_enabled"] is True
    assert operator.post(f"{path}/retry").json()["retry_attempt"] == 1
    for _ in range(2):
        again = operator.post(f"{path}/retry", headers={"idempotency-key": "r"})
        assert again.json()["retry_attempt"] == 2


def test_replicas_are_counted_by_state(world: World, served: Deployment) -> None:
    host = factories.host()
    ready, failed, _ = (factories.replica(served, host=host) for _ in range(3))
    replica_transition(replica=ready, to="starting", reason="test")
    replica_transition(replica=ready, to="ready", reason="test", address="http://127.0.0.1:1")
    Replica.objects.filter(pk=failed.pk).update(state="failed")
    row = world.by("operator").get(f"/deployments/{served.pk}").json()
    assert (row["ready_replicas"], row["starting_replicas"], row["failed_replicas"]) == (1, 1, 1)


def test_lists_ask_a_constant_number_of_queries(world: World, served: Deployment) -> None:
    def asked(path: str) -> int:
        with CaptureQueriesContext(connection) as queries:
            assert world.by("operator").get(path).status_code == 200
        return len(queries)

    paths = ("/deployments", f"/deployments/{served.pk}/revisions")
    asked(paths[0])  # the first use of a token writes when that was
    few = [asked(path) for path in paths]
    for _ in range(4):
        factories.replica(factories.deployment())
        revision_create(deployment=served, runtime="simulated", actor="test")
    assert [asked(path) for path in paths] == few


def test_filters(world: World, served: Deployment) -> None:
    other = factories.deployment(name="other")
    operator = world.by("operator")

    def found(query: str) -> list[str]:
        return [row["name"] for row in operator.get(f"/deployments?{query}").json()["results"]]

    assert found("") == ["org/model-1", "other"]
    assert found("search=MODEL") == found("name=org/model-1") == found(f"pool={served.pool.slug}") == ["org/model-1"]
    assert found("ordering=-name") == ["other", "org/model-1"]
    operator.post(f"/deployments/{other.pk}/disable")
    assert found("is_enabled=false") == ["other"]


def test_a_new_revision_takes_over_and_an_earlier_one_comes_back(world: World, served: Deployment) -> None:
    operator, path = world.by("operator"), f"/deployments/{served.pk}/revisions"
    first = operator.get(path).json()["results"][0]
    second = operator.post(path, {"target_concurrency": 32, "runtime": "simulated"}, format="json")
    assert second.status_code == 201
    assert (second.json()["number"], second.json()["is_current"], second.json()["deployment"]) == (
        2,
        True,
        str(served.pk),
    )
    assert operator.get(f"{path}/{first['id']}").json()["is_current"] is False
    for _ in range(2):
        third = operator.post(f"{path}/{first['id']}/restore", headers={"idempotency-key": "back"})
        assert third.status_code == 201
    contents = {name: first[name] for name in ("runtime", "options", "target_concurrency")}
    assert third.json() | {"number": 3, "is_current": True, **contents} == third.json()
    assert [row["number"] for row in operator.get(path).json()["results"]] == [3, 2, 1]
    assert operator.get(f"/deployments/{served.pk}").json()["revision"]["number"] == 3
    refused = operator.post(f"{path}/{third.json()['id']}/restore")
    assert refused.status_code == 400
    assert "current one" in refused.json()["detail"]
    assert Revision.objects.filter(deployment=served).count() == 3


def test_what_is_not_there_is_not_found(world: World, served: Deployment) -> None:
    operator, other = world.by("operator"), factories.deployment().revisions.get()
    for path in (
        f"/deployments/{NOWHERE}",
        "/deployments/x",
        f"/deployments/{NOWHERE}/revisions",
        "/deployments/x/revisions",
        f"/deployments/{served.pk}/revisions/{NOWHERE}",
        f"/deployments/{served.pk}/revisions/{other.pk}",
    ):
        answer = operator.get(path)
        assert answer.status_code == 404, path
        assert answer.headers["Content-Type"] == "application/problem+json"
    assert operator.post(f"/deployments/{served.pk}/revisions/{other.pk}/restore").status_code == 404
    assert operator.post(f"/deployments/{NOWHERE}/revisions", {}, format="json").status_code == 404


def test_a_revision_says_what_it_speaks_and_why_it_runs_so(world: World) -> None:
    operator = world.by("operator")
    model = factories.model(slug="tiny-embed", artifact_kind="tiny", artifact_value="embed")
    pool = factories.pool(model=model).slug
    chosen = operator.get("/models/tiny-embed/runtime").json()
    assert chosen["runtime"] == "vllm"
    assert (chosen["options"], chosen["speaks"], chosen["missing"]) == ({"task": "embed"}, ["embed", "score"], "")
    made = operator.post("/deployments", {"pool": pool, "name": "vectors"}, format="json").json()["revision"]
    assert {name: made[name] for name in ("runtime", "options", "speaks")} == {
        name: chosen[name] for name in ("runtime", "options", "speaks")
    }
    assert made["runtime_reason"] == chosen["reason"]
    path = f"/deployments/{made['deployment']}/revisions"
    own = {"runtime": "command", "options": {"argv": ["s", "{port}"], "speaks": ["http"]}}
    second = operator.post(path, own, format="json").json()
    assert (second["speaks"], second["runtime_reason"]) == (["http"], "Set by hand.")
    wrong = {"runtime": "command", "options": {"argv": "s --port 1"}}
    answer = operator.post(path, wrong, format="json")
    assert answer.status_code == 400
    assert "command option argv" in str(answer.json())


def test_a_model_of_no_known_kind_says_what_is_missing(world: World, tmp_path: Path) -> None:
    operator = world.by("operator")
    model = factories.model(slug="odd", artifact_kind="path", artifact_value=str(tmp_path))
    chosen = operator.get("/models/odd/runtime").json()
    assert (chosen["runtime"], chosen["speaks"]) == ("command", [])
    assert "argv" in chosen["missing"]
    new = {"pool": factories.pool(model=model).slug, "name": "odd"}
    answer = operator.post("/deployments", new, format="json")
    assert answer.status_code == 400
    (error,) = answer.json()["errors"]
    assert error["field"] == "runtime"
    assert "argv" in error["message"]
    assert operator.get("/models/nowhere/runtime").status_code == 404
