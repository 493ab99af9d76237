"""Tenants: who is on the platform, who belongs to them, what holds for them."""

from __future__ import annotations

from datetime import timedelta
from typing import Any
from uuid import UUID

from django.core.exceptions import ValidationError
from django.db import transaction
from django.db.models import Count, Q, Sum
from django.http import HttpResponse
from django.shortcuts import get_object_or_404
from django.urls import reverse
from django.utils import timezone
from django.views.decorators.cache import never_cache

from capacity.models import UsageRollup
from capacity.selectors import pools_usable, reservations_running, usage_rows
from penstock.web.access import UserRequest
from penstock.web.limit_words import budgets_told
from penstock.web.operators.audit import rows_of
from penstock.web.operators.frame import act, ask, done, form_page, read_page, show
from penstock.web.operators.lists import choice_of, listing, text_of
from penstock.web.operators.tenant_forms import InviteForm, LimitForm, NewTenantForm, TenantForm
from tenants.models import ApiKey, AuditEntry, Invitation, Limit, Membership, Tenant
from tenants.selectors import limits_held
from tenants.services import invitation_create, tenant_create, tenant_update

CURRENT = "operators:tenants"
STATES = {"active": "Active", "suspended": "Suspended"}
_SORTS = {"name": "name", "made": "created_at", "members": "member_count"}
_DAY = timedelta(days=1)
_NEWEST = 8


def find(slug: str) -> Tenant:
    """The tenant of this slug. Raises Http404."""
    return get_object_or_404(Tenant, slug=slug)


def path_of(tenant: Tenant) -> str:
    return reverse("operators:tenant", args=[tenant.slug])


@read_page
def tenants(request: UserRequest) -> HttpResponse:
    """The list, with what each used in the last day: a fixed number of queries for a page of them."""
    query, state = text_of(request, "q"), choice_of(request, "state", tuple(STATES))
    rows = Tenant.objects.annotate(member_count=Count("memberships"))
    if query:
        rows = rows.filter(Q(name__icontains=query) | Q(slug__icontains=query))
    if state:
        rows = rows.filter(is_active=state == "active")
    is_filtered = bool(query or state)
    found = listing(request, rows, sorts=_SORTS, default="name", is_filtered=is_filtered)
    page = list(found.rows)
    used, keys, sold = _usage(page), _keys(page), _sold(page)
    context = {
        "list": found,
        "rows": [(row, used.get(row.pk, (0, 0)), keys.get(row.pk, 0), sold.get(row.pk, 0.0)) for row in page],
        "query": query,
        "state": state,
        "states": STATES.items(),
        "headline": headline(),
        "is_empty": not found.total and not is_filtered,
    }
    return show(request, "operators/tenants.html", context, current=CURRENT)


def headline() -> str:
    """The sentence that answers: how many are there, and who is kept out?"""
    total, suspended = Tenant.objects.count(), Tenant.objects.filter(is_active=False).count()
    if not total:
        return "There is no tenant yet."
    text = f"{total} tenant{'s' if total != 1 else ''}"
    if suspended:
        return f"{text}, {suspended} of them suspended: their keys are refused."
    return f"{text}, all active."


def _usage(tenants: list[Tenant]) -> dict[UUID, tuple[int, int]]:
    """Requests, and failed ones among them, of the last 24 h, by tenant id."""
    now = timezone.now()
    rows = usage_rows(period=UsageRollup.Period.HOUR, since=now - _DAY, until=now)
    sums = rows.filter(tenant_id__in=[row.pk for row in tenants]).values_list("tenant_id")
    return {pk: (requests, failed) for pk, requests, failed in sums.annotate(a=Sum("requests"), b=Sum("failed"))}


def _keys(tenants: list[Tenant]) -> dict[UUID, int]:
    """Keys that can be used, by tenant id."""
    usable = Q(expires_at=None) | Q(expires_at__gt=timezone.now())
    rows = ApiKey.objects.filter(usable, tenant__in=tenants, revoked_at=None).order_by()
    return dict(rows.values_list("tenant_id").annotate(count=Count("pk")))


def _sold(tenants: list[Tenant]) -> dict[UUID, float]:
    """Reserved MU/min by tenant id, only where it is all of one pool: MU of two pools do not add up."""
    found: dict[UUID, dict[UUID, float]] = {}
    rows = reservations_running(at=timezone.now()).filter(tenant__in=tenants)
    for tenant_id, pool_id, mu in rows.values_list("tenant_id", "pool_id", "mu_per_min"):
        pools = found.setdefault(tenant_id, {})
        pools[pool_id] = pools.get(pool_id, 0.0) + mu
    return {tenant_id: sum(pools.values()) for tenant_id, pools in found.items() if len(pools) == 1}


@read_page
def tenant(request: UserRequest, slug: str) -> HttpResponse:
    """One tenant: members, invitations, limits, pools, reservations, and what was done lately."""
    return shown(request, find(slug))


