"""Models, pools and prices over the REST API, for operators and for the tenants that use them."""

from __future__ import annotations

import datetime
from typing import Any

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from capacity.models import CostProfile, Model, Pool
from capacity.services import pool_tenants_set
from tenants.models import AuditEntry
from tests import factories
from tests.api.callers import TENANTS_OWN, codes, operators_only
from tests.api.conftest import World
from tests.api.test_foundation import problem

PRICE = {"alpha": 0.01, "beta": 0.05, "modalities": {"image_tile": 0.4}, "long_input_tiers": [[8000, 2]]}


@pytest.fixture
def pool(world: World) -> Pool:
    factories.hardware()
    return factories.pool(name="Shared")


@pytest.fixture
def private(world: World, pool: Pool) -> Pool:
    """A pool that ``other`` alone may use."""
    return factories.pool(name="Private", is_public=False, tenants=[world.other])


# ------------------------------------------------------------------------------------------------ who
def test_operators_alone_see_and_change_models_and_pools(world: World, pool: Pool) -> None:
    for path in ("/models", f"/models/{pool.model.slug}", "/pools", "/pools/shared", "/pools/shared/profiles"):
        assert codes(world, "get", path) == operators_only(200)
    made = operators_only(201)
    model = {"name": "New", "artifact_kind": "tiny"}
    assert codes(world, "post", "/models", model) == made
    new = {"model": "new", "hardware_type": "cpu"}
    assert codes(world, "post", "/pools", new) == made
    profile = {**PRICE, "hardware_type": "cpu"}
    assert codes(world, "post", "/pools/new/profiles", profile) == made
    name = {"name": "Renamed"}
    assert codes(world, "patch", "/models/new", name) == operators_only(200)
    assert codes(world, "patch", "/pools/new", name) == operators_only(200)
    tenants = {"tenants": ["acme"]}
    assert codes(world, "put", "/pools/new/tenants", tenants) == operators_only(200)


def test_a_tenant_sees_the_pools_it_may_use(world: World, private: Pool) -> None:
    for path in ("/tenants/acme/pools", "/tenants/acme/pools/shared"):
        assert codes(world, "get", path) == TENANTS_OWN
    assert codes(world, "get", "/tenants/acme/pools/private") == dict.fromkeys(TENANTS_OWN, 404) | {"nobody": 401}
    outsider = world.by("outsider")
    assert [row["slug"] for row in outsider.get("/tenants/other/pools").json()["results"]] == ["private", "shared"]
    assert outsider.get(f"/tenants/other/pools/{private.pk}").status_code == 200
    pool_tenants_set(pool=private, tenants=[world.other, world.acme], actor="test")
    assert [row["slug"] for row in world.by("viewer").get("/tenants/acme/pools").json()["results"]] == [
        "private",
        "shared",
    ]


def test_a_tenant_is_told_objectives_and_price_and_nothing_of_others(world: World, private: Pool) -> None:
    seen = world.by("outsider").get("/tenants/other/pools/private").json()
    price = CostProfile.objects.get(pool=private)
    assert seen == {
        "id": str(private.pk),
        "slug": "private",
        "name": "Private",
        "model": private.model.slug,
        "ttft_objective_ms": 1000,
        "tpot_objective_ms": 50,
        "tolerable_wait_s": 5.0,
        "slo_share": 0.01,
        "best_effort": True,
        "credit_tiers": [[0.999, 0.1], [0.99, 0.25], [0.95, 1.0]],
        "claw_back_s": 10.0,
        "price": {
            "version": 1,
            "effective_from": seen["price"]["effective_from"],
            "calibrated": False,
            "base": price.base,
            "alpha": price.alpha,
            "beta": price.beta,
            "gamma": price.gamma,
            "epsilon": price.epsilon,
            "cached_factor": price.cached_factor,
            "modalities": price.modalities,
            "long_input_tiers": [],
            "price_per_1000_mu": None,
        },
    }


