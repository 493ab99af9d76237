"""Invitations: one open one per address, accepted once, and never a way into somebody else's account."""

from __future__ import annotations

import datetime
import re
from unittest import mock

import pytest
from django.core.exceptions import ValidationError
from django.db import IntegrityError, transaction
from django.test import Client
from django.utils import timezone

from tenants.models import AuditEntry, Invitation, Membership, Tenant, User
from tenants.services import (
    InvitationError,
    InvitationForAccountError,
    invitation_accept,
    invitation_create,
    invitation_revoke,
    membership_add,
    user_create,
    user_set_active,
)
from tenants.services import invitations as service
from tests import factories
from tests.factories import race

pytestmark = pytest.mark.django_db

ADDRESS = "new@example.org"


@pytest.fixture
def tenant() -> Tenant:
    return factories.tenant(name="Northwind")


def invite(tenant: Tenant, email: str = ADDRESS, role: str = "admin") -> tuple[Invitation, str]:
    return invitation_create(tenant=tenant, email=email, role=role, actor="t")


def expire(invitation: Invitation) -> None:
    now = timezone.now()
    Invitation.objects.filter(pk=invitation.pk).update(
        created_at=now - datetime.timedelta(days=8), expires_at=now - datetime.timedelta(days=1)
    )


# ------------------------------------------------------------------------------------------------ services
def test_a_new_person_gets_an_account_and_a_membership(tenant: Tenant) -> None:
    boss = factories.user()
    invitation, token = invitation_create(tenant=tenant, email=" New@Example.org ", role="admin", actor=boss)
    assert (invitation.email, invitation.invited_by, invitation.state) == (ADDRESS, boss, "open")
    user = invitation_accept(token)
    assert (user.email, user.is_operator, user.has_usable_password()) == (ADDRESS, False, False)
    assert Membership.objects.get(user=user, tenant=tenant).role == "admin"
    invitation.refresh_from_db()
    assert invitation.state == "accepted"
    actions = set(AuditEntry.objects.filter(tenant_id=tenant.pk).values_list("action", flat=True))
    assert {"invitation.create", "invitation.accept", "membership.add"} <= actions
    assert token not in str(list(AuditEntry.objects.values()))
    assert invitation.digest not in str(list(AuditEntry.objects.values()))
    with pytest.raises(InvitationError, match="has been accepted"):
        invitation_accept(token)


def test_the_link_alone_opens_no_account_that_exists(tenant: Tenant) -> None:
    """Whoever invites has seen the link: it must not let them in as the person they invited."""
    person = user_create(email=ADDRESS, actor="t", is_operator=True)
    invitation, token = invite(tenant, "NEW@example.org")
    for visitor in (None, factories.user()):
        with pytest.raises(InvitationForAccountError, match="Sign in with it"):
            invitation_accept(token, visitor=visitor)
    invitation.refresh_from_db()
    assert (invitation.state, tenant.memberships.count()) == ("open", 0)
    assert invitation_accept(token, visitor=person) == person
    assert Membership.objects.get(tenant=tenant).user == person


def test_an_account_made_meanwhile_is_not_opened_either(tenant: Tenant) -> None:
    person = user_create(email=ADDRESS, actor="t")
    invitation, token = invite(tenant)
    with mock.patch.object(service, "invitation_account", return_value=None), pytest.raises(InvitationForAccountError):
        invitation_accept(token)
    invitation.refresh_from_db()
    assert invitation.state == "open"
    assert not person.memberships.exists()


def test_a_person_who_was_kept_out_stays_out(tenant: Tenant) -> None:
    person = user_create(email=ADDRESS, actor="t")
    user_set_active(user=person, is_active=False, actor="t")
    _, token = invite(tenant)
    with pytest.raises(InvitationError, match="may not sign in"):
        invitation_accept(token, visitor=person)
    assert not tenant.memberships.exists()


