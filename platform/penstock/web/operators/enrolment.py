"""Another machine comes in: a join command, the fresh token it asks for, shown once, and who came with it."""

from __future__ import annotations

import datetime
from typing import Any
from urllib.parse import urlsplit
from uuid import UUID

from django import forms
from django.conf import settings
from django.http import HttpResponse
from django.shortcuts import get_object_or_404
from django.urls import reverse
from django.utils import timezone
from django.views.decorators.cache import never_cache

from capacity.models import EnrolmentToken, HardwareType, Host
from capacity.policy.enrolment import agent_url_fault
from capacity.services import enrolment_token_create, enrolment_token_revoke
from penstock.roles import is_loopback
from penstock.web.access import UserRequest
from penstock.web.operators.forms import LabelsField, PageForm
from penstock.web.operators.frame import ask, done, form_page, part, read_page, show
from penstock.web.operators.hosts import CURRENT, views_of
from tenants.models import AuditEntry

HOURS = (("1", "1 hour"), ("24", "1 day"), ("168", "7 days"))
MOST_USES = 1000
_TOKENS_SHOWN = 20


class EnrolmentForm(PageForm):
    """All of it has a good default: one press of the button is enough for one host."""

    name = forms.CharField(
        label="For which hosts",
        max_length=120,
        initial="New host",
        help_text="A name for the token, for the audit log.",
    )
    uses = forms.IntegerField(
        label="How many hosts", min_value=1, max_value=MOST_USES, initial=1, help_text="So many can join with it."
    )
    hours = forms.ChoiceField(label="Works for", choices=HOURS, initial="24")
    hardware_type = forms.ModelChoiceField(
        HardwareType.objects.all(),
        label="Hardware",
        required=False,
        empty_label="What each host reports",
        to_field_name="slug",
    )
    labels = LabelsField(label="Labels of the hosts", help_text="One name=value a line, e.g. zone=a.")


@never_cache
@form_page
def add(request: UserRequest) -> HttpResponse:
    """The form, and the tokens that are open. A new token's text is on the page that answers, and nowhere else."""
    form = EnrolmentForm(request.POST or None)
    made: dict[str, Any] = {}
    if request.method == "POST":
        result = form.attempt(lambda given: _create(request, given))
        if result is not None:
            token, text = result
            url = request.build_absolute_uri("/").rstrip("/")
            is_near = is_loopback((urlsplit(url).hostname or "").strip("[]"))
            made = {"token": token, "text": text, "url": url, "is_near": is_near}
    context = {
        "form": form,
        "fault": agent_url_fault(settings.PENSTOCK_AGENT_REDIS_URL, own=settings.REDIS_URL),
        "tokens": _open_tokens(),
        **made,
    }
    status = 400 if request.method == "POST" and not made else 200
    return show(request, "operators/host_add.html", context, current=CURRENT, status=status)


def _create(request: UserRequest, given: dict[str, Any]) -> tuple[EnrolmentToken, str]:
    return enrolment_token_create(
        name=given["name"],
        actor=request.user,
        hardware_type=given["hardware_type"],
        labels=given["labels"],
        uses=given["uses"],
        expires_at=timezone.now() + datetime.timedelta(hours=int(given["hours"])),
    )


def _open_tokens() -> list[EnrolmentToken]:
    """Those that still let somebody in, newest first."""
    rows = EnrolmentToken.objects.filter(revoked_at=None, expires_at__gt=timezone.now(), uses_left__gt=0)
    return list(rows.select_related("hardware_type", "created_by")[:_TOKENS_SHOWN])


@read_page
def arrivals(request: UserRequest, token_id: UUID) -> HttpResponse:
    """The hosts that have come in with a token: the page of its join command asks every two seconds."""
    token = get_object_or_404(EnrolmentToken, pk=token_id)
    acts = AuditEntry.objects.filter(action="enrolment_token.redeem", object_id=str(token.pk))
    ids = [after["host"] for after in acts.values_list("after", flat=True) if "host" in after]
    hosts = list(Host.objects.filter(pk__in=ids).select_related("hardware_type").order_by("created_at"))
    context = {"token": token, "views": views_of(hosts, timezone.now())}
    return part(request, "operators/arrivals.html", context)


@form_page
def revoke(request: UserRequest, token_id: UUID) -> HttpResponse:
    """Let no other host in with a token."""
    token, page = get_object_or_404(EnrolmentToken, pk=token_id), reverse("operators:host-add")
    if request.method != "POST":
        return ask(
            request,
            title=f"Revoke the token {token.name}?",
            effects=(
                f"No other host can join with pse_{token.public_id}_…; {token.uses_left} could have.",
                "Hosts that have joined with it stay.",
                "It cannot be undone; another token takes a moment.",
            ),
            verb="Revoke",
            back=page,
            of="Add a host",
            current=CURRENT,
        )
    enrolment_token_revoke(token=token, actor=request.user)
    return done(request, f"{token.name} is revoked: no other host joins with it.", page)