# ------------------------------------------------------------------------------------------------ models
def test_a_model_is_made_once_and_changed(world: World, pool: Pool) -> None:
    operator = world.by("operator")
    new = {"name": "Llama 8B", "artifact_kind": "hub", "artifact_value": "org/llama", "parameters": 8_000_000_000}
    made = [operator.post("/models", new, format="json", headers={"idempotency-key": "k"}) for _ in range(2)]
    assert [answer.status_code for answer in made] == [201, 201]
    assert made[0].json() == made[1].json()
    assert made[0].json()["slug"] == "llama-8b"
    tag = {"if-match": made[0].headers["ETag"]}
    changed = operator.patch("/models/llama-8b", {"context_tokens": 8192}, format="json", headers=tag)
    assert (changed.json()["context_tokens"], changed.json()["parameters"]) == (8192, 8_000_000_000)
    problem(operator.patch("/models/llama-8b", {"name": "x"}, format="json", headers=tag), 412, "changed")
    assert AuditEntry.objects.get(action="model.update").after == {"context_tokens": 8192}
    assert Model.objects.get(slug="llama-8b").name == "Llama 8B"
    assert [row["slug"] for row in operator.get("/models?artifact_kind=hub").json()["results"]] == ["llama-8b"]


@pytest.mark.parametrize(
    ("fields", "at"),
    [
        ({"artifact_kind": "hub"}, "artifact_value"),
        ({"artifact_kind": "floppy"}, "artifact_kind"),
        ({"parameters": 0}, "parameters"),
        ({"slug": "a b"}, "slug"),
        ({"name": ""}, "name"),
    ],
)
def test_a_bad_model_is_refused_at_its_field(world: World, fields: dict[str, Any], at: str) -> None:
    new = {"name": "M", "artifact_kind": "tiny", **fields}
    body = problem(world.by("operator").post("/models", new, format="json"), 400, "invalid")
    assert [error["field"] for error in body["errors"]] == [at]


# ------------------------------------------------------------------------------------------------ pools
def test_a_pool_is_made_with_a_price_of_its_own_or_a_default(world: World, pool: Pool) -> None:
    operator = world.by("operator")
    new = {"model": pool.model.slug, "hardware_type": "cpu", "name": "Fast", "tenants": ["acme"], "is_public": False}
    made = operator.post("/pools", {**new, "price": PRICE}, format="json").json()
    assert (made["slug"], made["tenants"], made["is_public"]) == ("fast", ["acme"], False)
    assert {name: made["price"][name] for name in ("version", "alpha", "modalities", "long_input_tiers")} == {
        "version": 1,
        "alpha": 0.01,
        "modalities": {"image_tile": 0.4},
        "long_input_tiers": [[8000.0, 2.0]],
    }
    assert operator.get(f"/pools/{made['id']}").json() == made
    plain = operator.post("/pools", {**new, "name": "Plain", "hardware_type": str(factories.hardware().pk)}, "json")
    assert plain.json()["price"]["calibrated"] is False
    assert [row["slug"] for row in operator.get("/pools?is_public=false").json()["results"]] == ["fast", "plain"]


def test_a_pool_is_made_once(world: World, pool: Pool) -> None:
    new = {"model": pool.model.slug, "hardware_type": "cpu", "name": "Fast"}
    operator = world.by("operator")
    made = [operator.post("/pools", new, format="json", headers={"idempotency-key": "k"}).json() for _ in range(2)]
    assert made[0]["id"] == made[1]["id"]
    body = problem(operator.post("/pools", new, format="json"), 400, "invalid")
    assert [error["field"] for error in body["errors"]] == ["slug"]


