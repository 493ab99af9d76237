"""Who uses the platform: users, tenants, memberships, invitations, keys, limits, and the record of who did what."""

from tenants.models.access import AccessToken, ApiKey, Limit, SignInAttempt, SignInLink
from tenants.models.api import IdempotentAnswer
from tenants.models.base import (
    Identified,
    Removable,
    TakenError,
    WrittenOnce,
    WrittenOnceError,
    WrittenOnceQuerySet,
    uuid7,
)
from tenants.models.invitations import Invitation
from tenants.models.log import AuditEntry, Change, Lease
from tenants.models.people import Membership, Tenant, User

__all__ = [
    "AccessToken",
    "ApiKey",
    "AuditEntry",
    "Change",
    "IdempotentAnswer",
    "Identified",
    "Invitation",
    "Lease",
    "Limit",
    "Membership",
    "Removable",
    "SignInAttempt",
    "SignInLink",
    "TakenError",
    "Tenant",
    "User",
    "WrittenOnce",
    "WrittenOnceError",
    "WrittenOnceQuerySet",
    "uuid7",
]
