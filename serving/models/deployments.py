"""Deployments, their immutable revisions, and the replicas that serve them."""

from django.core.exceptions import ValidationError
from django.db import models
from django.db.models import Q

from capacity.models import Host, Pool
from serving.options import engine_errors, placement_errors
from tenants.models import Identified, Removable, WrittenOnce


class Deployment(Removable, Identified):
    """A pool being served under a name that clients send as ``model``.

    ``name`` stays: engines are launched under it, keys and limits refer to it. ``desired_replicas`` is written by the
    scale loop between ``min_replicas`` and ``max_replicas``; ``pinned_replicas`` overrules it and both bounds.
    """

    pool = models.ForeignKey(Pool, on_delete=models.PROTECT, related_name="deployments")
    name = models.CharField(max_length=200)
    is_enabled = models.BooleanField(default=True, help_text="A disabled deployment runs no replica.")
    min_replicas = models.PositiveIntegerField(default=1)
    max_replicas = models.PositiveIntegerField(default=1)
    desired_replicas = models.PositiveIntegerField(default=1)
    pinned_replicas = models.PositiveIntegerField(null=True, blank=True, help_text="Set: no autoscaling.")
    cold_start_s = models.FloatField("cold start (s)", default=60.0, help_text="Launch to ready, measured (EWMA).")
    retry_attempt = models.PositiveIntegerField(default=0, help_text="Raised by retry: failed replicas start again.")

    class Meta:
        ordering = ("name",)
        constraints = (
            models.UniqueConstraint(
                fields=("name",),
                condition=Q(removed_at=None),
                name="serving_deployment_unique_name",
                violation_error_code="name",
                violation_error_message="A deployment of this name already exists.",
            ),
            models.CheckConstraint(
                condition=Q(max_replicas__gte=models.F("min_replicas")),
                name="serving_deployment_max_at_least_min",
                violation_error_code="max_replicas",
                violation_error_message="The maximum of replicas must be at least the minimum.",
            ),
            models.CheckConstraint(
                condition=~Q(name=""),
                name="serving_deployment_has_name",
                violation_error_code="name",
                violation_error_message="A deployment needs the name that clients send as model.",
            ),
            models.CheckConstraint(
                condition=Q(cold_start_s__gt=0.0),
                name="serving_deployment_positive_cold_start",
                violation_error_code="cold_start_s",
                violation_error_message="The cold start must be positive.",
            ),
        )

    def __str__(self) -> str:
        return self.name


class Revision(WrittenOnce, Identified):
    """What a replica of a deployment runs. Never edited; a new revision replaces it."""

    class Runtime(models.TextChoices):
        VLLM = "vllm", "vLLM"
        MLFLOW = "mlflow", "MLflow"
        COMMAND = "command", "Command"
        SIMULATED = "simulated", "Simulated"

    mutable_fields = frozenset({"is_current", "updated_at"})

    deployment = models.ForeignKey(Deployment, on_delete=models.CASCADE, related_name="revisions")
    number = models.PositiveIntegerField()
    runtime = models.CharField(max_length=12, choices=Runtime.choices)
    runtime_reason = models.CharField(max_length=500, blank=True, help_text="Why it is this runtime, for people.")
    options = models.JSONField(default=dict, blank=True)
    target_concurrency = models.PositiveIntegerField(default=16, help_text="Requests at once per replica.")
    is_current = models.BooleanField(default=True)

    class Meta:
        ordering = ("deployment", "-number")
        constraints = (
            models.UniqueConstraint(
                fields=("deployment", "number"),
                name="serving_revision_unique_number",
                violation_error_code="number",
                violation_error_message="The deployment has a revision with this number already.",
            ),
            models.UniqueConstraint(
                fields=("deployment",),
                condition=Q(is_current=True),
                name="serving_revision_one_current",
                violation_error_code="is_current",
                violation_error_message="Only one revision of a deployment can be current.",
            ),
            models.CheckConstraint(
                condition=Q(target_concurrency__gte=1),
                name="serving_revision_positive_concurrency",
                violation_error_code="target_concurrency",
                violation_error_message="The target concurrency must be at least 1.",
            ),
            models.CheckConstraint(
                condition=Q(runtime__in=("vllm", "mlflow", "command", "simulated")),
                name="serving_revision_known_runtime",
                violation_error_code="runtime",
                violation_error_message="The runtime must be vllm, mlflow, command or simulated.",
            ),
            models.CheckConstraint(
                condition=Q(number__gte=1),
                name="serving_revision_number_from_1",
                violation_error_code="number",
                violation_error_message="Revisions count from 1.",
            ),
        )

    def __str__(self) -> str:
        return f"{self.deployment} r{self.number}"

    def clean(self) -> None:
        """The options are an object, and placement and engine can read theirs. Raises ValidationError by field."""
        if not isinstance(self.options, dict):
            raise ValidationError({"options": "Give runtime options as an object."})
        if errors := placement_errors(self.options) or engine_errors(self.runtime, self.options):
            raise ValidationError({"options": errors})


