"""Who did what in a tenant, newest first."""

from __future__ import annotations

from django.http import HttpResponse
from django.views.decorators.http import require_GET

from penstock.web.access import UserRequest
from penstock.web.operators.audit import entries, page_of
from penstock.web.tenant.place import Place, in_tenant, tenant_page
from tenants.policy.roles import Action

_FILTERS = ("actor", "action", "object", "since", "until")


@require_GET
@in_tenant(Action.AUDIT_VIEW)
def audit(request: UserRequest, place: Place) -> HttpResponse:
    """The tenant's entries, filtered by who, what, which object and when (UTC), in pages."""
    given = {name: request.GET.get(name, "").strip()[:200].replace("\0", "") for name in _FILTERS}
    rows, errors = entries({**given, "tenant": ""})
    rows = rows.filter(tenant_id=place.tenant.pk)
    context = {
        **page_of(rows, request.GET.get("before", "")),
        "is_filtered": any(given.values()),
        "given": given,
        "errors": errors,
    }
    return tenant_page(request, place, "tenant/audit.html", context, current="tenant-audit")
