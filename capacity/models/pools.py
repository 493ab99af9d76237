"""Models, the pools that sell them, and the versioned prices of a request."""

import math

from django.core.exceptions import ValidationError
from django.db import models
from django.db.models import Q

from capacity.models.hardware import HardwareType
from capacity.policy.guarantee import DEFAULT_CREDIT_TIERS, fault_of_tiers
from tenants.models import Identified, Removable, Tenant, WrittenOnce

BUILT_IN = ("", "embed", "vision")
"""Values of the built-in tiny model: the language model, the embedding model, and the vision-language model."""


def default_credit_tiers() -> list[list[float]]:
    """A pool's until somebody says otherwise."""
    return [list(tier) for tier in DEFAULT_CREDIT_TIERS]


class Model(Removable, Identified):
    """Something that can be served: where its weights are, and what is known of it."""

    class Artifact(models.TextChoices):
        TINY = "tiny", "Built-in tiny model"
        PATH = "path", "Local folder"
        HUB = "hub", "Hub id"
        NONE = "none", "No weights"

    slug = models.SlugField(max_length=80)
    name = models.CharField(max_length=200)
    artifact_kind = models.CharField(max_length=8, choices=Artifact.choices)
    artifact_value = models.CharField(max_length=500, blank=True)
    artifact_revision = models.CharField(max_length=100, blank=True)
    parameters = models.BigIntegerField(null=True, blank=True, help_text="Number of parameters, where known.")
    context_tokens = models.PositiveIntegerField(null=True, blank=True)

    class Meta:
        ordering = ("name",)
        constraints = (
            models.UniqueConstraint(
                fields=("slug",),
                condition=Q(removed_at=None),
                name="capacity_model_unique_slug",
                violation_error_code="slug",
                violation_error_message="A model with this slug already exists.",
            ),
            models.CheckConstraint(
                condition=Q(artifact_kind__in=("tiny", "none")) | ~Q(artifact_value=""),
                name="capacity_model_artifact_has_value",
                violation_error_code="artifact_value",
                violation_error_message="A local folder or hub id is needed for this kind of artifact.",
            ),
            models.CheckConstraint(
                condition=Q(artifact_kind__in=("tiny", "path", "hub", "none")),
                name="capacity_model_known_artifact",
                violation_error_code="artifact_kind",
                violation_error_message="The artifact must be tiny, path, hub or none.",
            ),
            models.CheckConstraint(
                condition=Q(parameters__isnull=True) | Q(parameters__gt=0),
                name="capacity_model_positive_parameters",
                violation_error_code="parameters",
                violation_error_message="The number of parameters must be positive, or empty where unknown.",
            ),
            models.CheckConstraint(
                condition=Q(context_tokens__isnull=True) | Q(context_tokens__gt=0),
                name="capacity_model_positive_context",
                violation_error_code="context_tokens",
                violation_error_message="The context length must be positive, or empty where unknown.",
            ),
        )

    def __str__(self) -> str:
        return self.name

    def clean(self) -> None:
        """A built-in model is one that there is. Raises ValidationError by field."""
        if self.artifact_kind == self.Artifact.TINY and self.artifact_value not in BUILT_IN:
            known = 'Leave it empty for the language model, or give "embed" or "vision" for one that takes images.'
            raise ValidationError({"artifact_value": known})


