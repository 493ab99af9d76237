"""What a receipt says of the limits and reservations that a request met."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from capacity.models import UsageRecord
from capacity.usage.lines import Charge, Refusal

_NEVER_SETTLED = "gateway_lost"


@dataclass(frozen=True, slots=True)
class LimitMet:
    """One limit or reservation, in the unit of ``kind``.

    ``asked`` is what the request was estimated to take, ``charged`` what was taken for it when it came (0 where there
    was no room), ``settled`` what it took in the end; None while nobody knows. ``remaining``: what was left then, the
    charge taken; None: the gateway did not know.
    """

    id: str
    holder: str
    kind: str
    model: str
    value: float
    asked: float
    charged: float
    settled: float | None
    remaining: float | None


@dataclass(frozen=True, slots=True)
class WhyRefused:
    """``message`` and ``retry_after_s`` are known for an hour."""

    reason: str
    was_admitted: bool
    message: str
    retry_after_s: float | None


def limits_met(record: UsageRecord, money: float | None) -> list[LimitMet]:
    """The limits and reservations of a request; ``money`` is what it cost, None where that is not known. Empty for
    requests that were booked before this was kept."""
    charges: Sequence[Charge] = msgspec.convert(record.charges, tuple[Charge, ...])
    return [
        LimitMet(
            # Behind the id: the pool and the period, where each has a bucket of its own.
            id=charge.limit.partition(".")[0],
            holder=charge.holder,
            kind=charge.kind,
            model=charge.model,
            value=charge.value,
            asked=charge.amount,
            charged=charge.amount if charge.is_charged else 0.0,
            settled=_settled(charge, record, money) if charge.is_charged else 0.0,
            remaining=charge.left,
        )
        for charge in charges
    ]


def _settled(charge: Charge, record: UsageRecord, money: float | None) -> float | None:
    """As the gateway settled it (``serving.policy.admission.actual_amounts``)."""
    is_budget = charge.kind.endswith(("_per_day", "_per_month"))
    if record.outcome == _NEVER_SETTLED and not is_budget:
        # The estimate stands: it drains with time. Budgets go by the books.
        return charge.amount
    if charge.kind == "tokens_per_min":
        return float(record.input_tokens + record.output_tokens)
    if charge.kind.startswith("mu_"):
        return record.actual_mu
    if charge.kind.startswith("money_"):
        return money
    return charge.amount


def why_refused(record: UsageRecord, refusal: Refusal | None) -> WhyRefused | None:
    """Why the request was refused; None where it was not. ``refusal``: the gateway's own word, while that is kept."""
    if refusal is not None:
        return WhyRefused(refusal.reason, refusal.was_admitted, refusal.message, refusal.retry_after_s)
    if record.outcome != "refused" or not record.error:
        return None
    return WhyRefused(record.error, True, "", None)
