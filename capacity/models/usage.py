"""What was used: one record per admitted request, roll-ups, and how far the books are closed.

Usage rows hold plain UUIDs instead of foreign keys: they outlive what they speak of.
"""

from typing import get_args

from django.db import models
from django.db.models import Q
from django.utils import timezone

from capacity.policy.chain import GENESIS
from capacity.usage.lines import Outcome
from tenants.models import WrittenOnce, uuid7

OUTCOMES = tuple(sorted(get_args(Outcome)))


class UsageRecord(WrittenOnce):
    """One admitted request, written once. Times are when things happened at the gateway; tokens by kind."""

    id = models.UUIDField(primary_key=True, editable=False, help_text="Made by the gateway at admission (UUIDv7).")
    client_request_id = models.CharField(max_length=200, blank=True)
    tenant_id = models.UUIDField()
    key_id = models.UUIDField()
    pool_id = models.UUIDField()
    deployment_id = models.UUIDField()
    revision_id = models.UUIDField()
    replica_id = models.UUIDField(null=True)
    model = models.CharField(max_length=200)
    dialect = models.CharField(max_length=20)
    service_class = models.CharField(max_length=12)
    stream = models.BooleanField(default=False)
    profile_version = models.PositiveIntegerField()
    estimated_mu = models.FloatField("estimated MU")
    actual_mu = models.FloatField("actual MU")
    estimated_input_tokens = models.BigIntegerField(default=0)
    estimated_output_tokens = models.BigIntegerField(default=0)
    input_tokens = models.BigIntegerField(default=0)
    cached_tokens = models.BigIntegerField(default=0)
    output_tokens = models.BigIntegerField(default=0)
    units = models.JSONField(default=dict)
    lower_bound = models.BooleanField(default=False, help_text="The engine's own count was not seen.")
    outcome = models.CharField(max_length=20)
    status = models.PositiveSmallIntegerField()
    finish_reason = models.CharField(max_length=40, blank=True)
    error = models.CharField(max_length=500, blank=True)
    attempts = models.JSONField(default=list)
    charges = models.JSONField(
        default=list,
        help_text="What each limit and reservation of the request said of it (``capacity.usage.lines.Charge``).",
    )
    gateway = models.CharField(max_length=64)
    admitted_at = models.DateTimeField()
    routed_at = models.DateTimeField(null=True)
    first_byte_at = models.DateTimeField(null=True)
    ended_at = models.DateTimeField()
    written_at = models.DateTimeField(auto_now_add=True)
    chain_sequence = models.BigIntegerField(
        null=True, help_text="Place in the tenant's chain, from 1. Empty: booked before there was one."
    )
    chain_hash = models.CharField(max_length=64, blank=True, help_text="Of this row and of the one before it.")

    class Meta:
        ordering = ("-ended_at",)
        indexes = (
            models.Index(fields=("tenant_id", "-ended_at"), name="capacity_usage_tenant"),
            models.Index(fields=("deployment_id", "-ended_at"), name="capacity_usage_deployment"),
            models.Index(fields=("ended_at",), name="capacity_usage_ended"),
        )
        constraints = (
            models.CheckConstraint(
                condition=Q(estimated_mu__gte=0, actual_mu__gte=0),
                name="capacity_usage_mu_not_negative",
                violation_error_message="Model units cannot be negative.",
            ),
            models.CheckConstraint(
                condition=Q(cached_tokens__lte=models.F("input_tokens")),
                name="capacity_usage_cached_within_input",
                violation_error_message="Cached tokens are a part of the input tokens.",
            ),
            models.CheckConstraint(
                condition=Q(ended_at__gte=models.F("admitted_at")),
                name="capacity_usage_ends_after_admission",
                violation_error_message="A request cannot end before it was admitted.",
            ),
            models.CheckConstraint(
                condition=Q(
                    input_tokens__gte=0,
                    cached_tokens__gte=0,
                    output_tokens__gte=0,
                    estimated_input_tokens__gte=0,
                    estimated_output_tokens__gte=0,
                ),
                name="capacity_usage_tokens_not_negative",
                violation_error_message="Token counts cannot be negative.",
            ),
            models.CheckConstraint(
                condition=Q(outcome__in=OUTCOMES),
                name="capacity_usage_known_outcome",
                violation_error_message="Unknown outcome.",
            ),
            models.CheckConstraint(
                condition=~Q(service_class=""),
                name="capacity_usage_has_class",
                violation_error_message="A request has a service class.",
            ),
            models.UniqueConstraint(
                fields=("tenant_id", "chain_sequence"),
                name="capacity_usage_one_place_in_chain",
                violation_error_message="The tenant's chain has a row at this place already.",
            ),
        )

    def __str__(self) -> str:
        return str(self.id)


