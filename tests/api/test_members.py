"""Members of a tenant over the REST API: who sees them, who changes whom."""

from __future__ import annotations

from typing import Any

import pytest

from tenants.models import AuditEntry, Membership, User
from tenants.services import membership_add, user_create
from tests.api.conftest import SCOPES, World
from tests.api.test_foundation import problem
from tests.api.test_tenants import CALLERS


def member_path(world: World, who: str) -> str:
    return f"/tenants/acme/members/{Membership.objects.get(tenant=world.acme, user=world.members[who]).pk}"


@pytest.fixture
def extra(world: World) -> Membership:
    """One more developer of acme."""
    return membership_add(tenant=world.acme, user=user_create(email="extra@acme.example", actor="test"), actor="test")


def role_given(world: World, extra: Membership, client: Any, before: str, after: str) -> int:
    Membership.objects.filter(pk=extra.pk).update(role=before)
    return int(client.patch(f"/tenants/acme/members/{extra.pk}", {"role": after}, format="json").status_code)


def test_members_see_each_other(world: World) -> None:
    path = member_path(world, "admin")
    for address in ("/tenants/acme/members", path):
        codes = {who: world.by(who).get(address).status_code for who in CALLERS}
        assert codes == dict.fromkeys(CALLERS, 200) | {"outsider": 404, "nobody": 401}
        keys = {scope: world.by_key(scope).get(address).status_code for scope in SCOPES}
        assert keys == {"inference": 404, "usage": 403, "manage": 200}
    rows = world.by("viewer").get("/tenants/acme/members").json()["results"]
    assert [(row["user"]["email"], row["role"]) for row in rows] == [
        ("admin@acme.example", "admin"),
        ("developer@acme.example", "developer"),
        ("owner@acme.example", "owner"),
        ("viewer@acme.example", "viewer"),
    ]
    assert "password" not in str(rows)
    assert world.by("viewer").get("/tenants/acme/members?role=owner&search=OWNER").json()["count"] == 1


@pytest.mark.parametrize(
    ("before", "after", "manager_code"),
    [("viewer", "developer", 200), ("developer", "admin", 200), ("viewer", "owner", 403), ("owner", "viewer", 403)],
)
def test_who_gives_which_role(world: World, extra: Membership, before: str, after: str, manager_code: int) -> None:
    codes = {who: role_given(world, extra, world.by(who), before, after) for who in CALLERS}
    assert codes == {
        "operator": 200,
        "owner": 200,
        "admin": manager_code,
        "developer": 403,
        "viewer": 403,
        "outsider": 404,
        "nobody": 401,
    }
    keys = {scope: role_given(world, extra, world.by_key(scope), before, after) for scope in SCOPES}
    assert keys == {"inference": 404, "usage": 403, "manage": manager_code}


def test_who_removes_whom(world: World) -> None:
    def removed(client: Any, role: str) -> int:
        user, _ = User.objects.get_or_create(email="extra@acme.example")
        member, _ = Membership.objects.get_or_create(tenant=world.acme, user=user, defaults={"role": role})
        return int(client.delete(f"/tenants/acme/members/{member.pk}").status_code)

    assert {who: removed(world.by(who), "developer") for who in CALLERS} == {
        "operator": 204,
        "owner": 204,
        "admin": 204,
        "developer": 403,
        "viewer": 403,
        "outsider": 404,
        "nobody": 401,
    }
    keys = {scope: removed(world.by_key(scope), "developer") for scope in SCOPES}
    assert keys == {"inference": 404, "usage": 403, "manage": 204}
    body = problem(world.by("admin").delete(member_path(world, "owner")), 403, "permission_denied")
    assert "Ask an owner" in body["detail"]
    assert world.by_key("manage").delete(member_path(world, "owner")).status_code == 403


@pytest.mark.parametrize("who", ["admin", "developer", "viewer"])
def test_a_member_may_leave(world: World, who: str) -> None:
    assert world.by(who).delete(member_path(world, who)).status_code == 204
    assert world.by(who).get("/tenants/acme").status_code == 404
    assert AuditEntry.objects.get(action="membership.remove").actor == f"{who}@acme.example"


def test_the_last_owner_stays(world: World, extra: Membership) -> None:
    path = member_path(world, "owner")
    for answer in (
        world.by("owner").delete(path),
        world.by("operator").delete(path),
        world.by("owner").patch(path, {"role": "admin"}, format="json"),
    ):
        body = problem(answer, 400, "invalid")
        assert (body["errors"][0]["field"], "at least one owner" in body["detail"]) == ("role", True)
    world.by("owner").patch(f"/tenants/acme/members/{extra.pk}", {"role": "owner"}, format="json")
    assert world.by("owner").delete(path).status_code == 204


def test_a_membership_of_another_tenant_is_not_found_under_ones_own(world: World) -> None:
    foreign = Membership.objects.get(tenant=world.acme, user=world.members["viewer"])
    outsider = world.by("outsider")
    for path in (f"/tenants/other/members/{foreign.pk}", f"/tenants/acme/members/{foreign.pk}"):
        assert outsider.get(path).status_code == 404
        assert outsider.patch(path, {"role": "owner"}, format="json").status_code == 404
        assert outsider.delete(path).status_code == 404
    own = Membership.objects.get(tenant=world.other)
    for client in (world.by("owner"), world.by_key("manage")):
        assert client.patch(f"/tenants/acme/members/{own.pk}", {"role": "viewer"}, format="json").status_code == 404
        assert client.delete(f"/tenants/other/members/{own.pk}").status_code == 404
    assert Membership.objects.filter(role="owner").count() == 2


def test_a_change_can_insist_on_the_version_it_knows(world: World, extra: Membership) -> None:
    owner, path = world.by("owner"), f"/tenants/acme/members/{extra.pk}"
    etag = owner.get(path).headers["ETag"]
    changed = owner.patch(path, {"role": "viewer"}, format="json", headers={"if-match": etag})
    assert (changed.status_code, changed.json()["role"]) == (200, "viewer")
    assert changed.headers["ETag"] == owner.get(path).headers["ETag"] != etag
    problem(owner.patch(path, {"role": "admin"}, format="json", headers={"if-match": etag}), 412, "changed")
    problem(owner.delete(path, headers={"if-match": etag}), 412, "changed")
    assert owner.delete(path, headers={"if-match": changed.headers["ETag"]}).status_code == 204


def test_a_wrong_role_is_said_at_its_field(world: World, extra: Membership) -> None:
    for sent in ({"role": "king"}, {}):
        answer = world.by("owner").patch(f"/tenants/acme/members/{extra.pk}", sent, format="json")
        assert problem(answer, 400, "invalid")["errors"][0]["field"] == "role"
