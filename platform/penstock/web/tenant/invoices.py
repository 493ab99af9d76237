"""What the tenant owes."""

from __future__ import annotations

import uuid

from django.http import HttpResponse, QueryDict
from django.shortcuts import get_object_or_404
from django.views.decorators.http import require_GET

from capacity.models import Invoice
from penstock.web.access import UserRequest
from penstock.web.invoices import document_context, list_context, preview_context
from penstock.web.tenant.place import Place, in_tenant, tenant_page
from tenants.policy.roles import Action

CURRENT = "tenant-invoices"


@require_GET
@in_tenant(Action.USAGE_VIEW)
def invoices(request: UserRequest, place: Place) -> HttpResponse:
    """What was issued to the tenant, and what this month comes to so far."""
    context = list_context(Invoice.objects.filter(tenant=place.tenant), request.GET)
    context["preview"] = preview_context(place.tenant, QueryDict())
    return tenant_page(request, place, "tenant/invoices.html", context, current=CURRENT)


@require_GET
@in_tenant(Action.USAGE_VIEW)
def preview(request: UserRequest, place: Place) -> HttpResponse:
    """What a month comes to by what is booked now."""
    context = preview_context(place.tenant, request.GET)
    return tenant_page(request, place, "tenant/invoice_preview.html", context, current=CURRENT)


@require_GET
@in_tenant(Action.USAGE_VIEW)
def invoice(request: UserRequest, place: Place, invoice_id: uuid.UUID) -> HttpResponse:
    """One document."""
    row = get_object_or_404(Invoice.objects.select_related("tenant"), tenant=place.tenant, pk=invoice_id)
    return tenant_page(request, place, "tenant/invoice.html", document_context(row), current=CURRENT)
