"""What one request was, cost and took: its receipt."""

from __future__ import annotations

import dataclasses
import datetime
from typing import Any

from django.conf import settings
from drf_spectacular.utils import extend_schema_field
from rest_framework import serializers

from capacity.api.prices import PriceSerializer
from capacity.models import UsageRecord
from capacity.refusals import word_on
from capacity.usage.charges import limits_met, why_refused
from capacity.usage.reads import COLUMNS, PLATFORM_COLUMNS, cost_of_record, money_of_record, price_of_record


class UsageSerializer(serializers.ModelSerializer[UsageRecord]):
    """One request, as it was booked."""

    units = serializers.DictField(child=serializers.FloatField(), help_text="Modality units by kind.")

    class Meta:
        model = UsageRecord
        fields: tuple[str, ...] = COLUMNS
        read_only_fields: tuple[str, ...] = fields


class PlatformUsageSerializer(UsageSerializer):
    class Meta(UsageSerializer.Meta):
        fields = PLATFORM_COLUMNS
        read_only_fields = fields


class AttemptSerializer(serializers.Serializer[Any]):
    """One try at one replica. Only the last is billed."""

    started_at = serializers.DateTimeField()
    ended_at = serializers.DateTimeField(allow_null=True)
    outcome = serializers.CharField(allow_blank=True)
    output_tokens = serializers.IntegerField()


class PlatformAttemptSerializer(AttemptSerializer):
    replica = serializers.CharField(help_text="Id of the replica.")


class TimesSerializer(serializers.Serializer[Any]):
    """How long the request took, in ms from its admission."""

    routed_ms = serializers.FloatField(allow_null=True, help_text="Until a replica was chosen.")
    first_byte_ms = serializers.FloatField(allow_null=True, help_text="Until the answer began.")
    duration_ms = serializers.FloatField()


class CostSerializer(serializers.Serializer[Any]):
    """What each term of the price came to, in MU. ``total`` is their sum."""

    base = serializers.FloatField()
    prefill = serializers.FloatField()
    prefill_attention = serializers.FloatField()
    cached = serializers.FloatField()
    decode = serializers.FloatField()
    decode_attention = serializers.FloatField()
    modalities = serializers.DictField(child=serializers.FloatField(), help_text="By modality.")
    factor = serializers.FloatField(help_text="Of the long-input tier; every token term includes it.")
    unpriced = serializers.ListField(child=serializers.CharField(), help_text="Modalities that had no price.")
    total = serializers.FloatField()
    money = serializers.FloatField(
        allow_null=True, help_text="What that is in money; 0 inside a reservation, null where the price names none."
    )
    currency = serializers.CharField(help_text="The installation's.")
    price = PriceSerializer(help_text="The version that the request was priced with.")


class LimitMetSerializer(serializers.Serializer[Any]):
    """A limit or a reservation that the request met, in the unit of ``kind``."""

    id = serializers.CharField(help_text="Of the limit, or of the reservation.")
    holder = serializers.ChoiceField(
        ("tenant", "member", "key", "reservation", "allowance"),
        help_text="Whose limit it is, or that it is a reservation's bucket, or the allowance of one for what requests "
        "that still run can take beyond their estimates.",
    )
    kind = serializers.CharField(help_text="As in the list of limits.")
    model = serializers.CharField(allow_blank=True, help_text="The model that it speaks of; empty: every one.")
    value = serializers.FloatField(help_text="The limit; of a reservation what its bucket holds.")
    asked = serializers.FloatField(
        help_text="What the request was estimated to take; of a reservation whose allowance had no room for it, the "
        "most that it could take in a minute."
    )
    charged = serializers.FloatField(help_text="What was taken when it came; 0 where there was no room for it.")
    settled = serializers.FloatField(
        allow_null=True, help_text="What it took in the end. Null: the price in money is not known any more."
    )
    remaining = serializers.FloatField(
        allow_null=True, help_text="What was left then, the charge taken, as far as the gateway knew."
    )


