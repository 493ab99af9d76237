"""Calibrations: what does a request cost on this hardware, and how sure are we?"""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import redis
from django.db.models import Q
from django.http import HttpResponse
from django.shortcuts import get_object_or_404
from django.utils import timezone

from capacity.models import CostProfile
from capacity.selectors import profile_in_force
from penstock.loops.drift import Standing, adopted_of, standing_of
from penstock.web import figures
from penstock.web.access import UserRequest
from penstock.web.figures import seconds_between
from penstock.web.operators.calibration_plots import Plot, curve, residuals, throughput
from penstock.web.operators.frame import is_part, part, read_page, show
from penstock.web.operators.lists import choice_of, listing, text_of
from serving.calibrations import Adoption, adoption_of
from serving.measuring import levels_of
from serving.models import Calibration, Deployment, Incident, Replica
from serving.services.calibrations import NOT_ADOPTED
from serving.shared_state import client
from tenants.needed import StillNeeded

CURRENT = "operators:calibrations"
_SORTS = {"asked": "created_at", "deployment": "deployment_name", "hardware": "hardware_name", "state": "state"}
PILLS = {
    "queued": "off",
    "draining": "busy",
    "measuring": "busy",
    "fitted": "used",
    "adopted": "ok",
    "failed": "bad",
    "cancelled": "off",
}
TERM_WORDS = {
    "base": ("Base", "per request"),
    "alpha": ("Input token α", "per token"),
    "beta": ("Output token β", "per token"),
    "gamma": ("Context γ", "per output × context token"),
    "epsilon": ("Long input ε", "per input token²"),
    "cached_factor": ("Cached factor", "share of α"),
}
_STEPS = (("queued", "Waits for a replica"), ("draining", "Requests in flight end"), ("measuring", "Measured"),
          ("fitted", "Fitted"))  # fmt: skip
_SHOWN = 20


@dataclass(frozen=True)
class Row:
    """A calibration in a list."""

    row: Calibration

    @property
    def pill(self) -> str:
        return PILLS.get(self.row.state, "")

    @property
    def share(self) -> float | None:
        return self.row.progress.get("share") if self.row.state == Calibration.State.MEASURING else None

    @property
    def mean_error(self) -> float | None:
        found: float | None = self.row.fit.get("mean_error")
        return found

    @property
    def knee_per_s(self) -> float | None:
        found: float | None = self.row.knee.get("rate_per_s")
        return found

    @property
    def became(self) -> str:
        if self.row.adopted_version:
            return f"version {self.row.adopted_version}"
        if self.row.adopted_supply:
            return f"{figures.number(self.row.adopted_supply)} MU/min"
        return ""


@dataclass(frozen=True)
class Step:
    label: str
    mark: str


@dataclass(frozen=True)
class Term:
    """A coefficient: engine milliseconds, its uncertainty, and MU now and as it would be."""

    name: str
    unit: str
    ms: float
    uncertainty: float | None
    now: float | None
    new: float | None
    dropped: str

    @property
    def factor(self) -> float | None:
        return self.new / self.now if self.now and self.new is not None else None


@read_page
def calibrations(request: UserRequest) -> HttpResponse:
    """The list, newest first, by deployment and state."""
    query, state = text_of(request, "q"), choice_of(request, "state", Calibration.State.values)
    rows = Calibration.objects.all()
    if query:
        rows = rows.filter(Q(deployment_name__icontains=query) | Q(hardware_name__icontains=query))
    if state:
        rows = rows.filter(state=state)
    found = listing(request, rows, sorts=_SORTS, default="-asked", is_filtered=bool(query or state))
    context = {
        "list": found,
        "rows": [Row(one) for one in found.rows],
        "query": query,
        "state": state,
        "states": Calibration.State.choices,
        "headline": headline_of_all(),
        "is_empty": not found.total and not found.is_filtered,
        "deployments": Deployment.objects.filter(is_enabled=True).exists(),
    }
    if is_part(request):
        return part(request, "operators/calibrations_rows.html", context)
    return show(request, "operators/calibrations.html", context, current=CURRENT)


def headline_of_all() -> str:
    """The sentence that answers: which prices are measured, and what goes on?"""
    now = timezone.now()
    priced = CostProfile.objects.filter(effective_from__lte=now, withdrawn_at=None, pool__removed_at=None)
    pools = set(priced.values_list("pool_id", flat=True))
    calibrated = set(priced.filter(calibrated=True).values_list("pool_id", flat=True))
    text = f"{len(calibrated)} of {len(pools)} pools have a measured price."
    under_way = Calibration.objects.filter(state__in=Calibration.UNDER_WAY).count()
    if under_way:
        text += f" {under_way} calibration{'s are' if under_way > 1 else ' is'} under way."
    waiting = Calibration.objects.filter(state=Calibration.State.FITTED).count()
    if waiting:
        text += f" {waiting} fitted, and not adopted."
    drifting = Incident.objects.filter(kind=Incident.Kind.COST_DRIFT, closed_at=None).count()
    if drifting:
        text += f" {drifting} drift{'s' if drifting == 1 else ''} from what was measured."
    return text


