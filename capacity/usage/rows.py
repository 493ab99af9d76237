"""From a pair of journal lines to the row of the books, and from rows to sums. No query is made here."""

import datetime
import math
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec

from capacity.models import UsageRecord, UsageRollup
from capacity.usage.batch import Pair
from capacity.usage.lines import MOST_TOKENS, Refusal

FINE = frozenset({"completed", "client_closed"})
"""Outcomes that are no failure of the platform."""

RESERVED = "reserved"
"""The service class of what a reservation pays for."""

_LARGEST = 2**63 - 1


class RowError(ValueError):
    """The pair cannot become a row; the message says why."""


def usage_record(pair: Pair, *, gateway: str) -> UsageRecord:
    """The row of one request. Raises RowError.

    Texts are cut to their columns. An end before the admission (the gateway's clock was set back) becomes the moment
    of admission: that is no reason to doubt the tokens.
    """
    admit, end = pair
    _require_sound(pair)
    try:
        return UsageRecord(
            id=uuid.UUID(admit.id),
            client_request_id=_text(admit.client_request_id, 200),
            tenant_id=uuid.UUID(admit.tenant),
            key_id=uuid.UUID(admit.key),
            pool_id=uuid.UUID(admit.pool),
            deployment_id=uuid.UUID(admit.deployment),
            revision_id=uuid.UUID(admit.revision),
            replica_id=uuid.UUID(end.replica) if end.replica else None,
            model=_text(admit.model, 200),
            dialect=_text(admit.dialect, 20),
            service_class=_text(admit.service_class, 12),
            stream=admit.stream,
            profile_version=admit.profile_version,
            estimated_mu=admit.estimated_mu,
            actual_mu=end.actual_mu,
            estimated_input_tokens=admit.estimated.input_tokens,
            estimated_output_tokens=admit.estimated.output_tokens,
            input_tokens=end.usage.input_tokens,
            cached_tokens=end.usage.cached_tokens,
            output_tokens=end.usage.output_tokens,
            units=end.usage.units,
            lower_bound=end.lower_bound,
            outcome=end.outcome,
            status=end.status,
            finish_reason=_text(end.finish_reason, 40),
            error=_text(end.error, 500),
            attempts=_plain(msgspec.to_builtins(end.attempts)),
            charges=_plain(msgspec.to_builtins(admit.charges)),
            gateway=_text(gateway, 64),
            admitted_at=moment(admit.at),
            routed_at=moment(end.routed_at) if end.routed_at else None,
            first_byte_at=moment(end.first_byte_at) if end.first_byte_at else None,
            ended_at=moment(max(admit.at, end.at)),
        )
    except (ValueError, OverflowError, OSError) as error:
        raise RowError(str(error)) from error


def refused_record(refusal: Refusal) -> UsageRecord:
    """A request that was not admitted in the shape of one that was: nothing used, and never to be stored. Raises
    RowError."""
    try:
        at = moment(refusal.at)
        return UsageRecord(
            id=uuid.UUID(refusal.id),
            client_request_id=refusal.client_request_id,
            tenant_id=uuid.UUID(refusal.tenant),
            key_id=uuid.UUID(refusal.key),
            pool_id=uuid.UUID(refusal.pool),
            deployment_id=uuid.UUID(refusal.deployment),
            model=refusal.model,
            dialect=refusal.dialect,
            stream=refusal.stream,
            profile_version=refusal.profile_version,
            estimated_mu=refusal.estimated_mu,
            actual_mu=0.0,
            estimated_input_tokens=refusal.estimated.input_tokens,
            estimated_output_tokens=refusal.estimated.output_tokens,
            outcome="refused",
            status=refusal.status,
            error=refusal.reason,
            charges=msgspec.to_builtins(refusal.charges),
            admitted_at=at,
            ended_at=at,
        )
    except (ValueError, OverflowError, OSError) as error:
        raise RowError(str(error)) from error


def moment(unix_s: float) -> datetime.datetime:
    return datetime.datetime.fromtimestamp(unix_s, datetime.UTC)