def test_what_somebody_kept_out_has_sent_lets_nobody_in() -> None:
    """Into every tenant, and whether or not the sender is an operator; others' invitations stay, and what is done."""
    one, two = factories.tenant(name="One"), factories.tenant(name="Two")
    for is_operator in (False, True):
        sender, other = factories.user(is_operator=is_operator), factories.user()
        sent = [
            invitation_create(tenant=tenant, email=f"{sender.pk}-{role}@example.org", role=role, actor=sender)
            for tenant in (one, two)
            for role in ("owner", "viewer")
        ]
        taken, token = invitation_create(tenant=one, email=f"came-{sender.pk}@example.org", actor=sender)
        invitation_accept(token)
        (late, _), (kept, _) = (
            invitation_create(tenant=two, email=f"{who.pk}@example.org", actor=who) for who in (sender, other)
        )
        expire(late)
        factories.user(is_operator=True)  # an operator is left
        assert user_set_active(user=sender, is_active=False, actor="the test")
        for invitation, link in sent:
            invitation.refresh_from_db()
            assert invitation.state == "revoked"
            with pytest.raises(InvitationError, match="was revoked"):
                invitation_accept(link)
        for invitation, state in ((taken, "accepted"), (late, "expired"), (kept, "open")):
            invitation.refresh_from_db()
            assert invitation.state == state
        entries = AuditEntry.objects.filter(action="invitation.revoke", object_name__contains=str(sender.pk))
        assert sorted(entries.values_list("actor", "tenant_id")) == sorted(
            [("the test", tenant.pk) for tenant in (one, one, two, two)]
        )
        assert not user_set_active(user=sender, is_active=False, actor="the test")
        assert entries.count() == len(sent), "once"


def test_whoever_is_kept_out_invites_nobody(tenant: Tenant) -> None:
    """A session that has been let in a moment before, too: what it knows of its user is of that moment."""
    sender = factories.user()
    user_set_active(user=User.objects.get(pk=sender.pk), is_active=False, actor="t")
    with pytest.raises(ValidationError, match="may not sign in any more"):
        invitation_create(tenant=tenant, email=ADDRESS, actor=sender)
    assert not Invitation.objects.exists()


@pytest.mark.django_db(transaction=True)
def test_nothing_open_is_left_of_somebody_kept_out_while_they_invite() -> None:
    """Whichever of the two is first: the other waits for it, and sees what it did."""
    tenants = [factories.tenant(name=f"Tenant {number}") for number in range(4)]
    sender, other = factories.user(), factories.user(is_operator=True)
    for attempt in range(5):
        user_set_active(user=User.objects.get(pk=sender.pk), is_active=True, actor="t")

        def invites(tenant: Tenant, address: str = f"new-{attempt}@example.org") -> None:
            invitation_create(tenant=Tenant.objects.get(pk=tenant.pk), email=address, actor=sender)

        def keep_out() -> None:
            user_set_active(user=User.objects.get(pk=sender.pk), is_active=False, actor=other)

        outcomes = race(*[lambda tenant=tenant: invites(tenant) for tenant in tenants], keep_out)  # type: ignore[misc]
        assert all(outcome is None or isinstance(outcome, ValidationError) for outcome in outcomes), outcomes
        assert not Invitation.objects.filter(revoked_at=None).exists()
    revoked = AuditEntry.objects.filter(action="invitation.revoke").count()
    assert revoked == Invitation.objects.count(), "each with its entry"


def test_a_sender_kept_out_by_other_means_lets_nobody_in(client: Client, tenant: Tenant) -> None:
    sender = factories.user()
    invitation, token = invitation_create(tenant=tenant, email=ADDRESS, role="owner", actor=sender)
    User.objects.filter(pk=sender.pk).update(is_active=False)
    with pytest.raises(InvitationError, match="was revoked"):
        invitation_accept(token)
    for answer in (client.get(f"/invitations/{token}"), client.post(f"/invitations/{token}")):
        assert (answer.status_code, b"was revoked" in answer.content) == (410, True)
    assert not User.objects.filter(email=ADDRESS).exists()
    sender.refresh_from_db()
    assert user_set_active(user=sender, is_active=True, actor="t")
    invitation.refresh_from_db()
    assert invitation.state == "revoked", "and does not come back with its sender"
    _, again = invitation_create(tenant=tenant, email=ADDRESS, actor=sender)
    assert invitation_accept(again).email == ADDRESS


