"""Writes of people, tenants, keys, limits and links: validated at the field, audited, told to the gateways."""

from __future__ import annotations

import datetime
from typing import Any

import pytest
from django.core.exceptions import ValidationError
from django.utils import timezone

from tenants.keys import key_digest
from tenants.models import ApiKey, AuditEntry, Change, Limit, Membership, SignInLink, Tenant, User
from tenants.services import (
    SignInLinkError,
    api_key_create,
    api_key_revoke,
    api_key_rotate,
    api_key_update,
    limit_remove,
    limit_set,
    membership_add,
    membership_change,
    membership_remove,
    sign_in_link_create,
    sign_in_link_redeem,
    tenant_create,
    tenant_update,
    user_create,
    user_set_active,
    user_set_password,
)
from tests import factories

pytestmark = pytest.mark.django_db


def told() -> list[str]:
    return list(Change.objects.order_by("pk").values_list("kind", flat=True))


def test_people_are_told_apart_whatever_the_case() -> None:
    user = user_create(email=" Ada@Example.ORG ", actor="t", name="Ada")
    assert user.email == "ada@example.org"
    assert User.objects.get_by_natural_key("ADA@example.org") == user
    with pytest.raises(ValidationError) as error:
        user_create(email="ada@EXAMPLE.org", actor="t")
    assert "email" in error.value.message_dict
    assert not user.has_usable_password()


def test_a_weak_password_is_refused_at_its_field() -> None:
    with pytest.raises(ValidationError) as error:
        user_create(email="x@example.org", password="password", actor="t")
    assert list(error.value.message_dict) == ["password"]
    assert not User.objects.exists()
    user = factories.user()
    user_set_password(user=user, password="a fine long one", actor=user)
    user.refresh_from_db()
    assert user.check_password("a fine long one")
    entry = AuditEntry.objects.get(action="user.set_password")
    assert (entry.actor, entry.before, entry.after) == (user.email, {}, {})


def test_the_last_operator_stays() -> None:
    first = factories.user(is_operator=True)
    with pytest.raises(ValidationError, match="last active operator"):
        user_set_active(user=first, is_active=False, actor=first)
    factories.user(is_operator=True)
    assert user_set_active(user=first, is_active=False, actor=first)
    assert not user_set_active(user=first, is_active=False, actor=first)


def test_a_tenant_and_its_audit_trail() -> None:
    boss = factories.user()
    tenant = tenant_create(name="Northwind Bank", actor=boss, owner=boss)
    assert tenant.slug == "northwind-bank"
    tenant_update(tenant=tenant, actor=boss, is_active=False)
    tenant_update(tenant=tenant, actor=boss, is_active=False)
    entries = AuditEntry.objects.filter(tenant_id=tenant.pk).order_by("at")
    assert [entry.action for entry in entries] == ["tenant.create", "membership.add", "tenant.update"]
    assert (entries[2].actor_id, entries[2].before, entries[2].after) == (
        boss.pk,
        {"is_active": True},
        {"is_active": False},
    )
    assert told() == ["tenant", "tenant"]
    with pytest.raises(ValidationError) as error:
        tenant_create(name="Other", slug="northwind-bank", actor=boss)
    assert list(error.value.message_dict) == ["slug"]


def test_a_member_twice_is_an_error_at_the_user() -> None:
    tenant, user = factories.tenant(), factories.user()
    membership = membership_add(tenant=tenant, user=user, actor="t")
    with pytest.raises(ValidationError) as error:
        membership_add(tenant=tenant, user=user, actor="t")
    assert list(error.value.message_dict) == ["user"]
    with pytest.raises(ValidationError) as error:
        membership_add(tenant=tenant, user=factories.user(), role="king", actor="t")
    assert "role" in error.value.message_dict
    membership_remove(membership=membership, actor="t")
    assert not tenant.memberships.exists()


def test_a_stale_look_does_not_remove_the_last_owner() -> None:
    first = factories.user()
    tenant = factories.tenant(owner=first)
    heir = membership_add(tenant=tenant, user=factories.user(), actor="t")
    stale = Membership.objects.get(pk=heir.pk)
    membership_change(membership=heir, role="owner", actor="t")
    membership_change(membership=Membership.objects.get(user=first), role="viewer", actor="t")
    with pytest.raises(ValidationError, match="at least one owner"):
        membership_remove(membership=stale, actor="t")
    assert tenant.memberships.filter(role="owner").count() == 1


def test_a_membership_ends_once() -> None:
    membership = membership_add(tenant=factories.tenant(), user=factories.user(), actor="t")
    stale = Membership.objects.get(pk=membership.pk)
    assert membership_remove(membership=membership, actor="t")
    assert not membership_remove(membership=stale, actor="t")
    assert AuditEntry.objects.filter(action="membership.remove").count() == 1


