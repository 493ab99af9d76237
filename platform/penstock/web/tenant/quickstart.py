"""From nothing to a streamed answer: a key, where to put it, and the lines to paste."""

from __future__ import annotations

from typing import Any

from django.conf import settings
from django.core.exceptions import PermissionDenied, ValidationError
from django.http import HttpResponse
from django.utils import timezone
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_http_methods

from penstock.web.access import UserRequest
from penstock.web.dashboard_data import pick_model, usable_models
from penstock.web.snippets import snippets
from penstock.web.tenant.place import Place, in_tenant, tenant_page
from tenants.models import ApiKey
from tenants.policy.roles import Action
from tenants.services import api_key_create

MODEL_PLACEHOLDER = "MODEL"
_KEYS_SHOWN = 50


@never_cache
@require_http_methods(["GET", "HEAD", "POST"])
@in_tenant(Action.TENANT_VIEW)
def quickstart(request: UserRequest, place: Place) -> HttpResponse:
    """The lines for the model and key that the URL names. A POST makes a key; its text is in that answer alone."""
    models = usable_models(place.tenant)
    model = pick_model(models, request.GET.get("model"))
    api = settings.PENSTOCK_API_URL.rstrip("/")
    made = snippets(api, model.name, model.speaks) if model else snippets(api, MODEL_PLACEHOLDER)
    context: dict[str, Any] = {
        "models": models,
        "model": model,
        "base_url": api,
        "snippets": [(snippet, snippet.install) for snippet in made],
    }
    if request.method == "POST":
        context |= _made(request, place)
    keys = _usable_keys(place)
    key = context.get("fresh") or next((row for row in keys if str(row.pk) == request.GET.get("key")), None)
    context |= {"keys": keys, "key": key or (keys[0] if keys else None)}
    status = 400 if "error" in context else 200
    return tenant_page(request, place, "tenant/quickstart.html", context, current="tenant-quickstart", status=status)


def _made(request: UserRequest, place: Place) -> dict[str, Any]:
    if not place.may(Action.KEY_CREATE):
        raise PermissionDenied(f"Your role in {place.tenant} is {place.role}: ask an owner, admin or developer.")
    name = request.POST.get("name", "").strip() or "quick-start"
    try:
        key, text = api_key_create(tenant=place.tenant, name=name, actor=request.user)
    except ValidationError as error:
        return {"error": " ".join(error.messages)}
    return {"fresh": key, "text": text}


def _usable_keys(place: Place) -> list[ApiKey]:
    now = timezone.now()
    rows = ApiKey.objects.filter(tenant=place.tenant, revoked_at=None).order_by("name")
    return [row for row in rows[:_KEYS_SHOWN] if row.expires_at is None or row.expires_at > now]
