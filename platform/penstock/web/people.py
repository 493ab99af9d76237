"""What a tenant's pages call the people who sent its requests from the playground."""

from __future__ import annotations

from collections.abc import Collection
from uuid import UUID

from tenants.models import Membership, Tenant, User

OPERATOR, GONE = "operator", "former member"


def playground_names(tenant: Tenant, ids: Collection[UUID]) -> dict[UUID, str]:
    """Of ``ids`` the people, by id: members by their address. Who is no member is named to nobody in the tenant."""
    members = set(Membership.objects.filter(tenant=tenant, user__in=ids).values_list("user_id", flat=True))
    people = User.objects.filter(pk__in=ids).order_by("email")
    return {
        row.pk: row.email if row.pk in members else OPERATOR if row.is_operator else GONE
        for row in people.only("pk", "email", "is_operator")
    }