class Pool(Removable, Identified):
    """What is sold: a model with one reference price, service objectives, and oversell and N−1 rules.

    ``version`` is bumped by compare-and-swap by every sale and every change of what there is to sell.
    """

    slug = models.SlugField(max_length=80)
    name = models.CharField(max_length=120)
    model = models.ForeignKey(Model, on_delete=models.PROTECT, related_name="pools")
    is_public = models.BooleanField(default=True, help_text="Every tenant may use it; else only those listed.")
    tenants = models.ManyToManyField(Tenant, blank=True, related_name="pools")
    ttft_objective_ms = models.PositiveIntegerField("TTFT objective (ms)", default=1000)
    tpot_objective_ms = models.PositiveIntegerField("TPOT objective (ms)", default=50)
    tolerable_wait_s = models.FloatField(
        "tolerable wait (s)", default=5.0, help_text="A request may wait this long for admission."
    )
    slo_share = models.FloatField("SLO share", default=0.01, help_text="Share of requests that may wait longer (0..1).")
    oversell_factor = models.FloatField(default=1.0, help_text="MU/min sold per MU/min had.")
    keep_spare = models.BooleanField(default=True, help_text="N−1: keep the promise with one replica lost.")
    best_effort = models.BooleanField(
        "lends", default=True, help_text="What nobody has reserved, or its owner does not use, is lent as best effort."
    )
    adopts_calibrations = models.BooleanField(
        default=False, help_text="A calibration becomes the price by itself where its errors are small enough."
    )
    adoption_error_limit = models.FloatField(
        default=0.1, help_text="Mean relative error up to which that happens (0..1)."
    )
    credit_tiers = models.JSONField(
        default=default_credit_tiers,
        blank=True,
        help_text="Pairs [attainment below, share of the month's price given back] for what is sold from now on, e.g. "
        "[[0.999, 0.1], [0.99, 0.25]]. What was sold keeps its own. Empty: no credit.",
    )
    version = models.BigIntegerField(default=1, editable=False)

    class Meta:
        ordering = ("name",)
        constraints = (
            models.UniqueConstraint(
                fields=("slug",),
                condition=Q(removed_at=None),
                name="capacity_pool_unique_slug",
                violation_error_code="slug",
                violation_error_message="A pool with this slug already exists.",
            ),
            models.CheckConstraint(
                condition=Q(oversell_factor__gte=1.0),
                name="capacity_pool_oversell_at_least_one",
                violation_error_code="oversell_factor",
                violation_error_message="The oversell factor must be at least 1.",
            ),
            models.CheckConstraint(
                condition=Q(slo_share__gt=0.0) & Q(slo_share__lt=1.0),
                name="capacity_pool_slo_share_between_0_and_1",
                violation_error_code="slo_share",
                violation_error_message="The SLO share must lie between 0 and 1.",
            ),
            models.CheckConstraint(
                condition=Q(tolerable_wait_s__gt=0.0),
                name="capacity_pool_positive_wait",
                violation_error_code="tolerable_wait_s",
                violation_error_message="The tolerable wait must be positive.",
            ),
            models.CheckConstraint(
                condition=Q(ttft_objective_ms__gt=0),
                name="capacity_pool_positive_ttft",
                violation_error_code="ttft_objective_ms",
                violation_error_message="The objective for the time to first token must be positive.",
            ),
            models.CheckConstraint(
                condition=Q(tpot_objective_ms__gt=0),
                name="capacity_pool_positive_tpot",
                violation_error_code="tpot_objective_ms",
                violation_error_message="The objective for the time per output token must be positive.",
            ),
            models.CheckConstraint(
                condition=Q(adoption_error_limit__gt=0.0) & Q(adoption_error_limit__lt=1.0),
                name="capacity_pool_adoption_limit_between_0_and_1",
                violation_error_code="adoption_error_limit",
                violation_error_message="The limit of the error must lie between 0 and 1.",
            ),
        )

    def __str__(self) -> str:
        return self.name

    def clean(self) -> None:
        """Credit tiers are some. Raises ValidationError by field."""
        # An empty field of a form is no value.
        self.credit_tiers = self.credit_tiers or []
        if fault := fault_of_tiers(self.credit_tiers):
            raise ValidationError({"credit_tiers": fault})


LARGEST_PRICE = 1e9
"""Of 1,000 MU, in money: far beyond any, and what all requests together cost is still a number."""


