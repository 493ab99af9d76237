"""Invitations over the REST API: who invites whom, and a link that is shown once."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from django.test import Client

from tenants.models import AuditEntry, Invitation, Membership, Tenant
from tenants.services import invitation_create, membership_change
from tests.api.conftest import SCOPES, Api, World
from tests.api.test_foundation import problem
from tests.api.test_tenants import CALLERS

PATH = "/tenants/acme/invitations"
NEW = {"email": "New@acme.example", "role": "viewer"}
_numbers = itertools.count()


@pytest.fixture
def sent(world: World) -> Invitation:
    return invitation_create(tenant=world.acme, email="sent@acme.example", actor=world.members["admin"])[0]


def invites(client: Api, role: str) -> int:
    sent = {"email": f"n{next(_numbers)}@acme.example", "role": role}
    return int(client.post(PATH, sent, format="json").status_code)


def test_members_see_the_invitations(world: World, sent: Invitation) -> None:
    for address in (PATH, f"{PATH}/{sent.pk}"):
        codes = {who: world.by(who).get(address).status_code for who in CALLERS}
        assert codes == dict.fromkeys(CALLERS, 200) | {"outsider": 404, "nobody": 401}
        keys = {scope: world.by_key(scope).get(address).status_code for scope in SCOPES}
        assert keys == {"inference": 404, "usage": 403, "manage": 200}
    (row,) = world.by("viewer").get(PATH).json()["results"]
    told = (row["email"], row["role"], row["state"], row["invited_by"])
    assert told == ("sent@acme.example", "developer", "open", "admin@acme.example")


@pytest.mark.parametrize(("role", "manager_code"), [("admin", 201), ("owner", 403)])
def test_who_invites_whom(world: World, role: str, manager_code: int) -> None:
    assert {who: invites(world.by(who), role) for who in CALLERS} == {
        "operator": 201,
        "owner": 201,
        "admin": manager_code,
        "developer": 403,
        "viewer": 403,
        "outsider": 404,
        "nobody": 401,
    }
    keys = {scope: invites(world.by_key(scope), role) for scope in SCOPES}
    assert keys == {"inference": 404, "usage": 403, "manage": manager_code}


def test_the_link_is_shown_once_and_makes_a_member(world: World) -> None:
    admin = world.by("admin")
    answer = admin.post(PATH, NEW, format="json")
    assert answer.status_code == 201
    made: dict[str, Any] = answer.json()
    assert made["email"] == "new@acme.example"
    assert made["accept_url"].startswith("http://testserver/invitations/")
    token = made["accept_url"].rsplit("/", 1)[1]
    for shown in (admin.get(PATH).json(), admin.get(f"{PATH}/{made['id']}").json(), list(AuditEntry.objects.values())):
        assert token not in str(shown)
        assert "accept_url" not in str(shown)
        assert Invitation.objects.get(pk=made["id"]).digest not in str(shown)
    assert Client().post(f"/invitations/{token}").status_code == 302
    assert Membership.objects.get(user__email="new@acme.example").role == "viewer"
    assert admin.get(f"{PATH}/{made['id']}").json()["state"] == "accepted"


def test_an_invitation_is_made_once(world: World) -> None:
    answers = [world.by("owner").post(PATH, NEW, format="json", headers={"idempotency-key": "i1"}) for _ in range(2)]
    assert {answer.status_code for answer in answers} == {201}
    assert len({answer.json()["accept_url"] for answer in answers}) == 1
    assert answers[1].headers["Idempotency-Replayed"] == "true"
    body = problem(world.by("owner").post(PATH, NEW, format="json"), 400, "invalid")
    assert body["errors"][0]["field"] == "email"
    assert "revoke it" in body["detail"]


def test_what_is_wrong_is_said_at_its_field(world: World) -> None:
    for sent, field in (
        ({"email": "x"}, "email"),
        ({}, "email"),
        ({**NEW, "role": "king"}, "role"),
        ({**NEW, "valid_for_h": 0}, "valid_for_h"),
        ({**NEW, "valid_for_h": 721}, "valid_for_h"),
        ({"email": "viewer@acme.example"}, "email"),
    ):
        body = problem(world.by("owner").post(PATH, sent, format="json"), 400, "invalid")
        assert [error["field"] for error in body["errors"]] == [field]


def test_who_revokes(world: World, sent: Invitation) -> None:
    path = f"{PATH}/{sent.pk}/revoke"
    assert {who: world.by(who).post(path).status_code for who in CALLERS} == {
        "operator": 200,
        "owner": 200,
        "admin": 200,
        "developer": 403,
        "viewer": 403,
        "outsider": 404,
        "nobody": 401,
    }
    keys = {scope: world.by_key(scope).post(path).status_code for scope in SCOPES}
    assert keys == {"inference": 404, "usage": 403, "manage": 200}
    assert AuditEntry.objects.filter(action="invitation.revoke").count() == 1
    assert world.by("viewer").get(f"{PATH}/{sent.pk}").json()["state"] == "revoked"
    states = {state: world.by("viewer").get(f"{PATH}?state={state}").json()["count"] for state in ("open", "revoked")}
    assert states == {"open": 0, "revoked": 1}


def test_an_invitation_of_an_owner_is_an_owners(world: World) -> None:
    made, _ = invitation_create(tenant=world.acme, email="boss@acme.example", role="owner", actor="test")
    assert world.by("admin").post(f"{PATH}/{made.pk}/revoke").status_code == 403
    assert world.by("owner").post(f"{PATH}/{made.pk}/revoke").status_code == 200


def test_revoking_can_insist_on_the_version_it_knows(world: World, sent: Invitation) -> None:
    owner = world.by("owner")
    etag = owner.get(f"{PATH}/{sent.pk}").headers["ETag"]
    problem(owner.post(f"{PATH}/{sent.pk}/revoke", headers={"if-match": '"x"'}), 412, "changed")
    assert owner.post(f"{PATH}/{sent.pk}/revoke", headers={"if-match": etag}).status_code == 200


def test_an_invitation_of_another_tenant_is_not_found_under_ones_own(world: World, sent: Invitation) -> None:
    outsider = world.by("outsider")
    for path in (f"/tenants/other/invitations/{sent.pk}", f"{PATH}/{sent.pk}"):
        assert outsider.get(path).status_code == 404
        assert outsider.post(f"{path}/revoke").status_code == 404
    assert outsider.get("/tenants/other/invitations").json()["count"] == 0
    sent.refresh_from_db()
    assert sent.state == "open"


INVITED = ("developer", "admin", "owner")


@pytest.mark.parametrize(
    ("was", "becomes", "left"),
    [
        ("admin", None, set()),
        ("admin", "developer", set()),
        ("owner", "viewer", set()),
        ("owner", "admin", {"developer", "admin"}),
        ("admin", "owner", set(INVITED)),
    ],
)
def test_invitations_end_that_their_inviter_could_not_make_any_more(
    world: World, was: str, becomes: str | None, left: set[str]
) -> None:
    inviter, other = world.members["viewer"], world.members["admin"]
    member = Membership.objects.get(tenant=world.acme, user=inviter)
    Membership.objects.filter(pk=member.pk).update(role=was)
    for role in INVITED:
        for number, by in enumerate((inviter, other)):
            invitation_create(tenant=world.acme, email=f"{role}{number}@x.example", role=role, actor=by)
    invitation_create(tenant=world.other, email="elsewhere@x.example", role="viewer", actor=inviter)
    path = f"/tenants/acme/members/{member.pk}"
    owner = world.by("owner")
    answer = owner.patch(path, {"role": becomes}, format="json") if becomes else owner.delete(path)
    assert answer.status_code in (200, 204)
    still = [row for row in Invitation.objects.filter(tenant=world.acme) if row.state == "open"]
    assert {row.role for row in still if row.invited_by == inviter} == left
    assert {row.role for row in still if row.invited_by == other} == set(INVITED), "others' stay open"
    assert Invitation.objects.get(tenant=world.other).state == "open"
    ended = AuditEntry.objects.filter(action="invitation.revoke")
    assert {entry.actor for entry in ended} <= {"owner@acme.example"}
    assert len(ended) == len(INVITED) - len(left)


def test_operators_invite_with_a_role_and_without(world: World) -> None:
    membership = Membership.objects.create(tenant=world.acme, user=world.operator, role="admin")
    made, _ = invitation_create(tenant=world.acme, email="new@x.example", actor=world.operator)
    assert world.by("owner").delete(f"/tenants/acme/members/{membership.pk}").status_code == 204
    assert Invitation.objects.get(pk=made.pk).state == "open"


def test_whoever_is_demoted_meanwhile_invites_nobody(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    take_turn = Tenant.take_turn

    def meanwhile(tenant: Tenant) -> Tenant:
        monkeypatch.setattr(Tenant, "take_turn", take_turn)
        member = Membership.objects.get(tenant=world.acme, user=world.members["admin"])
        membership_change(membership=member, role="viewer", actor="test")
        return take_turn(tenant)

    monkeypatch.setattr(Tenant, "take_turn", meanwhile)
    problem(world.by("admin").post(PATH, NEW, format="json"), 403, "permission_denied")
    assert not Invitation.objects.exists()
