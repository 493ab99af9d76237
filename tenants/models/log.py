"""What happened and what must be told: audit entries, the change log of the snapshot, and loop leases."""

import uuid

from django.db import models
from django.utils import timezone

from tenants.models.base import WrittenOnce, uuid7


class AuditEntry(WrittenOnce):
    """Who did what to which object. Written by services in the transaction of the act; never changed.

    Holds plain identifiers, not foreign keys: it outlives what it speaks of. ``tenant_id`` is null for platform acts.
    """

    id = models.UUIDField(primary_key=True, default=uuid7, editable=False)
    at = models.DateTimeField(default=timezone.now, editable=False, db_index=True)
    actor_id = models.UUIDField(null=True, editable=False)
    actor = models.CharField(max_length=200, editable=False, help_text="E-mail address, or the name of the machinery.")
    tenant_id = models.UUIDField(null=True, editable=False, db_index=True)
    action = models.CharField(max_length=60, editable=False, help_text="noun.verb, e.g. api_key.revoke")
    object_type = models.CharField(max_length=60, editable=False)
    object_id = models.CharField(max_length=64, editable=False, db_index=True)
    object_name = models.CharField(max_length=200, editable=False)
    before = models.JSONField(default=dict, editable=False)
    after = models.JSONField(default=dict, editable=False)
    request_id = models.CharField(max_length=64, blank=True, editable=False)

    class Meta:
        ordering = ("-at",)
        verbose_name_plural = "audit entries"

    def __str__(self) -> str:
        return f"{self.actor}: {self.action} {self.object_name}"


class Change(models.Model):
    """One object whose snapshot record must be published anew. Written in the transaction that changed it.

    ``version`` is given at publishing, in order: row ids cannot serve, since transactions commit out of order.
    """

    id = models.BigAutoField(primary_key=True)
    kind = models.CharField(max_length=20, help_text="Kind of snapshot record, e.g. tenant or key.")
    object_id = models.UUIDField()
    at = models.DateTimeField(default=timezone.now)
    version = models.BigIntegerField(null=True, blank=True, db_index=True)

    class Meta:
        ordering = ("id",)
        indexes = (models.Index(fields=("id",), condition=models.Q(version=None), name="tenants_change_unpublished"),)
        constraints = (
            models.CheckConstraint(
                condition=models.Q(kind__in=("tenant", "key", "pool", "deployment", "replica", "reservation")),
                name="tenants_change_known_kind",
                violation_error_message="The kind must be tenant, key, pool, deployment, replica or reservation.",
            ),
        )

    def __str__(self) -> str:
        return f"{self.kind} {self.object_id}"


class Lease(models.Model):
    """Single flight for a loop: whoever swaps ``until`` forward holds it (compare-and-swap, no locks)."""

    name = models.CharField(primary_key=True, max_length=60)
    holder = models.UUIDField(default=uuid.uuid4)
    until = models.DateTimeField()

    def __str__(self) -> str:
        return f"{self.name} until {self.until:%H:%M:%S}"
