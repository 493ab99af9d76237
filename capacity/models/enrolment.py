"""How machines come in: tokens that let a host enrol itself."""

from django.db import models
from django.utils import timezone

from capacity.models.hardware import HardwareType, require_labels
from tenants.models import Identified, User


class EnrolmentToken(Identified):
    """Lets so many hosts enrol themselves until it expires. Its text ``pse_<public id>_<secret>`` is shown once.

    ``pepper`` is the number of the pepper of its digest. What the token says of the hosts goes before what they say.
    """

    name = models.CharField(max_length=120)
    created_by = models.ForeignKey(User, null=True, blank=True, on_delete=models.SET_NULL, related_name="+")
    public_id = models.CharField(max_length=24, unique=True, editable=False)
    digest = models.CharField(max_length=64, editable=False)
    pepper = models.PositiveSmallIntegerField(editable=False)
    hardware_type = models.ForeignKey(
        HardwareType,
        null=True,
        blank=True,
        on_delete=models.PROTECT,
        related_name="+",
        help_text="Of the hosts; empty: the one that each of them reports.",
    )
    labels = models.JSONField(default=dict, blank=True, help_text="Of the hosts.")
    uses_left = models.IntegerField(default=1, help_text="So many hosts can still enrol with it.")
    expires_at = models.DateTimeField()
    revoked_at = models.DateTimeField(null=True, blank=True, editable=False)

    class Meta:
        ordering = ("-created_at",)
        constraints = (
            models.CheckConstraint(
                condition=~models.Q(name=""),
                name="capacity_enrolmenttoken_has_name",
                violation_error_code="name",
                violation_error_message="A token needs a name: say which hosts it is for.",
            ),
            models.CheckConstraint(
                condition=models.Q(uses_left__gte=0),
                name="capacity_enrolmenttoken_uses_not_negative",
                violation_error_code="uses_left",
                violation_error_message="A token cannot be used less than no times.",
            ),
            models.CheckConstraint(
                condition=models.Q(expires_at__gt=models.F("created_at")),
                name="capacity_enrolmenttoken_expires_after_creation",
                violation_error_code="expires_at",
                violation_error_message="A token must expire after it was made.",
            ),
            models.CheckConstraint(
                condition=models.Q(revoked_at__isnull=True) | models.Q(revoked_at__gte=models.F("created_at")),
                name="capacity_enrolmenttoken_revoked_after_creation",
                violation_error_code="revoked_at",
                violation_error_message="A token cannot be revoked before it was made.",
            ),
        )

    def __str__(self) -> str:
        return f"{self.name} (pse_{self.public_id}_…)"

    def clean(self) -> None:
        require_labels(self.labels)

    @property
    def is_usable(self) -> bool:
        return self.uses_left > 0 and self.is_living

    @property
    def is_living(self) -> bool:
        """Neither revoked nor expired."""
        return self.revoked_at is None and self.expires_at > timezone.now()
