"""What operators do to a deployment. What stops clients is asked about; the rest can be undone."""

from __future__ import annotations

from uuid import UUID

from django import forms
from django.core.exceptions import ValidationError
from django.http import HttpResponse
from django.shortcuts import get_object_or_404
from django.urls import reverse

from capacity.selectors import HOLDING
from penstock.web.access import UserRequest
from penstock.web.operators.deployment import frame, settings_forms
from penstock.web.operators.deployment_forms import RevisionForm, ScaleForm, values_of
from penstock.web.operators.deployments import CURRENT
from penstock.web.operators.forms import PageForm
from penstock.web.operators.frame import act, ask, done, form_page, refused, show
from serving.models import Deployment, Replica, Revision
from serving.selectors import named_by
from serving.services import (
    deployment_disable,
    deployment_enable,
    deployment_remove,
    deployment_retry,
    deployment_update,
    revision_create,
    revision_restore,
)
from tenants.needed import StillNeeded


def path_of(row: Deployment, tab: str = "") -> str:
    path = reverse("operators:deployment", args=[row.pk])
    return f"{path}?tab={tab}" if tab else path


def _find(deployment_id: UUID) -> Deployment:
    return get_object_or_404(Deployment.objects.select_related("pool__model"), pk=deployment_id)


@act
def retry(request: UserRequest, deployment_id: UUID) -> HttpResponse:
    """Let the failed replicas of a deployment start again; back to where the button was."""
    row = _find(deployment_id)
    deployment_retry(deployment=row, actor=request.user)
    back = reverse("console") if request.POST.get("back") != "deployment" else path_of(row)
    return done(request, f"{row.name}: failed replicas start again.", back)


@act
def start(request: UserRequest, deployment_id: UUID) -> HttpResponse:
    """Serve again."""
    row = _find(deployment_id)
    deployment_enable(deployment=row, actor=request.user)
    return done(request, f"{row.name} starts: replicas come up as hosts have room.", path_of(row))


@form_page
def stop(request: UserRequest, deployment_id: UUID) -> HttpResponse:
    """Stop serving: asked about, because clients notice."""
    row = _find(deployment_id)
    if request.method != "POST":
        ready = Replica.objects.filter(deployment=row, state=Replica.State.READY).count()
        return ask(
            request,
            title=f"Stop {row.name}?",
            effects=(
                f"Its {ready} ready replica{'s' if ready != 1 else ''} finish what is in flight, then stop.",
                f"Clients that ask for {row.name} get 503 from then on. Of those who have reserved of "
                f"{row.pool.name}, each minute in which they ask counts as a breach.",
                "Start takes it back: settings, revisions and history stay; replicas load anew, which takes as long as "
                "their last start.",
            ),
            verb=f"Stop {row.name}",
            back=path_of(row),
            of=row.name,
            current=CURRENT,
        )
    deployment_disable(deployment=row, actor=request.user)
    undo = reverse("operators:deployment-start", args=[row.pk])
    return done(request, f"{row.name} stops: its replicas drain.", path_of(row), undo=undo)


class ConfirmForm(PageForm):
    confirm = forms.CharField(
        max_length=200, label="Type its name to confirm", help_text="Asked for because it still has replicas."
    )


@form_page
def remove(request: UserRequest, deployment_id: UUID) -> HttpResponse:
    """Take the deployment away: asked about, and with replicas to be confirmed by its name."""
    row = _find(deployment_id)
    there = Replica.objects.filter(deployment=row, state__in=HOLDING).count()
    form = ConfirmForm(request.POST if request.method == "POST" else None) if there else None
    refusal = None
    if request.method == "POST":
        confirm = form.cleaned_data["confirm"] if form and form.is_valid() else ""
        try:
            deployment_remove(deployment=row, actor=request.user, confirm=confirm)
        except StillNeeded as error:
            refusal = error
        else:
            text = f"{row.name} is removed: its usage and history stay, and its name is free."
            return done(request, text, reverse("operators:deployments"))
    keys, limits = named_by(row.name)
    effects = [
        f"Clients that ask for {row.name} get 404 from then on. Its name is free for another deployment.",
        "Usage, receipts and audit go on telling of it, and its revisions and decisions can be read.",
    ]
    if there:
        many = f"Its {there} replicas end" if there > 1 else "Its replica ends"
        effects.append(f"{many} what is in flight, and then stop{'s' if there == 1 else ''}.")
    if keys or limits:
        named = f"{keys} key{'s' if keys != 1 else ''} and {limits} limit{'s' if limits != 1 else ''}"
        effects.append(f"What names it stays, for whatever has that name next: {named}.")
    effects.append("It cannot be undone. Stop can: it keeps the deployment without replicas.")
    return ask(
        request,
        title=f"Remove {row.name}?",
        effects=effects,
        verb=f"Remove {row.name}",
        back=path_of(row),
        of=row.name,
        current=CURRENT,
        form=form,
        refusal=refusal,
    )


@act
def scale(request: UserRequest, deployment_id: UUID) -> HttpResponse:
    """Change the bounds or pin the number of replicas. It applies live."""
    row = _find(deployment_id)
    before = values_of(row)
    form = ScaleForm(request.POST)
    if form.attempt(lambda given: deployment_update(deployment=row, actor=request.user, **given)) is None:
        row.refresh_from_db()
        context = {**frame(row, "settings"), **settings_forms(row), "scale_form": form}
        return show(request, "operators/deployment.html", context, current=CURRENT, status=400)
    undo = reverse("operators:deployment-scale", args=[row.pk])
    wanted = f"{row.desired_replicas} replica{'s' if row.desired_replicas != 1 else ''}"
    return done(request, f"{row.name} now wants {wanted}.", path_of(row, "settings"), undo=undo, fields=before)


@act
def revise(request: UserRequest, deployment_id: UUID) -> HttpResponse:
    """A new revision: replicas of the one before are replaced step by step."""
    row = _find(deployment_id)
    form = RevisionForm(request.POST)
    made = form.attempt(lambda given: revision_create(deployment=row, actor=request.user, **given))
    if made is None:
        context = {**frame(row, "settings"), **settings_forms(row), "revision_form": form}
        return show(request, "operators/deployment.html", context, current=CURRENT, status=400)
    text = f"Revision {made.number} is current: replicas are replaced step by step."
    earlier = Revision.objects.filter(deployment=row, number=made.number - 1).first()
    undo = reverse("operators:revision-restore", args=[row.pk, earlier.pk]) if earlier else ""
    return done(request, text, path_of(row, "revisions"), undo=undo)


@act
def restore(request: UserRequest, deployment_id: UUID, revision_id: UUID) -> HttpResponse:
    """Go back: a new revision with the contents of an earlier one."""
    row = _find(deployment_id)
    earlier = get_object_or_404(Revision.objects.select_related("deployment"), pk=revision_id, deployment=row)
    current = Revision.objects.filter(deployment=row, is_current=True).first()
    try:
        made = revision_restore(revision=earlier, actor=request.user)
    except ValidationError as error:
        return refused(request, error, path_of(row, "revisions"))
    text = f"Revision {made.number} is current, with what revision {earlier.number} runs."
    undo = reverse("operators:revision-restore", args=[row.pk, current.pk]) if current else ""
    return done(request, text, path_of(row, "revisions"), undo=undo)