@read_page
def calibration(request: UserRequest, calibration_id: UUID) -> HttpResponse:
    """One calibration: how far it is, or what it found. It moves while it is under way."""
    row = get_object_or_404(Calibration, pk=calibration_id)
    moves = row.state in Calibration.UNDER_WAY
    if is_part(request):
        response = part(request, "operators/calibration_live.html", view_of(row))
        if not moves:
            # It is over: the whole page has more to say, and stands still.
            response.headers["HX-Refresh"] = "true"
        return response
    return show(request, "operators/calibration.html", {**view_of(row), "moves": moves}, current=CURRENT)


def view_of(row: Calibration) -> dict[str, Any]:
    """Everything that the page of a calibration shows."""
    now = timezone.now()
    adoption = _adoption(row, now)
    order = row.order
    knee_per_s = row.knee.get("rate_per_s")
    objectives = (float(order.get("ttft_objective_ms", 1000.0)), float(order.get("tpot_objective_ms", 50.0)))
    plots: list[Plot | None] = [
        residuals(row.fit.get("points", [])),
        curve(
            row.levels, name="ttft_ms", title="Time to first token", objective_ms=objectives[0], knee_per_s=knee_per_s
        ),
        curve(
            row.levels, name="tpot_ms", title="Time per output token", objective_ms=objectives[1], knee_per_s=knee_per_s
        ),
    ]
    limit = row.knee.get("supply_limit")
    if row.knee:
        plots.append(throughput(levels_of(row), limit=limit))
    deployment = Deployment.objects.filter(pk=row.deployment_id).first()
    replica = Replica.objects.filter(pk=row.replica_id).first() if row.replica_id else None
    return {
        "one": row,
        "row": Row(row),
        "headline": headline(row),
        "steps": steps_of(row),
        "running_s": seconds_between(row.measuring_at or row.created_at, row.ended_at or now),
        "plots": [plot for plot in plots if plot is not None],
        "terms": terms_of(row, adoption),
        "notes": [one["text"] for one in row.fit.get("warnings", [])] + list(row.knee.get("warnings", [])),
        "measured": row.fit.get("points") or measured_points(row),
        "levels": sorted(row.levels, key=lambda level: float(level["rate_per_s"])),
        "shapes": len(order.get("shapes", [])),
        "repeats": order.get("repeats", 3),
        "objectives": objectives,
        "adoption": adoption,
        "preview_rows": preview_rows(adoption) if adoption else [],
        "may_adopt": row.state == Calibration.State.FITTED and adoption is not None,
        "is_under_way": row.state in Calibration.UNDER_WAY,
        "replica": replica,
        "deployment": deployment,
        "waits": row.reason if row.state == Calibration.State.FITTED and row.reason.startswith(NOT_ADOPTED) else "",
        "limit": limit,
        "may_raise": may_raise(deployment, limit),
        "drift": drift_of(row) if row.state == Calibration.State.ADOPTED else None,
        "versions": versions_of(row),
    }


def may_raise(deployment: Deployment | None, limit: Mapping[str, Any] | None) -> bool:
    """Whether the deployment has the target concurrency still that was found to limit it, and another is proposed."""
    if deployment is None or deployment.removed_at is not None or not limit or not limit["recommended"]:
        return False
    return deployment.revisions.filter(is_current=True, target_concurrency=limit["target_concurrency"]).exists()


def preview_rows(adoption: Adoption) -> list[dict[str, Any]]:
    """What adopting does to each tenant, with its slug where it is still there."""
    slugs = adoption.tenants
    return [{"row": one, "slug": slugs.get(one.tenant_id) if one.tenant_id else None} for one in adoption.preview.rows]


def _adoption(row: Calibration, now: datetime.datetime) -> Adoption | None:
    """What adopting it would change; None where there is nothing to adopt, or that was done."""
    if row.state != Calibration.State.FITTED:
        return None
    try:
        return adoption_of(row, now=now)
    except StillNeeded:
        return None


def drift_of(row: Calibration) -> Standing | None:
    """What the drift loop last said of it; None where it said nothing, or the state does not answer."""
    try:
        return standing_of(client(), row)
    except redis.RedisError:
        return None


