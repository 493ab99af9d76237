"""What a tenant used: sums, a chart, requests, one request's receipt, and files of them."""

from __future__ import annotations

from uuid import UUID

from django.http import Http404, HttpResponse, JsonResponse
from django.http.response import HttpResponseBase
from django.utils import timezone
from django.views.decorators.http import require_GET

from capacity.api.exports import TYPES, export
from capacity.models import OUTCOMES, Pool, UsageRecord, UsageRollup
from capacity.refusals import refused, word_on
from capacity.usage.reads import COLUMNS, in_slices
from penstock.web import figures
from penstock.web.access import UserRequest
from penstock.web.dashboard_data import TENANT_RANGES
from penstock.web.dashboard_data import Place as Cursor
from penstock.web.series import pick
from penstock.web.tenant import usage_data
from penstock.web.tenant.place import Place, in_tenant, tenant_page
from penstock.web.tenant.usage_data import METRICS, Filters, Sums
from tenants.policy.roles import Action

DEFAULT_RANGE = "24h"


@require_GET
@in_tenant(Action.USAGE_VIEW)
def usage(request: UserRequest, place: Place) -> HttpResponse:
    """Everything that the address asks for: range, key, model, outcome, metric, and which page of requests."""
    now = timezone.now()
    asked = _filters(request)
    found = usage_data.sums(place.tenant, asked, now)
    before = Cursor.parse(request.GET.get("before", ""))
    rows, older = usage_data.page_of(usage_data.records(place.tenant, asked, now), before)
    metric = request.GET.get("metric") if request.GET.get("metric") in METRICS else "mu"
    pools = [pool for pool, _ in found.by_pool]
    # By id: slugs of removed pools are used again, and both may have been used in the range.
    pool = next((row for row in pools if str(row.pk) == request.GET.get("pool")), pools[0] if pools else None)
    missing = {row.key_id for row in rows} - set(found.callers)
    context = {
        "sums": found,
        "asked": asked,
        "range": asked.range,
        "ranges": TENANT_RANGES.values(),
        "metric": metric,
        "metrics": [(name, label) for name, (label, _, _) in METRICS.items()],
        "unit": METRICS[metric or "mu"][1],
        "pools": pools,
        "pool": pool if metric == "mu" else None,
        "callers": sorted(found.callers.values(), key=lambda row: (row.kind, row.name)),
        "rows": [_shown(row, found, usage_data.callers(place.tenant, missing) if missing else {}) for row in rows],
        "older": older,
        "is_paged": before is not None,
        "outcomes": OUTCOMES,
        "headline": headline(found, asked),
        "has_used": UsageRecord.objects.filter(tenant_id=place.tenant.pk).exists() or bool(found.total.requests),
    }
    return tenant_page(request, place, "tenant/usage.html", context, current="tenant-usage")


@require_GET
@in_tenant(Action.USAGE_VIEW)
def usage_series(request: UserRequest, place: Place) -> HttpResponseBase:
    """The chart's lines as JSON. MU are of one pool, by its id, that is open to the tenant or that it has used."""
    metric = request.GET.get("metric", "mu")
    if metric not in METRICS:
        raise Http404("There is no such chart.")
    pool = None
    if metric == "mu":
        pool = _pool_of(request.GET.get("pool", ""))
        if pool is None or not _is_theirs(place, pool):
            raise Http404("There is no such pool.")
    lines = usage_data.series(place.tenant, _filters(request), metric, pool, timezone.now())
    return JsonResponse(lines, headers={"Cache-Control": "private, no-store"})


@require_GET
@in_tenant(Action.USAGE_VIEW)
def usage_request(request: UserRequest, place: Place, request_id: UUID) -> HttpResponse:
    """The receipt of one request: what it was, cost and took."""
    record = UsageRecord.objects.filter(tenant_id=place.tenant.pk, pk=request_id).first()
    refusal = word_on(record) if record is not None else None
    if record is None:
        found = refused(place.tenant.pk, request_id)
        if found is None:
            raise Http404("The tenant has no such request, or it is older than its records are kept.")
        record, refusal = found
    context = {"receipt": usage_data.receipt(place.tenant, record, refusal)}
    return tenant_page(request, place, "tenant/usage_request.html", context, current="tenant-usage")


@require_GET
@in_tenant(Action.USAGE_VIEW)
def usage_export(request: UserRequest, place: Place) -> HttpResponseBase:
    """The requests that the filters leave, as a file that is made while it is sent."""
    file_format = request.GET.get("format", "csv")
    if file_format not in TYPES:
        raise Http404("There is no such format.")
    rows = usage_data.records(place.tenant, _filters(request), timezone.now())
    return export(in_slices(rows, COLUMNS), COLUMNS, file_format=file_format, name=f"usage-{place.tenant.slug}")


def _filters(request: UserRequest) -> Filters:
    return Filters.read(request.GET, pick(TENANT_RANGES, request.GET.get("range"), DEFAULT_RANGE))


def _pool_of(identifier: str) -> Pool | None:
    try:
        return Pool.everything.filter(pk=UUID(identifier)).first()
    except ValueError:
        return None


def _is_theirs(place: Place, pool: Pool) -> bool:
    """Open to the tenant, or used by it while it was. Roll-ups are kept for longer than records."""
    if pool.removed_at is None and (pool.is_public or pool.tenants.filter(pk=place.tenant.pk).exists()):
        return True
    theirs = {"tenant_id": place.tenant.pk, "pool_id": pool.pk}
    return UsageRecord.objects.filter(**theirs).exists() or UsageRollup.objects.filter(**theirs).exists()


def _shown(
    record: UsageRecord, found: Sums, more: dict[UUID, usage_data.Caller]
) -> tuple[UsageRecord, usage_data.Caller | None, float | None, float]:
    caller = found.callers.get(record.key_id) or more.get(record.key_id)
    first_byte_at = record.first_byte_at if record.stream else None
    ttft_s = None if first_byte_at is None else figures.seconds_between(record.admitted_at, first_byte_at)
    took_ms = (record.ended_at - record.admitted_at).total_seconds() * 1000
    return record, caller, None if ttft_s is None else ttft_s * 1000, took_ms


def headline(found: Sums, asked: Filters) -> str:
    """The sentence that answers: what was used?"""
    total = found.total
    if not total.requests:
        return f"Nothing was used in the last {asked.range.label}{' with these filters' if asked.is_any else ''}."
    requests = " ".join(part for part in figures.compact(total.requests) if part)
    tokens = " ".join(part for part in figures.compact(total.input_tokens + total.output_tokens) if part)
    units = " and ".join(f"{figures.number(mu)} MU of {pool.name}" for pool, mu in found.by_pool[:3])
    failed = f"; {figures.number(total.failed)} failed" if total.failed else ""
    spent = f", for {units}" if units else ""
    return f"{requests} requests and {tokens} tokens in the last {asked.range.label}{spent}{failed}."
