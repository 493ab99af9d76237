"""Models, the pools that sell them, and the versioned prices of a request."""

from django.db import models
from django.db.models import Q

from capacity.models.hardware import HardwareType
from tenants.models import Identified, Tenant


class Model(Identified):
    """Something that can be served: where its weights are, and what is known of it."""

    class Artifact(models.TextChoices):
        TINY = "tiny", "Built-in tiny model"
        PATH = "path", "Local folder"
        HUB = "hub", "Hub id"
        NONE = "none", "No weights"

    slug = models.SlugField(max_length=80, unique=True)
    name = models.CharField(max_length=200)
    artifact_kind = models.CharField(max_length=8, choices=Artifact.choices)
    artifact_value = models.CharField(max_length=500, blank=True)
    artifact_revision = models.CharField(max_length=100, blank=True)
    parameters = models.BigIntegerField(null=True, blank=True, help_text="Number of parameters, where known.")
    context_tokens = models.PositiveIntegerField(null=True, blank=True)

    class Meta:
        ordering = ("name",)
        constraints = (
            models.CheckConstraint(
                condition=Q(artifact_kind__in=("tiny", "none")) | ~Q(artifact_value=""),
                name="capacity_model_artifact_has_value",
                violation_error_message="A local folder or hub id is needed for this kind of artifact.",
            ),
        )

    def __str__(self) -> str:
        return self.name


class Pool(Identified):
    """What is sold: a model with one reference price, service objectives, and oversell and N−1 rules.

    ``version`` is bumped by compare-and-swap by every sale and every change of what there is to sell.
    """

    slug = models.SlugField(max_length=80, unique=True)
    name = models.CharField(max_length=120)
    model = models.ForeignKey(Model, on_delete=models.PROTECT, related_name="pools")
    is_public = models.BooleanField(default=True, help_text="Every tenant may use it; else only those listed.")
    tenants = models.ManyToManyField(Tenant, blank=True, related_name="pools")
    ttft_objective_ms = models.PositiveIntegerField(default=1000)
    tpot_objective_ms = models.PositiveIntegerField(default=50)
    tolerable_wait_s = models.FloatField(default=5.0, help_text="A request may wait this long for admission.")
    slo_share = models.FloatField(default=0.01, help_text="Share of requests that may wait longer (0..1).")
    oversell_factor = models.FloatField(default=1.0, help_text="MU/min sold per MU/min had.")
    keep_spare = models.BooleanField(default=True, help_text="N−1: keep the promise with one replica lost.")
    version = models.BigIntegerField(default=1, editable=False)

    class Meta:
        ordering = ("name",)
        constraints = (
            models.CheckConstraint(
                condition=Q(oversell_factor__gte=1.0),
                name="capacity_pool_oversell_at_least_one",
                violation_error_message="The oversell factor must be at least 1.",
            ),
            models.CheckConstraint(
                condition=Q(slo_share__gt=0.0) & Q(slo_share__lt=1.0),
                name="capacity_pool_slo_share_between_0_and_1",
                violation_error_message="The SLO share must lie between 0 and 1.",
            ),
            models.CheckConstraint(
                condition=Q(tolerable_wait_s__gt=0.0),
                name="capacity_pool_positive_wait",
                violation_error_message="The tolerable wait must be positive.",
            ),
        )

    def __str__(self) -> str:
        return self.name


class CostProfile(Identified):
    """A version of a pool's price of a request, in MU. Never edited: a new version replaces it from a date.

    The terms are those of ``capacity.policy.cost``; one reference replica supplies ``replica_mu_per_min`` at its knee.
    """

    pool = models.ForeignKey(Pool, on_delete=models.PROTECT, related_name="profiles")
    version = models.PositiveIntegerField()
    hardware_type = models.ForeignKey(HardwareType, on_delete=models.PROTECT, related_name="profiles")
    effective_from = models.DateTimeField()
    calibrated = models.BooleanField(default=False, help_text="Measured, not a default from size and hardware.")
    base = models.FloatField(default=0.0, help_text="MU per request.")
    alpha = models.FloatField(help_text="MU per uncached input token.")
    beta = models.FloatField(help_text="MU per output token.")
    gamma = models.FloatField(default=0.0, help_text="MU per output token × context token.")
    epsilon = models.FloatField(default=0.0, help_text="MU per input token squared.")
    cached_factor = models.FloatField(default=0.1, help_text="Share of alpha charged for a cached input token.")
    modalities = models.JSONField(default=dict, blank=True, help_text="MU per unit, by modality.")
    long_input_tiers = models.JSONField(default=list, blank=True, help_text="Pairs [from input tokens, factor].")
    replica_mu_per_min = models.FloatField(default=100.0)
    notes = models.TextField(blank=True)

    class Meta:
        ordering = ("pool", "-version")
        constraints = (
            models.UniqueConstraint(
                fields=("pool", "version"),
                name="capacity_costprofile_unique_version",
                violation_error_message="The pool has a profile with this version already.",
            ),
            models.CheckConstraint(
                condition=Q(base__gte=0, alpha__gte=0, beta__gte=0, gamma__gte=0, epsilon__gte=0),
                name="capacity_costprofile_not_negative",
                violation_error_message="No coefficient may be negative.",
            ),
            models.CheckConstraint(
                condition=Q(cached_factor__gte=0, cached_factor__lte=1),
                name="capacity_costprofile_cached_factor_0_to_1",
                violation_error_message="The cached factor must lie between 0 and 1.",
            ),
            models.CheckConstraint(
                condition=Q(replica_mu_per_min__gt=0),
                name="capacity_costprofile_positive_supply",
                violation_error_message="A replica must supply more than 0 MU/min.",
            ),
        )

    def __str__(self) -> str:
        return f"{self.pool} v{self.version}"


class Reservation(Identified):
    """A promise: MU/min of a pool, guaranteed to a tenant from ``starts_at`` to ``ends_at``."""

    class State(models.TextChoices):
        DRAFT = "draft", "Draft"
        ACTIVE = "active", "Active"
        ENDED = "ended", "Ended"
        CANCELLED = "cancelled", "Cancelled"

    tenant = models.ForeignKey(Tenant, on_delete=models.PROTECT, related_name="reservations")
    pool = models.ForeignKey(Pool, on_delete=models.PROTECT, related_name="reservations")
    profile = models.ForeignKey(CostProfile, on_delete=models.PROTECT, related_name="reservations")
    mu_per_min = models.FloatField()
    starts_at = models.DateTimeField()
    ends_at = models.DateTimeField(null=True, blank=True)
    state = models.CharField(max_length=10, choices=State.choices, default=State.DRAFT)

    class Meta:
        ordering = ("-starts_at",)
        constraints = (
            models.CheckConstraint(
                condition=Q(mu_per_min__gt=0),
                name="capacity_reservation_positive",
                violation_error_message="A reservation must be more than 0 MU/min.",
            ),
            models.CheckConstraint(
                condition=Q(ends_at__isnull=True) | Q(ends_at__gt=models.F("starts_at")),
                name="capacity_reservation_ends_after_start",
                violation_error_message="A reservation must end after it starts.",
            ),
            models.CheckConstraint(
                condition=Q(state__in=("draft", "active", "ended", "cancelled")),
                name="capacity_reservation_known_state",
                violation_error_message="The state must be draft, active, ended or cancelled.",
            ),
        )

    def __str__(self) -> str:
        return f"{self.mu_per_min:g} MU/min of {self.pool} for {self.tenant}"