def headline(row: Calibration) -> str:
    """The sentence that answers: what does a request cost, or why is that not known?"""
    states = Calibration.State
    if row.state == states.QUEUED:
        return f"It waits for its turn: {row.reason}."
    if row.state == states.DRAINING:
        return f"A replica is out of rotation, and ends what it has in hand: {row.reason}."
    if row.state == states.MEASURING:
        step = " ".join(str(row.progress.get(name, "")) for name in ("step", "detail")).strip()
        return f"A replica is out of rotation and being measured{f': {step}' if step else ''}."
    if row.state == states.FAILED:
        return f"It failed: {row.reason}. The replica is back in rotation."
    if row.state == states.CANCELLED:
        return f"It was {row.reason}. The replica is back in rotation."
    fit, knee = row.fit, row.knee
    share = knee.get("share")
    text = (
        f"The fit misses by {figures.percent(fit.get('mean_error'))} % on average. A replica keeps its objectives up "
        f"to {figures.number(knee.get('rate_per_s'))} requests/s of the mix"
    )
    text += f", {figures.percent(share)} % of what saturates it." if share else "."
    if row.state == states.ADOPTED:
        became = f"version {row.adopted_version} of the price" if row.adopted_version else "a supply"
        text += f" It was adopted as {became}."
        withdrawn = CostProfile.objects.filter(pool_id=row.pool_id).exclude(withdrawn_at=None)
        if row.adopted_version and withdrawn.filter(version=row.adopted_version).exists():
            text += " That version was withdrawn before it came into force."
    return text


def steps_of(row: Calibration) -> list[Step]:
    """How far it is. What was never reached has no mark."""
    names = [name for name, _ in _STEPS]
    if row.state in names:
        at = names.index(row.state)
        now = "done" if row.state == Calibration.State.FITTED else "now"
        marks = ["done"] * at + [now] + [""] * (len(names) - at - 1)
    elif row.state == Calibration.State.ADOPTED:
        marks = ["done"] * len(names)
    else:
        at = 2 if row.measuring_at else 1 if row.replica_id else 0
        marks = ["done"] * at + ["fail"] + [""] * (len(names) - at - 1)
    return [Step(label, mark) for (_, label), mark in zip(_STEPS, marks, strict=True)]


def terms_of(row: Calibration, adoption: Adoption | None) -> list[Term]:
    """The coefficients in engine ms, beside MU now and as they would be."""
    terms = row.fit.get("terms") or {}
    uncertainty, dropped = (
        row.fit.get("uncertainty", {}),
        {one["term"]: one["reason"] for one in row.fit.get("dropped", [])},
    )
    changes = {one.name: one for one in adoption.coefficients} if adoption else {}
    found = []
    for name, (label, unit) in TERM_WORDS.items():
        if name not in terms:
            continue
        own = "cached" if name == "cached_factor" else name
        change = changes.get(name)
        found.append(
            Term(
                label,
                unit,
                terms[name],
                uncertainty.get(own),
                change.now if change else None,
                change.new if change and adoption and adoption.is_reference else None,
                dropped.get(own, ""),
            )
        )
    return found


def measured_points(row: Calibration) -> list[dict[str, Any]]:
    """What was measured so far, where nothing is fitted yet."""
    found = []
    for one in row.points:
        shape, times = one.get("shape", {}), [value for value in one.get("engine_ms", []) if value > 0]
        found.append(
            {
                "input_tokens": one.get("input_tokens") or shape.get("input_tokens", 0),
                "cached_tokens": one.get("cached_tokens", 0),
                "output_tokens": one.get("output_tokens") or shape.get("output_tokens", 1),
                "measured_ms": sum(times) / len(times) if times else None,
            }
        )
    return found


def versions_of(row: Calibration) -> list[CostProfile]:
    """The prices of the pool, newest first."""
    rows = CostProfile.objects.filter(pool_id=row.pool_id).select_related("hardware_type").order_by("-version")
    return list(rows[:_SHOWN])


def tab_of(row: Deployment) -> dict[str, Any]:
    """The tab of a deployment: the price in force, whether engines still cost that, and what was measured."""
    rows = list(Calibration.objects.filter(deployment_id=row.pk).order_by("-created_at")[:_SHOWN])
    adopted = adopted_of().filter(deployment_id=row.pk).order_by("adopted_at").last()
    price = profile_in_force(pool_id=row.pool_id, at=timezone.now())
    measured = next((one for one in rows if one.knee), None)
    limit = measured.knee.get("supply_limit") if measured else None
    is_raised = not may_raise(row, limit)
    return {
        # Of the newest one that found a knee, until another revision answers it.
        "limit": limit if limit and not (limit["recommended"] and is_raised) else None,
        "may_raise": not is_raised,
        "calibrations": [Row(one) for one in rows],
        "under_way": next((one for one in rows if one.state in Calibration.UNDER_WAY), None),
        "price": price,
        "per_1000": (1000 * price.alpha, 1000 * price.beta) if price else (None, None),
        "adopted": adopted,
        "drift": drift_of(adopted) if adopted else None,
    }