def _require_sound(pair: Pair) -> None:
    admit, end = pair
    numbers: dict[str, float] = {
        "estimated_mu": admit.estimated_mu,
        "actual_mu": end.actual_mu,
        "profile_version": admit.profile_version,
        "status": end.status,
        "estimated input_tokens": admit.estimated.input_tokens,
        "estimated output_tokens": admit.estimated.output_tokens,
        "input_tokens": end.usage.input_tokens,
        "cached_tokens": end.usage.cached_tokens,
        "output_tokens": end.usage.output_tokens,
        **end.usage.units,
    }
    tokens = dict.fromkeys(("input_tokens", "cached_tokens", "output_tokens"), MOST_TOKENS)
    limits = {"status": 2**15 - 1, "profile_version": 2**31 - 1, **tokens}
    for name, value in numbers.items():
        if not math.isfinite(value) or not 0 <= value <= limits.get(name, _LARGEST):
            raise RowError(f"{name} is {value}")
    if not admit.service_class:
        raise RowError("the service class is empty")


def _text(value: str, length: int) -> str:
    """PostgreSQL stores no NUL, and no more than the column holds."""
    return value.replace("\0", "")[:length]


def _plain(value: Any) -> Any:
    if isinstance(value, str):
        return _text(value, 500)
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value


RollupKey = tuple[str, datetime.datetime, str, str, str, str, str]
"""Period, start, tenant, key, pool, deployment, service class; ids as text, so that keys have an order."""


@dataclass(slots=True)
class Sums:
    """What is added to one roll-up row. Times in ms."""

    requests: int = 0
    failed: int = 0
    input_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    ttft_count: int = 0
    _mu: list[float] = field(default_factory=list)
    _money: list[float] = field(default_factory=list)
    _ttft_ms: list[float] = field(default_factory=list)
    _duration_ms: list[float] = field(default_factory=list)

    def add(self, record: UsageRecord, money: float) -> None:
        self.requests += 1
        self.failed += record.outcome not in FINE
        self.input_tokens += record.input_tokens
        self.cached_tokens += record.cached_tokens
        self.output_tokens += record.output_tokens
        self._mu.append(record.actual_mu)
        self._money.append(money)
        self._duration_ms.append((record.ended_at - record.admitted_at).total_seconds() * 1000)
        # The first byte of an answer in one piece comes with its last: that is its duration.
        if record.stream and record.first_byte_at is not None:
            self.ttft_count += 1
            ttft_s = (record.first_byte_at - record.admitted_at).total_seconds()
            self._ttft_ms.append(max(0.0, ttft_s * 1000))

    def columns(self) -> dict[str, float]:
        """Amounts by column of ``UsageRollup``. Floats are summed exactly, so the order of records does not matter."""
        return {
            "requests": self.requests,
            "failed": self.failed,
            "input_tokens": self.input_tokens,
            "cached_tokens": self.cached_tokens,
            "output_tokens": self.output_tokens,
            "mu": math.fsum(self._mu),
            "money": math.fsum(self._money),
            "ttft_ms_sum": math.fsum(self._ttft_ms),
            "ttft_count": self.ttft_count,
            "duration_ms_sum": math.fsum(self._duration_ms),
        }


def period_start(at: datetime.datetime, period: str) -> datetime.datetime:
    """Start of the UTC minute, hour or day in which ``at`` lies."""
    minute = at.astimezone(datetime.UTC).replace(second=0, microsecond=0)
    if period == UsageRollup.Period.MINUTE:
        return minute
    hour = minute.replace(minute=0)
    return hour if period == UsageRollup.Period.HOUR else hour.replace(hour=0)


Rates = Mapping[tuple[uuid.UUID, int], float]
"""Money per 1,000 MU by pool and version of its profile, where there is a price."""


def money_of(record: UsageRecord, rates: Rates) -> float:
    """What the request costs. One inside a reservation is paid for by that."""
    if record.service_class == RESERVED:
        return 0.0
    return record.actual_mu * rates.get((record.pool_id, record.profile_version), 0.0) / 1000


def sum_up(records: Iterable[UsageRecord], rates: Rates) -> dict[RollupKey, Sums]:
    """Sums of ``records`` by roll-up row, for minutes, hours and days."""
    sums: dict[RollupKey, Sums] = {}
    for record in records:
        who = (str(record.tenant_id), str(record.key_id), str(record.pool_id), str(record.deployment_id))
        money = money_of(record, rates)
        for period in UsageRollup.Period.values:
            key = (period, period_start(record.ended_at, period), *who, record.service_class)
            sums.setdefault(key, Sums()).add(record, money)
    return sums
