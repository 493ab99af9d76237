"""What holds a tenant back: its plain limits, those of its members and keys, and what it has reserved."""

from __future__ import annotations

from uuid import UUID

from django.conf import settings
from django.core.exceptions import PermissionDenied
from django.http import Http404, HttpResponse
from django.shortcuts import redirect
from django.utils import timezone
from django.views.decorators.http import require_http_methods, require_POST

from penstock.web.access import UserRequest
from penstock.web.dashboard_data import held_now
from penstock.web.limit_words import budgets_told
from penstock.web.tenant.limit_forms import MemberLimitForm, limit_ended, limit_saved
from penstock.web.tenant.place import Place, in_tenant, tenant_page, who_may
from tenants.models import Limit
from tenants.policy.roles import Action
from tenants.selectors import limits_held


@require_http_methods(["GET", "HEAD", "POST"])
@in_tenant(Action.TENANT_VIEW)
def limits(request: UserRequest, place: Place) -> HttpResponse:
    """The list; a POST sets one of the tenant's or of a member, whether or not there is one of its kind."""
    form = MemberLimitForm(request.POST if request.method == "POST" else None, place=place)
    if request.method == "POST":
        if not place.may(Action.LIMIT_MANAGE):
            raise PermissionDenied(f"Your role is {place.role}. Ask {who_may(Action.LIMIT_MANAGE)} of the tenant.")
        if limit_saved(request, place, form):
            return redirect("tenant-limits", place.tenant.slug)
    stored = Limit.objects.filter(tenant=place.tenant).select_related("api_key", "member__user")
    rows = budgets_told(limits_held(stored.order_by("kind", "model", "set_by")))
    # Sorting keeps the order of kinds within a key and a member.
    of_keys = sorted((row for row in rows if row.api_key), key=lambda row: str(row.api_key))
    of_members = sorted((row for row in rows if row.member), key=lambda row: str(row.member))
    context = {
        "rows": [row for row in rows if not row.api_key and not row.member],
        "of_members": of_members,
        "of_keys": of_keys,
        "held": held_now(place.tenant, timezone.now()),
        "form": form,
        "currency": settings.PENSTOCK_CURRENCY,
    }
    status = 400 if form.errors else 200
    return tenant_page(request, place, "tenant/limits.html", context, current="tenant-limits", status=status)


@require_POST
@in_tenant(Action.LIMIT_MANAGE)
def limit_end(request: UserRequest, place: Place, limit_id: UUID) -> HttpResponse:
    found = Limit.objects.select_related("tenant").filter(tenant=place.tenant, api_key=None, pk=limit_id).first()
    if found is None:
        raise Http404("The tenant has no such limit.")
    limit_ended(request, found)
    return redirect("tenant-limits", place.tenant.slug)
