"""The tenant's dashboard: how much am I using, and is it fast? And the chooser between tenants."""

from django.conf import settings
from django.http import Http404, HttpResponse, JsonResponse
from django.http.response import HttpResponseBase
from django.shortcuts import redirect, render
from django.utils import timezone
from django.views.decorators.http import require_GET

from capacity.models import Pool
from capacity.selectors import pools_usable
from penstock.web import figures
from penstock.web.access import UserRequest, signed_in, tenant_or_404
from penstock.web.dashboard_data import TENANT_RANGES, Dashboard, Place, gather_dashboard, pick_model
from penstock.web.series import pick
from penstock.web.shell import page, tenants_of
from penstock.web.snippets import snippets
from penstock.web.tenant_capacity import gauge_of, refusal_series, refusals_of, usage_series
from tenants.models import Tenant
from tenants.permissions import can
from tenants.policy.roles import Action

DEFAULT_RANGE = "24h"
MODEL_PLACEHOLDER = "MODEL"


@require_GET
@signed_in
def home(request: UserRequest) -> HttpResponse:
    """To where the user's work is: console, the one tenant, or the choice between several."""
    if request.user.is_operator:
        return redirect("console")
    tenants = tenants_of(request.user)
    if len(tenants) == 1:
        return redirect("tenant", tenants[0].slug)
    return redirect("tenants")


@require_GET
@signed_in
def chooser(request: UserRequest) -> HttpResponse:
    """Every tenant the user may see, with a search over name and slug. Operators have a list of their own."""
    if request.user.is_operator:
        return redirect("operators:tenants")
    query = request.GET.get("q", "").strip()
    tenants = tenants_of(request.user)
    shown = [row for row in tenants if query.lower() in row.name.lower() or query.lower() in row.slug]
    return page(
        request,
        "dashboard/tenants.html",
        {"tenants": shown, "count": len(tenants), "query": query},
        current="tenants",
    )


@require_GET
@signed_in
def tenant(request: UserRequest, slug: str) -> HttpResponse:
    owner, role = tenant_or_404(request.user, slug)
    chosen = pick(TENANT_RANGES, request.GET.get("range"), DEFAULT_RANGE)
    only_failed = request.GET.get("outcome") == "failed"
    before = Place.parse(request.GET.get("before", ""))
    now = timezone.now()
    data = gather_dashboard(owner, chosen, now, before, only_failed)
    refusals = refusals_of(owner, chosen, now)
    choice = pick_model(data.models, request.GET.get("model"))
    model, speaks = (choice.name, choice.speaks) if choice else (MODEL_PLACEHOLDER, ())
    pools = list({row.pool.slug: row.pool for row in data.models}.values())
    held = max(data.held, key=lambda row: row.share).reservation.pool_id if data.held else None
    first = next((row for row in pools if row.pk == held), pools[0] if pools else None)
    pool = next((row for row in pools if row.slug == request.GET.get("pool")), first)
    context = {
        "data": data,
        "role": role,
        "headline": headline(owner, data, chosen.label),
        "range": chosen,
        "ranges": TENANT_RANGES.values(),
        "pools": pools,
        "pool": pool,
        "gauge": gauge_of(owner, pool, now) if pool else None,
        "may_ask": can(request.user, Action.RESERVATION_REQUEST, owner),
        "refusals": refusals,
        "refused": sum(row.requests for row in refusals),
        "has_used": data.has_used or bool(refusals),
        "pool_mu": data.mu_by_pool.get(pool.pk, 0.0) if pool else 0.0,
        "model": model,
        "snippets": snippets(settings.PENSTOCK_API_URL.rstrip("/"), model, speaks),
        "base_url": settings.PENSTOCK_API_URL,
        "currency": settings.PENSTOCK_CURRENCY,
        "only_failed": only_failed,
        "is_paged": before is not None,
    }
    return page(request, "dashboard/home.html", context, current="tenant", tenant=owner)


@require_GET
@signed_in
def tenant_series(request: UserRequest, slug: str) -> HttpResponseBase:
    """The usage chart's lines as JSON, of a pool that the tenant may use."""
    owner, _ = tenant_or_404(request.user, slug)
    pool = _pool_of(owner, request)
    chosen = pick(TENANT_RANGES, request.GET.get("range"), DEFAULT_RANGE)
    return JsonResponse(
        usage_series(owner, pool, chosen, timezone.now()), headers={"Cache-Control": "private, no-store"}
    )


@require_GET
@signed_in
def tenant_gauge(request: UserRequest, slug: str) -> HttpResponse:
    """The reservation gauge of a pool that the tenant may use, for the page to put in place every few seconds."""
    owner, _ = tenant_or_404(request.user, slug)
    context = {
        "gauge": gauge_of(owner, _pool_of(owner, request), timezone.now()),
        "may_ask": can(request.user, Action.RESERVATION_REQUEST, owner),
        "tenant": owner,
    }
    response = render(request, "dashboard/gauge.html", context)
    response.headers["Cache-Control"] = "private, no-store"
    return response


@require_GET
@signed_in
def tenant_refusals(request: UserRequest, slug: str) -> HttpResponseBase:
    """The lines of the chart of refusals as JSON."""
    owner, _ = tenant_or_404(request.user, slug)
    chosen = pick(TENANT_RANGES, request.GET.get("range"), DEFAULT_RANGE)
    return JsonResponse(refusal_series(owner, chosen, timezone.now()), headers={"Cache-Control": "private, no-store"})


def _pool_of(owner: Tenant, request: UserRequest) -> Pool:
    """The pool that the address names. Raises Http404 for one that the tenant may not use."""
    pool = pools_usable(owner).filter(slug=request.GET.get("pool", "").replace("\0", "")).first()
    if pool is None:
        raise Http404("There is no such pool.")
    return pool


def headline(owner: Tenant, data: Dashboard, span: str) -> str:
    """The sentence that answers: how much of what I bought am I using, and is it fast?"""
    if not owner.is_active:
        return "This tenant is inactive: its keys are refused. Ask the operator of the platform."
    if data.held:
        held = max(data.held, key=lambda row: row.share)
        return (
            f"You use {figures.number(held.used_mu_per_min)} of the {figures.number(held.reservation.mu_per_min)} "
            f"MU/min you reserved of {held.reservation.pool.name}."
        )
    if not data.total.requests:
        return (
            "No request yet in this range."
            if data.has_used
            else "No request yet. Send the first one with the lines below."
        )
    requests, prefix = figures.compact(data.total.requests)
    slow = (
        f", {figures.milliseconds(data.total.ttft_ms)} ms to the first token on average" if data.total.ttft_ms else ""
    )
    failed = f"; {figures.number(data.total.failed)} failed" if data.total.failed else ""
    return f"{requests}{prefix} requests in the last {span}{slow}{failed}."
