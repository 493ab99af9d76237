"""Who loses their role at this moment manages members before that, or not at all."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from django.test import Client

from tenants.models import Invitation, Membership, Tenant, User
from tenants.services import invitation_create
from tests.web.seed import people


@pytest.fixture
def tenant(db: None) -> Tenant:
    return people()[4]


@pytest.fixture
def client_losing(client: Client, tenant: Tenant, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Client]:
    """The owner's, whose role has become another by the time that it is their turn."""
    owner = User.objects.get(email="owner@northwind.example")
    client.force_login(owner)
    real = Tenant.take_turn

    def losing(role: str) -> Client:
        def take_turn(self: Tenant) -> Tenant:
            Membership.objects.filter(user=owner).update(role=role)
            return real(self)

        monkeypatch.setattr(Tenant, "take_turn", take_turn)
        return client

    return losing


@pytest.mark.parametrize(("role", "given"), [("viewer", "viewer"), ("admin", "owner")])
def test_nobody_invites_with_a_role_that_is_gone(
    client_losing: Callable[[str], Client], tenant: Tenant, role: str, given: str
) -> None:
    asked = {"email": "new@northwind.example", "role": given, "days": "7"}
    assert client_losing(role).post("/t/northwind/members/", asked).status_code == 403
    assert not Invitation.objects.exists()


def test_nobody_manages_members_with_a_role_that_is_gone(
    client_losing: Callable[[str], Client], tenant: Tenant
) -> None:
    member = Membership.objects.get(user__email="viewer@northwind.example")
    invitation, _ = invitation_create(tenant=tenant, email="new@northwind.example", actor="a test")
    client = client_losing("viewer")
    base = "/t/northwind/members"
    assert client.post(f"{base}/{member.pk}/role", {"role": "admin"}).status_code == 403
    Membership.objects.filter(user__email="owner@northwind.example").update(role="owner")
    assert client.post(f"{base}/{member.pk}/remove").status_code == 403
    Membership.objects.filter(user__email="owner@northwind.example").update(role="owner")
    assert client.post(f"{base}/invitations/{invitation.pk}/revoke").status_code == 403
    member.refresh_from_db()
    invitation.refresh_from_db()
    assert (member.role, invitation.revoked_at) == ("viewer", None)


def test_whoever_keeps_their_role_invites(client_losing: Callable[[str], Client], tenant: Tenant) -> None:
    asked = {"email": "new@northwind.example", "role": "admin", "days": "7"}
    assert client_losing("admin").post("/t/northwind/members/", asked).status_code == 200
    assert Invitation.objects.get().role == "admin"
