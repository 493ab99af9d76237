"""Decisions and incidents: why the platform did what it did. Plain UUIDs: they outlive their objects."""

from django.db import models
from django.utils import timezone

from tenants.models import WrittenOnce, uuid7


class ScalingDecision(WrittenOnce):
    """One decision of the scale loop that changed something, or one unchanged sample a minute."""

    id = models.UUIDField(primary_key=True, default=uuid7, editable=False)
    at = models.DateTimeField(default=timezone.now, db_index=True)
    deployment_id = models.UUIDField()
    deployment_name = models.CharField(max_length=200)
    before = models.PositiveIntegerField(help_text="Replicas wanted before.")
    after = models.PositiveIntegerField(help_text="Replicas wanted after.")
    reason = models.CharField(max_length=300)
    inputs = models.JSONField(default=dict, help_text="Observation, configuration and intermediate results.")

    class Meta:
        ordering = ("-at",)
        indexes = (models.Index(fields=("deployment_id", "-at"), name="serving_decision_deployment"),)

    def __str__(self) -> str:
        return f"{self.deployment_name}: {self.before} → {self.after}, {self.reason}"


class Incident(models.Model):
    """Something broke: what was seen, what was done, and how long it took."""

    class Kind(models.TextChoices):
        HANG = "hang", "Replica hung"
        CRASH = "crash", "Replica crashed"
        START_FAILED = "start_failed", "Replica did not start"
        HOST_LOST = "host_lost", "Host lost"
        COST_DRIFT = "cost_drift", "Cost drifted"
        PROMISE_SHORT = "promise_short", "Promise is short"

    id = models.UUIDField(primary_key=True, default=uuid7, editable=False)
    kind = models.CharField(max_length=16, choices=Kind.choices)
    deployment_id = models.UUIDField(null=True, db_index=True)
    deployment_name = models.CharField(max_length=200, blank=True)
    replica_id = models.UUIDField(null=True, db_index=True)
    host_id = models.UUIDField(null=True)
    opened_at = models.DateTimeField(default=timezone.now, db_index=True)
    closed_at = models.DateTimeField(null=True, blank=True)
    summary = models.CharField(max_length=300)
    evidence = models.JSONField(default=dict, help_text="Log tail, metrics, in-flight requests, process states.")
    timeline = models.JSONField(default=list, help_text="Entries {at, what}.")

    class Meta:
        ordering = ("-opened_at",)
        constraints = (
            models.CheckConstraint(
                condition=models.Q(
                    kind__in=("hang", "crash", "start_failed", "host_lost", "cost_drift", "promise_short")
                ),
                name="serving_incident_known_kind",
                violation_error_message="Unknown kind of incident.",
            ),
            models.CheckConstraint(
                condition=models.Q(closed_at__isnull=True) | models.Q(closed_at__gte=models.F("opened_at")),
                name="serving_incident_closes_after_opening",
                violation_error_message="An incident cannot be closed before it was opened.",
            ),
            models.UniqueConstraint(
                fields=("kind", "deployment_id"),
                condition=models.Q(closed_at__isnull=True, kind="promise_short"),
                name="serving_incident_one_open_short_promise",
                violation_error_message="That the deployment's promise is short is told already.",
            ),
            models.UniqueConstraint(
                fields=("kind", "replica_id"),
                condition=models.Q(closed_at__isnull=True, replica_id__isnull=False),
                name="serving_incident_one_open_per_replica",
                violation_error_message="The replica has an open incident of this kind already.",
            ),
        )

    def __str__(self) -> str:
        return self.summary
