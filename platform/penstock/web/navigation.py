"""What stands in the navigation: one list for operators, one for tenants. A page names the entry it belongs to."""

from dataclasses import dataclass

from tenants.models import Tenant, User
from tenants.permissions import role_in
from tenants.policy.roles import Action, role_allows


@dataclass(frozen=True)
class Entry:
    """``name`` is the URL name of its page, and what that page and those below it give as ``current``."""

    label: str
    name: str
    icon: str


@dataclass(frozen=True)
class TenantEntry(Entry):
    """Its URL takes the tenant's slug; only members who may do ``needs`` see it."""

    needs: Action


OPERATOR_ENTRIES = (
    Entry("Capacity", "console", "capacity"),
    Entry("Deployments", "operators:deployments", "grid"),
    Entry("Pools", "operators:pools", "pool"),
    Entry("Calibration", "operators:calibrations", "gauge"),
    Entry("Reservations", "operators:reservations", "sold"),
    Entry("Guarantees", "operators:guarantees", "ok"),
    Entry("Invoices", "operators:invoices", "invoice"),
    Entry("Hosts", "operators:hosts", "host"),
    Entry("Tenants", "operators:tenants", "people"),
    Entry("Audit", "operators:audit-log", "audit"),
    Entry("Admin", "admin:index", "settings"),
)
OPERATOR_EXTRAS = (Entry("Style guide", "style-guide", "code"),)
"""Shown only while one is there."""
TENANT_ENTRIES = (
    TenantEntry("Overview", "tenant", "capacity", Action.USAGE_VIEW),
    TenantEntry("Quick start", "tenant-quickstart", "code", Action.TENANT_VIEW),
    TenantEntry("Playground", "tenant-playground", "chat", Action.INFERENCE_USE),
    TenantEntry("Keys", "tenant-keys", "key", Action.KEY_VIEW),
    TenantEntry("Usage", "tenant-usage", "usage", Action.USAGE_VIEW),
    TenantEntry("Reservations", "tenant-reservations", "sold", Action.USAGE_VIEW),
    TenantEntry("Guarantees", "tenant-guarantees", "ok", Action.USAGE_VIEW),
    TenantEntry("Invoices", "tenant-invoices", "invoice", Action.USAGE_VIEW),
    TenantEntry("Members", "tenant-members", "people", Action.MEMBER_VIEW),
    TenantEntry("Limits", "tenant-limits", "gauge", Action.TENANT_VIEW),
    TenantEntry("Audit", "tenant-audit", "audit", Action.AUDIT_VIEW),
)
NO_TENANT_ENTRIES = (Entry("Tenants", "tenants", "people"),)


def operator_entries(current: str) -> tuple[Entry, ...]:
    """What operators see beside the platform's pages."""
    return OPERATOR_ENTRIES + tuple(entry for entry in OPERATOR_EXTRAS if entry.name == current)


def tenant_entries(user: User, tenant: Tenant) -> tuple[TenantEntry, ...]:
    """What ``user`` sees beside the pages of ``tenant``: at most one query."""
    if user.is_operator:
        return TENANT_ENTRIES
    role = role_in(user, tenant)
    return tuple(entry for entry in TENANT_ENTRIES if role_allows(role, entry.needs))
