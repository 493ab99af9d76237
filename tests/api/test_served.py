"""What a tenant is told of the models it may use, for every kind of caller."""

from __future__ import annotations

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext

from serving.models import Deployment, Replica
from serving.services import deployment_disable
from tests import factories
from tests.api.callers import codes
from tests.api.conftest import ROLES, World

PATH = "/tenants/acme/deployments"


@pytest.fixture
def open_to_all(world: World) -> Deployment:
    return factories.deployment(name="open")


@pytest.fixture
def of_other(world: World) -> Deployment:
    """Of a pool that is the other tenant's alone."""
    pool = factories.pool(is_public=False)
    pool.tenants.add(world.other)
    return factories.deployment(name="theirs", pool=pool, runtime="vllm")


def ready(of: Deployment, context: int) -> None:
    replica = factories.replica(of, host=factories.host())
    Replica.objects.filter(pk=replica.pk).update(state="ready", address="http://10.1.2.3:1", max_model_len=context)


def test_members_and_keys_that_may_look_see_it(world: World, open_to_all: Deployment) -> None:
    assert codes(world, "get", PATH) == {
        **dict.fromkeys((*ROLES, "operator", "key:usage", "key:manage"), 200),
        **dict.fromkeys(("outsider", "key:inference"), 404),
        "nobody": 401,
    }
    assert codes(world, "get", "/tenants/other/deployments") == {
        **dict.fromkeys((*ROLES, "key:inference", "key:usage", "key:manage"), 404),
        **dict.fromkeys(("outsider", "operator"), 200),
        "nobody": 401,
    }


def test_a_tenant_sees_the_models_of_its_pools_only(
    world: World, open_to_all: Deployment, of_other: Deployment
) -> None:
    def names(who: str, tenant: str) -> list[str]:
        rows = world.by(who).get(f"/tenants/{tenant}/deployments").json()["results"]
        return [row["name"] for row in rows]

    assert names("viewer", "acme") == ["open"]
    assert names("outsider", "other") == ["open", "theirs"]
    deployment_disable(deployment=open_to_all, actor="test")
    assert names("viewer", "acme") == []


def test_nothing_of_what_runs_it_is_told(world: World, open_to_all: Deployment, of_other: Deployment) -> None:
    row = world.by("viewer").get(PATH).json()["results"][0]
    assert row == {
        "id": str(open_to_all.pk),
        "name": "open",
        "pool": open_to_all.pool.slug,
        "label": "simulated",
        "speaks": ["generate"],
        "context_tokens": None,
        "is_ready": False,
    }
    for context in (8192, 4096):
        ready(open_to_all, context)
    answer = world.by("viewer").get(PATH)
    assert answer.json()["results"][0] | {"context_tokens": 4096, "is_ready": True} == answer.json()["results"][0]
    assert "10.1.2.3" not in answer.content.decode()
    theirs = world.by("outsider").get("/tenants/other/deployments?name=theirs").json()["results"]
    assert [row["label"] for row in theirs] == [""]


def test_filters(world: World, open_to_all: Deployment) -> None:
    other = factories.deployment(name="other")
    ready(other, 100)

    def names(query: str) -> list[str]:
        return [row["name"] for row in world.by("viewer").get(f"{PATH}?{query}").json()["results"]]

    assert names("ordering=-name") == ["other", "open"]
    assert names("is_ready=true") == names(f"pool={other.pool.slug}") == names("name=other") == ["other"]
    assert names("is_ready=false") == ["open"]


def test_the_list_asks_a_constant_number_of_queries(world: World, open_to_all: Deployment) -> None:
    def asked() -> int:
        with CaptureQueriesContext(connection) as queries:
            assert world.by("viewer").get(PATH).status_code == 200
        return len(queries)

    asked()
    few = asked()
    for number in range(4):
        ready(factories.deployment(name=f"n{number}"), 100)
    assert asked() == few
