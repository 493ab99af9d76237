"""A tenant's API keys: the list, a new one, one key, and what can be done with it. A secret is shown once."""

from __future__ import annotations

import datetime
from typing import Any
from uuid import UUID

from django.contrib import messages
from django.core.exceptions import PermissionDenied, ValidationError
from django.core.paginator import Paginator
from django.db.models import Q, QuerySet
from django.http import Http404, HttpResponse
from django.shortcuts import redirect
from django.utils import timezone
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_GET, require_http_methods, require_POST

from penstock.web.access import UserRequest
from penstock.web.limit_words import budgets_told
from penstock.web.tenant.key_forms import EditKeyForm, NewKeyForm, RotateForm
from penstock.web.tenant.limit_forms import LimitForm, limit_ended, limit_saved
from penstock.web.tenant.place import Place, in_tenant, tenant_page
from tenants.models import ApiKey, Limit
from tenants.policy.members import key_refusal
from tenants.policy.roles import Action
from tenants.selectors import limits_held
from tenants.services import api_key_create, api_key_revoke, api_key_rotate, api_key_update

PER_PAGE = 25
STATES = (("usable", "Usable"), ("ended", "Ended"), ("all", "All"))
ORDERS = {
    "name": ("name",),
    "-name": ("-name",),
    "created": ("created_at",),
    "-created": ("-created_at",),
    "used": ("last_used_at",),
    "-used": ("-last_used_at",),
}


@require_GET
@in_tenant(Action.KEY_VIEW)
def keys(request: UserRequest, place: Place) -> HttpResponse:
    """The list, with search, state, order and pages in the URL."""
    query = request.GET.get("q", "").strip().replace("\0", "")
    state = request.GET.get("state") if request.GET.get("state") in dict(STATES) else "usable"
    order = request.GET.get("order") if request.GET.get("order") in ORDERS else "name"
    own = ApiKey.objects.filter(tenant=place.tenant)
    rows = own.filter(Q(name__icontains=query) | Q(public_id__startswith=query)) if query else own
    rows = _in_state(rows, state or "usable").select_related("created_by").order_by(*ORDERS[order or "name"], "pk")
    counts = {name: _in_state(own, name).count() for name, _ in STATES}
    context = {
        "page": Paginator(rows, PER_PAGE).get_page(request.GET.get("page")),
        "query": query,
        "state": state,
        "states": [(name, label, counts[name]) for name, label in STATES],
        "order": order,
        "counts": counts,
        "soon": timezone.now() + datetime.timedelta(days=7),
    }
    return tenant_page(request, place, "tenant/keys.html", context, current="tenant-keys")


@never_cache
@require_http_methods(["GET", "HEAD", "POST"])
@in_tenant(Action.KEY_CREATE)
def key_new(request: UserRequest, place: Place) -> HttpResponse:
    """The form; what answers it shows the key's text, and no other page does."""
    form = NewKeyForm(request.POST if request.method == "POST" else None, place=place)
    if form.is_valid():
        try:
            key, text = api_key_create(tenant=place.tenant, actor=request.user, **form.given())
        except ValidationError as error:
            form.refused(error)
        else:
            return _shown_once(request, place, key, text)
    context = {"form": form}
    status = 400 if form.errors else 200
    return tenant_page(request, place, "tenant/key_new.html", context, current="tenant-keys", status=status)


@require_GET
@in_tenant(Action.KEY_VIEW)
def key(request: UserRequest, place: Place, key_id: UUID) -> HttpResponse:
    return _key_page(request, place, _key_or_404(place, key_id))


@require_POST
@in_tenant(Action.KEY_CREATE)
def key_edit(request: UserRequest, place: Place, key_id: UUID) -> HttpResponse:
    found = _managed(place, key_id)
    form = EditKeyForm(request.POST, place=place, key=found)
    if form.is_valid():
        try:
            api_key_update(key=found, actor=request.user, **form.given())
        except ValidationError as error:
            form.refused(error)
        else:
            messages.success(request, f"{found.name} is changed. Gateways know within two seconds.")
            return redirect("tenant-key", place.tenant.slug, found.pk)
    return _key_page(request, place, found, form=form)