class WhyRefusedSerializer(serializers.Serializer[Any]):
    """Why a request was refused."""

    reason = serializers.CharField(help_text="As its answer told it in x-penstock-reason.")
    was_admitted = serializers.BooleanField(
        help_text="True: the limits let it through, and no replica took it. False: it is in no books, and its receipt "
        "is kept for an hour, of the newest 200 of a tenant."
    )
    message = serializers.CharField(allow_blank=True)
    retry_after_s = serializers.FloatField(allow_null=True, help_text="The time that was promised.")


class ReceiptSerializer(UsageSerializer):
    """One request with its estimate, the limits that it met, its cost term by term, its attempts and its times."""

    cost = serializers.SerializerMethodField(
        help_text="Null where nothing was used and so nothing was billed, or where the pool is gone."
    )
    limits = serializers.SerializerMethodField(
        help_text="What it was charged to, and what had no room for it. Empty for requests of before this was kept."
    )
    refusal = serializers.SerializerMethodField(help_text="Why it was refused; null where it was not.")
    attempts = serializers.SerializerMethodField()
    times = serializers.SerializerMethodField()

    class Meta(UsageSerializer.Meta):
        fields = (
            *UsageSerializer.Meta.fields,
            "estimated_input_tokens",
            "estimated_output_tokens",
            "limits",
            "refusal",
            "cost",
            "attempts",
            "times",
        )
        read_only_fields = fields

    @extend_schema_field(CostSerializer(allow_null=True))
    def get_cost(self, record: UsageRecord) -> Any:
        price = price_of_record(record)
        terms = cost_of_record(record, price) if price else None
        if price is None or terms is None:
            return None
        money = money_of_record(record, price)
        told = {"total": terms.total, "money": money, "currency": settings.PENSTOCK_CURRENCY, "price": price}
        return CostSerializer({**dataclasses.asdict(terms), **told}).data

    @extend_schema_field(LimitMetSerializer(many=True))
    def get_limits(self, record: UsageRecord) -> Any:
        needs_money = any(charge[2].startswith("money_") for charge in record.charges)
        money = money_of_record(record, price_of_record(record)) if needs_money else None
        return LimitMetSerializer(limits_met(record, money), many=True).data

    @extend_schema_field(WhyRefusedSerializer(allow_null=True))
    def get_refusal(self, record: UsageRecord) -> Any:
        why = why_refused(record, self.context.get("refusal") or word_on(record))
        return None if why is None else WhyRefusedSerializer(why).data

    @extend_schema_field(AttemptSerializer(many=True))
    def get_attempts(self, record: UsageRecord) -> Any:
        return AttemptSerializer(_attempts(record), many=True).data

    @extend_schema_field(TimesSerializer)
    def get_times(self, record: UsageRecord) -> Any:
        def ms(at: datetime.datetime | None) -> float | None:
            return None if at is None else (at - record.admitted_at).total_seconds() * 1000

        times = {"routed_ms": record.routed_at, "first_byte_ms": record.first_byte_at, "duration_ms": record.ended_at}
        return TimesSerializer({name: ms(at) for name, at in times.items()}).data


class PlatformReceiptSerializer(ReceiptSerializer):
    class Meta(ReceiptSerializer.Meta):
        fields = (
            "tenant_id",
            *ReceiptSerializer.Meta.fields,
            "revision_id",
            "replica_id",
            "gateway",
            "error",
        )
        read_only_fields = fields

    @extend_schema_field(PlatformAttemptSerializer(many=True))
    def get_attempts(self, record: UsageRecord) -> Any:
        return PlatformAttemptSerializer(_attempts(record), many=True).data


def _attempts(record: UsageRecord) -> list[dict[str, Any]]:
    def moment(unix_s: float | None) -> datetime.datetime | None:
        return datetime.datetime.fromtimestamp(unix_s, datetime.UTC) if unix_s else None

    return [
        {
            "replica": attempt["replica"],
            "started_at": moment(attempt["started_at"]),
            "ended_at": moment(attempt.get("ended_at")),
            "outcome": attempt.get("outcome", ""),
            "output_tokens": attempt.get("output_tokens", 0),
        }
        for attempt in record.attempts
    ]
