"""Prices of pools as the REST API reads and tells them."""

from __future__ import annotations

from typing import Any

from django.utils import timezone
from drf_spectacular.utils import extend_schema_field
from rest_framework import serializers

from capacity.api.base import NamedField, NamesField, NumberField
from capacity.models import CostProfile, HardwareType
from capacity.policy import cost
from capacity.selectors import profiles_in_force

COEFFICIENTS = ("base", "alpha", "beta", "gamma", "epsilon", "cached_factor", "modalities", "long_input_tiers")


class PriceSerializer(serializers.ModelSerializer[CostProfile]):
    """What a request costs, in MU: the coefficients of one version of a pool's price."""

    modalities = serializers.DictField(child=serializers.FloatField(), read_only=True, help_text="MU per unit.")
    long_input_tiers = serializers.ListField(
        child=serializers.ListField(child=serializers.FloatField()),
        read_only=True,
        help_text="Pairs [from input tokens, factor].",
    )

    class Meta:
        model = CostProfile
        fields: tuple[str, ...] = ("version", "effective_from", "calibrated", *COEFFICIENTS, "price_per_1000_mu")
        read_only_fields: tuple[str, ...] = fields


class ProfileSerializer(PriceSerializer):
    """A version of a pool's price, and the hardware and supply that it was made for."""

    hardware_type = serializers.SlugRelatedField[HardwareType](slug_field="slug", read_only=True)

    class Meta(PriceSerializer.Meta):
        fields = (
            "id",
            *PriceSerializer.Meta.fields,
            "hardware_type",
            "replica_mu_per_min",
            "notes",
            "created_at",
            "withdrawn_at",
        )
        read_only_fields = fields


class CoefficientFields(serializers.Serializer[Any]):
    """The coefficients of a price, in MU."""

    base = NumberField(min_value=0, default=0.0, help_text="MU per request.")
    alpha = NumberField(min_value=0, help_text="MU per uncached input token.")
    beta = NumberField(min_value=0, help_text="MU per output token.")
    gamma = NumberField(min_value=0, default=0.0, help_text="MU per output token × context token.")
    epsilon = NumberField(min_value=0, default=0.0, help_text="MU per input token squared.")
    cached_factor = NumberField(
        min_value=0, max_value=1, default=0.1, help_text="Share of alpha charged for a cached input token."
    )
    modalities = NamesField(
        child=NumberField(min_value=0), default=dict, help_text='MU per unit by modality, e.g. {"image_token": 0.001}.'
    )
    long_input_tiers = serializers.ListField(
        child=serializers.ListField(child=NumberField(min_value=1), min_length=2, max_length=2),
        default=list,
        help_text="Pairs [from input tokens, factor] with rising tokens, and factors that never fall.",
    )
    calibrated = serializers.BooleanField(default=False, help_text="Measured, not a default from size and hardware.")


class NewProfile(CoefficientFields):
    """A pool's next price."""

    hardware_type = NamedField(slug_field="slug", queryset=HardwareType.objects.all(), help_text="Id or slug.")
    replica_mu_per_min = NumberField(default=100.0, help_text="What one reference replica supplies at its knee.")
    price_per_1000_mu = NumberField(
        min_value=0,
        allow_null=True,
        required=False,
        help_text="Money, in the installation's currency, for what no reservation pays for. Null: it costs nothing. "
        "Left out: as before.",
    )
    effective_from = serializers.DateTimeField(allow_null=True, default=None, help_text="Now, where it is not given.")
    notes = serializers.CharField(allow_blank=True, default="")


def price_of(given: dict[str, Any]) -> cost.CostProfile:
    """Take the coefficients out of ``given``, as ``CoefficientFields`` has read it.

    Raises ValidationError at ``long_input_tiers``: whether factors fall is all that the fields have not looked at.
    """
    terms = {name: given.pop(name) for name in (*COEFFICIENTS, "calibrated")}
    try:
        return cost.CostProfile(version=1, **terms)
    except ValueError as error:
        raise serializers.ValidationError({"long_input_tiers": [str(error)]}) from error


class PricedSerializer(serializers.Serializer[Any]):
    """Adds to a pool the price in force; the view's ``prices`` holds those of all pools."""

    price = serializers.SerializerMethodField(help_text="The price in force; null until the pool has one.")

    @extend_schema_field(PriceSerializer(allow_null=True))
    def get_price(self, pool: Any) -> Any:
        found = self.context["view"].prices.get(pool.pk)
        return PriceSerializer(found).data if found else None


class PricesMixin:
    """``prices``: the profiles in force by pool id, read once for a request."""

    _prices: dict[Any, CostProfile] | None = None

    @property
    def prices(self) -> dict[Any, CostProfile]:
        if self._prices is None:
            self._prices = profiles_in_force(at=timezone.now())
        return self._prices
