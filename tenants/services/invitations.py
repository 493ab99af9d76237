"""Invitations into a tenant. The token of a link leaves here once, when the invitation is made."""

import datetime
import secrets

from django.core.exceptions import ValidationError
from django.db import IntegrityError, transaction
from django.db.models import Q
from django.utils import timezone

from tenants.audit import Actor, audit, state_of
from tenants.models import Invitation, Membership, Tenant, User
from tenants.services.links import link_digest
from tenants.services.people import membership_add, user_create
from tenants.services.revocation import invitation_revoke


class InvitationError(Exception):
    """The invitation is unknown, used, revoked, expired, or its user may not sign in. The message is for people."""


class InvitationForAccountError(InvitationError):
    """The address has an account, and it is not this account that accepts. The message is for people."""


@transaction.atomic
def invitation_create(
    *,
    tenant: Tenant,
    email: str,
    actor: Actor,
    role: str = Membership.Role.DEVELOPER,
    valid_for: datetime.timedelta = datetime.timedelta(days=7),
) -> tuple[Invitation, str]:
    """A new invitation and the token of its link, which is not kept: show it once.

    An expired invitation of the same address makes way. Raises ValidationError by field, also for an ``actor`` who may
    not sign in any more.
    """
    tenant.take_turn()
    if isinstance(actor, User):
        _take_turn_as_sender(actor)
    address = email.strip().lower()
    token = secrets.token_urlsafe(32)
    now = timezone.now()
    if Membership.objects.filter(tenant=tenant, user__email__iexact=address).exists():
        raise ValidationError({"email": "This person is a member already: change their role instead."})
    # The constraint knows no clock: to it, what has expired is open.
    expired = Invitation.objects.filter(
        tenant=tenant, email__iexact=address, accepted_at=None, revoked_at=None, expires_at__lte=now
    )
    for old in expired.select_related("tenant"):
        invitation_revoke(invitation=old, actor=actor)
    invitation = Invitation(
        tenant=tenant,
        email=address,
        role=role,
        digest=link_digest(token),
        invited_by=actor if isinstance(actor, User) else None,
        created_at=now,
        expires_at=now + valid_for,
    )
    invitation.full_clean()
    invitation.save(force_insert=True)
    audit(actor=actor, action="invitation.create", target=invitation, tenant_id=tenant.pk, after=state_of(invitation))
    return invitation, token


def invitation_find(token: str) -> Invitation:
    """The open invitation that the token stands for, of a sender who may sign in still. Raises InvitationError."""
    found = Invitation.objects.select_related("tenant", "invited_by").filter(digest=link_digest(token)).first()
    if found is None:
        raise InvitationError("There is no such invitation: the link is incomplete. Copy the whole of it.")
    if found.state != Invitation.State.OPEN:
        raise InvitationError(_ENDED[found.state])
    # Whoever keeps a sender out revokes what they sent; this holds by whatever means it was done.
    if found.invited_by is not None and not found.invited_by.is_active:
        raise InvitationError(_ENDED[Invitation.State.REVOKED])
    return found


def invitation_account(invitation: Invitation) -> User | None:
    """The account of the invited address, if there is one."""
    return User.objects.filter(email__iexact=invitation.email).first()


@transaction.atomic
def invitation_accept(token: str, *, visitor: User | None = None) -> User:
    """Make the invited person a member, once: of many who try at the same time, one succeeds. Returns the person.

    Without an account one is made. With an account only its own signed-in person, ``visitor``, can accept: the
    inviter has seen the link, and it must not let them in as somebody else. Raises InvitationError.
    """
    now = timezone.now()
    # No join: with one the database would find the row first, and not look again once its turn came to change it.
    by_somebody_kept_out = Q(invited_by__in=User.objects.filter(is_active=False))
    swapped = Invitation.objects.filter(
        ~by_somebody_kept_out, digest=link_digest(token), accepted_at=None, revoked_at=None, expires_at__gt=now
    ).update(accepted_at=now, updated_at=now)
    if not swapped:
        invitation_find(token)
        raise InvitationError(_ENDED[Invitation.State.EXPIRED])
    invitation = Invitation.objects.select_related("tenant").get(digest=link_digest(token))
    user = invitation_account(invitation)
    if user is None:
        user = _new_account(invitation)
    elif user != visitor:
        raise InvitationForAccountError(_sign_in_first(invitation))
    if not user.is_active:
        raise InvitationError("This account may not sign in any more. Ask an operator of the platform.")
    # Whoever was added meanwhile by other means keeps the role they were given then.
    if not Membership.objects.filter(tenant=invitation.tenant, user=user).exists():
        membership_add(tenant=invitation.tenant, user=user, role=invitation.role, actor=user)
    audit(
        actor=user,
        action="invitation.accept",
        target=invitation,
        tenant_id=invitation.tenant_id,
        after={"accepted_at": now, "user": user.pk},
    )
    return user


def _take_turn_as_sender(sender: User) -> None:
    """Of this and a deactivation at the same moment the second sees what the first did: nothing is left open."""
    # A write of what is there: it waits for whoever changes the row, and changes nothing itself.
    if not User.objects.filter(pk=sender.pk, is_active=True).update(is_active=True):
        raise ValidationError("This account may not sign in any more, so it invites nobody.")


_ENDED = {
    Invitation.State.ACCEPTED: "This invitation has been accepted. If that was you, sign in.",
    Invitation.State.REVOKED: "This invitation was revoked. Ask whoever sent it for a new one.",
    Invitation.State.EXPIRED: "This invitation has expired. Ask whoever sent it for a new one.",
}


def _new_account(invitation: Invitation) -> User:
    try:
        return user_create(email=invitation.email, actor=str(invitation))
    except (IntegrityError, ValidationError):
        # Somebody made the account since it was looked for.
        raise InvitationForAccountError(_sign_in_first(invitation)) from None


def _sign_in_first(invitation: Invitation) -> str:
    return f"There is an account for {invitation.email}. Sign in with it, then accept."