class Replica(Identified):
    """One engine process (group) on one host. ``state`` follows ``serving.policy.lifecycle``."""

    class State(models.TextChoices):
        PENDING = "pending", "Pending"
        STARTING = "starting", "Starting"
        READY = "ready", "Ready"
        DRAINING = "draining", "Draining"
        STOPPING = "stopping", "Stopping"
        STOPPED = "stopped", "Stopped"
        FAILED = "failed", "Failed"

    deployment = models.ForeignKey(Deployment, on_delete=models.CASCADE, related_name="replicas")
    revision = models.ForeignKey(Revision, on_delete=models.PROTECT, related_name="replicas")
    host = models.ForeignKey(Host, null=True, blank=True, on_delete=models.PROTECT, related_name="replicas")
    accelerators = models.JSONField(default=list, blank=True)
    state = models.CharField(max_length=10, choices=State.choices, default=State.PENDING)
    state_since = models.DateTimeField()
    reason = models.CharField(max_length=500, blank=True, help_text="Why it is in this state, for people.")
    phase = models.CharField(max_length=12, blank=True, help_text="The agent's finer view while starting.")
    progress = models.JSONField(default=dict, blank=True)
    address = models.CharField(max_length=200, blank=True)
    engine_version = models.CharField(max_length=60, blank=True)
    max_model_len = models.PositiveIntegerField("context length (tokens)", null=True, blank=True)
    pid = models.PositiveIntegerField("PID", null=True, blank=True)
    kill = models.BooleanField(default=False, help_text="Hanging: stop it with SIGKILL and keep evidence.")
    attempt = models.PositiveIntegerField(default=0)
    launched_at = models.DateTimeField(null=True, blank=True)
    ready_at = models.DateTimeField(null=True, blank=True)
    supply_mu_per_min = models.FloatField("supply (MU/min)", default=100.0)
    calibration_id = models.UUIDField(
        null=True, blank=True, editable=False, help_text="Measures it right now: it drains, and is kept."
    )

    class Meta:
        ordering = ("deployment", "created_at")
        indexes = (models.Index(fields=("state", "deployment"), name="serving_replica_state"),)
        constraints = (
            models.CheckConstraint(
                condition=Q(state__in=("pending", "starting", "ready", "draining", "stopping", "stopped", "failed")),
                name="serving_replica_known_state",
                violation_error_code="state",
                violation_error_message="Unknown replica state.",
            ),
            models.CheckConstraint(
                condition=~Q(state="ready") | ~Q(address=""),
                name="serving_replica_ready_has_address",
                violation_error_code="address",
                violation_error_message="A ready replica must have an address.",
            ),
            models.CheckConstraint(
                condition=Q(state__in=("pending", "stopping", "stopped", "failed")) | Q(host__isnull=False),
                name="serving_replica_running_has_host",
                violation_error_code="host",
                violation_error_message="A replica that runs must be placed on a host.",
            ),
            models.CheckConstraint(
                condition=Q(supply_mu_per_min__gt=0.0),
                name="serving_replica_positive_supply",
                violation_error_code="supply_mu_per_min",
                violation_error_message="A replica must supply more than 0 MU/min.",
            ),
            models.CheckConstraint(
                condition=Q(calibration_id__isnull=True) | Q(state="draining"),
                name="serving_replica_measured_out_of_rotation",
                violation_error_code="calibration_id",
                violation_error_message="Only a replica that is out of rotation can be measured.",
            ),
        )

    def __str__(self) -> str:
        return f"{self.deployment} {str(self.id)[-6:]}"