class UsageRollup(models.Model):
    """Usage of one tenant, key, pool, deployment and service class in one minute, hour or day (UTC)."""

    class Period(models.TextChoices):
        MINUTE = "minute", "Minute"
        HOUR = "hour", "Hour"
        DAY = "day", "Day"

    id = models.BigAutoField(primary_key=True)
    period = models.CharField(max_length=6, choices=Period.choices)
    starts_at = models.DateTimeField(help_text="A request belongs to the minute in which it ended.")
    tenant_id = models.UUIDField()
    key_id = models.UUIDField()
    pool_id = models.UUIDField()
    deployment_id = models.UUIDField()
    service_class = models.CharField(max_length=12)
    requests = models.BigIntegerField(default=0)
    failed = models.BigIntegerField(default=0, help_text="Neither completed nor left by the client.")
    input_tokens = models.BigIntegerField(default=0)
    cached_tokens = models.BigIntegerField(default=0)
    output_tokens = models.BigIntegerField(default=0)
    mu = models.FloatField("MU", default=0.0)
    money = models.FloatField(
        default=0.0, help_text="What the MU that no reservation pays for cost, in the installation's currency."
    )
    ttft_ms_sum = models.FloatField("sum of TTFT (ms)", default=0.0)
    ttft_count = models.BigIntegerField("requests with TTFT", default=0)
    duration_ms_sum = models.FloatField("sum of durations (ms)", default=0.0)
    is_final = models.BooleanField(default=False, help_text="Every gateway's watermark has passed its end.")

    class Meta:
        ordering = ("-starts_at",)
        verbose_name = "usage roll-up"
        constraints = (
            models.UniqueConstraint(
                fields=("period", "starts_at", "tenant_id", "key_id", "pool_id", "deployment_id", "service_class"),
                name="capacity_rollup_unique",
                violation_error_message="There is a roll-up for this period already.",
            ),
            models.CheckConstraint(
                condition=Q(period__in=("minute", "hour", "day")),
                name="capacity_rollup_known_period",
                violation_error_message="The period must be minute, hour or day.",
            ),
        )
        indexes = (
            models.Index(fields=("period", "tenant_id", "-starts_at"), name="capacity_rollup_tenant"),
            models.Index(fields=("period", "-starts_at"), name="capacity_rollup_period"),
            models.Index(fields=("period", "starts_at"), condition=Q(is_final=False), name="capacity_rollup_open"),
        )

    def __str__(self) -> str:
        return f"{self.period} {self.starts_at:%Y-%m-%d %H:%M}"


class UsageChain(models.Model):
    """The end of one tenant's chain of usage records. Who books for the tenant holds this row."""

    tenant_id = models.UUIDField(primary_key=True)
    sequence = models.BigIntegerField(default=0, help_text="Rows in the chain.")
    hash = models.CharField(max_length=64, default=GENESIS)

    def __str__(self) -> str:
        return f"{self.sequence} rows, {self.hash[:12]}"