def test_a_change_from_a_stale_page_undoes_nothing() -> None:
    key, _ = factories.api_key()
    stale_key, stale_tenant = ApiKey.objects.get(pk=key.pk), Tenant.objects.get(pk=key.tenant_id)
    tenant_update(tenant=Tenant.objects.get(pk=key.tenant_id), actor="t", is_active=False)
    api_key_update(key=key, actor="t", scopes=["usage"], allowed_ips=["10.0.0.0/8"])
    tenant_update(tenant=stale_tenant, actor="t", name="Renamed")
    api_key_update(key=stale_key, actor="t", name="renamed")
    tenant, key = Tenant.objects.get(), ApiKey.objects.get()
    assert (tenant.name, tenant.is_active) == ("Renamed", False)
    assert (key.name, key.scopes, key.allowed_ips) == ("renamed", ["usage"], ["10.0.0.0/8"])
    assert (stale_tenant.is_active, stale_key.scopes) == (False, ["usage"]), "the caller sees what is stored"
    assert AuditEntry.objects.filter(action="tenant.update").order_by("-at")[0].after == {"name": "Renamed"}


def test_a_key_is_kept_as_a_digest_only(settings: Any) -> None:
    settings.PENSTOCK_KEY_PEPPERS = {1: "old pepper", 2: "new pepper"}
    key, text = api_key_create(tenant=factories.tenant(), name="ci", actor="t", allowed_ips=["10.0.0.0/8"])
    _, public_id, secret = text.split("_")
    assert (key.public_id, key.pepper) == (public_id, 2)
    assert key.digest == key_digest(secret, "new pepper")
    everything = str([list(model.objects.values()) for model in (ApiKey, AuditEntry, Change)])
    assert secret not in everything
    assert key.digest not in str(list(AuditEntry.objects.values()))
    assert told()[-1] == "key"


@pytest.mark.parametrize(
    ("fields", "at"),
    [
        ({"scopes": ["root"]}, "scopes"),
        ({"scopes": []}, "scopes"),
        ({"allowed_ips": ["home"]}, "allowed_ips"),
        ({"allowed_ips": [1]}, "allowed_ips"),
        ({"models_allowed": [3]}, "models_allowed"),
        ({"name": " "}, "name"),
        ({"expires_at": timezone.now() - datetime.timedelta(days=1)}, "expires_at"),
    ],
)
def test_a_bad_key_is_refused_at_its_field(fields: dict[str, Any], at: str) -> None:
    with pytest.raises(ValidationError) as error:
        api_key_create(**{"tenant": factories.tenant(), "name": "k", "actor": "t", **fields})
    assert list(error.value.message_dict) == [at]
    assert not ApiKey.objects.exists()


def test_a_revoked_key_stays_revoked() -> None:
    key, _ = factories.api_key()
    assert api_key_revoke(key=key, actor="t")
    assert not key.is_usable
    assert not api_key_revoke(key=key, actor="t")
    with pytest.raises(ValidationError):
        api_key_rotate(key=key, actor="t")
    assert AuditEntry.objects.filter(action="api_key.revoke").count() == 1


def test_rotation_overlaps_and_takes_the_limits_along() -> None:
    key, _ = factories.api_key(scopes=["inference", "usage"], models_allowed=["demo-sim"])
    limit_set(tenant=key.tenant, api_key=key, kind="concurrency", value=3, set_by="tenant", actor="t")
    new, text = api_key_rotate(key=key, actor="t", overlap=datetime.timedelta(hours=2))
    key.refresh_from_db()
    assert key.revoked_at is None
    assert key.expires_at is not None
    assert 7100 < (key.expires_at - timezone.now()).total_seconds() <= 7200
    assert (new.scopes, new.models_allowed) == (key.scopes, key.models_allowed)
    assert new.limits.get().value == 3
    assert text.split("_")[1] == new.public_id != key.public_id
    newest, _ = api_key_rotate(key=new, actor="t", overlap=datetime.timedelta(0))
    new.refresh_from_db()
    assert new.revoked_at is not None
    assert newest.is_usable


def test_whoever_rotates_a_key_its_maker_stays_who_is_held_to_limits() -> None:
    tenant, maker = factories.tenant(), factories.user()
    key, _ = factories.api_key(tenant, made_by=maker)
    assert api_key_rotate(key=key, actor="a key with the scope manage")[0].created_by == maker
    other, _ = factories.api_key(tenant, made_by=maker)
    assert api_key_rotate(key=other, actor=factories.user())[0].created_by == maker
    nobodys, _ = factories.api_key(tenant)
    assert api_key_rotate(key=nobodys, actor=maker)[0].created_by == maker


def test_a_key_is_rotated_once_however_late_one_looks() -> None:
    key, _ = factories.api_key()
    new, _ = api_key_rotate(key=key, actor="t")
    again = ApiKey.objects.get(pk=key.pk)
    assert again.is_usable, "its overlap has not ended"
    with pytest.raises(ValidationError, match="rotated already"):
        api_key_rotate(key=again, actor="t")
    assert set(ApiKey.objects.all()) == {key, new}
    assert api_key_rotate(key=new, actor="t")[0].expires_at is None