class CostProfile(WrittenOnce, Identified):
    """A version of a pool's price of a request, in MU. Never edited: a new version replaces it from a date. One that is
    not in force yet can be withdrawn; it is never charged then.

    The terms are those of ``capacity.policy.cost``; one reference replica supplies ``replica_mu_per_min`` at its knee.
    """

    mutable_fields = frozenset({"withdrawn_at", "updated_at"})

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
    replica_mu_per_min = models.FloatField("MU/min per replica", default=100.0)
    price_per_1000_mu = models.FloatField(
        "price per 1,000 MU",
        null=True,
        blank=True,
        help_text="Money for what no reservation pays for, in the installation's currency. Empty: it costs nothing.",
    )
    notes = models.TextField(blank=True)
    withdrawn_at = models.DateTimeField(null=True, blank=True, editable=False)

    class Meta:
        ordering = ("pool", "-version")
        constraints = (
            models.CheckConstraint(
                condition=Q(withdrawn_at=None) | Q(withdrawn_at__lt=models.F("effective_from")),
                name="capacity_costprofile_withdrawn_before_force",
                violation_error_code="withdrawn_at",
                violation_error_message="A price that is in force cannot be withdrawn.",
            ),
            models.UniqueConstraint(
                fields=("pool", "version"),
                name="capacity_costprofile_unique_version",
                violation_error_code="version",
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
                violation_error_code="cached_factor",
                violation_error_message="The cached factor must lie between 0 and 1.",
            ),
            models.CheckConstraint(
                condition=Q(replica_mu_per_min__gt=0),
                name="capacity_costprofile_positive_supply",
                violation_error_code="replica_mu_per_min",
                violation_error_message="A replica must supply more than 0 MU/min.",
            ),
            models.CheckConstraint(
                condition=Q(price_per_1000_mu__isnull=True) | Q(price_per_1000_mu__gte=0),
                name="capacity_costprofile_money_not_negative",
                violation_error_code="price_per_1000_mu",
                violation_error_message="The price of 1,000 MU cannot be negative.",
            ),
            models.CheckConstraint(
                condition=Q(version__gte=1),
                name="capacity_costprofile_version_from_1",
                violation_error_code="version",
                violation_error_message="Versions count from 1.",
            ),
            models.CheckConstraint(
                condition=Q(alpha__gt=0) | Q(beta__gt=0) | Q(base__gt=0),
                name="capacity_costprofile_not_free",
                violation_error_code="alpha",
                violation_error_message="A request must cost something: set base, alpha or beta above 0.",
            ),
        )

    def __str__(self) -> str:
        return f"{self.pool} v{self.version}"

    def clean(self) -> None:
        """The two JSON columns have the shape that ``capacity.policy.cost`` takes. Raises ValidationError by field."""
        errors: dict[str, str] = {}
        for name in ("base", "alpha", "beta", "gamma", "epsilon", "replica_mu_per_min"):
            if not _is_number(getattr(self, name)):
                errors[name] = "Give a finite number."
        if self.price_per_1000_mu is not None and not _is_number(self.price_per_1000_mu):
            errors["price_per_1000_mu"] = "Give a finite number, or nothing."
        elif (self.price_per_1000_mu or 0.0) > LARGEST_PRICE:
            errors["price_per_1000_mu"] = f"Give at most {LARGEST_PRICE:,.0f}."
        if not _is_price_list(self.modalities):
            errors["modalities"] = (
                'Give MU per unit by modality, e.g. {"image_token": 0.001}; no price may be negative.'
            )
        if not _are_tiers(self.long_input_tiers):
            errors["long_input_tiers"] = (
                "Give pairs [from input tokens, factor] with rising tokens, and factors of at least 1 that never fall."
            )
        if errors:
            raise ValidationError(errors)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_price_list(prices: object) -> bool:
    return isinstance(prices, dict) and all(_is_number(price) and price >= 0 for price in prices.values())


def _are_tiers(tiers: object) -> bool:
    if not isinstance(tiers, list | tuple) or not all(isinstance(tier, list | tuple) for tier in tiers):
        return False
    if not all(len(tier) == 2 and _is_number(tier[0]) and _is_number(tier[1]) and tier[1] >= 1 for tier in tiers):
        return False
    starts, factors = [tier[0] for tier in tiers], [tier[1] for tier in tiers]
    return all(start > 0 for start in starts) and starts == sorted(set(starts)) and factors == sorted(factors)
