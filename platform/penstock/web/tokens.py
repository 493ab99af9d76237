"""A person's own access tokens, for the REST API and the command line."""

from __future__ import annotations

import datetime
from typing import Any
from uuid import UUID

from django.conf import settings
from django.contrib import messages
from django.core.exceptions import ValidationError
from django.http import HttpResponse
from django.shortcuts import get_object_or_404, redirect
from django.utils import timezone
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_http_methods, require_POST

from penstock.web.access import UserRequest, signed_in
from penstock.web.shell import page
from tenants.models import AccessToken
from tenants.services import access_token_create, access_token_revoke

DAYS = (("30", "30 days"), ("90", "90 days"), ("365", "1 year"), ("", "never"))
_DEFAULT_DAYS = "90"
_FIELDS = {"days": "days", "expires_at": "days"}
"""Where the form says what a field of the token has against it; what is not listed stands at the name."""


@never_cache
@require_http_methods(["GET", "HEAD", "POST"])
@signed_in
def tokens(request: UserRequest) -> HttpResponse:
    """The list, and a form for another. A new token's text is on the page that answers the form, and nowhere else."""
    made: dict[str, Any] = {"days": _DEFAULT_DAYS}
    if request.method == "POST":
        name, days = request.POST.get("name", "").strip(), request.POST.get("days", "")
        made = {"name": name, "days": days}
        try:
            if not name:
                raise ValidationError({"name": "A token needs a name: say where it is used."})
            token, text = access_token_create(
                user=request.user, name=name, actor=request.user, expires_at=_expiry(days)
            )
        except ValidationError as error:
            faults = error.message_dict.items()
            made["errors"] = {_FIELDS.get(field, "name"): " ".join(lines) for field, lines in faults}
        else:
            made = {"days": _DEFAULT_DAYS, "fresh": token, "text": text}
    rows = AccessToken.objects.filter(user=request.user).order_by("revoked_at", "-created_at")
    context = {"rows": rows, "choices": DAYS, "console_url": settings.PENSTOCK_CONSOLE_URL, **made}
    return page(request, "shell/tokens.html", context, current="tokens", status=400 if "errors" in made else 200)


@require_POST
@signed_in
def token_revoke(request: UserRequest, token_id: UUID) -> HttpResponse:
    """Only one's own: another's does not exist."""
    token = get_object_or_404(AccessToken, pk=token_id, user=request.user)
    if access_token_revoke(token=token, actor=request.user):
        messages.success(request, f"{token.name} is revoked: whoever uses it is refused from now on.")
    return redirect("tokens")


def _expiry(days: str) -> datetime.datetime | None:
    if days not in dict(DAYS):
        raise ValidationError({"days": "Choose one of the periods that the form offers."})
    return timezone.now() + datetime.timedelta(days=int(days)) if days else None