def test_a_new_key_gets_what_holds_at_its_making() -> None:
    key, _ = factories.api_key(scopes=["inference", "manage"])
    stale = ApiKey.objects.get(pk=key.pk)
    api_key_update(key=key, actor="t", scopes=["inference"])
    new, _ = api_key_rotate(key=stale, actor="t")
    assert new.scopes == ["inference"]


def test_a_key_is_changed_without_its_secret() -> None:
    key, _ = factories.api_key()
    digest = key.digest
    api_key_update(key=key, name="renamed", scopes=["usage"], actor="t")
    key.refresh_from_db()
    assert (key.name, key.scopes, key.digest) == ("renamed", ["usage"], digest)
    assert set(AuditEntry.objects.get(action="api_key.update").after) == {"name", "scopes"}


def test_a_limit_is_set_moved_and_removed() -> None:
    key, _ = factories.api_key()
    Change.objects.all().delete()
    limit_set(tenant=key.tenant, kind="tokens_per_min", value=100, set_by="tenant", actor="t")
    limit_set(tenant=key.tenant, kind="tokens_per_min", value=200, set_by="tenant", actor="t")
    mine = limit_set(tenant=key.tenant, api_key=key, kind="tokens_per_min", value=50, set_by="tenant", actor="t")
    assert sorted(Limit.objects.values_list("value", flat=True)) == [50, 200]
    limit_remove(limit=mine, actor="t")
    assert told() == ["tenant", "tenant", "key", "key"]
    assert not limit_remove(limit=Limit(pk=mine.pk, tenant=key.tenant, api_key=key), actor="t")
    assert AuditEntry.objects.filter(action="limit.remove").count() == 1
    changed = AuditEntry.objects.filter(action="limit.set").order_by("at")[1]
    assert (changed.before, changed.after) == ({"value": 100}, {"value": 200})


@pytest.mark.parametrize(("kind", "value", "at"), [("wishes", 3, "kind"), ("concurrency", 0, "value")])
def test_a_bad_limit_is_refused_at_its_field(kind: str, value: int, at: str) -> None:
    with pytest.raises(ValidationError) as error:
        limit_set(tenant=factories.tenant(), kind=kind, value=value, set_by="tenant", actor="t")
    assert at in error.value.message_dict


def test_a_limit_cannot_join_two_tenants() -> None:
    key, _ = factories.api_key()
    with pytest.raises(ValidationError) as error:
        limit_set(tenant=factories.tenant(), api_key=key, kind="concurrency", value=1, set_by="tenant", actor="t")
    assert list(error.value.message_dict) == ["api_key"]


def test_a_link_signs_in_once_and_in_time() -> None:
    person = factories.user()
    token = sign_in_link_create(user=person, actor="t")
    assert token not in str(list(SignInLink.objects.values()))
    assert sign_in_link_redeem(token) == person
    with pytest.raises(SignInLinkError, match="used or has expired"):
        sign_in_link_redeem(token)
    late = sign_in_link_create(user=person, actor="t", valid_for=datetime.timedelta(minutes=5))
    with pytest.raises(SignInLinkError):
        sign_in_link_redeem(late, now=timezone.now() + datetime.timedelta(minutes=6))
    with pytest.raises(SignInLinkError):
        sign_in_link_redeem("made up")
    with pytest.raises(ValidationError):
        sign_in_link_create(user=person, actor="t", valid_for=datetime.timedelta(0))


def test_a_link_ends_with_whom_it_let_in() -> None:
    person, other = factories.user(), factories.user()
    token, others = sign_in_link_create(user=person, actor="t"), sign_in_link_create(user=other, actor="t")
    user_set_active(user=person, is_active=False, actor="t")
    user_set_active(user=person, is_active=True, actor="t")
    with pytest.raises(SignInLinkError, match="used or has expired"):
        sign_in_link_redeem(token)
    assert sign_in_link_redeem(others) == other


def test_a_new_password_ends_open_links() -> None:
    person = factories.user()
    token = sign_in_link_create(user=person, actor="t")
    user_set_password(user=person, password="a fine long one", actor=person)
    with pytest.raises(SignInLinkError, match="used or has expired"):
        sign_in_link_redeem(token)


def test_a_link_made_for_somebody_kept_out_does_not_let_them_in() -> None:
    person = factories.user()
    user_set_active(user=person, is_active=False, actor="t")
    token = sign_in_link_create(user=person, actor="t")
    with pytest.raises(SignInLinkError, match="may not sign in"):
        sign_in_link_redeem(token)


def test_a_failed_write_leaves_no_trace() -> None:
    tenant = factories.tenant()
    entries, changes = AuditEntry.objects.count(), Change.objects.count()
    with pytest.raises(ValidationError):
        tenant_update(tenant=tenant, actor="t", slug="not a slug")
    assert (AuditEntry.objects.count(), Change.objects.count()) == (entries, changes)
