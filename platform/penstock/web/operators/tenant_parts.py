"""What belongs to a tenant: its members, invitations and limits, as operators change them."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from django.core.exceptions import ValidationError
from django.http import HttpResponse
from django.shortcuts import get_object_or_404
from django.urls import reverse
from django.views.decorators.cache import never_cache

from penstock.web.access import UserRequest
from penstock.web.limit_words import held_instead, left_over, whose
from penstock.web.operators.frame import act, ask, done, form_page, refused
from penstock.web.operators.tenant_forms import InviteForm, LimitForm, RoleForm
from penstock.web.operators.tenants import CURRENT, find, invitation_link, path_of, shown
from tenants.models import Invitation, Limit, Membership, Tenant, User
from tenants.services import (
    invitation_create,
    invitation_revoke,
    limit_remove,
    limit_set,
    membership_add,
    membership_change,
    membership_remove,
)


# ---------------------------------------------------------------------------------------------------------- members
def _member(row: Tenant, membership_id: UUID) -> Membership:
    return get_object_or_404(Membership.objects.select_related("user", "tenant"), pk=membership_id, tenant=row)


@act
def role(request: UserRequest, slug: str, membership_id: UUID) -> HttpResponse:
    """Give a member another role."""
    row = find(slug)
    member = _member(row, membership_id)
    before = member.role
    form = RoleForm(request.POST)
    if not form.is_valid():
        return refused(request, "Choose one of the roles that the list offers.", path_of(row))
    try:
        membership_change(membership=member, role=form.cleaned_data["role"], actor=request.user)
    except ValidationError as error:
        return refused(request, error, path_of(row))
    undo = reverse("operators:member-role", args=[slug, member.pk])
    text = f"{member.user.email} is {member.get_role_display().lower()} of {row.name} now."
    return done(request, text, path_of(row), undo=undo, fields={"role": before})


@form_page
def remove(request: UserRequest, slug: str, membership_id: UUID) -> HttpResponse:
    """End a membership."""
    row = find(slug)
    member = _member(row, membership_id)
    if request.method != "POST":
        return ask(
            request,
            title=f"Remove {member.user.email} from {row.name}?",
            effects=(
                f"They no longer see anything of {row.name}; their account and other memberships stay.",
                "API keys that they made go on working: they belong to the tenant. Revoke those that should not.",
                "Undo adds them again in the role they have now.",
            ),
            verb="Remove",
            back=path_of(row),
            of=row.name,
            current=CURRENT,
        )
    try:
        membership_remove(membership=member, actor=request.user)
    except ValidationError as error:
        return refused(request, error, path_of(row))
    undo = reverse("operators:member-restore", args=[slug])
    fields = {"user": member.user_id, "role": member.role}
    return done(request, f"{member.user.email} is no member any more.", path_of(row), undo=undo, fields=fields)


@act
def restore(request: UserRequest, slug: str) -> HttpResponse:
    """Take the removal of a member back."""
    row = find(slug)
    form = RoleForm(request.POST)
    try:
        user = User.objects.filter(pk=UUID(request.POST.get("user", ""))).first()
    except ValueError:
        user = None
    if user is None or not form.is_valid():
        return refused(request, "There is nobody to add again. Invite them by their address.", path_of(row))
    try:
        membership_add(tenant=row, user=user, role=form.cleaned_data["role"], actor=request.user)
    except ValidationError as error:
        return refused(request, error, path_of(row))
    return done(request, f"{user.email} is a member again.", path_of(row))


# ------------------------------------------------------------------------------------------------------ invitations
@never_cache
@act
def invite(request: UserRequest, slug: str) -> HttpResponse:
    """Invite somebody: the one-time link is on the page that answers, and nowhere else."""
    row = find(slug)
    form = InviteForm(request.POST)
    made = form.attempt(
        lambda given: invitation_create(tenant=row, email=given["email"], role=given["role"], actor=request.user)
    )
    if made is None:
        return shown(request, row, status=400, invite_form=form)
    invitation, token = made
    return shown(request, row, link=invitation_link(request, token), link_email=invitation.email)


@act
def uninvite(request: UserRequest, slug: str, invitation_id: UUID) -> HttpResponse:
    """Void the link of an open invitation."""
    row = find(slug)
    invitation = get_object_or_404(Invitation.objects.select_related("tenant"), pk=invitation_id, tenant=row)
    if not invitation_revoke(invitation=invitation, actor=request.user):
        return refused(request, "It was accepted or revoked before.", path_of(row))
    return done(request, f"The link of {invitation.email} no longer works. Invite again to take it back.", path_of(row))


# ----------------------------------------------------------------------------------------------------------- limits
@act
def set_limit(request: UserRequest, slug: str) -> HttpResponse:
    """Set the operator's limit of the tenant, whether or not there is one of its kind."""
    row = find(slug)
    form = LimitForm(request.POST)
    before: list[Limit] = []

    def change(given: dict[str, Any]) -> Limit:
        named = {name: given[name] for name in ("kind", "model", "set_by")}
        before.extend(Limit.objects.filter(tenant=row, api_key=None, member=None, **named))
        return limit_set(tenant=row, actor=request.user, **given)

    made = form.attempt(change)
    if made is None:
        return shown(request, row, status=400, limit_form=form)
    text = f"{row.name}: at most {made.value:,} {made.get_kind_display()}{f' of {made.model}' if made.model else ''}."
    text += held_instead(made)
    if before:
        fields = {"kind": made.kind, "model": made.model, "value": before[0].value, "set_by": made.set_by}
        return done(request, text, path_of(row), undo=reverse("operators:limit-set", args=[slug]), fields=fields)
    return done(request, text, path_of(row), undo=reverse("operators:limit-remove", args=[slug, made.pk]))


@act
def remove_limit(request: UserRequest, slug: str, limit_id: UUID) -> HttpResponse:
    """Remove a limit of the tenant, the operator's or its own. It can be undone, so it is not asked about."""
    row = find(slug)
    of_tenant = Limit.objects.select_related("tenant").filter(tenant=row, api_key=None, member=None)
    limit = get_object_or_404(of_tenant, pk=limit_id)
    fields = {"kind": limit.kind, "model": limit.model, "value": limit.value, "set_by": limit.set_by}
    left = left_over(limit)
    limit_remove(limit=limit, actor=request.user)
    text = f"The {whose(limit)} of {limit.get_kind_display()} of {row.name} is removed.{left}"
    return done(request, text, path_of(row), undo=reverse("operators:limit-set", args=[slug]), fields=fields)
