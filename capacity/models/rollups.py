"""How much there was over time, and what was refused: roll-ups, kept when rings and decisions have gone."""

from django.db import models
from django.db.models import Q

from capacity.models.hardware import HardwareType


class Period(models.TextChoices):
    MINUTE = "minute", "Minute"
    HOUR = "hour", "Hour"


class PoolRollup(models.Model):
    """A pool in one minute or hour (UTC), in MU/min: means over its ``minutes`` in which somebody looked."""

    id = models.BigAutoField(primary_key=True)
    period = models.CharField(max_length=6, choices=Period.choices)
    starts_at = models.DateTimeField()
    pool_id = models.UUIDField()
    minutes = models.PositiveSmallIntegerField(default=1, help_text="Minutes in which the loops looked.")
    have = models.FloatField("have (MU/min)", help_text="What its ready replicas supplied.")
    could = models.FloatField("could have (MU/min)", help_text="What as many replicas as it may have would supply.")
    offered = models.FloatField("offered (MU/min)", help_text="What was asked for, refused or not.")

    class Meta:
        ordering = ("-starts_at",)
        verbose_name = "pool roll-up"
        constraints = (
            models.UniqueConstraint(
                fields=("period", "pool_id", "starts_at"),
                name="capacity_poolrollup_unique",
                violation_error_message="There is a roll-up of the pool for this period already.",
            ),
            models.CheckConstraint(
                condition=Q(period__in=("minute", "hour")),
                name="capacity_poolrollup_known_period",
                violation_error_message="The period must be minute or hour.",
            ),
        )
        indexes = (models.Index(fields=("period", "starts_at"), name="capacity_poolrollup_period"),)

    def __str__(self) -> str:
        return f"{self.period} {self.starts_at:%Y-%m-%d %H:%M}"


class AcceleratorRollup(models.Model):
    """Accelerators of one kind in one minute or hour (UTC): means over its ``minutes`` in which somebody looked."""

    id = models.BigAutoField(primary_key=True)
    period = models.CharField(max_length=6, choices=Period.choices)
    starts_at = models.DateTimeField()
    hardware_type = models.ForeignKey(HardwareType, on_delete=models.CASCADE, related_name="accelerator_rollups")
    minutes = models.PositiveSmallIntegerField(default=1, help_text="Minutes in which the loops looked.")
    have = models.FloatField(help_text="Healthy accelerators of hosts that were not lost.")
    used = models.FloatField(help_text="Those that replicas held.")
    sold = models.FloatField(help_text="Those that supply what was sold, without a spare.")

    class Meta:
        ordering = ("-starts_at",)
        verbose_name = "accelerator roll-up"
        constraints = (
            models.UniqueConstraint(
                fields=("period", "hardware_type", "starts_at"),
                name="capacity_acceleratorrollup_unique",
                violation_error_message="There is a roll-up of these accelerators for this period already.",
            ),
            models.CheckConstraint(
                condition=Q(period__in=("minute", "hour")),
                name="capacity_acceleratorrollup_known_period",
                violation_error_message="The period must be minute or hour.",
            ),
        )
        indexes = (models.Index(fields=("period", "starts_at"), name="capacity_accrollup_period"),)

    def __str__(self) -> str:
        return f"{self.period} {self.starts_at:%Y-%m-%d %H:%M}"


class RefusalRollup(models.Model):
    """Requests of one tenant, key and pool that were refused for one reason in a minute or hour (UTC).

    Counted by the gateways and not journalled: what was refused costs nothing. A count may miss what a gateway that was
    killed had counted in its last seconds.
    """

    id = models.BigAutoField(primary_key=True)
    period = models.CharField(max_length=6, choices=Period.choices)
    starts_at = models.DateTimeField()
    tenant_id = models.UUIDField()
    key_id = models.UUIDField()
    pool_id = models.UUIDField(null=True, help_text="Empty: refused before it was clear which pool is meant.")
    reason = models.CharField(max_length=40, help_text="As clients read it in x-penstock-reason or the error's code.")
    status = models.PositiveSmallIntegerField()
    requests = models.BigIntegerField(default=0)

    class Meta:
        ordering = ("-starts_at",)
        verbose_name = "refusal roll-up"
        constraints = (
            models.UniqueConstraint(
                fields=("period", "tenant_id", "starts_at", "key_id", "pool_id", "reason", "status"),
                condition=Q(pool_id__isnull=False),
                name="capacity_refusalrollup_unique",
                violation_error_message="There is a roll-up of these refusals for this period already.",
            ),
            models.UniqueConstraint(
                fields=("period", "tenant_id", "starts_at", "key_id", "reason", "status"),
                condition=Q(pool_id__isnull=True),
                name="capacity_refusalrollup_unique_without_pool",
                violation_error_message="There is a roll-up of these refusals for this period already.",
            ),
            models.CheckConstraint(
                condition=Q(period__in=("minute", "hour")),
                name="capacity_refusalrollup_known_period",
                violation_error_message="The period must be minute or hour.",
            ),
        )
        indexes = (
            models.Index(fields=("period", "starts_at"), name="capacity_refusal_period"),
            models.Index(fields=("tenant_id", "period", "starts_at"), name="capacity_refusal_tenant"),
        )

    def __str__(self) -> str:
        return f"{self.period} {self.starts_at:%Y-%m-%d %H:%M}: {self.requests} {self.reason}"
