"""Limits of the operator on the tenant's pages: every member sees them, none but operators changes them."""

from __future__ import annotations

import re
from html import unescape
from typing import Any

import pytest
from django.test import Client
from django.utils import timezone

from penstock.web.dashboard_data import TENANT_RANGES, gather_dashboard
from tenants.models import ApiKey, AuditEntry, Limit, Membership, Tenant, User
from tests.web.seed import api_key, people

ROLES = ("viewer", "developer", "admin", "owner")
FORM = {"kind": "concurrency", "model": ""}


@pytest.fixture
def tenant(db: None) -> Tenant:
    return people()[4]


@pytest.fixture
def key(tenant: Tenant) -> ApiKey:
    return api_key(tenant, "ci")


def by(tenant: Tenant, role: str) -> Client:
    user = User.objects.create_user(f"{role}@limits.example", is_operator=role == "operator")
    if role != "operator":
        Membership.objects.create(tenant=tenant, user=user, role=role)
    client = Client()
    client.force_login(user)
    return client


def places(key: ApiKey) -> tuple[tuple[str, str, ApiKey | None], ...]:
    """Where a limit is shown, where it is set, and whose it is: of the tenant, and of a key."""
    of_key = f"/t/northwind/keys/{key.pk}"
    return ("/t/northwind/limits/", "/t/northwind/limits/", None), (f"{of_key}/", f"{of_key}/limits", key)


def removal(limit: Limit) -> str:
    at = f"keys/{limit.api_key_id}/limits" if limit.api_key_id else "limits"
    return f"/t/northwind/{at}/{limit.pk}/remove"


def stand(key: ApiKey | None) -> dict[str, int]:
    return dict(Limit.objects.filter(api_key=key).values_list("set_by", "value"))


def shown(answer: Any) -> str:
    return re.sub(r"\s+", " ", unescape(answer.content.decode()))


@pytest.mark.parametrize("role", ROLES)
def test_every_role_sees_the_operators_limit_and_no_button(tenant: Tenant, key: ApiKey, role: str) -> None:
    client = by(tenant, role)
    for page, _, of in places(key):
        limit = Limit.objects.create(tenant=tenant, api_key=of, kind="concurrency", value=77, set_by="operator")
        text = shown(client.get(page))
        assert 'data-l="Set by">the operator' in text
        assert ">77<" in text
        assert removal(limit) not in text
        assert f"end-{limit.pk}" not in text
        refused = client.post(removal(limit))
        assert refused.status_code == 403
        if role in ("admin", "owner"):
            assert "Ask an operator of the platform" in shown(refused)
        assert stand(of) == {"operator": 77}
    assert not AuditEntry.objects.filter(action="limit.remove").exists()


@pytest.mark.parametrize("role", ["admin", "owner"])
def test_a_limit_of_ones_own_stands_beside_it(tenant: Tenant, key: ApiKey, role: str) -> None:
    client = by(tenant, role)
    for page, at, of in places(key):
        Limit.objects.create(tenant=tenant, api_key=of, kind="concurrency", value=10, set_by="operator")
        answer = shown(client.post(at, {**FORM, "value": "50"}, follow=True))
        assert "The operator's limit beside it, 10, holds: the smaller does." in answer
        assert "the operator’s 10 holds" in answer
        assert stand(of) == {"operator": 10, "tenant": 50}
        answer = shown(client.post(at, {**FORM, "value": "4"}, follow=True))
        assert "beside it" not in answer.split("<main")[0]
        assert "the tenant’s 4 holds" in answer
        own = Limit.objects.get(api_key=of, set_by="tenant")
        assert removal(own) in answer
        assert "The operator's limit, 10, still holds." in shown(client.post(removal(own), follow=True))
        assert stand(of) == {"operator": 10}
        assert shown(client.get(page)).count("the operator’s 10 holds") == 0


def test_an_operator_sets_and_removes_the_operators_and_sees_both(tenant: Tenant, key: ApiKey) -> None:
    client = by(tenant, "operator")
    for page, at, of in places(key):
        Limit.objects.create(tenant=tenant, api_key=of, kind="concurrency", value=5, set_by="tenant")
        answer = shown(client.post(at, {**FORM, "value": "9"}, follow=True))
        assert "The tenant's own limit beside it, 5, holds" in answer
        assert stand(of) == {"operator": 9, "tenant": 5}
        assert 'data-l="Set by">the operator' in answer
        assert 'data-l="Set by">the tenant' in answer
        for limit in Limit.objects.filter(api_key=of):
            assert removal(limit) in shown(client.get(page))
            assert client.post(removal(limit)).status_code == 302
        assert stand(of) == {}
    actors = set(AuditEntry.objects.filter(action__startswith="limit.").values_list("actor", "tenant_id"))
    assert actors == {("operator@limits.example", tenant.pk)}


def test_the_dashboard_shows_what_holds(tenant: Tenant) -> None:
    for set_by, value in (("operator", 4321), ("tenant", 1234)):
        Limit.objects.create(tenant=tenant, kind="tokens_per_min", value=value, set_by=set_by)
    found = gather_dashboard(tenant, TENANT_RANGES["24h"], timezone.now(), None, False)
    assert [(row.set_by, row.value) for row in found.limits] == [("tenant", 1234)]
