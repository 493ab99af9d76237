"""The operators' pages turn everybody else away: each address, by each method, for each role and for visitors."""

from __future__ import annotations

import re

import pytest
from django.test import Client
from django.urls import URLPattern, URLResolver, get_resolver, reverse

from capacity.models import Host, Invoice, Pool, Reservation
from capacity.services import enrolment_token_create
from penstock.web.csp import POLICY
from penstock.web.operators.urls import urlpatterns
from serving.models import Calibration, Deployment
from tenants.models import AuditEntry, Membership, Tenant, User
from tenants.policy.roles import ROLES
from tenants.services import invitation_create
from tests import factories
from tests.web.seed import Seeded

METHODS = ("get", "post")


def paths(platform: Seeded) -> dict[str, str]:
    """The address of each page by its name, about things that exist."""
    token, _ = enrolment_token_create(name="a token", actor="a test")
    invitation, _ = invitation_create(tenant=platform.northwind, email="new@northwind.example", actor="a test")
    row, under_way = platform.northwind, Calibration.objects.get(state="measuring")
    values = {
        "token_id": token.pk,
        "name": "gpu-01",
        "pool": "chat-32b",
        "version": 1,
        "deployment_id": platform.chat.pk,
        "revision_id": platform.chat.revisions.get().pk,
        "replica_id": platform.failed.pk,
        "calibration_id": Calibration.objects.get(state="fitted").pk,
        "reservation_id": Reservation.objects.get(state="requested").pk,
        "slug": row.slug,
        "invoice_id": row.invoices.get(kind="invoice").pk,
        "membership_id": row.memberships.get(user=platform.viewer).pk,
        "invitation_id": invitation.pk,
        "limit_id": row.limits.get(api_key=None).pk,
    }
    found = {}
    for pattern in urlpatterns:
        assert isinstance(pattern, URLPattern)
        assert pattern.name
        names = pattern.pattern.converters
        about = values | ({"calibration_id": under_way.pk} if pattern.name == "calibration-cancel-ask" else {})
        found[pattern.name] = reverse(f"operators:{pattern.name}", kwargs={name: about[name] for name in names})
    return found


def state() -> tuple[object, ...]:
    """What the pages could have changed."""
    return (
        AuditEntry.objects.count(),
        list(Host.objects.values_list("state", "labels")),
        list(Deployment.objects.values_list("is_enabled", "max_replicas", "retry_attempt")),
        list(Tenant.objects.values_list("slug", "is_active")),
        Membership.objects.count(),
        list(Pool.objects.values_list("slug", "is_public", "ttft_objective_ms", "best_effort", "version")),
        list(Calibration.objects.values_list("pk", "state")),
        Invoice.objects.count(),
        list(Reservation.objects.order_by("pk").values_list("pk", "state", "mu_per_min")),
    )


def test_every_page_lies_below_the_console(platform: Seeded) -> None:
    found = paths(platform)
    assert len(found) == len(urlpatterns)
    assert all(path.startswith("/console/") for path in found.values())


def test_members_of_every_role_are_turned_away(platform: Seeded) -> None:
    found, tried = paths(platform), 0
    # Of the very tenant that some of the pages are about.
    people = {role: factories.user() for role in ROLES}
    for role, person in people.items():
        Membership.objects.create(tenant=platform.northwind, user=person, role=role)
    before = state()
    for role, person in people.items():
        client = Client()
        client.force_login(person)
        for name, path in found.items():
            for method in METHODS:
                answer = getattr(client, method)(path)
                tried += 1
                # 405 is no leak: nobody may read what can only be posted.
                assert answer.status_code in (403, 405), (role, method, name)
                assert b"northwind" not in answer.content.lower(), (role, method, name)
    assert state() == before
    assert tried == len(ROLES) * len(found) * len(METHODS)


def test_people_without_a_tenant_and_visitors_are_turned_away(client: Client, platform: Seeded) -> None:
    found = paths(platform)
    before = state()
    for method in METHODS:
        for name, path in found.items():
            answer = getattr(client, method)(path)
            assert answer.status_code in (302, 405), (method, name)
            if answer.status_code == 302:
                assert answer["Location"].startswith("/sign-in/")
            part = getattr(client, method)(path, headers={"HX-Request": "true"})
            assert part.status_code in (401, 405), (method, name)
    client.force_login(User.objects.create_user("nobody@somewhere.example"))
    for method in METHODS:
        for name, path in found.items():
            assert getattr(client, method)(path).status_code in (403, 405), (method, name)
    assert state() == before


def test_a_deactivated_operator_is_a_visitor(client: Client, platform: Seeded) -> None:
    client.force_login(platform.operator)
    User.objects.filter(pk=platform.operator.pk).update(is_active=False)
    for name, path in paths(platform).items():
        assert client.get(path).status_code in (302, 405), name


def test_what_changes_something_is_posted_with_a_token(platform: Seeded) -> None:
    checked = Client(enforce_csrf_checks=True)
    checked.force_login(platform.operator)
    found = paths(platform)
    before = state()
    for name, path in found.items():
        assert checked.post(path).status_code in (403, 405), name
        checked.get(path)
    assert state() == before


def test_every_page_has_the_policy_and_nothing_inline(as_operator: Client, platform: Seeded) -> None:
    for name, path in paths(platform).items():
        answer = as_operator.get(path)
        assert answer["Content-Security-Policy"] == POLICY
        if answer.status_code == 405:
            continue
        body = answer.content.decode()
        assert "no-store" in answer["Cache-Control"], name
        assert not re.search(r"\sstyle=|<style|\son\w+=|<script>|javascript:", body), name
        assert not re.search(r'(?:src|href)="(?:https?:)?//', body), name


@pytest.mark.parametrize("tab", ["replicas", "events", "revisions", "calibration", "logs", "settings", "audit"])
def test_tabs_are_for_operators_too(client: Client, platform: Seeded, tab: str) -> None:
    path = f"/console/deployments/{platform.chat.pk}/?tab={tab}"
    client.force_login(platform.owner)
    assert client.get(path).status_code == 403
    client.force_login(platform.operator)
    assert client.get(path).status_code == 200


def test_no_page_shares_its_name_with_another_address() -> None:
    """Else a form would be posted to the REST API's route of that name."""
    homes: dict[str, set[str]] = {}

    def walk(patterns: list[URLPattern | URLResolver], prefix: str) -> None:
        for one in patterns:
            if isinstance(one, URLResolver):
                walk(one.url_patterns, f"{prefix}{one.namespace}:" if one.namespace else prefix)
            elif one.name:
                homes.setdefault(f"{prefix}{one.name}", set()).add(one.callback.__module__)

    walk(get_resolver().url_patterns, "")
    assert len(homes) > 100
    assert {name: places for name, places in homes.items() if len(places) > 1} == {}