class UsageAnchor(WrittenOnce):
    """Where a tenant's chain stood when a day (UTC) was over. Kept for ever: records are deleted, what they were is not
    to be told otherwise.
    """

    mutable_fields = frozenset({"is_deleted"})

    id = models.UUIDField(primary_key=True, default=uuid7, editable=False)
    tenant_id = models.UUIDField()
    day = models.DateField(help_text="The last day (UTC) that was over.")
    at = models.DateTimeField()
    sequence = models.BigIntegerField()
    hash = models.CharField(max_length=64)
    is_deleted = models.BooleanField(default=False, help_text="Retention has deleted the records up to here.")

    class Meta:
        ordering = ("-day", "tenant_id")
        constraints = (
            models.UniqueConstraint(
                fields=("tenant_id", "day"),
                name="capacity_usageanchor_one_a_day",
                violation_error_message="The tenant's chain has an anchor for this day already.",
            ),
        )
        indexes = (models.Index(fields=("at",), condition=Q(is_deleted=False), name="capacity_usageanchor_kept"),)

    def __str__(self) -> str:
        return f"{self.day}: {self.sequence} rows, {self.hash[:12]}"


class Watermark(models.Model):
    """How far one journal segment has been written: every request of it that ended before ``at`` is in the books."""

    segment = models.CharField(primary_key=True, max_length=100)
    gateway = models.CharField(max_length=64)
    sequence = models.BigIntegerField(default=0, help_text="Highest batch of the segment that is in the books.")
    at = models.DateTimeField()
    is_closed = models.BooleanField(default=False)
    updated_at = models.DateTimeField(default=timezone.now)

    def __str__(self) -> str:
        return self.segment


class QuarantinedUsage(models.Model):
    """A request that the books refuse as it stands, kept whole until somebody looks: nothing metered is ever lost."""

    id = models.UUIDField(primary_key=True, default=uuid7, editable=False)
    digest = models.CharField(max_length=64, unique=True, help_text="SHA-256 of the payload: a batch sent again.")
    record_id = models.CharField(max_length=64, blank=True, db_index=True)
    gateway = models.CharField(max_length=64)
    segment = models.CharField(max_length=100)
    sequence = models.BigIntegerField()
    reason = models.CharField(max_length=500)
    payload = models.TextField(help_text="The pair of admit and end lines, as JSON.")
    at = models.DateTimeField(default=timezone.now)
    resolved_at = models.DateTimeField(null=True, blank=True)
    resolution = models.CharField(max_length=200, blank=True)

    class Meta:
        ordering = ("-at",)
        verbose_name_plural = "quarantined usage"

    def __str__(self) -> str:
        return f"{self.record_id or 'unreadable record'}: {self.reason}"


class BooksState(models.Model):
    """One row: up to when minutes are final and records deleted, and how many came late (an alarm when it rises)."""

    id = models.PositiveSmallIntegerField(primary_key=True, default=1, editable=False)
    final_until = models.DateTimeField(null=True, help_text="Every minute that ended by then is final.")
    deleted_until = models.DateTimeField(
        null=True, help_text="Retention: no record that ended before is kept; roll-ups have them all."
    )
    guaranteed_until = models.DateTimeField(null=True, help_text="Guarantee ledger: every minute until then is judged.")
    billed_from = models.DateField(
        null=True, help_text="First day of the first month that can be invoiced. Empty: every month."
    )
    invoiced_until = models.DateField(null=True, help_text="The loop has issued what is due of all months before.")
    invoice_number = models.BigIntegerField(default=0, help_text="Of the last document that was issued.")
    late_records = models.BigIntegerField(default=0)
    last_late_at = models.DateTimeField(null=True)

    class Meta:
        verbose_name_plural = "books"
        constraints = (
            models.CheckConstraint(
                condition=Q(id=1), name="capacity_books_one_row", violation_error_message="There is one row only."
            ),
        )

    def __str__(self) -> str:
        return f"final until {self.final_until:%Y-%m-%d %H:%M}" if self.final_until else "nothing final yet"
