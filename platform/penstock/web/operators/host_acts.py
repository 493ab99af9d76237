"""How a host is taken out of service: emptied, then removed. Both are asked about, with what will happen."""

from __future__ import annotations

from datetime import UTC, datetime

from django import forms
from django.http import HttpResponse
from django.shortcuts import get_object_or_404
from django.urls import reverse
from django.utils import timezone

from capacity.models import Host
from capacity.selectors import HOLDING, profiles_in_force
from capacity.services import host_drain, host_remove
from capacity.services.hosts import host_removal
from penstock.loops.placing import without_room
from penstock.web.access import UserRequest
from penstock.web.operators.forms import PageForm
from penstock.web.operators.frame import ask, done, form_page, refused
from serving.models import Replica
from serving.policy.lifecycle import LIVE
from serving.policy.replicas import Patience
from tenants.needed import StillNeeded

CURRENT = "operators:hosts"


class ReasonForm(PageForm):
    reason = forms.CharField(
        max_length=200, required=False, label="Why", help_text="For whoever sees it meanwhile, e.g. a new fan."
    )


def way_back(row: Host) -> tuple[str, dict[str, object]]:
    """What a button posts that takes the host back to the state it has now: the path, and the fields."""
    acts = {Host.State.CORDONED: "host-cordon", Host.State.DRAINING: "host-drain"}
    act = acts.get(Host.State(row.state), "host-uncordon")
    return reverse(f"operators:{act}", args=[row.name]), {"reason": row.state_reason}


class ForceForm(PageForm):
    force = forms.BooleanField(required=False, label="Give up its replicas: they count as failed")


@form_page
def drain(request: UserRequest, name: str) -> HttpResponse:
    """Empty the host. Asked about, with what has room elsewhere now and what has not."""
    row, page = get_object_or_404(Host, name=name), reverse("operators:host", args=[name])
    form = ReasonForm(request.POST) if request.method == "POST" else ReasonForm()
    undo, fields = way_back(row)
    swapped = form.attempt(lambda given: host_drain(host=row, actor=request.user, **given)) if form.is_bound else None
    if swapped is None:
        return ask(
            request,
            title=f"Drain {name}?",
            effects=_effects_of_drain(row, now=timezone.now()),
            verb=f"Drain {name}",
            back=page,
            of=name,
            current=CURRENT,
            form=form,
        )
    text = f"{name} is being drained: this page shows what is left on it."
    if swapped:
        return done(request, text, page, undo=undo, fields=fields)
    row.refresh_from_db(fields=("state",))
    if row.state != Host.State.DRAINING:
        return refused(request, f"{name} is {row.state}: wait until its agent reports again, or remove it.", page)
    return done(request, text, page)


def _effects_of_drain(row: Host, *, now: datetime) -> list[str]:
    there = Replica.objects.filter(host=row, state__in=HOLDING).select_related("deployment__pool__model", "revision")
    held = list(there.order_by("created_at"))
    live = [one for one in held if one.state in LIVE]
    wanted = [one for one in live if one.deployment.is_enabled]
    homeless = without_room(wanted, host=row, profiles=profiles_in_force(at=now.astimezone(UTC)), now=now)
    lines = ["Nothing new is placed on it."]
    if live:
        many = f"Each of its {len(live)} replicas is" if len(live) > 1 else "Its replica is"
        lines.append(f"{many} replaced on another host first, then ends what it has in hand and stops.")
    elif held:
        lines.append("What is left on it is on its way out already: it can be switched off when that has stopped.")
    else:
        lines.append("No replica is left on it: it can be switched off at once.")
    if homeless:
        names = ", ".join(sorted({one.deployment.name for one in homeless}))
        wait = f"{Patience().room_s:g} s"
        lines.append(
            f"As things are, no other host has room for {names}: after {wait} {len(homeless)} of them stop without a "
            "replacement. Clients notice."
        )
    return [*lines, "Undo, or Uncordon, takes it back: what has not stopped by then stays."]


@form_page
def remove(request: UserRequest, name: str) -> HttpResponse:
    """Take the host out for good; asked about, because it does not come back but by joining anew."""
    row, page = get_object_or_404(Host, name=name), reverse("operators:host", args=[name])
    _, obstacle = host_removal(host=row)
    is_gone = row.state == Host.State.LOST or row.last_report_at is None
    form = ForceForm(request.POST if request.method == "POST" else None) if obstacle and is_gone else None
    refusal = None
    if request.method == "POST":
        force = bool(form and form.is_valid() and form.cleaned_data["force"])
        try:
            host_remove(host=row, actor=request.user, force=force)
        except StillNeeded as error:
            refusal = error
        else:
            text = f"{name} is removed. Stop its agent on that machine; its history stays, and its name is free."
            return done(request, text, reverse("operators:hosts"))
    return ask(
        request,
        title=f"Remove {name}?",
        effects=(
            "Its agent is refused at once, and told to stop whatever it still runs. Stop the agent on that machine, "
            "too.",
            "What it did stays to be read: replicas, usage, incidents, audit. Its name is free for another host.",
            "It does not come back by itself: the machine joins anew, with a new secret.",
        ),
        verb=f"Remove {name}",
        back=page,
        of=name,
        current=CURRENT,
        form=form,
        refusal=refusal,
        obstacle=obstacle,
        first=_before_removal(row) if obstacle and not is_gone else None,
    )


def _before_removal(row: Host) -> tuple[str, str]:
    """What a host that serves needs first: to be drained, or that its drain ends."""
    if row.state == Host.State.DRAINING:
        return "See its drain", reverse("operators:host", args=[row.name])
    return f"Drain {row.name}…", reverse("operators:host-drain", args=[row.name])
