"""Each of the tenant's pages turns away visitors, other tenants' members and roles without the right.

Generated from the URL table: a page that this file does not know fails.
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from datetime import timedelta

import pytest
from django.test import Client
from django.utils import timezone

from capacity.models import HardwareType, Invoice, Model, Reservation
from penstock.web.tenant import urls
from tenants.models import AuditEntry, Invitation, Limit, Membership, User
from tests.web.seed import api_key, people, pool, usage_record

ROLES = ("viewer", "developer", "admin", "owner")


@dataclass(frozen=True)
class Route:
    """``get`` and ``post`` are the least roles that may; None: the page does not take that method."""

    get: str | None
    post: str | None = None
    query: str = ""


ROUTES = {
    "tenant-quickstart": Route("viewer", "developer"),
    "tenant-playground": Route("developer"),
    "tenant-keys": Route("viewer"),
    "tenant-key-new": Route("developer", "developer"),
    "tenant-key": Route("viewer"),
    "tenant-key-edit": Route(None, "admin"),
    "tenant-key-rotation": Route(None, "admin"),
    "tenant-key-revocation": Route(None, "admin"),
    "tenant-key-limit-set": Route(None, "admin"),
    "tenant-key-limit-remove": Route(None, "admin"),
    "tenant-usage": Route("viewer"),
    "tenant-usage-series": Route("viewer", query="?pool={pool_id}"),
    "tenant-usage-export": Route("viewer"),
    "tenant-usage-request": Route("viewer"),
    "tenant-members": Route("viewer", "admin"),
    "tenant-member-role": Route(None, "admin"),
    "tenant-member-remove": Route(None, "admin"),
    "tenant-invitation-end": Route(None, "admin"),
    "tenant-reservations": Route("viewer"),
    "tenant-reservation-new": Route("admin", "admin"),
    "tenant-reservation-end": Route(None, "admin"),
    "tenant-limits": Route("viewer", "admin"),
    "tenant-limit-end": Route(None, "admin"),
    "tenant-guarantees": Route("viewer"),
    "tenant-guarantee": Route("viewer"),
    "tenant-invoices": Route("viewer"),
    "tenant-month-preview": Route("viewer"),
    "tenant-invoice": Route("viewer"),
    "tenant-audit": Route("admin"),
}
"""A key that somebody else made, a member and an invitation that are not owners."""
READS = [name for name, route in ROUTES.items() if route.get]
WRITES = [name for name, route in ROUTES.items() if route.post]


@dataclass(frozen=True)
class Things:
    """One of each kind in Northwind, people in each role, an operator, and the owner of another tenant."""

    ids: dict[str, uuid.UUID]
    limit: Limit
    people: dict[str, User]

    def path(self, name: str, slug: str = "northwind") -> str:
        pattern = next(pattern for pattern in urls.urlpatterns if pattern.name == name)
        route = str(pattern.pattern)
        ids = self.ids | ({"limit_id": self.limit.pk} if name == "tenant-limit-end" else {})
        for parameter, value in ids.items():
            route = route.replace(f"<uuid:{parameter}>", str(value))
        assert "<" not in route, route
        return f"/t/{slug}/{route}{ROUTES[name].query.format(**self.ids)}"


@pytest.fixture
def things(db: None) -> Things:
    operator, owner, viewer, stranger, tenant, _ = people()
    members = {"owner": owner, "viewer": viewer, "operator": operator, "stranger": stranger}
    for role in ("admin", "developer"):
        members[role] = User.objects.create_user(f"{role}@northwind.example")
        Membership.objects.create(tenant=tenant, user=members[role], role=role)
    hardware = HardwareType.objects.create(slug="cpu", name="CPU", is_cpu=True)
    model = Model.objects.create(slug="m", name="M", artifact_kind="none")
    sold = pool("chat-32b", model, hardware, calibrated=True, now=timezone.now())
    key = api_key(tenant, "sandbox")
    invitation = Invitation.objects.create(
        tenant=tenant, email="new@northwind.example", digest="d", expires_at=timezone.now() + timedelta(days=1)
    )
    of_tenant = Limit.objects.create(tenant=tenant, kind="concurrency", value=64, set_by="tenant")
    of_key = Limit.objects.create(tenant=tenant, api_key=key, kind="concurrency", value=8, set_by="tenant")
    record = usage_record(tenant, key.pk, sold)
    wish = Reservation.objects.create(
        tenant=tenant,
        pool=sold,
        profile=sold.profiles.get(),
        mu_per_min=10.0,
        starts_at=timezone.now(),
        state="requested",
    )
    bill = Invoice(number=1, tenant=tenant, month=timezone.now().date().replace(day=1), sequence=0, kind="invoice")
    bill.content = {
        "format": 2,
        "currency": "USD",
        "totals": {},
        "lines": [],
        "corrects": None,
        "chain": {"sequence": 0},
    }
    bill.save()
    ids = {
        "invoice_id": bill.pk,
        "reservation_id": wish.pk,
        "key_id": key.pk,
        "limit_id": of_key.pk,
        "member_id": Membership.objects.get(user=viewer).pk,
        "invitation_id": invitation.pk,
        "request_id": record.pk,
        "pool_id": sold.pk,
    }
    return Things(ids, of_tenant, members)


def test_every_page_of_a_tenant_is_in_the_table_of_this_test() -> None:
    assert {pattern.name for pattern in urls.urlpatterns} == set(ROUTES)


@pytest.mark.parametrize("name", ROUTES)
def test_a_visitor_is_sent_to_sign_in(client: Client, things: Things, name: str) -> None:
    route = ROUTES[name]
    for method in ("get",) * bool(route.get) + ("post",) * bool(route.post):
        answer = getattr(client, method)(things.path(name))
        assert answer.status_code == 302
        assert answer["Location"].startswith("/sign-in/")


@pytest.mark.parametrize("name", ROUTES)
def test_anothers_tenant_does_not_exist(client: Client, things: Things, name: str) -> None:
    client.force_login(things.people["stranger"])
    entries = AuditEntry.objects.count()
    route = ROUTES[name]
    for method in ("get",) * bool(route.get) + ("post",) * bool(route.post):
        answer = getattr(client, method)(things.path(name))
        assert answer.status_code == 404
        assert b"orthwind" not in answer.content
    assert AuditEntry.objects.count() == entries


@pytest.mark.parametrize("name", ROUTES)
def test_what_belongs_to_another_tenant_is_not_found_in_ones_own(client: Client, things: Things, name: str) -> None:
    """The stranger owns Alder: with Northwind's ids in Alder's addresses they reach nothing."""
    pattern = next(pattern for pattern in urls.urlpatterns if pattern.name == name)
    if "<uuid" not in str(pattern.pattern):
        return
    client.force_login(things.people["stranger"])
    entries = AuditEntry.objects.count()
    route = ROUTES[name]
    answer = getattr(client, "get" if route.get else "post")(things.path(name, "alder"), {"role": "admin"})
    assert answer.status_code == 404
    assert AuditEntry.objects.count() == entries


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("name", READS)
def test_a_page_opens_for_the_roles_that_may(client: Client, things: Things, name: str, role: str) -> None:
    client.force_login(things.people[role])
    answer = client.get(things.path(name))
    may = ROLES.index(role) >= ROLES.index(ROUTES[name].get or "")
    assert answer.status_code == (200 if may else 403)


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("name", WRITES)
def test_a_change_is_for_the_roles_that_may(client: Client, things: Things, name: str, role: str) -> None:
    client.force_login(things.people[role])
    entries = AuditEntry.objects.count()
    if ROLES.index(role) >= ROLES.index(ROUTES[name].post or ""):
        assert client.post(things.path(name), {"overlap_s": "0", "role": "developer"}).status_code in (200, 302, 400)
        return
    # Who is refused is the viewer whose membership it is, too: leaving is everybody's own to do.
    expected = 302 if (name, role) == ("tenant-member-remove", "viewer") else 403
    assert client.post(things.path(name), {"overlap_s": "0", "role": "developer"}).status_code == expected
    assert AuditEntry.objects.count() == entries + (expected == 302)


@pytest.mark.parametrize("name", READS)
def test_an_operator_sees_it_and_is_marked_as_such(client: Client, things: Things, name: str) -> None:
    client.force_login(things.people["operator"])
    answer = client.get(things.path(name))
    assert answer.status_code == 200
    if name not in ("tenant-usage-series", "tenant-usage-export"):
        assert b"seen as operator" in answer.content


@pytest.mark.parametrize("name", [name for name in WRITES if not ROUTES[name].get])
def test_a_change_cannot_be_made_by_a_link(client: Client, things: Things, name: str) -> None:
    client.force_login(things.people["owner"])
    assert client.get(things.path(name)).status_code == 405


def test_a_form_of_another_site_is_refused(things: Things) -> None:
    client = Client(enforce_csrf_checks=True)
    client.force_login(things.people["owner"])
    for name in WRITES:
        assert client.post(things.path(name)).status_code == 403, name


@pytest.mark.parametrize("role", ROLES)
def test_the_navigation_names_what_the_role_may_open(client: Client, things: Things, role: str) -> None:
    client.force_login(things.people[role])
    page = client.get("/t/northwind/keys/").content.decode()
    assert ("/t/northwind/playground/" in page) is (role != "viewer")
    assert "/t/northwind/usage/" in page