@pytest.mark.parametrize(
    ("fields", "at"),
    [
        ({"model": "none"}, "model"),
        ({"hardware_type": 7}, "hardware_type"),
        ({"hardware_type": "c\0pu"}, "hardware_type"),
        ({"tolerable_wait_s": 10**400}, "tolerable_wait_s"),
        ({"tenants": ["nobody"]}, "tenants"),
        ({"oversell_factor": 0.5}, "oversell_factor"),
        ({"slo_share": "inf"}, "slo_share"),
        ({"ttft_objective_ms": 0}, "ttft_objective_ms"),
        ({"credit_tiers": [[0.9, 0.1], [0.99, 0.2]]}, "credit_tiers"),
        ({"credit_tiers": None}, "credit_tiers"),
        ({"price": {"alpha": -1, "beta": 1}}, "price.alpha"),
        ({"price": {"alpha": 0, "beta": 0}}, "alpha"),
    ],
)
def test_a_bad_pool_is_refused_at_its_field(world: World, pool: Pool, fields: dict[str, Any], at: str) -> None:
    new = {"model": pool.model.slug, "hardware_type": "cpu", "name": "Bad", **fields}
    body = problem(world.by("operator").post("/pools", new, format="json"), 400, "invalid")
    assert [error["field"] for error in body["errors"]] == [at]
    assert not Pool.objects.filter(name="Bad").exists()


def test_a_pool_says_whether_it_lends_and_how_fast_that_comes_back(world: World, pool: Pool) -> None:
    operator = world.by("operator")
    assert operator.get("/pools/shared").json()["best_effort"] is True
    changed = operator.patch("/pools/shared", {"best_effort": False}, format="json")
    assert changed.json()["best_effort"] is False
    assert operator.get("/pools?best_effort=false").json()["results"][0]["slug"] == "shared"
    assert world.by("owner").get("/tenants/acme/pools/shared").json()["best_effort"] is False
    new = {**PRICE, "alpha": 0.01, "hardware_type": "cpu"}
    assert operator.post("/pools/shared/profiles", new, format="json").status_code == 201
    operator.patch(f"/models/{pool.model.slug}", {"context_tokens": 2000}, format="json")
    # 2,000 tokens of 0.01 MU are 20 MU, of 372 ms each, and 0.35 s come on top.
    assert operator.get("/pools/shared").json()["claw_back_s"] == 7.8


def test_a_pools_credits_change_for_what_is_sold_from_then_on(world: World, pool: Pool) -> None:
    operator = world.by("operator")
    changed = operator.patch("/pools/shared", {"credit_tiers": [[0.99, 0.5]]}, format="json")
    assert changed.json()["credit_tiers"] == [[0.99, 0.5]]
    assert world.by("owner").get("/tenants/acme/pools/shared").json()["credit_tiers"] == [[0.99, 0.5]]
    entry = AuditEntry.objects.get(action="pool.update")
    assert entry.after == {"credit_tiers": [[0.99, 0.5]]}
    assert operator.patch("/pools/shared", {"credit_tiers": []}, format="json").json()["credit_tiers"] == []


def test_a_pool_changes_at_the_version_known(world: World, pool: Pool) -> None:
    operator = world.by("operator")
    tag = {"if-match": operator.get("/pools/shared").headers["ETag"]}
    changed = operator.patch("/pools/shared", {"keep_spare": False}, format="json", headers=tag)
    assert (changed.json()["keep_spare"], changed.json()["is_public"]) == (False, True)
    problem(operator.patch("/pools/shared", {"name": "x"}, format="json", headers=tag), 412, "changed")
    problem(operator.put("/pools/shared/tenants", {"tenants": []}, format="json", headers=tag), 412, "changed")
    fresh = {"if-match": changed.headers["ETag"]}
    put = operator.put("/pools/shared/tenants", {"tenants": ["other"], "is_public": False}, "json", headers=fresh)
    assert (put.json()["tenants"], put.json()["is_public"]) == (["other"], False)
    assert operator.put("/pools/shared/tenants", {"tenants": []}, format="json").json()["tenants"] == []
    assert AuditEntry.objects.filter(action="pool.set_tenants").count() == 2


