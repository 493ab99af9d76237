"""Tenants and their keys over the REST API, for every kind of caller."""

from __future__ import annotations

import datetime

import pytest
from django.utils import timezone

from tenants.models import ApiKey, Tenant
from tests.api.conftest import World
from tests.api.test_foundation import problem

CALLERS = ("operator", "owner", "admin", "developer", "viewer", "outsider", "nobody")


@pytest.mark.parametrize(
    ("who", "seen"),
    [("operator", {"acme", "other"}), ("owner", {"acme"}), ("viewer", {"acme"}), ("outsider", {"other"})],
)
def test_callers_see_the_tenants_they_have_a_part_in(world: World, who: str, seen: set[str]) -> None:
    assert {row["slug"] for row in world.by(who).get("/tenants").json()["results"]} == seen


def test_operators_create_and_owners_rename(world: World) -> None:
    made = world.by("operator").post("/tenants", {"name": "New Co", "is_active": False}, format="json")
    assert made.status_code == 201
    assert (made.json()["slug"], made.json()["is_active"]) == ("new-co", False)
    codes = {who: world.by(who).patch("/tenants/acme", {"name": "A"}, format="json").status_code for who in CALLERS}
    assert codes == {
        "operator": 200,
        "owner": 200,
        "admin": 403,
        "developer": 403,
        "viewer": 403,
        "outsider": 404,
        "nobody": 401,
    }
    assert world.by("owner").post("/tenants", {"name": "Mine"}, format="json").status_code == 403


def test_a_tenant_is_found_by_id_and_by_slug(world: World) -> None:
    by_slug = world.by("owner").get("/tenants/acme").json()
    assert world.by("owner").get(f"/tenants/{by_slug['id']}").json() == by_slug


def test_who_may_do_what_with_keys(world: World) -> None:
    key = world.keys["inference"][0]
    reads = {who: world.by(who).get("/tenants/acme/keys").status_code for who in CALLERS}
    assert reads == dict.fromkeys(CALLERS, 200) | {"outsider": 404, "nobody": 401}
    makes = {who: world.by(who).post("/tenants/acme/keys", {"name": who}, format="json").status_code for who in CALLERS}
    assert makes == dict.fromkeys(CALLERS, 201) | {"viewer": 403, "outsider": 404, "nobody": 401}
    path = f"/tenants/acme/keys/{key.pk}"
    changes = {who: world.by(who).patch(path, {"name": "x"}, format="json").status_code for who in CALLERS}
    assert changes == dict.fromkeys(CALLERS, 200) | {"developer": 403, "viewer": 403, "outsider": 404, "nobody": 401}


def test_a_key_of_another_tenant_is_not_found_under_ones_own(world: World) -> None:
    key = world.keys["inference"][0]
    outsider = world.by("outsider")
    for path in (f"/tenants/other/keys/{key.pk}", f"/tenants/acme/keys/{key.pk}"):
        assert outsider.get(path).status_code == 404
        assert outsider.post(f"{path}/revoke").status_code == 404
        assert outsider.post(f"{path}/rotate", {}, format="json").status_code == 404
        assert outsider.patch(path, {"name": "x"}, format="json").status_code == 404
    key.refresh_from_db()
    assert key.revoked_at is None


def test_developers_manage_their_own_keys(world: World) -> None:
    developer = world.by("developer")
    made = developer.post("/tenants/acme/keys", {"name": "mine"}, format="json").json()
    assert made["created_by"] == "developer@acme.example"
    path = f"/tenants/acme/keys/{made['id']}"
    assert developer.patch(path, {"name": "still mine"}, format="json").json()["name"] == "still mine"
    assert developer.post(f"{path}/revoke").json()["is_usable"] is False
    other = world.keys["inference"][0]
    assert developer.post(f"/tenants/acme/keys/{other.pk}/revoke").status_code == 403


def test_the_text_of_a_key_is_shown_once(world: World) -> None:
    owner = world.by("owner")
    made = owner.post(
        "/tenants/acme/keys",
        {"name": "ci", "scopes": ["usage"], "models_allowed": ["m"], "allowed_ips": ["10.0.0.0/8"]},
        format="json",
    ).json()
    assert made["secret"].startswith(f"mu_{made['public_id']}_")
    again = owner.get(f"/tenants/acme/keys/{made['id']}").json()
    assert "secret" not in again
    assert made["secret"] not in str(owner.get("/tenants/acme/keys").json())
    assert {name: again[name] for name in ("scopes", "models_allowed", "allowed_ips")} == {
        "scopes": ["usage"],
        "models_allowed": ["m"],
        "allowed_ips": ["10.0.0.0/8"],
    }


def test_a_key_rotates_with_an_overlap(world: World) -> None:
    key = world.keys["inference"][0]
    answer = world.by("admin").post(f"/tenants/acme/keys/{key.pk}/rotate", {"overlap_s": 3600}, format="json")
    assert answer.status_code == 201
    assert answer.json()["id"] != str(key.pk)
    key.refresh_from_db()
    assert key.expires_at is not None
    again = world.by("admin").post(f"/tenants/acme/keys/{key.pk}/rotate", {}, format="json")
    assert again.status_code == 400
    assert "rotated already" in again.json()["detail"]


