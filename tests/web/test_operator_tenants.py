"""Operators' pages of tenants and the audit log: what they do there, and what they are told."""

from __future__ import annotations

import re
from datetime import timedelta
from typing import Any

from django.test import Client
from django.utils import timezone

from tenants.models import AuditEntry, Invitation, Limit, Membership, Tenant
from tests.web.acting import text, undo
from tests.web.seed import Seeded


def test_a_tenant_is_made_with_its_owner_invited(as_operator: Client, client: Client) -> None:
    given = {"name": "Borealis Air", "slug": "", "owner": "mira@borealis.example"}
    answer = as_operator.post("/console/tenants/new", given)
    link = re.search(r"http://testserver(/invitations/[\w-]+)", text(answer))
    assert link is not None
    made = Tenant.objects.get(slug="borealis-air")
    assert made.invitations.get().role == "owner"
    assert link[0] not in text(as_operator.get("/console/tenants/borealis-air/"))
    Client().post(link[1])
    assert Membership.objects.get(tenant=made).user.email == "mira@borealis.example"


def test_a_name_is_enough_for_a_tenant(as_operator: Client) -> None:
    assert as_operator.post("/console/tenants/new", {"name": "Solo"})["Location"] == "/console/tenants/solo/"
    wrong = as_operator.post("/console/tenants/new", {"name": "Solo"})
    assert wrong.status_code == 400
    assert "already exists" in text(wrong)
    broken = as_operator.post("/console/tenants/new", {"name": "Duo", "owner": "no address"})
    assert "Enter a valid email address" in text(broken)
    assert not Tenant.objects.filter(slug="duo").exists()


def test_suspend_asks_and_is_taken_back(as_operator: Client, platform: Seeded) -> None:
    question = text(as_operator.get("/console/tenants/northwind/suspend"))
    assert '<a href="/console/tenants/northwind/">Northwind Bank</a><span>/</span><b>Suspend</b>' in question
    assert "Its 3 usable API keys are refused within two seconds" in question
    page = text(as_operator.post("/console/tenants/northwind/suspend", follow=True))
    platform.northwind.refresh_from_db()
    assert not platform.northwind.is_active
    assert "It is suspended" in page
    undo(as_operator, page)
    platform.northwind.refresh_from_db()
    assert platform.northwind.is_active


def test_names_and_slugs_change_and_come_back(as_operator: Client, platform: Seeded) -> None:
    given = {"name": "North Wind", "slug": "north-wind"}
    answer = as_operator.post("/console/tenants/northwind/edit", given, follow=True)
    assert answer.redirect_chain[-1][0] == "/console/tenants/north-wind/"
    undo(as_operator, text(answer))
    platform.northwind.refresh_from_db()
    assert (platform.northwind.name, platform.northwind.slug) == ("Northwind Bank", "northwind")
    wrong = as_operator.post("/console/tenants/northwind/edit", {"name": "N", "slug": "alder"})
    assert wrong.status_code == 400
    assert "already exists" in text(wrong)


def test_members_change_leave_and_come_back(as_operator: Client, platform: Seeded) -> None:
    viewer = platform.northwind.memberships.get(user=platform.viewer)
    base = f"/console/tenants/northwind/members/{viewer.pk}"
    page = text(as_operator.post(f"{base}/role", {"role": "admin"}, follow=True))
    viewer.refresh_from_db()
    assert viewer.role == "admin"
    undo(as_operator, page)
    viewer.refresh_from_db()
    assert viewer.role == "viewer"
    assert "API keys that they made go on working" in text(as_operator.get(f"{base}/remove"))
    page = text(as_operator.post(f"{base}/remove", follow=True))
    assert not Membership.objects.filter(pk=viewer.pk).exists()
    undo(as_operator, page)
    assert platform.northwind.memberships.get(user=platform.viewer).role == "viewer"
    owner = platform.northwind.memberships.get(user=platform.owner)
    page = text(as_operator.post(f"/console/tenants/northwind/members/{owner.pk}/remove", follow=True))
    assert "A tenant keeps at least one owner" in page
    assert Membership.objects.filter(pk=owner.pk).exists()


def test_a_member_of_another_tenant_is_none_of_it(as_operator: Client, platform: Seeded) -> None:
    other = platform.alder.memberships.get()
    path = f"/console/tenants/northwind/members/{other.pk}"
    assert as_operator.post(f"{path}/role", {"role": "viewer"}).status_code == 404
    assert as_operator.post(f"{path}/remove").status_code == 404


def test_invitations_are_shown_once_and_revoked(as_operator: Client, platform: Seeded) -> None:
    answer = as_operator.post("/console/tenants/northwind/invitations", {"email": "c@nw.example", "role": "viewer"})
    assert re.search(r"http://testserver/invitations/[\w-]+", text(answer))
    assert "no-store" in answer["Cache-Control"]
    again = as_operator.post("/console/tenants/northwind/invitations", {"email": "c@nw.example", "role": "viewer"})
    assert again.status_code == 400
    assert "has an open invitation" in text(again)
    invitation = Invitation.objects.get(email="c@nw.example")
    as_operator.post(f"/console/tenants/northwind/invitations/{invitation.pk}/revoke")
    invitation.refresh_from_db()
    assert invitation.revoked_at is not None


