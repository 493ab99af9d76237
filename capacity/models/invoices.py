"""What tenants owe: exact sums of each day, the documents of each month, and what came after these."""

from __future__ import annotations

from decimal import Decimal

from django.db import models
from django.db.models import Q
from django.utils import timezone

from tenants.models import Tenant, WrittenOnce, uuid7


class BilledDay(models.Model):
    """Usage of one tenant, pool, served model, version of the price and service class on one day (UTC), exactly.

    Roll-ups add floats, which come out differently in another order; an invoice must not. MU are ``mu_whole`` and
    ``mu_nano`` billionths.
    """

    id = models.BigAutoField(primary_key=True)
    day = models.DateField(help_text="A request belongs to the day in which it ended.")
    tenant_id = models.UUIDField()
    pool_id = models.UUIDField()
    model = models.CharField(max_length=200)
    profile_version = models.PositiveIntegerField()
    service_class = models.CharField(max_length=12)
    requests = models.BigIntegerField(default=0)
    input_tokens = models.BigIntegerField(default=0)
    cached_tokens = models.BigIntegerField(default=0)
    output_tokens = models.BigIntegerField(default=0)
    mu_whole = models.BigIntegerField("whole MU", default=0)
    mu_nano = models.BigIntegerField("billionths of an MU", default=0)

    class Meta:
        ordering = ("-day",)
        constraints = (
            models.UniqueConstraint(
                fields=("tenant_id", "day", "pool_id", "model", "profile_version", "service_class"),
                name="capacity_billedday_unique",
                violation_error_message="The day has such a sum already.",
            ),
        )
        indexes = (models.Index(fields=("day",), name="capacity_billedday_day"),)

    def __str__(self) -> str:
        return f"{self.day}: {self.mu} MU"

    @property
    def mu(self) -> Decimal:
        return self.mu_whole + Decimal(self.mu_nano).scaleb(-9)


class LateUsage(models.Model):
    """Usage came for a month that was final: what was issued of it, if anything, is to be looked at again."""

    id = models.BigAutoField(primary_key=True)
    tenant_id = models.UUIDField()
    month = models.DateField(help_text="Its first day.")
    at = models.DateTimeField(help_text="When the last of it came.")

    class Meta:
        verbose_name_plural = "late usage"
        ordering = ("month", "id")
        constraints = (
            models.UniqueConstraint(
                fields=("tenant_id", "month"),
                name="capacity_lateusage_unique",
                violation_error_message="Late usage of this month is known already.",
            ),
        )

    def __str__(self) -> str:
        return f"{self.month:%Y-%m}, {self.at:%Y-%m-%d %H:%M}"


class Invoice(WrittenOnce):
    """A document of a month as it was issued: the invoice, or a note that corrects it. It never changes.

    ``content`` is all that it says, and ``hash`` its SHA-256 (``capacity.policy.invoice.digest``).
    """

    class Kind(models.TextChoices):
        INVOICE = "invoice", "Invoice"
        CREDIT_NOTE = "credit_note", "Credit note"
        DEBIT_NOTE = "debit_note", "Debit note"

    id = models.UUIDField(primary_key=True, default=uuid7, editable=False)
    number = models.BigIntegerField(help_text="Counts all documents of the installation, without a gap.")
    tenant = models.ForeignKey(Tenant, on_delete=models.PROTECT, related_name="invoices")
    month = models.DateField(help_text="Its first day.")
    sequence = models.PositiveIntegerField(help_text="0: the invoice; its notes count from 1.")
    kind = models.CharField(max_length=11, choices=Kind.choices)
    issued_at = models.DateTimeField(default=timezone.now)
    issued_by = models.CharField(max_length=200)
    content = models.JSONField()
    hash = models.CharField(max_length=64)

    class Meta:
        ordering = ("-number",)
        constraints = (
            models.UniqueConstraint(
                fields=("number",),
                name="capacity_invoice_unique_number",
                violation_error_message="There is a document with this number already.",
            ),
            models.UniqueConstraint(
                fields=("tenant", "month", "sequence"),
                name="capacity_invoice_one_a_month",
                violation_error_message="The tenant has an invoice for this month already.",
            ),
            models.CheckConstraint(
                condition=Q(kind="invoice", sequence=0) | Q(kind__in=("credit_note", "debit_note"), sequence__gt=0),
                name="capacity_invoice_known_kind",
                violation_error_message="A month has one invoice, and then notes.",
            ),
        )
        indexes = (models.Index(fields=("month",), name="capacity_invoice_month"),)

    def __str__(self) -> str:
        return self.name

    @property
    def name(self) -> str:
        """Its number as people write it."""
        return f"{'INV' if self.kind == self.Kind.INVOICE else 'NOTE'}-{self.number:06d}"

    @property
    def totals(self) -> dict[str, Decimal]:
        return {currency: Decimal(amount) for currency, amount in self.content["totals"].items()}
