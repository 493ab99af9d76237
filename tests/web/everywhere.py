"""Every address of the web role, from its URL table, about things that exist on a seeded platform."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

from django.urls import URLPattern, URLResolver, get_resolver

if TYPE_CHECKING:
    from tests.web.seed import Seeded

ELSEWHERE = ("admin/", "api/")
"""The admin's theme is not ours, and the API has no pages but the reader of its document."""


class Address(NamedTuple):
    """``route`` as the table has it, with ``<converter:parameter>``; ``who`` opens it: operator, owner or a visitor."""

    name: str
    route: str
    who: str | None

    def path(self, things: dict[str, str]) -> str:
        """With ``things`` in place of parameters. KeyError: nothing is known for one of them."""
        pieces = []
        for piece in self.route.split("<"):
            inside, closed, rest = piece.rpartition(">")
            pieces.append(self.thing(inside.rpartition(":")[2], things) + rest if closed else piece)
        return "/" + "".join(pieces)

    def thing(self, parameter: str, things: dict[str, str]) -> str:
        """What stands for a parameter of this address."""
        own = f"{self.name} {parameter}"
        return things[own] if own in things else things[parameter]


def addresses() -> list[Address]:
    """All of them, in the order of the table."""
    return list(_below(get_resolver().url_patterns, ""))


def _below(patterns: list[URLPattern | URLResolver], prefix: str) -> Iterator[Address]:
    for one in patterns:
        route = prefix + str(one.pattern)
        if route.startswith(ELSEWHERE):
            continue
        if isinstance(one, URLResolver):
            yield from _below(one.url_patterns, route)
        else:
            yield Address(one.name or "", route, _who(route))


def _who(route: str) -> str | None:
    if route.startswith(("sign-in/", "invitations/")):
        return None
    return "operator" if route.startswith("console/") else "owner"


def things_of(seeded: Seeded) -> dict[str, str]:
    """What stands for each parameter; ``<name of an address> <parameter>`` goes before ``<parameter>``."""
    from capacity.models import Reservation, UsageRecord
    from capacity.services import enrolment_token_create
    from serving.models import Calibration
    from tenants.services import invitation_create
    from tenants.services.links import sign_in_link_create
    from tests.web.answering import book

    book(seeded)
    row = seeded.northwind
    token, _ = enrolment_token_create(name="hall 2", actor=seeded.operator)
    invitation, link = invitation_create(tenant=row, email="new@northwind.example", actor=seeded.owner)
    member = row.memberships.get(user=seeded.viewer).pk
    things: dict[str, object] = {
        "token_id": token.pk,
        "name": "gpu-01",
        "deployment_id": seeded.chat.pk,
        "revision_id": seeded.chat.revisions.get().pk,
        "replica_id": seeded.failed.pk,
        "calibration_id": Calibration.objects.get(state="fitted").pk,
        "calibration-cancel-ask calibration_id": Calibration.objects.get(state="measuring").pk,
        "reservation_id": Reservation.objects.get(state="requested").pk,
        "slug": row.slug,
        "invoice_id": row.invoices.get(kind="invoice").pk,
        "guarantee reservation_id": row.reservations.get(state="active").pk,
        "tenant-guarantee reservation_id": row.reservations.get(state="active").pk,
        "membership_id": member,
        "member_id": member,
        "invitation_id": invitation.pk,
        "limit_id": row.limits.get(api_key=None).pk,
        "key_id": row.api_keys.get(name="sandbox").pk,
        "pool": "chat-32b",
        "version": 1,
        "tenant-usage-series pool": seeded.chat.pool_id,
        "request_id": UsageRecord.objects.filter(tenant_id=row.pk, outcome="completed").latest("ended_at").pk,
        "invitation token": link,
        "sign-in-link token": sign_in_link_create(user=seeded.viewer, actor=seeded.operator),
    }
    return {name: str(thing) for name, thing in things.items()}