def test_limits_are_set_changed_removed_and_taken_back(as_operator: Client, platform: Seeded) -> None:
    def limits() -> dict[str, int]:
        return dict(Limit.objects.filter(tenant=platform.northwind, api_key=None).values_list("kind", "value"))

    path = "/console/tenants/northwind/limits"
    page = text(as_operator.post(path, {"kind": "concurrency", "value": "32", "model": ""}, follow=True))
    assert limits() == {"concurrency": 32}
    page = text(undo(as_operator, page))
    assert limits() == {"concurrency": 64}
    page = text(as_operator.post(path, {"kind": "requests_per_min", "value": "60", "model": ""}, follow=True))
    undo(as_operator, page)
    assert limits() == {"concurrency": 64}
    stored = Limit.objects.get(tenant=platform.northwind, api_key=None)
    page = text(as_operator.post(f"{path}/{stored.pk}/remove", follow=True))
    assert limits() == {}
    undo(as_operator, page)
    assert limits() == {"concurrency": 64}
    wrong = as_operator.post(path, {"kind": "concurrency", "value": "0", "model": ""})
    assert wrong.status_code == 400
    assert "greater than or equal to 1" in text(wrong)
    of_key = Limit.objects.get(api_key__isnull=False)
    assert as_operator.post(f"{path}/{of_key.pk}/remove").status_code == 404


def test_the_tenants_own_limit_stands_beside_the_operators(as_operator: Client, platform: Seeded) -> None:
    def limits() -> dict[str, int]:
        return dict(Limit.objects.filter(tenant=platform.northwind, api_key=None).values_list("set_by", "value"))

    path = "/console/tenants/northwind/limits"
    own = Limit.objects.create(tenant=platform.northwind, kind="concurrency", value=48, set_by="tenant")
    page = text(as_operator.get("/console/tenants/northwind/"))
    assert "the tenant’s 48 holds" in page
    assert "1 more holds for single keys or members" in page
    page = text(as_operator.post(path, {"kind": "concurrency", "value": "90", "model": ""}, follow=True))
    assert "own limit beside it, 48, holds" in page
    assert limits() == {"operator": 90, "tenant": 48}
    page = text(as_operator.post(f"{path}/{own.pk}/remove", follow=True))
    assert "s limit, 90, still holds." in page
    assert limits() == {"operator": 90}
    undo(as_operator, page)
    assert limits() == {"operator": 90, "tenant": 48}
    assert as_operator.post(path, {"kind": "concurrency", "value": "1", "set_by": "me"}).status_code == 400


def test_the_log_is_filtered_and_paged(as_operator: Client, platform: Seeded) -> None:
    as_operator.post("/console/hosts/gpu-01/cordon")
    as_operator.post("/console/tenants/northwind/limits", {"kind": "concurrency", "value": "32", "model": ""})
    page = text(as_operator.get("/console/audit/?action=host.cordon"))
    assert page.count("<code>host.") == 1
    assert '<span class="was">active</span> → cordoned' in page
    rows = as_operator.get("/console/audit/?tenant=northwind").context["rows"]
    assert [row.entry.action for row in rows] == ["limit.set"]
    assert rows[0].tenant == platform.northwind
    assert not as_operator.get("/console/audit/?actor=nobody").context["rows"]
    assert "No entry fits" in text(as_operator.get("/console/audit/?actor=nobody"))
    tomorrow = (timezone.now() + timedelta(days=1)).strftime("%Y-%m-%dT%H:%M")
    assert not as_operator.get(f"/console/audit/?since={tomorrow}").context["rows"]
    assert as_operator.get(f"/console/audit/?until={tomorrow}").context["rows"]
    wrong = text(as_operator.get("/console/audit/?since=yesterday"))
    assert "Write a day and a time" in wrong
    at = timezone.now()
    for number in range(120):
        AuditEntry.objects.create(at=at, actor="loops", action="test.act", object_type="x", object_id=str(number))
    seen: list[str] = []
    path = "/console/audit/?actor=loops"
    for _ in range(3):
        answer = as_operator.get(path)
        seen += [row.entry.object_id for row in answer.context["rows"]]
        path = f"/console/audit/?actor=loops&before={str(answer.context['older']).replace('+', '%2B')}"
    assert len(seen) == len(set(seen)) == 120
    assert answer.context["older"] is None


def test_no_secret_stands_in_the_log(as_operator: Client, settings: Any) -> None:
    settings.PENSTOCK_AGENT_REDIS_URL = "rediss://agent:pw@state.example.org:6380/0"
    answer = as_operator.post("/console/hosts/new", {"name": "x", "uses": "1", "hours": "1"})
    made = re.search(r"pse_\w+?_(\w+)", text(answer))
    assert made is not None
    as_operator.post("/console/hosts/gpu-01/secret")
    page = text(as_operator.get("/console/audit/"))
    assert made[1] not in page
    assert "enrolment_token.create" in page
    assert "host.renew_secret" in page
