"""The ledger's answers and the calculator as the REST API tells them; what a sale that does not fit is refused with."""

from __future__ import annotations

import datetime
from collections.abc import Callable
from typing import Any, TypeVar

from drf_spectacular.utils import OpenApiParameter
from rest_framework import serializers

from capacity.api.base import NamesField, NumberField
from capacity.policy.calculator import Shape
from capacity.policy.ledger import Answer, Piece, Shortage
from capacity.services import CannotSell
from tenants.api.problems import Conflict, ProblemSerializer

T = TypeVar("T")
VERDICTS = ("fits", "without_spare", "short")


class ShortageSerializer(serializers.Serializer[Any]):
    """A time in which MU/min are missing."""

    starts_at = serializers.DateTimeField()
    ends_at = serializers.DateTimeField(allow_null=True, help_text="null: from then on.")
    mu_per_min = serializers.FloatField(help_text="Missing, at most.")


class PieceSerializer(serializers.Serializer[Any]):
    """A time in which nothing changes of what is sold and what can be."""

    starts_at = serializers.DateTimeField()
    ends_at = serializers.DateTimeField(allow_null=True, help_text="null: from then on.")
    sold = serializers.FloatField(help_text="MU/min.")
    could_have = serializers.FloatField(help_text="MU/min of all replicas that can run.")
    sellable = serializers.FloatField(help_text="MU/min that the pool's rules let be sold of it.")
    sellable_without_spare = serializers.FloatField(help_text="The same without N−1.")
    replicas = serializers.IntegerField(help_text="That can run.")
    accelerators = serializers.IntegerField(help_text="Of these replicas.")
    limits = serializers.ListField(child=serializers.CharField(), help_text="Why it is not more.")


class AnswerSerializer(serializers.Serializer[Any]):
    """Whether it can be sold, and why."""

    verdict = serializers.ChoiceField(VERDICTS, allow_null=True, help_text="null where no MU/min were asked for.")
    reason = serializers.CharField(allow_blank=True)
    headroom_mu_per_min = serializers.FloatField(help_text="What could be sold over the whole time.")
    shortages = ShortageSerializer(many=True)
    pieces = PieceSerializer(many=True)
    inputs = serializers.DictField(help_text="All that the answer was made of.")


class SaleProblemSerializer(ProblemSerializer):
    """A sale that does not fit: how much is missing, and when. Or another conflict, without these."""

    verdict = serializers.ChoiceField(VERDICTS, required=False)
    headroom_mu_per_min = serializers.FloatField(required=False)
    shortages = ShortageSerializer(many=True, required=False)


class DoesNotFit(Conflict):
    """The ledger said no; ``more`` says how much is missing."""

    default_code = "does_not_fit"

    def __init__(self, answer: Answer) -> None:
        super().__init__(answer.reason)
        self.hint = (
            "Ask for less or for another time, raise what can be had, or, as an operator who answers for it, send "
            "override_reason: it is sold and stays marked as overcommitted."
        )
        told = told_answer(answer)
        self.more = {name: told[name] for name in ("verdict", "headroom_mu_per_min", "shortages")}


def asked(call: Callable[[], T]) -> T:
    """``call()``, with what the ledger refuses as a 409. Raises DoesNotFit."""
    try:
        return call()
    except CannotSell as error:
        raise DoesNotFit(error.answer) from None


def told_answer(answer: Answer) -> dict[str, Any]:
    """As ``AnswerSerializer`` has it."""
    return {
        "verdict": answer.verdict,
        "reason": answer.reason,
        "headroom_mu_per_min": answer.headroom,
        "shortages": [told_shortage(one) for one in answer.shortages],
        "pieces": [told_piece(one) for one in answer.pieces],
        "inputs": dict(answer.inputs),
    }


def told_shortage(one: Shortage) -> dict[str, Any]:
    return {"starts_at": moment(one.starts_at), "ends_at": moment(one.ends_at), "mu_per_min": one.mu_per_min}


def told_piece(one: Piece) -> dict[str, Any]:
    """As ``PieceSerializer`` has it."""
    plain = ("sold", "could_have", "sellable", "sellable_without_spare", "replicas", "accelerators")
    return {
        "starts_at": moment(one.starts_at),
        "ends_at": moment(one.ends_at),
        **{name: getattr(one, name) for name in plain},
        "limits": list(one.limits),
    }


def moment(at: float | None) -> str | None:
    """UNIX seconds as ISO time in UTC."""
    if at is None:
        return None
    return datetime.datetime.fromtimestamp(at, datetime.UTC).isoformat().replace("+00:00", "Z")


class ShapeFields(serializers.Serializer[Any]):
    """A typical request, and either how many of them a minute or how many MU/min."""

    input_tokens = serializers.IntegerField(min_value=0, max_value=10**9, default=0)
    cached_share = NumberField(
        min_value=0, max_value=1, default=0.0, help_text="Share of the input found in the prefix cache (0..1)."
    )
    output_tokens = serializers.IntegerField(min_value=0, max_value=10**9, default=0)
    units = NamesField(
        child=NumberField(min_value=0), default=dict, help_text='Modality units, e.g. {"image_token": 600}.'
    )
    requests_per_min = NumberField(min_value=0, required=False)
    mu_per_min = NumberField(min_value=0, required=False)

    def validate(self, attrs: dict[str, Any]) -> dict[str, Any]:
        if ("requests_per_min" in attrs) == ("mu_per_min" in attrs):
            raise serializers.ValidationError({"requests_per_min": ["Give this or mu_per_min, and only one of them."]})
        return attrs


def shape_of(given: dict[str, Any]) -> Shape:
    """Take the shape out of ``given``, as ``ShapeFields`` has read it."""
    return Shape(**{name: given.pop(name) for name in ("input_tokens", "cached_share", "output_tokens", "units")})


class TenantDemandSerializer(serializers.Serializer[Any]):
    """What it comes to."""

    mu_per_request = serializers.FloatField()
    requests_per_min = serializers.FloatField()
    mu_per_min = serializers.FloatField()


class DemandSerializer(TenantDemandSerializer):
    """What it comes to, and what stands behind it by the pool's rules."""

    replicas = serializers.IntegerField(help_text="That keep it warm, N−1 included.")
    accelerators = serializers.IntegerField()


AVAILABILITY = [
    OpenApiParameter("mu_per_min", float, description="Ask whether so much can be sold; else what can be is told."),
    OpenApiParameter("starts_at", datetime.datetime, description="ISO time; now, where it is not given."),
    OpenApiParameter("ends_at", datetime.datetime, description="ISO time; without it there is no end."),
]


class AvailabilityQuery(serializers.Serializer[Any]):
    """What ``availability`` is asked."""

    mu_per_min = NumberField(required=False)
    starts_at = serializers.DateTimeField(required=False)
    ends_at = serializers.DateTimeField(required=False)

    def validate_mu_per_min(self, value: float) -> float:
        if value <= 0:
            raise serializers.ValidationError("Give more than 0 MU/min.")
        return value