def test_a_member_keeps_the_role_they_were_given_meanwhile(tenant: Tenant) -> None:
    person = user_create(email=ADDRESS, actor="t")
    _, token = invite(tenant, role="admin")
    membership_add(tenant=tenant, user=person, role="viewer", actor="t")
    invitation_accept(token, visitor=person)
    assert Membership.objects.get(user=person).role == "viewer"


def test_an_address_has_one_open_invitation_in_a_tenant(tenant: Tenant) -> None:
    first, token = invite(tenant)
    with pytest.raises(ValidationError) as error:
        invite(tenant, "New@EXAMPLE.org")
    assert "open invitation" in error.value.message_dict["email"][0]
    invite(factories.tenant())
    assert invitation_revoke(invitation=first, actor="t")
    assert not invitation_revoke(invitation=first, actor="t")
    second, _ = invite(tenant)
    with pytest.raises(InvitationError, match="was revoked"):
        invitation_accept(token)
    expire(second)
    invite(tenant)
    second.refresh_from_db()
    assert second.state == "revoked", "what has expired makes way"


def test_the_database_holds_to_it_too(tenant: Tenant) -> None:
    first, _ = invite(tenant)
    now = timezone.now()
    soon = now + datetime.timedelta(days=1)
    with pytest.raises(IntegrityError), transaction.atomic():
        Invitation.objects.create(tenant=tenant, email="NEW@example.org", digest="d", expires_at=soon)
    for wrong in ({"role": "king"}, {"expires_at": first.created_at}, {"accepted_at": now, "revoked_at": now}):
        with pytest.raises(IntegrityError), transaction.atomic():
            Invitation.objects.filter(pk=first.pk).update(**wrong)


def test_what_cannot_be_is_refused_at_its_field(tenant: Tenant) -> None:
    member = factories.user()
    membership_add(tenant=tenant, user=member, actor="t")
    for email, role, field in (
        (member.email.upper(), "admin", "email"),
        ("x", "admin", "email"),
        ("a@b.c", "x", "role"),
    ):
        with pytest.raises(ValidationError) as error:
            invite(tenant, email, role)
        assert field in error.value.message_dict
    with pytest.raises(ValidationError) as error:
        invitation_create(tenant=tenant, email="a@b.example", actor="t", valid_for=datetime.timedelta(0))
    assert "expires_at" in error.value.message_dict


@pytest.mark.django_db(transaction=True)
def test_one_of_many_accepts(tenant: Tenant) -> None:
    _, token = invite(tenant)
    outcomes = race(*[lambda: invitation_accept(token)] * 6)
    assert sum(isinstance(out, User) for out in outcomes) == 1, outcomes
    assert sum(isinstance(out, InvitationError) for out in outcomes) == 5
    assert Membership.objects.filter(tenant=tenant).count() == User.objects.filter(email=ADDRESS).count() == 1


@pytest.mark.django_db(transaction=True)
def test_of_two_invitations_at_once_one_stands(tenant: Tenant) -> None:
    outcomes = race(*[lambda: invite(Tenant.objects.get(pk=tenant.pk))] * 4)
    assert sum(isinstance(out, ValidationError) for out in outcomes) == 3, outcomes
    assert Invitation.objects.count() == 1


