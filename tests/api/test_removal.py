"""What is no longer needed is removed over the REST API: what refers to it stands in the way, its history stays."""

from __future__ import annotations

import pytest

from capacity.models import Model, Pool, Reservation
from capacity.services import model_remove, pool_create, pool_remove
from serving.models import Deployment, Replica, Revision
from serving.services import (
    deployment_create,
    deployment_disable,
    deployment_enable,
    deployment_remove,
    revision_create,
)
from tenants.models import AuditEntry
from tenants.services import api_key_update
from tests import factories
from tests.api.callers import codes, operators_only
from tests.api.conftest import World
from tests.api.test_foundation import problem


@pytest.fixture
def chat(world: World) -> Deployment:
    return factories.deployment(name="chat")


def test_only_operators_remove(world: World, chat: Deployment) -> None:
    assert codes(world, "delete", f"/models/{chat.pool.model.slug}") == operators_only(409)
    assert codes(world, "delete", f"/pools/{chat.pool.slug}") == operators_only(409)
    assert codes(world, "delete", f"/deployments/{chat.pk}") == operators_only(204)


def test_a_deployment_with_replicas_is_removed_only_when_confirmed_by_its_name(world: World, chat: Deployment) -> None:
    operator, path = world.by("operator"), f"/deployments/{chat.pk}"
    host = factories.host(name="rack-1")
    replica = factories.replica(chat, host=host)
    body = problem(operator.delete(path), 409, "in_use")
    assert body["references"] == [{"kind": "replica", "name": str(replica.pk), "detail": "pending on rack-1"}]
    assert "confirm with its name" in body["hint"]
    problem(operator.delete(f"{path}?confirm=other"), 409, "in_use")
    problem(operator.delete(f"{path}?confirm=chat", headers={"if-match": '"else"'}), 412, "changed")
    assert operator.get(path).json()["removed_at"] is None
    tag = {"if-match": operator.get(path).headers["ETag"]}
    assert operator.delete(f"{path}?confirm=chat", headers=tag).status_code == 204
    assert operator.delete(path).status_code == 204, "once more"
    assert AuditEntry.objects.filter(action="deployment.remove").count() == 1
    shown = operator.get(path).json()
    assert shown["removed_at"]
    assert not shown["is_enabled"]


def test_what_is_removed_can_be_looked_at_and_not_acted_on(world: World, chat: Deployment) -> None:
    operator = world.by("operator")
    replica = factories.replica(chat)
    Replica.objects.update(state="stopped")
    assert operator.delete(f"/deployments/{chat.pk}").status_code == 204
    for action in ("enable", "disable", "retry", "revisions"):
        assert operator.post(f"/deployments/{chat.pk}/{action}", {}, format="json").status_code == 404, action
    assert operator.patch(f"/deployments/{chat.pk}", {"max_replicas": 3}, format="json").status_code == 404
    assert len(operator.get(f"/deployments/{chat.pk}/revisions").json()["results"]) == 1
    assert operator.get(f"/replicas/{replica.pk}").json()["deployment_name"] == "chat"
    lists = [operator.get(f"/deployments{query}").json()["results"] for query in ("", "?removed=true")]
    assert [len(rows) for rows in lists] == [0, 1]
    # Its name is free, for one at a time.
    given = {"pool": chat.pool.slug, "name": "chat", "runtime": "simulated"}
    assert operator.post("/deployments", given, format="json").status_code == 201
    body = problem(operator.post("/deployments", given, format="json"), 400, "invalid")
    assert (body["errors"][0]["field"], Deployment.everything.count()) == ("name", 2)


def test_keys_that_name_it_stay_for_what_has_the_name_next(world: World, chat: Deployment) -> None:
    key, _ = factories.api_key(world.acme, name="narrow")
    api_key_update(key=key, actor="t", models_allowed=["chat"])
    deployment_remove(deployment=chat, actor="t")
    key.refresh_from_db()
    assert (key.models_allowed, key.revoked_at) == (["chat"], None)


def test_adapters_of_what_is_removed_free_their_names(world: World, chat: Deployment) -> None:
    adapters = {"adapters": {"tuned": "/models/tuned"}}
    revision_create(deployment=chat, runtime="vllm", options=adapters, actor="t")
    deployment_remove(deployment=chat, actor="t")
    made = deployment_create(pool=chat.pool, name="tuned", runtime="simulated", actor="t")
    deployment_remove(deployment=made, actor="t")
    other = factories.deployment(name="other")
    revision_create(deployment=other, runtime="vllm", options=adapters, actor="t")
    assert Revision.objects.get(deployment=other, is_current=True).options == adapters


