"""The operator console: how much do we have, have we sold, is being used?"""

from datetime import datetime

from django.http import Http404, HttpResponse, JsonResponse
from django.http.response import HttpResponseBase
from django.shortcuts import render
from django.utils import timezone
from django.views.decorators.http import require_GET

from capacity.models import Pool
from penstock.web.access import UserRequest, operators_only
from penstock.web.console_data import gather, pools_in_play
from penstock.web.live import STALE_S
from penstock.web.series import CONSOLE_RANGES, capacity_series, pick
from penstock.web.shell import page
from tenants.policy.roles import Action

DEFAULT_RANGE = "1h"


def _pools(chosen: str | None, now: datetime) -> tuple[list[Pool], Pool | None]:
    """Pools that are served or sold, and the one whose chart is shown (None: all of several)."""
    pools = pools_in_play(now)
    if len(pools) == 1:
        return pools, pools[0]
    return pools, next((pool for pool in pools if pool.slug == chosen), None)


def _context(request: UserRequest) -> dict[str, object]:
    now = timezone.now()
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
    return page(request, "console/home.html", _context(request), current="console")


@require_GET
@operators_only(Action.PLATFORM_VIEW)
def console_live(request: UserRequest) -> HttpResponse:
    """The part of the console that moves, for the page to put in place every two seconds."""
    response = render(request, "console/live.html", _context(request))
    response.headers["Cache-Control"] = "private, no-store"
    return response


@require_GET
@operators_only(Action.PLATFORM_VIEW)
def console_series(request: UserRequest) -> HttpResponseBase:
    """The chart's lines as JSON: ``t`` in UNIX seconds, the others in ``unit``."""
    slug = request.GET.get("pool")
    pool = Pool.objects.filter(slug=slug).first() if slug else None
    if slug and pool is None:
        raise Http404(f"There is no pool {slug}.")
    chosen = pick(CONSOLE_RANGES, request.GET.get("range"), DEFAULT_RANGE)
    return JsonResponse(capacity_series(timezone.now(), chosen, pool), headers={"Cache-Control": "private, no-store"})
