"""One deployment: is it healthy, fast, and the right size? In tabs, each with an address of its own."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from django.core.exceptions import ValidationError
from django.http import HttpResponse
from django.shortcuts import get_object_or_404
from django.utils import timezone
from rest_framework import serializers

from penstock.web.access import UserRequest
from penstock.web.console_data import incident_row, replica_order, replica_row
from penstock.web.console_rows import CARDS_AT_MOST, DeploymentRow
from penstock.web.live import STALE_S, read_live
from penstock.web.operators import calibrations
from penstock.web.operators.audit import rows_of as audit_rows_of
from penstock.web.operators.deployment_forms import RevisionForm, ScaleForm
from penstock.web.operators.deployments import CURRENT, rows_of, shown_replicas
from penstock.web.operators.frame import is_part, part, read_page, show
from penstock.web.operators.lists import choice_of, listing, text_of
from serving.api.events import Event, Place, events_before
from serving.api.replicas import log_of
from serving.models import Deployment, Incident, Replica, Revision
from tenants.models import AuditEntry

TABS = (
    ("replicas", "Replicas"),
    ("events", "Events"),
    ("revisions", "Revisions"),
    ("calibration", "Calibration"),
    ("logs", "Logs"),
    ("settings", "Settings"),
    ("audit", "Audit"),
)
LOG_LINES = 200
_EVENTS = 40
_INCIDENTS = 20
_AUDIT = 30
_HAVE_LOGS = ("starting", "ready", "draining", "failed")
_ENDED_SORTS = {"made": "created_at", "ended": "state_since"}


@dataclass(frozen=True)
class EventRow:
    """An event of the feed: a decision of the scale loop, or an incident."""

    event: Event
    inputs: str

    @property
    def is_decision(self) -> bool:
        return self.event.kind == "scaling"

    @property
    def is_hold(self) -> bool:
        return self.is_decision and self.event.before == self.event.after

    @property
    def kind(self) -> str:
        return "Decision" if self.is_decision else str(Incident.Kind(self.event.kind).label)

    @property
    def mark(self) -> str:
        if self.is_decision:
            return "" if self.is_hold else "busy"
        return "ok" if self.event.closed_at else "bad"


@read_page
def deployment(request: UserRequest, deployment_id: UUID) -> HttpResponse:
    """One deployment. Replicas and logs move; the other tabs stand as they were asked for."""
    row = get_object_or_404(Deployment.everything.select_related("pool__model"), pk=deployment_id)
    tab = choice_of(request, "tab", [name for name, _ in TABS]) or "replicas"
    if row.removed_at is not None and tab == "settings":
        tab = "replicas"
    if is_part(request) and tab == "logs":
        return part(request, "operators/log.html", _logs(request, row))
    context = {**frame(row, tab), **_parts(request, row, tab)}
    if is_part(request) and tab == "replicas":
        return part(request, "operators/deployment_live.html", context)
    context["moves"] = tab == "replicas" or context.get("chosen") is not None
    return show(request, "operators/deployment.html", context, current=CURRENT)


def frame(row: Deployment, tab: str) -> dict[str, Any]:
    """What stands above the tabs, and the replicas."""
    now = timezone.now()
    replicas = shown_replicas([row], now)
    live = read_live([str(row.pk)], [str(one.pk) for one in replicas])
    view = rows_of([row], replicas, live, now)[0]
    shown = sorted((replica_row(one, live, now) for one in replicas), key=replica_order)
    return {
        "deployment": row,
        "row": view,
        "headline": headline(view),
        "replicas": shown,
        "as_table": len(shown) > CARDS_AT_MOST,
        "live": live,
        "feed_age_s": live.feed_age_s(now.timestamp()),
        "stale_s": STALE_S,
        "tabs": TABS if row.removed_at is None else [one for one in TABS if one[0] != "settings"],
        "tab": tab,
        "tab_template": f"operators/tab_{tab}.html",
    }


def headline(row: DeploymentRow) -> str:
    """The sentence that answers: does it serve, with how much, of how much that is wanted?"""
    deployment = row.deployment
    if deployment.removed_at is not None:
        return "It was removed: clients find it no more. What it did stays to be read."
    if not deployment.is_enabled:
        return "It is stopped: no replica runs, and clients get 503. Start it to serve again."
    wanted = deployment.desired_replicas
    by = "a person pinned it" if deployment.pinned_replicas is not None else "the scale loop decides"
    text = f"{row.ready} of {wanted} wanted replica{'s' if wanted != 1 else ''} "
    text += f"{'is' if row.ready == 1 else 'are'} ready ({by})."
    if row.failed:
        text += f" {row.failed} failed."
    if not row.ready and not row.failed and not row.starting and wanted:
        text += " The reconcile loop makes them within seconds; if not, look at the log of the role loops."
    return text


def _parts(request: UserRequest, row: Deployment, tab: str) -> dict[str, Any]:
    if tab == "events":
        return _events(request, row)
    if tab == "revisions":
        return {"revisions": _revisions(row)}
    if tab == "calibration":
        return calibrations.tab_of(row)
    if tab == "logs":
        return _logs(request, row)
    if tab == "settings":
        return settings_forms(row, places=text_of(request, "target_concurrency"))
    if tab == "audit":
        own = AuditEntry.objects.filter(object_id=str(row.pk)).order_by("-at", "-id")[:_AUDIT]
        return {"rows": audit_rows_of(list(own))}
    if "ended" in request.GET:
        rows = Replica.objects.filter(deployment=row, state__in=("stopped", "failed")).select_related("host")
        return {"ended": listing(request, rows, sorts=_ENDED_SORTS, default="-ended")}
    return {}


def settings_forms(row: Deployment, *, places: str = "") -> dict[str, Any]:
    """The forms of the tab of settings, filled with what holds now; with ``places`` requests at once where a page that
    leads here proposes that."""
    current = Revision.objects.filter(deployment=row, is_current=True).first()
    revision_form = RevisionForm.of(current)
    if places.isdecimal():
        revision_form.initial["target_concurrency"] = int(places[:7])
    return {"scale_form": ScaleForm.of(row), "revision_form": revision_form, "current": current}


def _events(request: UserRequest, row: Deployment) -> dict[str, Any]:
    try:
        text = text_of(request, "before")
        before = Place.parse(text) if text else None
    except (serializers.ValidationError, ValidationError, OverflowError):
        before = None
    with_looks = choice_of(request, "looks", ("all",)) == "all"
    found = events_before(row.pk, before, count=_EVENTS + 1, changes_only=not with_looks)
    page = found[:_EVENTS]
    older = str(Place(page[-1].at, page[-1].id)) if len(found) > _EVENTS else ""
    incidents = Incident.objects.filter(deployment_id=row.pk, closed_at=None).order_by("-opened_at")[:_INCIDENTS]
    return {
        "events": [EventRow(one, json.dumps(one.inputs, indent=2, ensure_ascii=False, default=str)) for one in page],
        "with_looks": with_looks,
        "older": older,
        "is_paged": before is not None,
        "incidents": [incident_row(one) for one in incidents],
    }


@dataclass(frozen=True)
class RevisionView:
    revision: Revision
    options: str
    replicas: int


def _revisions(row: Deployment) -> list[RevisionView]:
    """Newest first, each with how many replicas run it."""
    running: dict[UUID, int] = {}
    states = ("pending", "starting", "ready", "draining", "stopping")
    for revision_id in Replica.objects.filter(deployment=row, state__in=states).values_list("revision_id", flat=True):
        running[revision_id] = running.get(revision_id, 0) + 1
    return [
        RevisionView(
            one,
            json.dumps(one.options, indent=2, ensure_ascii=False) if one.options else "",
            running.get(one.pk, 0),
        )
        for one in Revision.objects.filter(deployment=row).order_by("-number")
    ]


def _logs(request: UserRequest, row: Deployment) -> dict[str, Any]:
    """The end of the chosen replica's log; by default of the newest that has started, or has tried to."""
    newest = Replica.objects.filter(deployment=row).select_related("host").order_by("-created_at", "-id")
    choices = list(newest[:50])
    asked = text_of(request, "replica")
    chosen = next((one for one in choices if str(one.pk) == asked), None)
    if chosen is None and choices:
        chosen = next((one for one in choices if one.state in _HAVE_LOGS), choices[0])
    log = log_of(chosen, lines=LOG_LINES) if chosen else None
    return {"choices": choices, "chosen": chosen, "log": log, "log_text": "\n".join(log["lines"]) if log else ""}


@read_page
def replica(request: UserRequest, replica_id: UUID) -> HttpResponse:
    """One replica: why it is in its state, how far its launch is, what it said last, and what broke."""
    one = get_object_or_404(Replica.objects.select_related("deployment", "revision", "host"), pk=replica_id)
    now = timezone.now()
    log = log_of(one, lines=LOG_LINES)
    incidents = Incident.objects.filter(replica_id=one.pk).order_by("-opened_at", "-id")[:_INCIDENTS]
    context = {
        "one": one,
        "row": replica_row(one, read_live([], [str(one.pk)]), now),
        "log": log,
        "log_text": "\n".join(log["lines"]),
        "incidents": [
            (
                incident_row(row),
                json.dumps(row.evidence, indent=2, ensure_ascii=False, default=str) if row.evidence else "",
            )
            for row in incidents
        ],
    }
    if is_part(request):
        return part(request, "operators/replica_live.html", context)
    return show(request, "operators/replica.html", context, current=CURRENT)
