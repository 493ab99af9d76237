"""How the tenant's reservations were kept."""

from __future__ import annotations

import uuid

from django.http import HttpResponse
from django.shortcuts import get_object_or_404
from django.views.decorators.http import require_GET

from capacity.models import Reservation
from penstock.web.access import UserRequest
from penstock.web.guarantees import month_context, reservation_context
from penstock.web.tenant.place import Place, in_tenant, tenant_page
from tenants.policy.roles import Action

CURRENT = "tenant-guarantees"


@require_GET
@in_tenant(Action.USAGE_VIEW)
def guarantees(request: UserRequest, place: Place) -> HttpResponse:
    """The tenant's reservations that promised something in the month."""
    context = month_context(Reservation.objects.filter(tenant=place.tenant), request.GET)
    return tenant_page(request, place, "tenant/guarantees.html", context, current=CURRENT)


@require_GET
@in_tenant(Action.USAGE_VIEW)
def guarantee(request: UserRequest, place: Place, reservation_id: uuid.UUID) -> HttpResponse:
    """One of them in the month."""
    row = get_object_or_404(
        Reservation.objects.select_related("tenant", "pool"), tenant=place.tenant, pk=reservation_id
    )
    context = reservation_context(row, request.GET)
    return tenant_page(request, place, "tenant/guarantee.html", context, current=CURRENT)