@never_cache
@require_POST
@in_tenant(Action.KEY_CREATE)
def key_rotate(request: UserRequest, place: Place, key_id: UUID) -> HttpResponse:
    """A new key in the place of this one, which works on for the overlap."""
    found = _managed(place, key_id)
    form = RotateForm(request.POST)
    if not form.is_valid():
        messages.error(request, "Choose one of the overlaps that the form offers.")
        return redirect("tenant-key", place.tenant.slug, found.pk)
    _require_scopes(place, found)
    try:
        new, text = api_key_rotate(key=found, actor=request.user, overlap=form.overlap)
    except ValidationError as error:
        messages.error(request, " ".join(error.messages))
        return redirect("tenant-key", place.tenant.slug, found.pk)
    return _shown_once(request, place, new, text, replaced=found)


@require_POST
@in_tenant(Action.KEY_CREATE)
def key_revoke(request: UserRequest, place: Place, key_id: UUID) -> HttpResponse:
    found = _managed(place, key_id)
    if api_key_revoke(key=found, actor=request.user):
        messages.success(request, f"{found.name} is revoked: gateways refuse it within two seconds.")
    else:
        messages.info(request, f"{found.name} had been revoked before.")
    return redirect("tenant-keys", place.tenant.slug)


@require_POST
@in_tenant(Action.LIMIT_MANAGE)
def key_limit_set(request: UserRequest, place: Place, key_id: UUID) -> HttpResponse:
    """Set one of the key's own limits, whether or not there is one of its kind."""
    found = _key_or_404(place, key_id)
    form = LimitForm(request.POST, place=place)
    if limit_saved(request, place, form, api_key=found):
        return redirect("tenant-key", place.tenant.slug, found.pk)
    return _key_page(request, place, found, limit_form=form)


@require_POST
@in_tenant(Action.LIMIT_MANAGE)
def key_limit_remove(request: UserRequest, place: Place, key_id: UUID, limit_id: UUID) -> HttpResponse:
    found = _key_or_404(place, key_id)
    limit = Limit.objects.select_related("tenant").filter(tenant=place.tenant, api_key=found, pk=limit_id).first()
    if limit is None:
        raise Http404("The key has no such limit.")
    limit_ended(request, limit, of=f" from {found.name}")
    return redirect("tenant-key", place.tenant.slug, found.pk)


def _in_state(rows: QuerySet[ApiKey], state: str) -> QuerySet[ApiKey]:
    usable = Q(revoked_at=None) & (Q(expires_at=None) | Q(expires_at__gt=timezone.now()))
    return rows if state == "all" else rows.filter(usable if state == "usable" else ~usable)


def _key_or_404(place: Place, key_id: UUID) -> ApiKey:
    found = ApiKey.objects.select_related("tenant", "created_by").filter(tenant=place.tenant, pk=key_id).first()
    if found is None:
        raise Http404("The tenant has no such key.")
    return found


def _refusal(place: Place, key: ApiKey) -> str | None:
    """Why the person may not change the key; None where they may."""
    is_own = key.created_by_id == place.user.pk and place.may(Action.KEY_CREATE)
    return key_refusal(place.may, is_own=is_own)


def _managed(place: Place, key_id: UUID) -> ApiKey:
    found = _key_or_404(place, key_id)
    if refusal := _refusal(place, found):
        raise PermissionDenied(refusal)
    return found


def _require_scopes(place: Place, key: ApiKey) -> None:
    """Whoever rotates sees the new key's text: they must be allowed all that it may do."""
    form = EditKeyForm(None, place=place, key=key)
    if form.beyond:
        raise PermissionDenied(
            f"This key has the scope {', '.join(form.beyond)}, which your role does not cover. Ask an owner or admin."
        )


def _key_page(
    request: UserRequest,
    place: Place,
    key: ApiKey,
    *,
    form: EditKeyForm | None = None,
    limit_form: LimitForm | None = None,
) -> HttpResponse:
    is_faulty = bool((form and form.errors) or (limit_form and limit_form.errors))
    context: dict[str, Any] = {
        "key": key,
        "is_managed": _refusal(place, key) is None,
        "can_rotate": key.is_usable and key.rotated_at is None,
        "form": form or EditKeyForm(None, place=place, key=key),
        "limits": budgets_told(limits_held(Limit.objects.filter(api_key=key).order_by("kind", "model", "set_by"))),
        "limit_form": limit_form or LimitForm(None, place=place),
        "rotate_form": RotateForm(None),
    }
    status = 400 if is_faulty else 200
    return tenant_page(request, place, "tenant/key.html", context, current="tenant-keys", status=status)


def _shown_once(
    request: UserRequest, place: Place, key: ApiKey, text: str, *, replaced: ApiKey | None = None
) -> HttpResponse:
    context = {"key": key, "text": text, "replaced": replaced}
    return tenant_page(request, place, "tenant/key_made.html", context, current="tenant-keys")
