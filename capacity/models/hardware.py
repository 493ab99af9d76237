"""Hardware types, hosts and their accelerators."""

from django.core.exceptions import ValidationError
from django.db import models
from django.utils import timezone

from tenants.models import Identified, Removable


def require_labels(labels: object) -> None:
    """Labels are texts by text. Raises ValidationError at ``labels``."""
    if not isinstance(labels, dict) or not all(
        isinstance(name, str) and name and isinstance(value, str) for name, value in labels.items()
    ):
        raise ValidationError({"labels": 'Give texts by name, e.g. {"zone": "a"}.'})


class HardwareType(Identified):
    """A kind of accelerator (or plain CPU) that cost profiles are measured on."""

    slug = models.SlugField(max_length=60, unique=True)
    name = models.CharField(max_length=120)
    is_cpu = models.BooleanField(default=False)
    memory_bytes = models.BigIntegerField("memory (bytes)", default=0, help_text="Memory of one accelerator, in bytes.")

    class Meta:
        ordering = ("name",)
        constraints = (
            models.CheckConstraint(
                condition=models.Q(memory_bytes__gte=0),
                name="capacity_hardwaretype_memory_not_negative",
                violation_error_code="memory_bytes",
                violation_error_message="Memory cannot be negative.",
            ),
        )

    def __str__(self) -> str:
        return self.name


class Host(Removable, Identified):
    """A machine with an agent. ``secret`` signs what it and the control plane say to each other; empty once removed."""

    class State(models.TextChoices):
        ACTIVE = "active", "Active"
        CORDONED = "cordoned", "Cordoned"
        DRAINING = "draining", "Draining"
        LOST = "lost", "Lost"

    name = models.SlugField(max_length=60)
    hardware_type = models.ForeignKey(HardwareType, on_delete=models.PROTECT, related_name="hosts")
    state = models.CharField(max_length=10, choices=State.choices, default=State.ACTIVE)
    state_since = models.DateTimeField(default=timezone.now, editable=False)
    state_reason = models.CharField(max_length=200, blank=True, help_text="Why it takes nothing new, in words.")
    labels = models.JSONField(default=dict, blank=True)
    secret = models.BinaryField(editable=False, help_text="Signs orders and reports; encrypted at rest.")
    generation = models.BigIntegerField(default=0, editable=False, help_text="Generation of the newest orders.")
    acknowledged_generation = models.BigIntegerField(default=0, editable=False)
    orders_digest = models.CharField(max_length=64, blank=True, editable=False)
    boot_id = models.CharField(max_length=36, blank=True, editable=False)
    report_sequence = models.BigIntegerField(default=0, editable=False)
    last_report_at = models.DateTimeField(null=True, blank=True, editable=False)
    report = models.JSONField(default=dict, blank=True, editable=False, help_text="Newest facts: cores, memory, load.")

    class Meta:
        ordering = ("name",)
        constraints = (
            models.UniqueConstraint(
                fields=("name",),
                condition=models.Q(removed_at=None),
                name="capacity_host_unique_name",
                violation_error_code="name",
                violation_error_message="There is a host of this name already.",
            ),
            models.CheckConstraint(
                condition=models.Q(state__in=("active", "cordoned", "draining", "lost")),
                name="capacity_host_known_state",
                violation_error_code="state",
                violation_error_message="The state must be active, cordoned, draining or lost.",
            ),
        )

    def __str__(self) -> str:
        return self.name

    @property
    def handle(self) -> str:
        """What addresses call it: its name, or its id once it is removed."""
        return self.name if self.removed_at is None else str(self.pk)

    def clean(self) -> None:
        require_labels(self.labels)


class Accelerator(Identified):
    """One accelerator of a host, as its agent reports it."""

    host = models.ForeignKey(Host, on_delete=models.CASCADE, related_name="accelerators")
    index = models.PositiveSmallIntegerField()
    uuid = models.CharField(max_length=80)
    name = models.CharField(max_length=120)
    memory_bytes = models.BigIntegerField("memory (bytes)")
    is_healthy = models.BooleanField(default=True)

    class Meta:
        ordering = ("host", "index")
        constraints = (
            models.UniqueConstraint(
                fields=("host", "index"),
                name="capacity_accelerator_unique_index",
                violation_error_code="index",
                violation_error_message="The host has an accelerator with this index already.",
            ),
            models.CheckConstraint(
                condition=models.Q(memory_bytes__gt=0),
                name="capacity_accelerator_positive_memory",
                violation_error_code="memory_bytes",
                violation_error_message="An accelerator has more than 0 bytes of memory.",
            ),
        )

    def __str__(self) -> str:
        return f"{self.host}:{self.index} {self.name}"
