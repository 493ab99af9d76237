"""The list of deployments: is each healthy, fast, and the right size?"""

from __future__ import annotations

from datetime import datetime

from django.db.models import Exists, OuterRef, Q, QuerySet
from django.http import HttpResponse
from django.utils import timezone

from capacity.models import Pool
from capacity.selectors import profiles_in_force, sold_mu_per_min
from penstock.web.access import UserRequest
from penstock.web.console_data import FAILED_SHOWN, deployment_rows, without_replaced
from penstock.web.console_rows import DeploymentRow
from penstock.web.live import STALE_S, Live, read_live
from penstock.web.operators.frame import is_part, part, read_page, show
from penstock.web.operators.lists import choice_of, listing, text_of
from serving.models import Deployment, Replica

CURRENT = "operators:deployments"
STATES = {
    "ready": "Serving",
    "waiting": "No ready replica",
    "failed": "With failed replicas",
    "disabled": "Stopped",
    "removed": "Removed",
}
_SORTS = {"name": "name", "pool": "pool__name", "made": "created_at"}


def shown_replicas(deployments: list[Deployment], now: datetime) -> list[Replica]:
    """Replicas of the deployments that are worth showing: no ended ones, failed ones for a day or until replaced."""
    rows = (
        Replica.objects.filter(deployment__in=deployments)
        .exclude(state=Replica.State.STOPPED)
        .exclude(state=Replica.State.FAILED, state_since__lt=now - FAILED_SHOWN)
        .select_related("host", "revision", "deployment")
        .order_by("deployment__name", "created_at")
    )
    return without_replaced(list(rows))


def rows_of(deployments: list[Deployment], replicas: list[Replica], live: Live, now: datetime) -> list[DeploymentRow]:
    """The deployments as the console's rows."""
    profiles, sold = profiles_in_force(at=now), sold_mu_per_min(at=now)
    return deployment_rows(deployments, replicas, live, now, profiles=profiles, sold=sold)


@read_page
def deployments(request: UserRequest) -> HttpResponse:
    """The list, by name, pool and state, in pages."""
    now = timezone.now()
    query, pool, state = text_of(request, "q"), text_of(request, "pool"), choice_of(request, "state", tuple(STATES))
    rows = _filtered(query, pool, state)
    is_filtered = bool(query or pool or state)
    found = listing(request, rows, sorts=_SORTS, default="name", is_filtered=is_filtered)
    page = list(found.rows)
    replicas = shown_replicas(page, now)
    live = read_live([str(row.pk) for row in page], [])
    context = {
        "list": found,
        "rows": rows_of(page, replicas, live, now),
        "live": live,
        "feed_age_s": live.feed_age_s(now.timestamp()),
        "stale_s": STALE_S,
        "query": query,
        "pool": pool,
        "state": state,
        "states": STATES.items(),
        "pools": Pool.objects.filter(pk__in=Deployment.objects.values("pool")),
        "headline": headline(),
        "is_empty": not found.total and not is_filtered,
    }
    if is_part(request):
        return part(request, "operators/deployments_rows.html", context)
    return show(request, "operators/deployments.html", context, current=CURRENT)


def _with(state: str) -> Exists:
    return Exists(Replica.objects.filter(deployment=OuterRef("pk"), state=state))


def _filtered(query: str, pool: str, state: str) -> QuerySet[Deployment]:
    there = Deployment.everything.exclude(removed_at=None) if state == "removed" else Deployment.objects.all()
    rows = there.select_related("pool__model")
    if query:
        rows = rows.filter(Q(name__icontains=query) | Q(pool__model__name__icontains=query))
    if pool:
        rows = rows.filter(pool__slug=pool)
    ready = _with(Replica.State.READY)
    conditions = {
        "ready": Q(ready),
        "waiting": Q(is_enabled=True) & ~Q(ready),
        "failed": Q(_with(Replica.State.FAILED)),
        "disabled": Q(is_enabled=False),
        "removed": Q(),
    }
    return rows.filter(conditions[state]) if state else rows


def headline() -> str:
    """The sentence that answers: how many serve, and what does not?"""
    total = Deployment.objects.count()
    if not total:
        return "Nothing is deployed yet, so there is nothing to send requests to."
    serving = Deployment.objects.filter(_with(Replica.State.READY), is_enabled=True).count()
    stopped = Deployment.objects.filter(is_enabled=False).count()
    down = list(
        Deployment.objects.filter(~_with(Replica.State.READY), is_enabled=True).values_list("name", flat=True)[:3]
    )
    text = f"{serving} of {total} deployment{'s' if total != 1 else ''} serve{'s' if total == 1 else ''}."
    if down:
        more = total - serving - stopped - len(down)
        text += f" Without a ready replica: {', '.join(down)}{f' and {more} more' if more > 0 else ''}."
    if stopped:
        text += f" {stopped} {'is' if stopped == 1 else 'are'} stopped."
    return text
