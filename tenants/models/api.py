"""What the REST API remembers between requests."""

from django.db import models
from django.utils import timezone

from tenants.models.base import uuid7


class IdempotentAnswer(models.Model):
    """The answer to a creation that named an ``Idempotency-Key``, so that a repeated request gets it again.

    ``body`` is encrypted: it may hold a secret that is shown once. Written in the transaction of the creation.
    """

    id = models.UUIDField(primary_key=True, default=uuid7, editable=False)
    created_at = models.DateTimeField(default=timezone.now, editable=False, db_index=True)
    caller = models.CharField(max_length=80, help_text="Who asked: user:<id>, key:<id> or enrolment:<id>.")
    key = models.CharField(max_length=255)
    fingerprint = models.CharField(max_length=64, help_text="Keyed HMAC-SHA256 of method, path and body.")
    status = models.PositiveSmallIntegerField(default=0)
    body = models.BinaryField(default=b"")

    class Meta:
        ordering = ("-created_at",)
        constraints = (
            models.UniqueConstraint(
                fields=("caller", "key"),
                name="tenants_idempotentanswer_unique_key",
                violation_error_code="key",
                violation_error_message="This caller has sent this Idempotency-Key before.",
            ),
            models.CheckConstraint(
                condition=~models.Q(key=""),
                name="tenants_idempotentanswer_has_key",
                violation_error_code="key",
                violation_error_message="An Idempotency-Key cannot be empty.",
            ),
        )

    def __str__(self) -> str:
        return f"{self.key} of {self.caller}"
