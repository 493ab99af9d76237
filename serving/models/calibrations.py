"""Calibrations: what a request was measured to cost on a deployment's hardware, and what became of the measurement."""

from django.db import models
from django.db.models import Q
from django.utils import timezone

from tenants.models import Identified


class Calibration(Identified):
    """One measurement of a deployment's replica: its order, its progress, its results, and whether they were adopted.

    Ids are plain and stand beside names: results outlive the deployment, the replica and the host.
    """

    class State(models.TextChoices):
        QUEUED = "queued", "Queued"
        DRAINING = "draining", "Draining"
        MEASURING = "measuring", "Measuring"
        FITTED = "fitted", "Fitted"
        ADOPTED = "adopted", "Adopted"
        FAILED = "failed", "Failed"
        CANCELLED = "cancelled", "Cancelled"

    class Grid(models.TextChoices):
        SMALL = "small", "Small"
        MEDIUM = "medium", "Medium"
        THOROUGH = "thorough", "Thorough"

    UNDER_WAY = (State.QUEUED, State.DRAINING, State.MEASURING)
    HOLDING = (State.DRAINING, State.MEASURING)
    """States in which a replica is out of rotation for it."""

    deployment_id = models.UUIDField(db_index=True)
    deployment_name = models.CharField(max_length=200)
    pool_id = models.UUIDField(db_index=True)
    pool_name = models.CharField(max_length=120)
    revision_id = models.UUIDField()
    revision_number = models.PositiveIntegerField()
    runtime = models.CharField(max_length=12)
    replica_id = models.UUIDField(null=True, blank=True)
    host_name = models.CharField(max_length=60, blank=True)
    hardware_type_id = models.UUIDField(null=True, blank=True)
    hardware_name = models.CharField(max_length=120, blank=True)

    state = models.CharField(max_length=10, choices=State.choices, default=State.QUEUED)
    state_since = models.DateTimeField(default=timezone.now)
    reason = models.CharField(max_length=500, blank=True, help_text="Why it is in this state, for people.")
    grid = models.CharField(max_length=10, choices=Grid.choices, default=Grid.MEDIUM)
    order = models.JSONField(default=dict, help_text="Shapes, repeats, mix and objectives that are measured.")
    allow_outage = models.BooleanField(default=False, help_text="The only ready replica may be taken.")
    adopt_when_fitted = models.BooleanField(default=False, help_text="It becomes the price without being looked at.")
    adopt_from = models.DateTimeField(null=True, blank=True, help_text="In force from then on; empty: at once.")
    requested_by = models.CharField(max_length=200, blank=True)

    progress = models.JSONField(default=dict, blank=True, help_text="Share, step and detail, as the agent tells.")
    reported_at = models.DateTimeField(null=True, blank=True, help_text="When the agent last told of it.")
    measuring_at = models.DateTimeField(null=True, blank=True)
    ended_at = models.DateTimeField(null=True, blank=True)
    method = models.CharField(max_length=20, blank=True, help_text="How engine time was measured.")
    engine_version = models.CharField(max_length=60, blank=True)
    points = models.JSONField(default=list, blank=True, help_text="Engine milliseconds of each shape and repeat.")
    levels = models.JSONField(default=list, blank=True, help_text="What was attained at each rate that was offered.")
    fit = models.JSONField(default=dict, blank=True, help_text="Coefficients in engine ms, residuals and errors.")
    knee = models.JSONField(default=dict, blank=True, help_text="The highest load that keeps the objectives.")

    adopted_at = models.DateTimeField(null=True, blank=True)
    adopted_by = models.CharField(max_length=200, blank=True)
    adopted_version = models.PositiveIntegerField(null=True, blank=True, help_text="Version of the pool's price.")
    adopted_supply = models.FloatField(
        "adopted supply (MU/min)", null=True, blank=True, help_text="Of a replica on hardware that is no reference."
    )
    effective_from = models.DateTimeField(null=True, blank=True)

    class Meta:
        ordering = ("-created_at",)
        constraints = (
            models.UniqueConstraint(
                fields=("deployment_id",),
                condition=Q(state__in=("queued", "draining", "measuring")),
                name="serving_calibration_one_at_a_time",
                violation_error_code="deployment_id",
                violation_error_message="A calibration of this deployment is under way already.",
            ),
            models.CheckConstraint(
                condition=Q(state__in=("queued", "draining", "measuring", "fitted", "adopted", "failed", "cancelled")),
                name="serving_calibration_known_state",
                violation_error_code="state",
                violation_error_message="Unknown state of a calibration.",
            ),
            models.CheckConstraint(
                condition=Q(grid__in=("small", "medium", "thorough")),
                name="serving_calibration_known_grid",
                violation_error_code="grid",
                violation_error_message="The grid must be small, medium or thorough.",
            ),
            models.CheckConstraint(
                condition=~Q(state__in=("draining", "measuring")) | Q(replica_id__isnull=False),
                name="serving_calibration_measures_a_replica",
                violation_error_code="replica_id",
                violation_error_message="A calibration that measures must name its replica.",
            ),
            models.CheckConstraint(
                condition=~Q(state="adopted")
                | (Q(adopted_at__isnull=False) & (Q(adopted_version__isnull=False) | Q(adopted_supply__isnull=False))),
                name="serving_calibration_adopted_as_something",
                violation_error_code="state",
                violation_error_message="An adopted calibration must name the price or the supply it has become.",
            ),
            models.CheckConstraint(
                condition=Q(ended_at__isnull=True) | ~Q(state__in=("queued", "draining", "measuring")),
                name="serving_calibration_ended_is_over",
                violation_error_code="ended_at",
                violation_error_message="A calibration that has ended is not under way.",
            ),
        )

    def __str__(self) -> str:
        return f"calibration of {self.deployment_name} {str(self.id)[-6:]}"