def test_only_what_is_sent_changes(world: World) -> None:
    key = world.keys["usage"][0]
    world.by("owner").patch(f"/tenants/acme/keys/{key.pk}", {"name": "renamed"}, format="json")
    assert ApiKey.objects.get(pk=key.pk).scopes == ["usage"]
    world.by("owner").patch("/tenants/acme", {"name": "Renamed"}, format="json")
    assert Tenant.objects.get(slug="acme").is_active


def test_nobody_makes_a_key_that_may_do_more_than_they_may(world: World) -> None:
    developer, path = world.by("developer"), "/tenants/acme/keys"
    assert developer.post(path, {"name": "k", "scopes": ["manage"]}, format="json").status_code == 403
    own = developer.post(path, {"name": "k", "scopes": ["inference", "usage"]}, format="json").json()
    assert developer.patch(f"{path}/{own['id']}", {"scopes": ["manage"]}, format="json").status_code == 403
    widened = world.by("admin").patch(f"{path}/{own['id']}", {"scopes": ["manage"]}, format="json")
    assert widened.status_code == 200
    assert developer.post(f"{path}/{own['id']}/rotate", {}, format="json").status_code == 403, "its text would be told"
    assert developer.post(f"{path}/{own['id']}/revoke").status_code == 200


def test_a_key_hands_on_no_more_than_its_own_reach(world: World) -> None:
    key, path = world.keys["manage"][0], "/tenants/acme/keys"
    ends = timezone.now() + datetime.timedelta(days=1)
    ApiKey.objects.filter(pk=key.pk).update(expires_at=ends, allowed_ips=["127.0.0.0/8"], models_allowed=["m"])
    manager = world.by_key("manage")
    wide = {"name": "k", "scopes": ["inference"]}
    answer = manager.post(path, wide, format="json")
    assert answer.status_code == 400
    fields = {error["field"] for error in answer.json()["errors"]}
    assert fields == {"scopes", "expires_at", "allowed_ips", "models_allowed"}
    narrow = {"scopes": ["manage"], "expires_at": ends, "allowed_ips": ["127.0.0.0/8"], "models_allowed": ["m"]}
    assert manager.post(path, {"name": "k", **narrow}, format="json").status_code == 201
    other = world.keys["inference"][0]
    assert manager.post(f"{path}/{other.pk}/rotate", {}, format="json").status_code == 400
    assert manager.post(f"{path}/{other.pk}/revoke").status_code == 200


@pytest.mark.parametrize(
    ("field", "most"),
    [
        ("scopes", ["inference"] * 3),
        ("models_allowed", [f"m{number}" for number in range(200)]),
        ("allowed_ips", [f"10.0.0.{number}" for number in range(100)]),
    ],
)
def test_the_lists_of_a_key_have_an_end(world: World, field: str, most: list[str]) -> None:
    owner, path = world.by("owner"), "/tenants/acme/keys"
    made = owner.post(path, {"name": "k", field: most}, format="json")
    assert made.status_code == 201
    more = {"name": "k", field: [*most, most[0]]}
    for answer in (
        owner.post(path, more, format="json"),
        owner.patch(f"{path}/{made.json()['id']}", more, format="json"),
    ):
        assert [error["field"] for error in problem(answer, 400, "invalid")["errors"]] == [field]


def test_when_a_key_was_used_last_is_told_to_the_minute(world: World) -> None:
    key, client = world.keys["usage"][0], world.by_key("usage")

    def used() -> datetime.datetime | None:
        assert client.get("/tenants/acme").status_code == 200
        return ApiKey.objects.values_list("last_used_at", flat=True).get(pk=key.pk)

    first = used()
    assert first is not None
    assert used() == first, "each move is a write"
    long_ago = first - datetime.timedelta(minutes=1)
    ApiKey.objects.filter(pk=key.pk).update(last_used_at=long_ago)
    last = used()
    assert last is not None
    assert last >= first
    assert ApiKey.objects.get(pk=key.pk).updated_at == key.updated_at, "it is no change of the key"


def test_what_an_operator_has_stopped_its_owner_cannot_start(world: World) -> None:
    world.by("operator").patch("/tenants/acme", {"is_active": False}, format="json")
    for who in ("owner", "admin"):
        assert world.by(who).patch("/tenants/acme", {"is_active": True}, format="json").status_code == 403
    assert world.by("owner").patch("/tenants/acme", {"name": "Acme 2"}, format="json").status_code == 200
    assert Tenant.objects.get(slug="acme").is_active is False


def test_operators_alone_say_whether_a_tenant_may_borrow(world: World) -> None:
    for who in ("owner", "admin"):
        assert world.by(who).patch("/tenants/acme", {"best_effort": False}, format="json").status_code == 403
    changed = world.by("operator").patch("/tenants/acme", {"best_effort": False}, format="json")
    assert changed.json()["best_effort"] is False
    assert world.by("owner").get("/tenants/acme").json()["best_effort"] is False
    made = world.by("operator").post("/tenants", {"name": "Small", "best_effort": False}, format="json")
    assert (made.json()["best_effort"], made.json()["is_active"]) == (False, True)
