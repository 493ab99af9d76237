"""The operator console: how much do we have, have we sold, is being used?"""

from datetime import datetime
from typing import Any

from django.http import Http404, HttpResponse, JsonResponse
from django.http.response import HttpResponseBase
from django.shortcuts import render
from django.utils import timezone
from django.views.decorators.http import require_GET

from capacity.models import HardwareType, Pool
from penstock.accelerators import count_accelerators
from penstock.web.access import UserRequest, operators_only
from penstock.web.capacity_figures import (
    ACCELERATOR_MEASURES,
    COLUMNS,
    accelerator_figures_of,
    breach_month,
    figures_of,
    measures,
)
from penstock.web.capacity_series import accelerator_series, capacity_series
from penstock.web.console_data import gather, pools_in_play
from penstock.web.live import STALE_S
from penstock.web.series import CONSOLE_RANGES, Range, pick
from penstock.web.shell import page
from tenants.policy.roles import Action

DEFAULT_RANGE = "1h"


def _pools(chosen: str | None, now: datetime) -> tuple[list[Pool], Pool | None]:
    """Pools that are served or sold, and the one whose chart is shown (None: all of several)."""
    pools = pools_in_play(now)
    if len(pools) == 1:
        return pools, pools[0]
    return pools, next((pool for pool in pools if pool.slug == chosen), None)


def _context(request: UserRequest, now: datetime) -> dict[str, Any]:
    pools, pool = _pools(request.GET.get("pool"), now)
    chosen = pick(CONSOLE_RANGES, request.GET.get("range"), DEFAULT_RANGE)
    return {
        "console": gather(now),
        "stale_s": STALE_S,
        "pools": pools,
        "pool": pool,
        "range": chosen,
        "ranges": CONSOLE_RANGES.values(),
    }


@require_GET
@operators_only(Action.PLATFORM_VIEW)
def console(request: UserRequest) -> HttpResponse:
    now = timezone.now()
    context = _context(request, now)
    context |= _over_time(now, context["range"], context["pool"], request.GET.get("hardware"))
    return page(request, "console/home.html", context, current="console")


def _over_time(now: datetime, chosen: Range, pool: Pool | None, hardware: str | None) -> dict[str, Any]:
    """What stands in the charts' cards; the charts ask for their lines themselves, of which the tables tell."""
    series = capacity_series(now, chosen, pool)
    kinds = count_accelerators(now=now)
    kind = next((row for row in kinds if row.hardware.slug == hardware), kinds[0] if kinds else None)
    found: dict[str, Any] = {
        "columns": COLUMNS,
        "measures": measures(series, pool),
        "breached": figures_of(series)["breached sum"],
        "breach_month": breach_month(series),
        "kinds": kinds,
        "kind": kind,
    }
    if kind is not None:
        told = accelerator_figures_of(accelerator_series(now, chosen, kind.hardware))
        found["accelerators"] = [
            (row, [(f"{row.key} {column}", told[f"{row.key} {column}"]) for column, _ in COLUMNS])
            for row in ACCELERATOR_MEASURES
        ]
    return found


@require_GET
@operators_only(Action.PLATFORM_VIEW)
def console_live(request: UserRequest) -> HttpResponse:
    """The part of the console that moves, for the page to put in place every two seconds."""
    response = render(request, "console/live.html", _context(request, timezone.now()))
    response.headers["Cache-Control"] = "private, no-store"
    return response


@require_GET
@operators_only(Action.PLATFORM_VIEW)
def console_series(request: UserRequest) -> HttpResponseBase:
    """The chart's lines as JSON: ``t`` in UNIX seconds, the others in ``unit``."""
    slug = request.GET.get("pool", "").replace("\0", "")
    pool = Pool.objects.filter(slug=slug).first() if slug else None
    if slug and pool is None:
        raise Http404(f"There is no pool {slug}.")
    chosen = pick(CONSOLE_RANGES, request.GET.get("range"), DEFAULT_RANGE)
    series = capacity_series(timezone.now(), chosen, pool)
    return JsonResponse(series | {"figures": figures_of(series)}, headers={"Cache-Control": "private, no-store"})


@require_GET
@operators_only(Action.PLATFORM_VIEW)
def console_accelerators(request: UserRequest) -> HttpResponseBase:
    """The lines of the accelerators' chart as JSON: of the hardware type that is named, or of the first there is."""
    now = timezone.now()
    slug = request.GET.get("hardware", "").replace("\0", "")
    kinds = HardwareType.objects.filter(slug=slug) if slug else [kind.hardware for kind in count_accelerators(now=now)]
    hardware = next(iter(kinds), None)
    if hardware is None:
        raise Http404(f"There is no hardware type {slug}." if slug else "No host has an accelerator.")
    chosen = pick(CONSOLE_RANGES, request.GET.get("range"), DEFAULT_RANGE)
    series = accelerator_series(now, chosen, hardware)
    told = {"figures": accelerator_figures_of(series)}
    return JsonResponse(series | told, headers={"Cache-Control": "private, no-store"})
