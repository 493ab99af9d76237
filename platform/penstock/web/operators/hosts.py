"""Hosts: which accelerator runs what, what is free, what is failing; and what may be placed where."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from django.db.models import Q, QuerySet
from django.http import HttpResponse
from django.shortcuts import get_object_or_404
from django.urls import reverse
from django.utils import timezone

from capacity.models import Accelerator, HardwareType, Host
from capacity.services import host_cordon, host_labels_set, host_secret_renew, host_uncordon
from penstock.web import figures
from penstock.web.access import UserRequest
from penstock.web.console_data import HOST_SILENT_S, IN_TRANSITION, host_rows, incident_row, replica_order, replica_row
from penstock.web.console_rows import HostRow, ReplicaRow
from penstock.web.live import read_live
from penstock.web.operators.audit import rows_of
from penstock.web.operators.forms import LabelsField, PageForm
from penstock.web.operators.frame import act, ask, done, form_page, is_part, part, read_page, refused, show
from penstock.web.operators.host_acts import ReasonForm, way_back
from penstock.web.operators.lists import choice_of, listing, text_of
from serving.models import Incident, Replica
from tenants.models import AuditEntry

CURRENT = "operators:hosts"
HOLDING = (*IN_TRANSITION, "ready")
"""States in which a replica holds its part of its host."""
STATES = {
    "active": "Active",
    "cordoned": "Cordoned",
    "draining": "Draining",
    "lost": "Lost",
    "silent": "Silent",
    "removed": "Removed",
}
_SORTS = {"name": "name", "report": "last_report_at", "hardware": "hardware_type__name", "joined": "created_at"}
_NEWEST = 8


@dataclass(frozen=True)
class Slot:
    """An accelerator and the replica that holds it."""

    accelerator: Accelerator
    used_by: ReplicaRow | None

    @property
    def mark(self) -> tuple[str, str]:
        one = self.accelerator
        if not one.is_healthy:
            return "failed", f"{one.index}: failing"
        if self.used_by is None:
            return "slot", f"{one.index}: free"
        return "ready", f"{one.index}: {self.used_by.deployment.name}"


@dataclass(frozen=True)
class HostView:
    """A host as the pages show it."""

    row: HostRow
    replicas: list[ReplicaRow]
    slots: list[Slot]

    @property
    def host(self) -> Host:
        return self.row.host

    @property
    def marks(self) -> list[tuple[str, str]]:
        return [slot.mark for slot in self.slots]

    @property
    def marks_label(self) -> str:
        return f"{self.used} of {len(self.slots)} accelerators in use, {self.failing} failing"

    @property
    def used(self) -> int:
        return sum(slot.used_by is not None for slot in self.slots)

    @property
    def failing(self) -> int:
        return sum(not slot.accelerator.is_healthy for slot in self.slots)

    @property
    def free(self) -> int:
        return sum(slot.used_by is None and slot.accelerator.is_healthy for slot in self.slots)


class LabelsForm(PageForm):
    labels = LabelsField(label="Labels", help_text="One name=value a line. A revision's host_labels ask for them.")


def views_of(hosts: list[Host], now: datetime) -> list[HostView]:
    """The hosts with what runs on them: a fixed number of queries, and one exchange with the state."""
    rows = Replica.objects.filter(host__in=hosts, state__in=HOLDING).select_related("host", "revision", "deployment")
    replicas = list(rows.order_by("deployment__name", "created_at"))
    live = read_live([], [str(row.pk) for row in replicas])
    shown: dict[Any, list[tuple[Replica, ReplicaRow]]] = {}
    for one in replicas:
        shown.setdefault(one.host_id, []).append((one, replica_row(one, live, now)))
    views = []
    for row in host_rows(hosts, replicas, now):
        own = shown.get(row.host.pk, [])
        holders = {index: view for one, view in own for index in one.accelerators}
        slots = [Slot(one, holders.get(one.index)) for one in row.accelerators]
        views.append(HostView(row, sorted((view for _, view in own), key=replica_order), slots))
    return views


@read_page
def hosts(request: UserRequest) -> HttpResponse:
    """The list, with its sentence: how many accelerators there are, how many are free, and who is silent."""
    now = timezone.now()
    query, state = text_of(request, "q"), choice_of(request, "state", tuple(STATES))
    kind = text_of(request, "hardware")
    there = Host.objects if state != "removed" else Host.everything.exclude(removed_at=None)
    rows = _filtered(there.select_related("hardware_type"), query, state, kind, now)
    is_filtered = bool(query or state or kind)
    found = listing(request, rows, sorts=_SORTS, default="name", is_filtered=is_filtered)
    context = {
        "list": found,
        "views": views_of(list(found.rows), now),
        "query": query,
        "state": state,
        "states": STATES.items(),
        "hardware": kind,
        "kinds": HardwareType.objects.filter(pk__in=Host.objects.values("hardware_type")),
        "headline": headline(now),
        "is_empty": not found.total and not is_filtered,
    }
    if is_part(request):
        return part(request, "operators/hosts_rows.html", context)
    return show(request, "operators/hosts.html", context, current=CURRENT)


def _filtered(rows: QuerySet[Host], query: str, state: str, kind: str, now: datetime) -> QuerySet[Host]:
    silent = Q(last_report_at=None) | Q(last_report_at__lt=now - timedelta(seconds=HOST_SILENT_S))
    if query:
        rows = rows.filter(name__icontains=query)
    if kind:
        rows = rows.filter(hardware_type__slug=kind)
    if state and state != "removed":
        rows = rows.filter(silent | Q(state="lost")) if state == "silent" else rows.filter(state=state)
    return rows


def headline(now: datetime) -> str:
    """The sentence that answers: what is there, what is free, what is failing?"""
    hosts = list(Host.objects.values_list("pk", "name", "last_report_at"))
    if not hosts:
        return "No machine has an agent yet, so nothing can be served."
    rows = Replica.objects.filter(host__isnull=False, state__in=HOLDING).values_list("host_id", "accelerators")
    held = {(host_id, index) for host_id, indices in rows for index in indices}
    there = list(Accelerator.objects.values_list("host_id", "index", "is_healthy"))
    failing = sum(not is_healthy for _, _, is_healthy in there)
    free = sum(is_healthy and (host_id, index) not in held for host_id, index, is_healthy in there)
    text = f"{len(hosts)} host{'s' if len(hosts) != 1 else ''}"
    text += f" with {len(there)} accelerators, {free} free." if there else ", without accelerators."
    if failing:
        text += f" {failing} {'is' if failing == 1 else 'are'} failing."
    silent = [name for _, name, at in hosts if at is None or (now - at).total_seconds() > HOST_SILENT_S]
    if silent:
        named = silent[0] if len(silent) == 1 else f"{len(silent)} hosts"
        text += f" {named} {'is' if len(silent) == 1 else 'are'} silent."
    return text


@read_page
def host(request: UserRequest, name: str) -> HttpResponse:
    """One host: its accelerators, what runs on them, its environments, labels and incidents.

    Those that were removed have no name any more: they are found by id.
    """
    try:
        wanted = Q(pk=UUID(name))
    except ValueError:
        wanted = Q(name=name, removed_at=None)
    row = get_object_or_404(Host.everything.select_related("hardware_type"), wanted)
    context = _one(row)
    if is_part(request):
        return part(request, "operators/host_live.html", context)
    context["labels_form"] = LabelsForm(initial={"labels": row.labels})
    return show(request, "operators/host.html", context, current=CURRENT)


def _one(row: Host) -> dict[str, Any]:
    now = timezone.now()
    incidents = Incident.objects.filter(host_id=row.pk).order_by("-opened_at")[:_NEWEST]
    acts = AuditEntry.objects.filter(object_id=str(row.pk)).order_by("-at", "-id")[:_NEWEST]
    view = views_of([row], now)[0]
    return {
        "view": view,
        "host": row,
        "headline": _sentence(view),
        "progress": _progress(view),
        "incidents": [incident_row(one) for one in incidents],
        "rows": rows_of(list(acts)),
    }


@dataclass(frozen=True)
class Progress:
    """How far a drain is: replicas that have left the host since it began, of all that it held."""

    gone: int
    left: int

    @property
    def share(self) -> float:
        return self.gone / (self.gone + self.left) if self.left else 1.0


def _progress(view: HostView) -> Progress | None:
    if view.host.state != Host.State.DRAINING:
        return None
    ended = Replica.objects.filter(host=view.host, state__in=("stopped", "failed"))
    return Progress(gone=ended.filter(state_since__gte=view.host.state_since).count(), left=len(view.replicas))


def _sentence(view: HostView) -> str:
    host, row = view.host, view.row
    if host.removed_at is not None:
        return "It was removed: its agent is refused. What it did stays to be read."
    if row.report_age_s is None:
        return "Its agent has not reported yet. Start it on that machine: penstock up --only agent."
    does = f"It runs {len(view.replicas)} replica{'s' if len(view.replicas) != 1 else ''}, {row.ready} ready"
    has = f", with {view.free} of {len(view.slots)} accelerators free." if view.slots else ", on its CPU."
    if row.is_silent:
        return f"{does}{has} Its agent has been silent for {figures.duration(row.report_age_s)}."
    if host.state == Host.State.CORDONED:
        return f"{does}{has} It is cordoned: nothing new is placed on it."
    if host.state == Host.State.DRAINING:
        return f"{does}{has} It is being drained." if view.replicas else "It is drained: it can be switched off."
    return f"{does}{has}"


# ------------------------------------------------------------------------------------------------------------- acts
@act
def cordon(request: UserRequest, name: str) -> HttpResponse:
    """Place nothing new on the host. What runs goes on, so it is not asked about: it can be undone."""
    row, page = get_object_or_404(Host, name=name), reverse("operators:host", args=[name])
    form, (undo, fields) = ReasonForm(request.POST), way_back(row)
    reason = form.cleaned_data["reason"] if form.is_valid() else ""
    text = f"{name} is cordoned: what runs on it goes on, nothing new is placed there."
    if host_cordon(host=row, actor=request.user, reason=reason):
        return done(request, text, page, undo=undo, fields=fields)
    row.refresh_from_db(fields=("state",))
    if row.state != Host.State.CORDONED:
        return refused(request, f"{name} is {row.state}: wait until its agent reports again.", page)
    return done(request, text, page)


@act
def uncordon(request: UserRequest, name: str) -> HttpResponse:
    """Place replicas on the host again, and end its drain."""
    row, page = get_object_or_404(Host, name=name), reverse("operators:host", args=[name])
    undo, fields = way_back(row)
    text = f"{name} takes replicas again."
    if host_uncordon(host=row, actor=request.user):
        return done(request, text, page, undo=undo, fields=fields)
    row.refresh_from_db(fields=("state",))
    if row.state != Host.State.ACTIVE:
        return refused(request, f"{name} is {row.state}: wait until its agent reports again.", page)
    return done(request, text, page)


@act
def labels(request: UserRequest, name: str) -> HttpResponse:
    """Replace the labels that placement asks for."""
    row, page = (
        get_object_or_404(Host.objects.select_related("hardware_type"), name=name),
        reverse("operators:host", args=[name]),
    )
    before = LabelsForm(initial={"labels": row.labels})["labels"].value()
    form = LabelsForm(request.POST)
    if form.attempt(lambda given: host_labels_set(host=row, actor=request.user, labels=given["labels"])) is None:
        return show(request, "operators/host.html", {**_one(row), "labels_form": form}, current=CURRENT, status=400)
    undo = reverse("operators:host-labels", args=[name])
    return done(
        request, f"{name} has other labels: replicas that run stay.", page, undo=undo, fields={"labels": before}
    )


@form_page
def renew_secret(request: UserRequest, name: str) -> HttpResponse:
    """A new secret for the host's agent, on the page that answers and nowhere else."""
    row = get_object_or_404(Host, name=name)
    if request.method != "POST":
        return ask(
            request,
            title=f"Make a new secret for {name}?",
            effects=(
                "Within two seconds its agent is refused until its agent.json has the new secret.",
                "Its engines go on serving meanwhile; nothing new starts, stops or fails over there.",
                "The old secret does not come back. Do this when somebody else may know it.",
            ),
            verb="Make a new secret",
            back=reverse("operators:host", args=[name]),
            of=name,
            current=CURRENT,
        )
    secret = host_secret_renew(host=row, actor=request.user).hex()
    return show(request, "operators/host_secret.html", {"host": row, "secret": secret}, current=CURRENT)