# ------------------------------------------------------------------------------------------------ the page
def test_opening_the_page_tells_and_changes_nothing(client: Client, tenant: Tenant) -> None:
    invitation, token = invite(tenant)
    for _ in range(2):
        answer = client.get(f"/invitations/{token}")
        assert answer.status_code == 200
    client.head(f"/invitations/{token}")
    page = answer.content.decode()
    for told in ("Northwind", "Admin", ADDRESS, "Accept"):
        assert told in page
    assert "no-store" in answer.headers["Cache-Control"]
    invitation.refresh_from_db()
    assert invitation.state == "open"
    assert "_auth_user_id" not in client.session


def test_the_button_accepts_once_and_signs_in(client: Client, tenant: Tenant) -> None:
    _, token = invite(tenant)
    answer = client.post(f"/invitations/{token}", follow=True)
    assert answer.redirect_chain == [("/t/northwind/", 302)]
    assert answer.status_code == 200
    assert client.session["_auth_user_id"] == str(User.objects.get(email=ADDRESS).pk)
    again = Client().post(f"/invitations/{token}")
    assert again.status_code == 410
    assert b"has been accepted" in again.content


def test_whoever_has_an_account_signs_in_first_and_comes_back(client: Client, tenant: Tenant) -> None:
    password = "a-long-enough-password"
    person = user_create(email=ADDRESS, password=password, actor="t")
    _, token = invite(tenant)
    path = f"/invitations/{token}"
    assert client.post(path)["Location"] == path
    page = client.get(path).content.decode()
    assert "Accept</button>" not in page
    link = re.search(r'href="(/sign-in/\?next=[^"]+)"', page)
    assert link is not None
    form = {"email": ADDRESS, "password": password, "next": path}
    assert client.post(link[1], form)["Location"] == path
    assert "Accept</button>" in client.get(path).content.decode()
    assert client.post(path)["Location"] == "/t/northwind/"
    assert person.memberships.get().role == "admin"


def test_another_person_is_told_to_sign_out(client: Client, tenant: Tenant) -> None:
    user_create(email=ADDRESS, actor="t")
    _, token = invite(tenant)
    other = factories.user()
    client.force_login(other)
    page = client.get(f"/invitations/{token}").content.decode()
    assert f"signed in as {other.email}" in page
    assert "Accept</button>" not in page
    assert client.post(f"/invitations/{token}", follow=True).content.decode().count("Sign out") >= 1
    assert not tenant.memberships.exists()
    assert client.session["_auth_user_id"] == str(other.pk)


def test_a_new_person_takes_the_place_of_whoever_is_signed_in(client: Client, tenant: Tenant) -> None:
    _, token = invite(tenant)
    client.force_login(factories.user())
    assert f"signs you in as {ADDRESS} in place of" in client.get(f"/invitations/{token}").content.decode()
    client.post(f"/invitations/{token}")
    assert client.session["_auth_user_id"] == str(User.objects.get(email=ADDRESS).pk)


@pytest.mark.parametrize(
    ("how", "said"), [("revoked", "was revoked"), ("expired", "has expired"), ("unknown", "Copy the whole of it")]
)
def test_a_link_that_is_over_says_why_and_what_to_do(client: Client, tenant: Tenant, how: str, said: str) -> None:
    invitation, token = invite(tenant)
    if how == "revoked":
        invitation_revoke(invitation=invitation, actor="t")
    if how == "expired":
        expire(invitation)
    path = "/invitations/made-up" if how == "unknown" else f"/invitations/{token}"
    for answer in (client.get(path), client.post(path)):
        assert answer.status_code == 410
        assert said in answer.content.decode()
        assert "Northwind" not in answer.content.decode()
    assert not User.objects.filter(email=ADDRESS).exists()


def test_the_page_needs_its_own_form(tenant: Tenant) -> None:
    _, token = invite(tenant)
    client = Client(enforce_csrf_checks=True)
    assert client.post(f"/invitations/{token}").status_code == 403
    body = client.get(f"/invitations/{token}").content.decode()
    field = re.search(r'name="csrfmiddlewaretoken" value="([^"]+)"', body)
    assert field is not None
    assert client.post(f"/invitations/{token}", {"csrfmiddlewaretoken": field[1]}).status_code == 302