def shown(request: UserRequest, row: Tenant, *, status: int = 200, **forms: Any) -> HttpResponse:
    """The page of a tenant; ``forms`` replace the empty ones, with what was refused, and may bring a fresh link."""
    acts = AuditEntry.objects.filter(tenant_id=row.pk).order_by("-at", "-id")[:_NEWEST]
    requests, failed = _usage([row]).get(row.pk, (0, 0))
    now = timezone.now()
    open_ones = Invitation.objects.filter(tenant=row, accepted_at=None, revoked_at=None, expires_at__gt=now)
    context = {
        "tenant_row": row,
        "members": Membership.objects.filter(tenant=row).select_related("user").order_by("user__email"),
        "roles": Membership.Role.choices,
        "invitations": open_ones.select_related("invited_by").order_by("-created_at"),
        "limits": budgets_told(
            limits_held(Limit.objects.filter(tenant=row, api_key=None, member=None).order_by("kind", "model", "set_by"))
        ),
        "key_limits": Limit.objects.filter(tenant=row).exclude(api_key=None, member=None).count(),
        "keys": _keys([row]).get(row.pk, 0),
        "pools": pools_usable(row).order_by("name"),
        "reservations": reservations_running(at=now).filter(tenant=row).select_related("pool"),
        "requests": requests,
        "failed": failed,
        "rows": rows_of(list(acts)),
        "form": TenantForm(initial={"name": row.name, "slug": row.slug}),
        "invite_form": InviteForm(),
        "limit_form": LimitForm(),
        **forms,
    }
    return show(request, "operators/tenant.html", context, current=CURRENT, status=status)


@never_cache
@form_page
def new(request: UserRequest) -> HttpResponse:
    """A new tenant, and on request an invitation of its owner: its link is on the page that answers alone."""
    form = NewTenantForm(request.POST or None)
    if request.method == "POST":
        made = form.attempt(lambda given: _create(request, given))
        if made is not None:
            row, link = made
            if link:
                return shown(request, row, link=link, link_email=form.cleaned_data["owner"], is_new=True)
            return done(request, f"{row.name} is made. Invite its people, then they make keys.", path_of(row))
    status = 400 if request.method == "POST" else 200
    return show(request, "operators/tenant_new.html", {"form": form}, current=CURRENT, status=status)


@transaction.atomic
def _create(request: UserRequest, given: dict[str, Any]) -> tuple[Tenant, str]:
    row = tenant_create(name=given["name"], slug=given["slug"], actor=request.user)
    if not given["owner"]:
        return row, ""
    try:
        _, token = invitation_create(tenant=row, email=given["owner"], role=Membership.Role.OWNER, actor=request.user)
    except ValidationError as error:
        raise ValidationError({"owner": error.messages}) from None
    return row, invitation_link(request, token)


def invitation_link(request: UserRequest, token: str) -> str:
    return request.build_absolute_uri(reverse("invitation", args=[token]))


@act
def edit(request: UserRequest, slug: str) -> HttpResponse:
    """Another name or slug. The address of the tenant's pages follows the slug."""
    row = find(slug)
    before = {"name": row.name, "slug": row.slug}
    form = TenantForm(request.POST)
    if form.attempt(lambda given: tenant_update(tenant=row, actor=request.user, **given)) is None:
        return shown(request, find(slug), status=400, form=form)
    undo = reverse("operators:tenant-edit", args=[row.slug])
    return done(request, f"{row.name} is saved.", path_of(row), undo=undo, fields=before)


@form_page
def suspend(request: UserRequest, slug: str) -> HttpResponse:
    """Refuse the tenant's keys: asked about, because its clients notice."""
    row = find(slug)
    if request.method != "POST":
        count = _keys([row]).get(row.pk, 0)
        return ask(
            request,
            title=f"Suspend {row.name}?",
            effects=(
                f"Its {count} usable API key{'s are' if count != 1 else ' is'} refused within two seconds: its clients "
                "get 401. Streams that run finish.",
                "Its members can still sign in and read; they see that it is suspended.",
                "Nothing is deleted, and what it has reserved stays reserved. Resume takes it back at once.",
            ),
            verb=f"Suspend {row.name}",
            back=path_of(row),
            of=row.name,
            current=CURRENT,
        )
    tenant_update(tenant=row, is_active=False, actor=request.user)
    undo = reverse("operators:tenant-resume", args=[slug])
    return done(request, f"{row.name} is suspended: its keys are refused.", path_of(row), undo=undo)


@act
def resume(request: UserRequest, slug: str) -> HttpResponse:
    """Take the tenant's keys again."""
    row = find(slug)
    tenant_update(tenant=row, is_active=True, actor=request.user)
    return done(request, f"{row.name} is active: its keys work.", path_of(row))
