"""What each role may do in its tenant: one table, asked by pages, API and admin alike."""

from collections.abc import Callable, Iterable
from enum import StrEnum


class Action(StrEnum):
    """Things a person can do. The first group is done in a tenant, the second on the platform."""

    TENANT_VIEW = "tenant.view"
    USAGE_VIEW = "usage.view"
    KEY_VIEW = "key.view"
    MEMBER_VIEW = "member.view"
    INFERENCE_USE = "inference.use"
    KEY_CREATE = "key.create"
    KEY_MANAGE = "key.manage"
    LIMIT_MANAGE = "limit.manage"
    MEMBER_MANAGE = "member.manage"
    RESERVATION_REQUEST = "reservation.request"
    AUDIT_VIEW = "audit.view"
    OWNER_MANAGE = "owner.manage"
    TENANT_MANAGE = "tenant.manage"

    PLATFORM_VIEW = "platform.view"
    PLATFORM_OPERATE = "platform.operate"


_VIEWER = frozenset({Action.TENANT_VIEW, Action.USAGE_VIEW, Action.KEY_VIEW, Action.MEMBER_VIEW})
_DEVELOPER = _VIEWER | {Action.INFERENCE_USE, Action.KEY_CREATE}
_ADMIN = _DEVELOPER | {
    Action.KEY_MANAGE,
    Action.LIMIT_MANAGE,
    Action.MEMBER_MANAGE,
    Action.RESERVATION_REQUEST,
    Action.AUDIT_VIEW,
}
_OWNER = _ADMIN | {Action.OWNER_MANAGE, Action.TENANT_MANAGE}

ROLES: dict[str, frozenset[Action]] = {
    "viewer": _VIEWER,
    "developer": _DEVELOPER,
    "admin": _ADMIN,
    "owner": _OWNER,
}
"""Actions by role. ``key.manage`` and ``key.create`` differ: a developer manages the keys they made themselves."""

KEY_SCOPES: dict[str, frozenset[Action]] = {
    "inference": frozenset(),
    "usage": frozenset({Action.TENANT_VIEW, Action.USAGE_VIEW}),
    "manage": _ADMIN - {Action.INFERENCE_USE},
}
"""Actions of the REST API by an API key's scope: at most what an admin of its tenant may do."""

PLATFORM_ACTIONS = frozenset({Action.PLATFORM_VIEW, Action.PLATFORM_OPERATE})


def role_allows(role: str | None, action: Action) -> bool:
    """Whether ``role`` (None: not a member) covers ``action``. An unknown role covers nothing."""
    return role is not None and action in ROLES.get(role, frozenset())


SCOPE_NEEDS: dict[str, Action] = {
    "inference": Action.INFERENCE_USE,
    "usage": Action.USAGE_VIEW,
    "manage": Action.KEY_MANAGE,
}
"""What somebody must be allowed to do to give an API key a scope: nobody hands on more than they have."""


def scopes_beyond(scopes: Iterable[str], may: Callable[[Action], bool]) -> list[str]:
    """The ``scopes`` that whoever ``may`` do so much cannot give to a key. An unknown scope can be given by nobody."""
    return [scope for scope in scopes if scope not in SCOPE_NEEDS or not may(SCOPE_NEEDS[scope])]


def scopes_allow(scopes: Iterable[str], action: Action) -> bool:
    """Whether one of an API key's ``scopes`` covers ``action``."""
    return any(action in KEY_SCOPES.get(scope, frozenset()) for scope in scopes)