# ------------------------------------------------------------------------------------------------ prices
def test_a_new_price_is_a_new_version(world: World, pool: Pool) -> None:
    operator = world.by("operator")
    new = {**PRICE, "hardware_type": "cpu", "calibrated": True, "notes": "measured", "replica_mu_per_min": 90}
    made = operator.post("/pools/shared/profiles", new, format="json", headers={"idempotency-key": "k"})
    assert made.status_code == 201
    operator.post("/pools/shared/profiles", new, format="json", headers={"idempotency-key": "k"})
    rows = operator.get("/pools/shared/profiles").json()["results"]
    assert [row["version"] for row in rows] == [2, 1]
    assert rows[0] == made.json()
    assert (rows[0]["replica_mu_per_min"], rows[0]["notes"], rows[0]["hardware_type"]) == (90.0, "measured", "cpu")
    assert operator.get("/pools/shared").json()["price"]["version"] == 2
    later = timezone.now() + datetime.timedelta(days=1)
    operator.post("/pools/shared/profiles", {**new, "effective_from": later.isoformat()}, format="json")
    assert operator.get("/pools/shared").json()["price"]["version"] == 2
    assert operator.get("/pools/none/profiles").status_code == 404


def test_a_price_to_come_is_withdrawn_and_brought_back(world: World, pool: Pool) -> None:
    later = (timezone.now() + datetime.timedelta(days=1)).isoformat()
    new = {**PRICE, "hardware_type": "cpu", "effective_from": later}
    assert world.by("operator").post("/pools/shared/profiles", new, format="json").status_code == 201
    path = "/pools/shared/profiles/2"
    assert codes(world, "post", f"{path}/withdraw") == operators_only(200)
    operator = world.by("operator")
    row = operator.get("/pools/shared/profiles").json()["results"][0]
    assert (row["version"], row["withdrawn_at"] is None) == (2, False)
    assert codes(world, "post", f"{path}/restore") == operators_only(200)
    assert operator.get("/pools/shared/profiles").json()["results"][0]["withdrawn_at"] is None
    body = problem(operator.post("/pools/shared/profiles/1/withdraw", format="json"), 400, "invalid")
    assert "is in force since" in str(body)
    assert operator.post("/pools/shared/profiles/9/withdraw", format="json").status_code == 404


@pytest.mark.parametrize(
    ("fields", "at"),
    [
        ({"alpha": "nan"}, "alpha"),
        ({"cached_factor": 2}, "cached_factor"),
        ({"modalities": {"image_tile": -1}}, "modalities.image_tile"),
        ({"modalities": {"a\0b": 1}}, "modalities"),
        ({"long_input_tiers": [[1000, 3], [2000, 2]]}, "long_input_tiers"),
        ({"long_input_tiers": [[1000]]}, "long_input_tiers[0]"),
        ({"replica_mu_per_min": 0}, "replica_mu_per_min"),
        ({"effective_from": "2020-01-01T00:00:00Z"}, "effective_from"),
        ({"hardware_type": "none"}, "hardware_type"),
    ],
)
def test_a_bad_price_is_refused_at_its_field(world: World, pool: Pool, fields: dict[str, Any], at: str) -> None:
    new = {**PRICE, "hardware_type": "cpu", **fields}
    body = problem(world.by("operator").post("/pools/shared/profiles", new, format="json"), 400, "invalid")
    assert [error["field"] for error in body["errors"]] == [at]
    assert CostProfile.objects.filter(pool=pool).count() == 1


@pytest.mark.parametrize("path", ["/models", "/pools", "/pools/shared/profiles", "/tenants/acme/pools"])
def test_lists_ask_no_more_with_more_rows(world: World, private: Pool, path: str) -> None:
    operator = world.by("operator")
    operator.get(path)

    def asked() -> int:
        with CaptureQueriesContext(connection) as queries:
            assert operator.get(path).status_code == 200
        return len(queries)

    few = asked()
    for _ in range(3):
        factories.pool(tenants=[world.acme, world.other])
        operator.post("/pools/shared/profiles", {**PRICE, "hardware_type": "cpu"}, format="json")
    assert asked() == few
