"""Who belongs to a tenant, in which role, and who is invited. A link of an invitation is shown once."""

from __future__ import annotations

import datetime
from typing import Any
from uuid import UUID

from django import forms
from django.contrib import messages
from django.core.exceptions import PermissionDenied, ValidationError
from django.core.paginator import Paginator
from django.db import transaction
from django.db.models import Q
from django.http import Http404, HttpResponse
from django.shortcuts import redirect
from django.urls import reverse
from django.utils import timezone
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_http_methods, require_POST

from penstock.web.access import UserRequest
from penstock.web.tenant.forms import PageForm
from penstock.web.tenant.place import Place, in_tenant, tenant_page
from tenants.models import Invitation, Membership, User
from tenants.permissions import role_in
from tenants.policy.members import role_refusal
from tenants.policy.roles import Action
from tenants.services import invitation_create, invitation_revoke, membership_change, membership_remove

PER_PAGE = 50
ROLES = (
    (Membership.Role.OWNER, "everything, also other owners"),
    (Membership.Role.ADMIN, "all keys, limits, members and the audit log"),
    (Membership.Role.DEVELOPER, "own keys and the playground"),
    (Membership.Role.VIEWER, "looks only"),
)
"""What each role may do, in short."""
DAYS = (("1", "1 day"), ("7", "7 days"), ("30", "30 days"))


class InviteForm(PageForm):
    email = forms.EmailField(label="E-mail address", widget=forms.EmailInput(attrs={"autocomplete": "off"}))
    role = forms.ChoiceField(initial=Membership.Role.DEVELOPER)
    days = forms.ChoiceField(label="Open for", choices=DAYS, initial="7")

    def __init__(self, *args: Any, place: Place, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.fields["role"].choices = [  # type: ignore[attr-defined]
            (role, role.label) for role, _ in ROLES if not role_refusal(place.may, role)
        ]


@never_cache
@require_http_methods(["GET", "HEAD", "POST"])
@in_tenant(Action.MEMBER_VIEW)
def members(request: UserRequest, place: Place) -> HttpResponse:
    """Members and open invitations. A POST invites; its link is in that answer and nowhere else."""
    made: dict[str, Any] = {}
    form = InviteForm(request.POST if request.method == "POST" else None, place=place)
    if request.method == "POST":
        if refusal := role_refusal(place.may):
            raise PermissionDenied(refusal)
        if form.is_valid():
            made = _invited(request, place, form)
            form = form if form.errors else InviteForm(None, place=place)
    query = request.GET.get("q", "").strip().replace("\0", "")
    rows = Membership.objects.filter(tenant=place.tenant).select_related("user").order_by("user__email")
    count = rows.count()
    if query:
        rows = rows.filter(Q(user__name__icontains=query) | Q(user__email__icontains=query))
    invitations = Invitation.objects.filter(tenant=place.tenant, accepted_at=None, revoked_at=None)
    page = Paginator(rows, PER_PAGE).get_page(request.GET.get("page"))
    context = {
        "page": page,
        "rows": [(row, _choices(place, row)) for row in page.object_list],
        "count": count,
        "query": query,
        "invitations": [
            (row, row.expires_at <= timezone.now(), not role_refusal(place.may, row.role))
            for row in invitations.select_related("invited_by").order_by("email")
        ],
        "form": form,
        "roles": ROLES,
        **made,
    }
    status = 400 if form.errors else 200
    return tenant_page(request, place, "tenant/members.html", context, current="tenant-members", status=status)


@require_POST
@in_tenant(Action.MEMBER_MANAGE)
def member_role(request: UserRequest, place: Place, member_id: UUID) -> HttpResponse:
    """Give a member another role."""
    role = request.POST.get("role", "")
    if role not in Membership.Role.values:
        messages.error(request, "Choose one of the roles.")
        return redirect("tenant-members", place.tenant.slug)
    with transaction.atomic():
        place, stored = _in_turn(place), _member(place, member_id)
        if refusal := role_refusal(place.may, stored.role, role):
            raise PermissionDenied(refusal)
        try:
            with transaction.atomic():
                membership_change(membership=stored, role=role, actor=request.user)
        except ValidationError as error:
            messages.error(request, " ".join(error.messages))
        else:
            messages.success(request, f"{stored.user.email} is {role} now.")
    return redirect("tenant-members", place.tenant.slug)


@require_POST
@in_tenant(Action.MEMBER_VIEW)
def member_remove(request: UserRequest, place: Place, member_id: UUID) -> HttpResponse:
    """End a membership. Everybody may end their own."""
    with transaction.atomic():
        place, stored = _in_turn(place), _member(place, member_id)
        is_own = stored.user_id == request.user.pk
        if not is_own and (refusal := role_refusal(place.may, stored.role)):
            raise PermissionDenied(refusal)
        try:
            with transaction.atomic():
                membership_remove(membership=stored, actor=request.user)
        except ValidationError as error:
            messages.error(request, " ".join(error.messages))
            return redirect("tenant-members", place.tenant.slug)
    if is_own:
        messages.success(request, f"You have left {place.tenant}.")
        return redirect("home")
    messages.success(request, f"{stored.user.email} is no member any more; keys they made still work.")
    return redirect("tenant-members", place.tenant.slug)


@require_POST
@in_tenant(Action.MEMBER_MANAGE)
def invitation_end(request: UserRequest, place: Place, invitation_id: UUID) -> HttpResponse:
    """Make the link of an open invitation stop working."""
    with transaction.atomic():
        place = _in_turn(place)
        found = Invitation.objects.select_related("tenant").filter(tenant=place.tenant, pk=invitation_id).first()
        if found is None:
            raise Http404("The tenant has no such invitation.")
        if refusal := role_refusal(place.may, found.role):
            raise PermissionDenied(refusal)
        is_revoked = invitation_revoke(invitation=found, actor=request.user)
    if is_revoked:
        messages.success(request, f"The invitation of {found.email} is revoked: its link works no more.")
    else:
        messages.info(request, f"The invitation of {found.email} was accepted or revoked before.")
    return redirect("tenant-members", place.tenant.slug)


def _invited(request: UserRequest, place: Place, form: InviteForm) -> dict[str, Any]:
    given = form.cleaned_data
    with transaction.atomic():
        if refusal := role_refusal(_in_turn(place).may, given["role"]):
            raise PermissionDenied(refusal)
        try:
            invitation, token = invitation_create(
                tenant=place.tenant,
                email=given["email"],
                role=given["role"],
                actor=request.user,
                valid_for=datetime.timedelta(days=int(given["days"])),
            )
        except ValidationError as error:
            form.refused(error)
            return {}
    return {"fresh": invitation, "link": request.build_absolute_uri(reverse("invitation", args=[token]))}


def _choices(place: Place, member: Membership) -> list[tuple[str, str]]:
    """The roles that the person may give the member; empty where they may not change it."""
    if role_refusal(place.may, member.role):
        return []
    return [(role, label) for role, label in Membership.Role.choices if not role_refusal(place.may, member.role, role)]


def _in_turn(place: Place) -> Place:
    """With the role that holds until the transaction ends: whoever loses theirs acts before that, or not at all."""
    place.tenant.take_turn()
    user = User.objects.get(pk=place.user.pk)
    return Place(place.tenant, user, role_in(user, place.tenant) or "")


def _member(place: Place, member_id: UUID) -> Membership:
    """As it is stored: what may be done depends on the role it has now."""
    stored = Membership.objects.select_related("tenant", "user").filter(tenant=place.tenant, pk=member_id).first()
    if stored is None:
        raise Http404("The membership has ended.")
    return stored
