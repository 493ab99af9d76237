"""The guarantee ledger: what each minute of a reservation was, and what its days add up to."""

from django.db import models
from django.db.models import Q

from capacity.models.reservations import Reservation


class GuaranteeSums(models.Model):
    """MU of the reservation's pool, and requests of class *reserved*."""

    entitled_mu = models.FloatField("entitled (MU)", default=0.0)
    used_mu = models.FloatField("used (MU)", default=0.0)
    lent_mu = models.FloatField("lent (MU)", default=0.0)
    throttled_mu = models.FloatField("throttled while entitled (MU)", default=0.0)
    slow_mu = models.FloatField("slow while entitled (MU)", default=0.0)
    unserved_mu = models.FloatField("unserved (MU)", default=0.0)
    requests = models.BigIntegerField(default=0)
    throttled = models.BigIntegerField("throttled requests", default=0)
    slow = models.BigIntegerField("slow requests", default=0)
    unserved = models.BigIntegerField("unserved requests", default=0)

    class Meta:
        abstract = True


SUMS = tuple(field.name for field in GuaranteeSums._meta.local_fields)
"""Columns that days add up of their minutes."""


class GuaranteeMinute(GuaranteeSums):
    """One minute of one reservation. A request belongs to the minute in which it ended."""

    id = models.BigAutoField(primary_key=True)
    reservation = models.ForeignKey(Reservation, on_delete=models.PROTECT, related_name="guarantee_minutes")
    starts_at = models.DateTimeField()
    is_breach = models.BooleanField("breach", default=False)
    reason = models.CharField(max_length=400, blank=True, help_text="Why it is a breach.")
    is_stale = models.BooleanField(default=False, help_text="A record came late: it is judged anew.")
    ttft_objective_ms = models.PositiveIntegerField(
        "TTFT objective (ms)", null=True, help_text="The pool's objectives that it was held to. Empty: not kept."
    )
    tpot_objective_ms = models.PositiveIntegerField("TPOT objective (ms)", null=True)
    slo_share = models.FloatField("SLO share", null=True)

    class Meta:
        ordering = ("-starts_at",)
        constraints = (
            models.UniqueConstraint(
                fields=("reservation", "starts_at"),
                name="capacity_guaranteeminute_unique",
                violation_error_message="The minute has been judged already.",
            ),
        )
        indexes = (
            models.Index(fields=("starts_at",), name="capacity_guarantee_minute"),
            models.Index(fields=("starts_at",), condition=Q(is_stale=True), name="capacity_guarantee_stale"),
            models.Index(
                fields=("reservation", "-starts_at"), condition=Q(is_breach=True), name="capacity_guarantee_breach"
            ),
        )

    def __str__(self) -> str:
        return f"{self.starts_at:%Y-%m-%d %H:%M}{' breach' if self.is_breach else ''}"


class GuaranteeDay(GuaranteeSums):
    """One day (UTC) of one reservation: the sum of its minutes, kept when they have gone."""

    id = models.BigAutoField(primary_key=True)
    reservation = models.ForeignKey(Reservation, on_delete=models.PROTECT, related_name="guarantee_days")
    day = models.DateField()
    minutes = models.PositiveIntegerField(default=0, help_text="Minutes in which something was promised.")
    breach_minutes = models.PositiveIntegerField(default=0)

    class Meta:
        ordering = ("-day",)
        constraints = (
            models.UniqueConstraint(
                fields=("reservation", "day"),
                name="capacity_guaranteeday_unique",
                violation_error_message="The day is in the ledger already.",
            ),
            models.CheckConstraint(
                condition=Q(breach_minutes__lte=models.F("minutes")),
                name="capacity_guaranteeday_breaches_within_minutes",
                violation_error_message="There cannot be more breach minutes than minutes.",
            ),
        )

    def __str__(self) -> str:
        return f"{self.day}: {self.breach_minutes} of {self.minutes} min"


class GuaranteeHour(GuaranteeSums):
    """One hour (UTC) of one reservation: the sum of its minutes, for charts of weeks."""

    id = models.BigAutoField(primary_key=True)
    reservation = models.ForeignKey(Reservation, on_delete=models.PROTECT, related_name="guarantee_hours")
    starts_at = models.DateTimeField()
    minutes = models.PositiveSmallIntegerField(default=0, help_text="Minutes in which something was promised.")
    breach_minutes = models.PositiveSmallIntegerField(default=0)

    class Meta:
        ordering = ("-starts_at",)
        constraints = (
            models.UniqueConstraint(
                fields=("reservation", "starts_at"),
                name="capacity_guaranteehour_unique",
                violation_error_message="The hour is in the ledger already.",
            ),
            models.CheckConstraint(
                condition=Q(breach_minutes__lte=models.F("minutes")),
                name="capacity_guaranteehour_breaches_within_minutes",
                violation_error_message="There cannot be more breach minutes than minutes.",
            ),
        )
        indexes = (models.Index(fields=("starts_at",), name="capacity_guarantee_hour"),)

    def __str__(self) -> str:
        return f"{self.starts_at:%Y-%m-%d %H:%M}: {self.breach_minutes} of {self.minutes} min"
