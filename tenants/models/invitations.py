"""Invitations into a tenant."""

from django.db import models
from django.db.models.functions import Lower
from django.utils import timezone

from tenants.models.base import Identified
from tenants.models.people import Membership, Tenant, User


class Invitation(Identified):
    """An offer to join a tenant in a role, by a one-time link; only the SHA-256 digest of its token is kept.

    It is open until it is accepted, revoked or expired.
    """

    class State(models.TextChoices):
        OPEN = "open", "Open"
        ACCEPTED = "accepted", "Accepted"
        REVOKED = "revoked", "Revoked"
        EXPIRED = "expired", "Expired"

    tenant = models.ForeignKey(Tenant, on_delete=models.CASCADE, related_name="invitations")
    email = models.EmailField("e-mail address")
    role = models.CharField(max_length=12, choices=Membership.Role.choices, default=Membership.Role.DEVELOPER)
    digest = models.CharField(max_length=64, unique=True, editable=False)
    invited_by = models.ForeignKey(User, null=True, blank=True, on_delete=models.SET_NULL, related_name="+")
    expires_at = models.DateTimeField()
    accepted_at = models.DateTimeField(null=True, blank=True)
    revoked_at = models.DateTimeField(null=True, blank=True)

    class Meta:
        ordering = ("-created_at",)
        constraints = (
            models.UniqueConstraint(
                "tenant",
                Lower("email"),
                condition=models.Q(accepted_at=None, revoked_at=None),
                name="tenants_invitation_one_open",
                violation_error_code="email",
                violation_error_message="This address has an open invitation: use it, or revoke it and invite again.",
            ),
            models.CheckConstraint(
                condition=models.Q(role__in=("owner", "admin", "developer", "viewer")),
                name="tenants_invitation_known_role",
                violation_error_code="role",
                violation_error_message="The role must be owner, admin, developer or viewer.",
            ),
            models.CheckConstraint(
                condition=models.Q(expires_at__gt=models.F("created_at")),
                name="tenants_invitation_expires_after_creation",
                violation_error_code="expires_at",
                violation_error_message="An invitation must expire after it was made.",
            ),
            models.CheckConstraint(
                condition=models.Q(accepted_at=None) | models.Q(revoked_at=None),
                name="tenants_invitation_ends_once",
                violation_error_message="An invitation is either accepted or revoked: invite again instead.",
            ),
        )

    def __str__(self) -> str:
        return f"invitation of {self.email} to {self.tenant} ({self.role})"

    @property
    def state(self) -> "Invitation.State":
        if self.accepted_at is not None:
            return self.State.ACCEPTED
        if self.revoked_at is not None:
            return self.State.REVOKED
        return self.State.OPEN if self.expires_at > timezone.now() else self.State.EXPIRED
