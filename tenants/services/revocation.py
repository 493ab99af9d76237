"""Invitations that end before their time."""

from django.db import transaction
from django.db.models import QuerySet
from django.utils import timezone

from tenants.audit import Actor, audit
from tenants.models import Invitation, Membership, User
from tenants.policy.members import roles_given_by


@transaction.atomic
def invitation_revoke(*, invitation: Invitation, actor: Actor) -> bool:
    """Void the link. Returns False if the invitation was accepted or revoked before."""
    now = timezone.now()
    open_ones = Invitation.objects.filter(pk=invitation.pk, accepted_at=None, revoked_at=None)
    if not open_ones.update(revoked_at=now, updated_at=now):
        return False
    invitation.revoked_at = now
    audit(
        actor=actor,
        action="invitation.revoke",
        target=invitation,
        tenant_id=invitation.tenant_id,
        after={"revoked_at": now},
    )
    return True


def invitations_revoke_beyond(*, membership: Membership, role: str | None, actor: Actor) -> int:
    """Revoke what the member has sent and could not send in ``role`` (None: no member any more). Returns how many.

    Call it in the tenant's turn. An operator may invite in any role.
    """
    if membership.user.is_operator:
        return 0
    sent = _open_from(membership.user).filter(tenant_id=membership.tenant_id)
    beyond = sent.exclude(role__in=roles_given_by(role))
    return sum(invitation_revoke(invitation=invitation, actor=actor) for invitation in beyond)


def invitations_revoke_sent(*, user: User, actor: Actor) -> int:
    """Revoke what the user has sent, into whatever tenant, an operator's too. Returns how many."""
    return sum(invitation_revoke(invitation=invitation, actor=actor) for invitation in _open_from(user))


def _open_from(user: User) -> QuerySet[Invitation]:
    """In an order of its own, so that two who revoke them do not wait for each other."""
    sent = Invitation.objects.filter(invited_by=user, accepted_at=None, revoked_at=None, expires_at__gt=timezone.now())
    return sent.select_related("tenant").order_by("pk")
