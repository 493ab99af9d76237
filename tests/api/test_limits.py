"""Limits of tenants and keys over the REST API."""

from __future__ import annotations

import uuid
from datetime import datetime, timedelta

import pytest
from django.utils import timezone

from capacity.models import BooksState, UsageRollup
from tenants.models import AuditEntry, Limit, Membership
from tenants.services import api_key_create, limit_set
from tests import factories
from tests.api.callers import NOWHERE, codes
from tests.api.conftest import World
from tests.api.test_foundation import problem

PATH = "/tenants/acme/limits"
CHANGERS = {
    "owner": 200,
    "admin": 200,
    "developer": 403,
    "viewer": 403,
    "outsider": 404,
    "nobody": 401,
    "key:inference": 404,
    "key:usage": 403,
    "key:manage": 200,
    "operator": 200,
}
VIEWERS = {**CHANGERS, "developer": 200, "viewer": 200, "key:usage": 200}


@pytest.fixture
def key_path(world: World) -> str:
    return f"/tenants/acme/keys/{world.keys['inference'][0].pk}/limits"


def test_who_sees_and_changes_the_limits_of_a_tenant(world: World) -> None:
    limit_set(tenant=world.acme, kind="concurrency", value=4, set_by="tenant", actor="test")
    assert codes(world, "get", PATH) == codes(world, "get", f"{PATH}/concurrency") == VIEWERS
    assert codes(world, "put", f"{PATH}/concurrency", {"value": 9}) == {**CHANGERS, "operator": 201}, (
        "the operator sets another"
    )
    removed = codes(world, "delete", f"{PATH}/concurrency")
    assert removed == {**CHANGERS, "owner": 204, "admin": 403, "key:manage": 403, "operator": 204}


def test_who_sees_and_changes_the_limits_of_a_key(world: World, key_path: str) -> None:
    limit_set(
        tenant=world.acme,
        api_key=world.keys["inference"][0],
        kind="concurrency",
        value=4,
        set_by="tenant",
        actor="test",
    )
    viewers = {**VIEWERS, "key:usage": 403}
    assert codes(world, "get", key_path) == codes(world, "get", f"{key_path}/concurrency") == viewers
    assert codes(world, "put", f"{key_path}/concurrency", {"value": 9}) == {**CHANGERS, "operator": 201}, (
        "the operator sets another"
    )
    removed = codes(world, "delete", f"{key_path}/concurrency")
    assert removed == {**CHANGERS, "owner": 204, "admin": 403, "key:manage": 403, "operator": 204}


@pytest.fixture
def member_path(world: World) -> str:
    return f"/tenants/acme/members/{Membership.objects.get(tenant=world.acme, role='developer').pk}/limits"


def test_who_sees_and_changes_the_limits_of_a_member(world: World, member_path: str) -> None:
    member = Membership.objects.get(tenant=world.acme, role="developer")
    limit_set(tenant=world.acme, member=member, kind="mu_per_min", value=4, set_by="tenant", actor="test")
    viewers = codes(world, "get", f"/tenants/acme/members/{member.pk}")
    assert codes(world, "get", member_path) == codes(world, "get", f"{member_path}/mu_per_min") == viewers
    assert codes(world, "put", f"{member_path}/mu_per_min", {"value": 9}) == {**CHANGERS, "operator": 201}
    removed = codes(world, "delete", f"{member_path}/mu_per_min")
    assert removed == {**CHANGERS, "owner": 204, "admin": 403, "key:manage": 403, "operator": 204}


def test_setting_a_limit_makes_or_changes_it(world: World, key_path: str, member_path: str) -> None:
    admin = world.by("admin")
    for base in (PATH, key_path, member_path):
        made = admin.put(f"{base}/tokens_per_min", {"value": 1000}, format="json")
        again = admin.put(f"{base}/tokens_per_min", {"value": 1000}, format="json")
        assert (made.status_code, again.status_code) == (201, 200)
        assert made.json() == again.json(), "nothing has changed"
        one = admin.put(f"{base}/tokens_per_min", {"value": 5, "model": "chat"}, format="json")
        assert one.status_code == 201
        rows = admin.get(base).json()["results"]
        assert [(row["kind"], row["model"], row["value"]) for row in rows] == [
            ("tokens_per_min", "", 1000),
            ("tokens_per_min", "chat", 5),
        ]
        assert admin.get(f"{base}/tokens_per_min?model=chat").json()["value"] == 5
        assert admin.get(f"{base}?model=chat").json()["count"] == 1
        assert admin.delete(f"{base}/tokens_per_min?model=chat").status_code == 204
        assert admin.get(f"{base}/tokens_per_min?model=chat").status_code == 404
        assert admin.get(f"{base}/tokens_per_min").json()["value"] == 1000
    assert Limit.objects.count() == 3
    for whose in ({"api_key": None, "member": None}, {"api_key__isnull": False}, {"member__isnull": False}):
        assert Limit.objects.filter(**whose).count() == 1
    entries = AuditEntry.objects.filter(action__startswith="limit.")
    assert {entry.actor for entry in entries} == {"admin@acme.example"}
    assert entries.filter(action="limit.set").count() == 6, "what changes nothing leaves no entry"


