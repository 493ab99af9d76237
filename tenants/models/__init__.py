"""Who uses the platform: users, tenants, memberships, keys, limits, and the record of who did what."""

from tenants.models.access import ApiKey, Limit, SignInLink
from tenants.models.base import Identified, uuid7
from tenants.models.log import AuditEntry, Change, Lease
from tenants.models.people import Membership, Tenant, User

__all__ = [
    "ApiKey",
    "AuditEntry",
    "Change",
    "Identified",
    "Lease",
    "Limit",
    "Membership",
    "SignInLink",
    "Tenant",
    "User",
    "uuid7",
]
