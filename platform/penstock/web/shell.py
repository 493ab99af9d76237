"""What every page shares: who looks, at what, and where else they may go."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from django.http import HttpResponse
from django.shortcuts import render
from django.urls import reverse

from penstock.web.access import UserRequest
from penstock.web.navigation import NO_TENANT_ENTRIES, Entry, operator_entries, tenant_entries
from tenants.models import Tenant, User
from tenants.permissions import roles_of

SWITCHER_ROWS = 12


@dataclass(frozen=True)
class NavItem:
    label: str
    url: str
    icon: str
    is_current: bool


@dataclass(frozen=True)
class Switch:
    """The switcher at the top of the navigation: where one is, and the other places one may go."""

    name: str
    kind: str
    initials: str
    others: list[tuple[str, str, str]]
    more_url: str


@dataclass(frozen=True)
class Shell:
    user: User
    nav: list[NavItem]
    switch: Switch


def initials(name: str) -> str:
    """One or two capitals that stand for ``name``."""
    words = [word for word in name.replace("-", " ").split() if word[0].isalnum()]
    return "".join(word[0] for word in words[:2]).upper() or "?"


def tenants_of(user: User) -> list[Tenant]:
    """Tenants whose dashboard ``user`` may see: all for operators, else those of their memberships."""
    if user.is_operator:
        return list(Tenant.objects.all())
    return list(roles_of(user))


def build_shell(user: User, *, current: str, tenant: Tenant | None) -> Shell:
    """Navigation and switcher. ``current`` is the URL name of the navigation's entry that the page belongs to."""
    entries: Sequence[Entry] = NO_TENANT_ENTRIES
    if tenant is not None:
        entries = tenant_entries(user, tenant)
    elif user.is_operator:
        entries = operator_entries(current)
    slug = [tenant.slug] if tenant is not None else []
    nav = [NavItem(row.label, reverse(row.name, args=slug), row.icon, row.name == current) for row in entries]
    return Shell(user=user, nav=nav, switch=_switch(user, tenant))


def _switch(user: User, tenant: Tenant | None) -> Switch:
    places = [(row.name, "Tenant", reverse("tenant", args=[row.slug])) for row in tenants_of(user) if row != tenant]
    if user.is_operator and tenant is not None:
        places.insert(0, ("All tenants", "Operator console", reverse("console")))
    if tenant is not None:
        name, kind = tenant.name, "Seen as operator" if user.is_operator else "Tenant"
    else:
        name, kind = ("All tenants", "Operator console") if user.is_operator else ("Your tenants", "Choose one")
    return Switch(
        name=name,
        kind=kind,
        initials="OP" if tenant is None and user.is_operator else initials(name),
        others=places[:SWITCHER_ROWS],
        more_url=reverse("operators:tenants" if user.is_operator else "tenants") if len(places) > SWITCHER_ROWS else "",
    )


def page(
    request: UserRequest,
    template: str,
    context: dict[str, Any],
    *,
    current: str,
    tenant: Tenant | None = None,
    status: int = 200,
) -> HttpResponse:
    """A page inside the application's frame, for a signed-in user."""
    shell = build_shell(request.user, current=current, tenant=tenant)
    shared = {"shell": shell, "tenant": tenant, "current_page": current}
    response = render(request, template, {**shared, **context}, status=status)
    response.headers["Cache-Control"] = "private, no-store"
    return response
