"""What operators do with calibrations: begin one, stop it, make it the price."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from django import forms
from django.core.exceptions import ValidationError
from django.http import HttpResponse
from django.shortcuts import get_object_or_404
from django.urls import reverse
from django.utils import timezone

from capacity.policy.grid import estimated_s
from penstock.web import figures
from penstock.web.access import UserRequest
from penstock.web.operators import deployments
from penstock.web.operators.calibrations import CURRENT
from penstock.web.operators.forms import PageForm
from penstock.web.operators.frame import ask, done, form_page, refused, show
from serving.calibrations import Adoption, adoption_of
from serving.measuring import order_of
from serving.models import Calibration, Deployment, Replica, Revision
from serving.services import calibration_adopt, calibration_cancel, calibration_start
from tenants.needed import StillNeeded


class MomentInput(forms.DateTimeInput):
    """A date and time, which browsers help to choose."""

    input_type = "datetime-local"

    def __init__(self) -> None:
        super().__init__(format="%Y-%m-%dT%H:%M")


class StartForm(PageForm):
    grid = forms.ChoiceField(label="Grid", choices=Calibration.Grid.choices, initial=Calibration.Grid.MEDIUM)
    allow_outage = forms.BooleanField(
        label="Take the only ready replica too: clients get 503 while it is measured", required=False
    )
    adopt_when_fitted = forms.BooleanField(label="Make it the price as soon as it is fitted", required=False)

    def __init__(self, *args: Any, ready: int, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if ready > 1:
            # Nothing to allow: the others serve meanwhile.
            del self.fields["allow_outage"]


class AdoptForm(PageForm):
    effective_from = forms.DateTimeField(
        label="In force from",
        required=False,
        widget=MomentInput,
        help_text="In UTC. Empty: at once. Usage before that keeps the price it was given.",
    )


def path_of(row: Calibration) -> str:
    return reverse("operators:calibration", args=[row.pk])


@form_page
def start(request: UserRequest, deployment_id: UUID) -> HttpResponse:
    """Begin a calibration: asked about, because a replica goes out of rotation."""
    row = get_object_or_404(Deployment.objects.select_related("pool__model"), pk=deployment_id)
    under_way = Calibration.objects.filter(deployment_id=row.pk, state__in=Calibration.UNDER_WAY).first()
    if under_way is not None and request.method != "POST":
        return refused(request, f"A calibration of {row} is under way already: here it is.", path_of(under_way))
    ready = Replica.objects.filter(deployment=row, state=Replica.State.READY).count()
    form = StartForm(request.POST if request.method == "POST" else None, ready=ready)
    if request.method == "POST":
        made = form.attempt(lambda given: calibration_start(deployment=row, actor=request.user, **given))
        if made is not None:
            text = f"{row.name} is calibrated: it can be left, and is found again here."
            return done(request, text, path_of(made))
    context = {
        "deployment": row,
        "form": form,
        "ready": ready,
        "times": _times(row),
        "title": f"Calibrate {row.name}",
    }
    status = 400 if form.is_bound else 200
    return show(request, "operators/calibration_new.html", context, current=deployments.CURRENT, status=status)


def _times(row: Deployment) -> list[tuple[str, int, str]]:
    """For each grid its name, its number of shapes, and about how long it takes."""
    revision = (
        Revision.objects.select_related("deployment__pool__model").filter(deployment=row, is_current=True).first()
    )
    found: list[tuple[str, int, str]] = []
    if revision is None:
        return found
    for name, label in Calibration.Grid.choices:
        try:
            order = order_of(calibration_id="", pool=row.pool, revision=revision, grid=name)
        except ValueError:
            return []
        found.append((str(label), len(order.shapes), figures.duration(estimated_s(order))))
    return found


@form_page
def cancel(request: UserRequest, calibration_id: UUID) -> HttpResponse:
    """Stop measuring: asked about, because what was measured so far does not count for another."""
    row = get_object_or_404(Calibration, pk=calibration_id)
    if row.state not in Calibration.UNDER_WAY:
        return refused(request, "It is over already.", path_of(row))
    if request.method == "POST":
        calibration_cancel(calibration=row, actor=request.user)
        return done(request, "It is cancelled: its replica goes back into rotation.", path_of(row))
    return ask(
        request,
        title=f"Cancel the calibration of {row.deployment_name}?",
        effects=(
            "Its replica goes back into rotation within seconds.",
            "What was measured so far can be looked at, but another calibration begins anew.",
            "The price stays as it is.",
        ),
        verb="Cancel the calibration",
        back=path_of(row),
        current=CURRENT,
    )


@form_page
def adopt(request: UserRequest, calibration_id: UUID) -> HttpResponse:
    """Make it the price: asked about, with who would pay more or less."""
    row = get_object_or_404(Calibration, pk=calibration_id)
    if row.state != Calibration.State.FITTED:
        return refused(request, "Only a calibration that is fitted and not adopted yet can be adopted.", path_of(row))
    try:
        adoption = adoption_of(row, now=timezone.now())
    except StillNeeded as error:
        return refused(request, f"{error} {error.hint}", path_of(row))
    form = AdoptForm(request.POST if request.method == "POST" else None) if adoption.is_reference else None
    if request.method == "POST":
        if form is None:
            try:
                calibration_adopt(calibration=row, actor=request.user)
            except ValidationError as error:
                return refused(request, error, path_of(row))
            return done(request, "It is adopted.", path_of(row))
        if form.attempt(lambda given: _adopted(row, request, given)) is not None:
            return done(request, f"It is adopted as version {row.adopted_version} of the price.", path_of(row))
    return ask(
        request,
        title=f"Adopt the calibration of {row.deployment_name}?",
        effects=effects_of(row, adoption),
        verb="Adopt it",
        back=path_of(row),
        current=CURRENT,
        form=form,
    )


def _adopted(row: Calibration, request: UserRequest, given: dict[str, Any]) -> Calibration:
    return calibration_adopt(calibration=row, actor=request.user, **given)


def effects_of(row: Calibration, adoption: Adoption) -> list[str]:
    """What adopting will do, in words."""
    if not adoption.is_reference:
        supply = figures.number(adoption.supply_mu_per_min)
        return [
            f"No price changes: {row.pool_name} is priced on other hardware.",
            f"A replica on {row.hardware_name} counts as {supply} MU/min from then on.",
        ]
    version = adoption.price.version
    found = [f"Version {version} of the price of {row.pool_name} takes over; versions are never edited or removed."]
    rows = [one for one in adoption.preview.rows if one.basis != "none"]
    if not rows:
        found.append("Nobody used it in the last seven days, so nobody's MU can be compared.")
    else:
        found.append(
            f"The usage of the last seven days would have been {figures.number(adoption.preview.mu_new)} MU instead of "
            f"{figures.number(adoption.preview.mu_now)}: {figures.number(adoption.preview.factor)} times as many."
        )
        names = {one: adoption.tenants.get(one.tenant_id, "a tenant") if one.tenant_id else "a tenant" for one in rows}
        more, less = rows[0], rows[-1]
        found.append(f"Highest factor: {figures.number(more.factor)}, of {names[more]}.")
        if less is not more:
            found.append(f"Lowest factor: {figures.number(less.factor)}, of {names[less]}.")
    found.append("Reservations keep the version they were sold with until they are renewed or converted.")
    return found
