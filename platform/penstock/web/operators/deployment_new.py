"""A new deployment: one required field, the model. The rest is chosen, shown with its reason, and can be changed."""

from __future__ import annotations

from typing import Any

from django import forms
from django.core.exceptions import ValidationError
from django.db import transaction
from django.http import HttpResponse
from django.urls import reverse
from django.utils import timezone

from capacity.models import HardwareType, Model, Pool
from capacity.services import model_create, pool_create
from penstock.web.access import UserRequest
from penstock.web.operators.deployment_plan import (
    BUILT_IN,
    Plan,
    free_slug,
    plan_for,
)
from penstock.web.operators.deployments import CURRENT
from penstock.web.operators.forms import JsonObjectField, PageForm
from penstock.web.operators.frame import done, form_page, is_part, part, show
from penstock.web.operators.lists import text_of
from serving.api.deployments import MOST_REPLICAS
from serving.api.revisions import MOST_AT_ONCE
from serving.models import Deployment, Revision
from serving.services import deployment_create

_CHOOSE = "As shown above"


class NewForm(PageForm):
    """Empty fields but the first take what the plan says."""

    model = forms.CharField(label="Model", max_length=500)
    name = forms.CharField(label="Name that clients send", max_length=200, required=False)
    pool = forms.ModelChoiceField(
        Pool.objects.order_by("name"), label="Pool", required=False, empty_label=_CHOOSE, to_field_name="slug"
    )
    hardware_type = forms.ModelChoiceField(
        HardwareType.objects.all(),
        label="Hardware of a new pool",
        required=False,
        empty_label=_CHOOSE,
        to_field_name="slug",
    )
    runtime = forms.ChoiceField(
        label="Runtime", required=False, choices=[("", "Chosen from the model"), *Revision.Runtime.choices]
    )
    min_replicas = forms.IntegerField(label="Replicas at least", min_value=0, max_value=MOST_REPLICAS, initial=1)
    max_replicas = forms.IntegerField(label="Replicas at most", min_value=0, max_value=MOST_REPLICAS, initial=1)
    target_concurrency = forms.IntegerField(
        label="Requests at once per replica", min_value=1, max_value=MOST_AT_ONCE, initial=16
    )
    options = JsonObjectField(label="Options of the runtime", help_text='As JSON, e.g. {"max_model_len": 8192}.')

    def __init__(self, data: Any = None, **kwargs: Any) -> None:
        super().__init__(_with_defaults(data), **kwargs)

    def clean_model(self) -> str:
        text = str(self.cleaned_data["model"]).strip()
        self.plan: Plan = plan_for(text, timezone.now())
        return text


def _with_defaults(data: Any) -> Any:
    """What is not sent at all is as good as what the form offers: the model alone is enough."""
    if data is None:
        return None
    given = data.copy()
    for name, value in (("min_replicas", "1"), ("max_replicas", "1"), ("target_concurrency", "16")):
        if not given.get(name):
            given[name] = value
    return given


@form_page
def new(request: UserRequest) -> HttpResponse:
    """The form; with a model in the address also the plan, and by POST the deployment."""
    if request.method == "POST":
        form = NewForm(request.POST)
        made = form.attempt(lambda given: _deploy(request, form.plan, given))
        if made is not None:
            text = f"{made.name} is made. Its first replica starts as soon as a host has room for it; this page tells."
            return done(request, text, reverse("operators:deployment", args=[made.pk]))
        return _shown(request, form, getattr(form, "plan", None), status=400)
    text = text_of(request, "model")
    plan, error = None, ""
    if text:
        try:
            plan = plan_for(text, timezone.now())
        except ValidationError as refusal:
            error = " ".join(refusal.messages)
    form = NewForm(initial={"model": text})
    if is_part(request):
        return part(request, "operators/deployment_plan.html", {**_context(form, plan), "error": error})
    return _shown(request, form, plan, error=error)


def _context(form: NewForm, plan: Plan | None) -> dict[str, Any]:
    if plan is not None and plan.name:
        form.fields["name"].widget.attrs["placeholder"] = plan.name
    return {"form": form, "plan": plan}


def _shown(
    request: UserRequest, form: NewForm, plan: Plan | None, *, error: str = "", status: int = 200
) -> HttpResponse:
    known = [(row.slug, row.name) for row in Model.objects.order_by("name")[:200]]
    offers = [*known, *((name, label) for name, label in BUILT_IN.items() if name not in dict(known))]
    context = {**_context(form, plan), "error": error, "offers": offers}
    return show(request, "operators/deployment_new.html", context, current=CURRENT, status=status)


@transaction.atomic
def _deploy(request: UserRequest, plan: Plan, given: dict[str, Any]) -> Deployment:
    """Make what is missing of model, pool and deployment: all of it, or nothing. Raises ValidationError by field."""
    pool = given["pool"] or (None if given["hardware_type"] else plan.pool) or _pool(request, plan, given)
    options = dict(given["options"])
    as_planned = given["hardware_type"] in (None, plan.hardware) and given["pool"] in (None, plan.pool)
    if as_planned and plan.accelerators > 1 and not {"tensor_parallel_size", "accelerators"} & set(options):
        options["tensor_parallel_size"] = plan.accelerators
    return deployment_create(
        pool=pool,
        name=given["name"].strip() or plan.name,
        runtime=given["runtime"] or None,
        options=options,
        target_concurrency=given["target_concurrency"],
        min_replicas=given["min_replicas"],
        max_replicas=given["max_replicas"],
        actor=request.user,
    )


def _pool(request: UserRequest, plan: Plan, given: dict[str, Any]) -> Pool:
    hardware = given["hardware_type"] or plan.hardware
    if hardware is None:
        raise ValidationError("No host has joined yet, and a price follows from its hardware. Add a host first.")
    source = plan.source
    model = source.model or model_create(
        name=source.name,
        slug=free_slug(Model, source.name),
        artifact_kind=source.kind,
        artifact_value=source.value,
        parameters=source.parameters,
        context_tokens=source.context_tokens,
        actor=request.user,
    )
    return pool_create(
        model=model, hardware_type=hardware, slug=free_slug(Pool, source.name), name=source.name, actor=request.user
    )
