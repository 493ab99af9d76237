"""Who gives and takes which role in a tenant, and who changes whose keys."""

from __future__ import annotations

from collections.abc import Callable

from tenants.policy.roles import ROLES, Action, role_allows

May = Callable[[Action], bool]
"""Whether somebody may do an action in the tenant."""


def role_refusal(may: May, *roles: str) -> str | None:
    """Why whoever ``may`` do so much may not give and take ``roles``, in words; None where they may."""
    if not may(Action.MEMBER_MANAGE):
        return "Owners and admins of the tenant manage its members. Ask one of them."
    if "owner" in roles and not may(Action.OWNER_MANAGE):
        return "Only an owner makes or unmakes owners. Ask an owner of the tenant."
    return None


def roles_given_by(role: str | None) -> frozenset[str]:
    """The roles that a member in ``role`` (None: not a member) may give to others."""
    return frozenset(given for given in ROLES if role_refusal(lambda action: role_allows(role, action), given) is None)


def key_refusal(may: May, *, is_own: bool) -> str | None:
    """Why whoever ``may`` do so much may not change a key, in words; None where they may.

    ``is_own``: they made it themselves.
    """
    if is_own or may(Action.KEY_MANAGE):
        return None
    return "Developers change the keys they made themselves. Ask an admin."