def test_limits_of_another_tenant_are_not_found(world: World, key_path: str, member_path: str) -> None:
    outsider, owner = world.by("outsider"), world.by("owner")
    key, _ = api_key_create(tenant=world.other, name="theirs", actor="test")
    inside = f"/tenants/other/keys/{world.keys['inference'][0].pk}/limits"
    for client, path in (
        (outsider, PATH),
        (outsider, key_path),
        (outsider, inside),
        (outsider, member_path),
        (outsider, member_path.replace("acme", "other")),
        (owner, f"/tenants/acme/members/{NOWHERE}/limits"),
        (owner, f"/tenants/acme/keys/{key.pk}/limits"),
        (owner, f"/tenants/acme/keys/{NOWHERE}/limits"),
        (owner, "/tenants/acme/keys/x/limits"),
        (world.by_key("manage"), "/tenants/other/limits"),
    ):
        assert client.get(path).status_code == 404
        assert client.put(f"{path}/concurrency", {"value": 1}, format="json").status_code == 404
        assert client.delete(f"{path}/concurrency").status_code == 404
    assert not Limit.objects.exists()


def test_what_is_wrong_is_said(world: World) -> None:
    admin = world.by("admin")
    for sent, field in (({"value": 0}, "value"), ({}, "value"), ({"value": 2**63}, "value"), ({"value": "x"}, "value")):
        body = problem(admin.put(f"{PATH}/concurrency", sent, format="json"), 400, "invalid")
        assert [error["field"] for error in body["errors"]] == [field]
    unknown = problem(admin.put(f"{PATH}/speed", {"value": 1}, format="json"), 404, "not_found")
    assert "requests_per_min" in unknown["detail"]
    problem(admin.get(f"{PATH}/concurrency?model=%00"), 404, "not_found")
    assert problem(admin.get(f"{PATH}?kind=speed"), 400, "invalid")["errors"][0]["field"] == "kind"


def test_a_change_can_insist_on_the_version_it_knows(world: World) -> None:
    admin, path = world.by("admin"), f"{PATH}/concurrency"
    gone = admin.put(path, {"value": 1}, format="json", headers={"if-match": '"x"'})
    assert "no such limit" in problem(gone, 412, "changed")["detail"]
    etag = admin.put(path, {"value": 1}, format="json").headers["ETag"]
    assert admin.get(path).headers["ETag"] == etag
    changed = admin.put(path, {"value": 2}, format="json", headers={"if-match": etag})
    assert (changed.status_code, changed.json()["value"]) == (200, 2)
    problem(admin.put(path, {"value": 3}, format="json", headers={"if-match": etag}), 412, "changed")
    problem(admin.delete(path, headers={"if-match": etag}), 412, "changed")
    assert admin.delete(path, headers={"if-match": changed.headers["ETag"]}).status_code == 204


def test_a_budget_tells_what_is_used_what_remains_and_when_it_resets(world: World) -> None:
    now = timezone.now()
    midnight = now.replace(hour=0, minute=0, second=0, microsecond=0)
    chat, other = factories.pool(), factories.pool()
    for tenant, pool, mu in ((world.acme, chat, 30.0), (world.acme, other, 12.5), (world.other, chat, 900.0)):
        UsageRollup.objects.create(
            period="minute", starts_at=midnight, tenant_id=tenant.pk, key_id=world.keys["inference"][0].pk,
            pool_id=pool.pk, deployment_id=uuid.uuid4(), service_class="best_effort", mu=mu, money=mu / 10,
            is_final=True,
        )  # fmt: skip
    BooksState.objects.update_or_create(pk=1, defaults={"final_until": midnight + timedelta(minutes=1)})
    for kind, value, set_by in (
        ("mu_per_day", 100, "tenant"),
        ("mu_per_day", 40, "operator"),
        ("money_per_month", 9, "tenant"),
        ("concurrency", 2, "tenant"),
    ):
        limit_set(tenant=world.acme, kind=kind, value=value, set_by=set_by, actor="test")
    viewer = world.by("viewer")
    rows = viewer.get(PATH).json()["results"]
    found = {(row["kind"], row["set_by"]): row["budget"] for row in rows}
    assert found["concurrency", "tenant"] is None
    for set_by in ("operator", "tenant"):
        day = found["mu_per_day", set_by]
        assert datetime.fromisoformat(day["resets_at"]) == midnight + timedelta(days=1)
        parts = {part["pool"]: (part["used"], part["remaining"]) for part in day["parts"]}
        assert parts == {chat.slug: (30.0, 10.0), other.slug: (12.5, 27.5)}, "of what holds, each pool by itself"
    month = found["money_per_month", "tenant"]
    assert month["parts"] == [{"pool": "", "used": 4.25, "remaining": 4.75}]
    assert datetime.fromisoformat(month["resets_at"]).day == 1
    assert viewer.get(f"{PATH}/mu_per_day?set_by=tenant").json()["budget"] == found["mu_per_day", "tenant"]
