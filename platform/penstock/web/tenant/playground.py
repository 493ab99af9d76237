"""The playground's page: a conversation with a model, with each answer's receipt beside it."""

from __future__ import annotations

from django.http import HttpResponse
from django.urls import reverse
from django.utils import timezone
from django.views.decorators.http import require_GET

from penstock.web.access import UserRequest
from penstock.web.csp import HEADER, POLICY
from penstock.web.dashboard_data import held_now, usable_models
from penstock.web.tenant.chat import MAX_FRAME, MAX_IMAGE, MAX_IMAGES, MAX_TEMPERATURE, MAX_TOKENS
from penstock.web.tenant.place import Place, in_tenant, tenant_page
from tenants.policy.roles import Action

POLICY_WITH_IMAGES = POLICY.replace("img-src 'self'", "img-src 'self' data:")
"""Images that the person adds are shown before and after they are sent."""

STARTERS = (
    "Explain what a model unit is in two sentences.",
    "Write a haiku about a busy graphics card.",
    "Give me five test cases for a date parser.",
)


@require_GET
@in_tenant(Action.INFERENCE_USE)
def playground(request: UserRequest, place: Place) -> HttpResponse:
    models = [row for row in usable_models(place.tenant) if row.can_chat]
    asked = request.GET.get("model")
    model = next((row for row in models if row.name == asked), models[0] if models else None)
    held = {row.reservation.pool_id: row for row in held_now(place.tenant, timezone.now())}
    context = {
        "models": models,
        "model": model,
        "held": [(row, held[row.pool.pk]) for row in models if row.pool.pk in held],
        "socket_path": reverse("tenant-playground", args=[place.tenant.slug]) + "socket",
        "starters": STARTERS,
        "limits": {
            "frame": MAX_FRAME,
            "image": MAX_IMAGE,
            "images": MAX_IMAGES,
            "temperature": MAX_TEMPERATURE,
            "tokens": MAX_TOKENS,
        },
    }
    response = tenant_page(request, place, "tenant/playground.html", context, current="tenant-playground")
    response.headers[HEADER] = POLICY_WITH_IMAGES
    return response
