"""Who may do what: the one place that pages, API and admin ask."""

from django.contrib.auth.models import AnonymousUser

from tenants.models import Membership, Tenant, User
from tenants.policy.roles import PLATFORM_ACTIONS, Action, role_allows


def can(user: User | AnonymousUser, action: Action, tenant: Tenant | None = None) -> bool:
    """Whether ``user`` may do ``action``, in ``tenant`` where it is one of a tenant's. Operators may do everything.

    Raises ValueError for an action of a tenant without a tenant.
    """
    if not isinstance(user, User) or not user.is_active:
        return False
    if user.is_operator:
        return True
    if action in PLATFORM_ACTIONS:
        return False
    if tenant is None:
        raise ValueError(f"{action} needs a tenant")
    return role_allows(role_in(user, tenant), action)


def role_in(user: User, tenant: Tenant) -> str | None:
    """The user's role in ``tenant``, or None."""
    return Membership.objects.filter(user=user, tenant=tenant).values_list("role", flat=True).first()


def roles_of(user: User) -> dict[Tenant, str]:
    """The tenants a user belongs to, with their role in each: one query, for pages that show many."""
    return {
        membership.tenant: membership.role
        for membership in Membership.objects.filter(user=user).select_related("tenant").order_by("tenant__name")
    }