def test_pools_and_models_are_removed_from_the_top_down(world: World, chat: Deployment) -> None:
    operator, pool, model = world.by("operator"), chat.pool, chat.pool.model
    body = problem(operator.delete(f"/pools/{pool.slug}"), 409, "in_use")
    assert body["references"] == [{"kind": "deployment", "name": "chat", "detail": ""}]
    body = problem(operator.delete(f"/models/{model.slug}"), 409, "in_use")
    assert (body["references"][0]["name"], body["hint"]) == (pool.slug, "Remove the pools first.")
    deployment_remove(deployment=chat, actor="t")
    sold = Reservation.objects.create(
        tenant=world.acme,
        pool=pool,
        profile=pool.profiles.get(),
        mu_per_min=5.0,
        starts_at=pool.created_at,
        state=Reservation.State.ACTIVE,
    )
    body = problem(operator.delete(f"/pools/{pool.slug}"), 409, "in_use")
    assert body["references"] == [{"kind": "reservation", "name": str(sold.pk), "detail": "of acme, active"}]
    Reservation.objects.update(state=Reservation.State.ENDED)
    assert operator.delete(f"/pools/{pool.slug}").status_code == 204
    problem(operator.delete(f"/pools/{pool.slug}"), 404, "not_found")
    assert operator.delete(f"/pools/{pool.pk}").status_code == 204
    assert operator.delete(f"/models/{model.slug}").status_code == 204
    assert [operator.get(f"/{noun}?removed=true").json()["count"] for noun in ("pools", "models")] == [1, 1]
    assert world.by("owner").get("/tenants/acme/pools").json()["results"] == []
    (price,) = operator.get(f"/pools/{pool.pk}/profiles").json()["results"]
    assert price["version"] == 1
    problem(operator.get(f"/pools/{pool.slug}/profiles"), 404, "not_found")
    next_price = {"hardware_type": factories.hardware().slug, "alpha": 0.1}
    problem(operator.post(f"/pools/{pool.pk}/profiles", next_price, format="json"), 404, "not_found")
    problem(world.by("owner").get(f"/pools/{pool.pk}/profiles"), 403, "permission_denied")
    again = factories.model(slug=model.slug)
    assert pool_create(model=again, slug=pool.slug, hardware_type=factories.hardware(), actor="t").pk != pool.pk


def test_the_last_that_serves_what_is_sold_stays(world: World, chat: Deployment) -> None:
    """Requests for a model that is not there are in no books: nobody would be told of the broken promise."""
    operator, path = world.by("operator"), f"/deployments/{chat.pk}"
    sold = Reservation.objects.create(
        tenant=world.acme,
        pool=chat.pool,
        profile=chat.pool.profiles.get(),
        mu_per_min=5.0,
        starts_at=chat.created_at,
        state=Reservation.State.ACTIVE,
    )
    other = deployment_create(pool=chat.pool, name="other", runtime="simulated", actor="t")
    deployment_disable(deployment=other, actor="t")
    body = problem(operator.delete(path, {"confirm": "chat"}), 409, "in_use")
    assert body["references"] == [{"kind": "reservation", "name": str(sold.pk), "detail": "of acme, active"}]
    assert "let another deployment serve the pool" in body["hint"]
    deployment_enable(deployment=other, actor="t")
    assert operator.delete(path).status_code == 204
    problem(operator.delete(f"/deployments/{other.pk}"), 409, "in_use")
    Reservation.objects.update(state=Reservation.State.ENDED)
    assert operator.delete(f"/deployments/{other.pk}").status_code == 204


@pytest.mark.parametrize("state", ["starting", "ready", "draining", "stopping"])
def test_a_pool_stays_while_replicas_of_a_removed_deployment_end(world: World, chat: Deployment, state: str) -> None:
    operator, path = world.by("operator"), f"/pools/{chat.pool.slug}"
    replica = factories.replica(chat, host=factories.host(name="rack-1"))
    other = factories.replica(host=factories.host(name="rack-2"))
    unplaced = factories.replica(chat)
    Replica.objects.exclude(pk=unplaced.pk).update(state=state, address="http://127.0.0.1:9000")
    deployment_remove(deployment=chat, actor="t", confirm="chat")
    body = problem(operator.delete(path), 409, "in_use")
    detail = f"of chat, {state} on rack-1"
    assert body["references"] == [{"kind": "replica", "name": str(replica.pk), "detail": detail}]
    assert "1 replica of removed deployments has not ended" in body["detail"]
    Replica.objects.exclude(pk=other.pk).update(state="stopped")
    assert operator.delete(path).status_code == 204


def test_services_do_it_once_and_nothing_is_made_of_what_is_gone(world: World, chat: Deployment) -> None:
    pool, model = chat.pool, chat.pool.model
    assert [deployment_remove(deployment=chat, actor="t") for _ in range(2)] == [True, False]
    assert [pool_remove(pool=Pool.everything.get(pk=pool.pk), actor="t") for _ in range(2)] == [True, False]
    with pytest.raises(Exception, match="has been removed"):
        deployment_create(pool=pool, name="late", runtime="simulated", actor="t")
    assert [model_remove(model=Model.everything.get(pk=model.pk), actor="t") for _ in range(2)] == [True, False]
    entries = {entry.action: entry for entry in AuditEntry.objects.filter(action__endswith=".remove")}
    assert set(entries) == {"deployment.remove", "pool.remove", "model.remove"}
    for entry in entries.values():
        assert (entry.before["removed_at"], bool(entry.after["removed_at"])) == (None, True), entry.action
    with pytest.raises(Exception, match="has been removed"):
        pool_create(model=model, hardware_type=factories.hardware(), actor="t")
