"""What the loops leave of the seeded platform's past: roll-ups of pools and accelerators, and of what was lent."""

from __future__ import annotations

from datetime import datetime, timedelta

from capacity.models import (
    AcceleratorRollup,
    BooksState,
    GuaranteeHour,
    GuaranteeMinute,
    HardwareType,
    PoolRollup,
    RefusalRollup,
    Reservation,
)
from serving.models import Deployment
from tenants.models import ApiKey, Tenant
from tests.web.promised import breach_minutes
from tests.web.traffic import RESERVING, offered

_LENT_SHARE = 0.2
"""Of what is offered to ``chat-32b``: the key that is served beyond its tenant's reservation."""


def over_time(now: datetime, hours: int, deployments: dict[Deployment, int], sold: list[Reservation]) -> None:
    """``deployments`` with their ready replicas of 100 MU/min."""
    minute = now.replace(second=0, microsecond=0)
    hour = minute.replace(minute=0)
    _pools(hour, hours, deployments)
    _accelerators(minute, hours, sold)
    _lent(minute, hours, sold)
    BooksState.objects.update_or_create(pk=1, defaults={"guaranteed_until": minute - timedelta(minutes=1)})


def _pools(hour: datetime, hours: int, deployments: dict[Deployment, int]) -> None:
    PoolRollup.objects.bulk_create(
        PoolRollup(
            period="hour",
            starts_at=at,
            pool_id=one.pool_id,
            minutes=60,
            have=100.0 * (ready if back < 90 else ready - 1),
            could=100.0 * one.max_replicas,
            offered=offered(one.name, at + timedelta(minutes=30)),
        )
        for one, ready in deployments.items()
        for back, at in ((back, hour - timedelta(hours=back)) for back in range(1, hours + 1))
    )


def _accelerators(minute: datetime, hours: int, sold: list[Reservation]) -> None:
    kind = HardwareType.objects.get(slug="h200")
    taken = sum(row.mu_per_min for row in sold) / 100.0

    def row(period: str, at: datetime, used: float) -> AcceleratorRollup:
        return AcceleratorRollup(period=period, starts_at=at, hardware_type=kind, have=4.0, used=used, sold=taken)

    minutes = [minute - timedelta(minutes=back) for back in range(min(hours, 24) * 60)]
    rows = [row("minute", at, 4.0 if index < 12 else 3.0) for index, at in enumerate(minutes)]
    first = minute.replace(minute=0)
    rows += [row("hour", first - timedelta(hours=back), 3.0 if back < 90 else 2.0) for back in range(hours)]
    AcceleratorRollup.objects.bulk_create(rows, batch_size=500)


def _lent(minute: datetime, hours: int, sold: list[Reservation]) -> None:
    """Minutes of the last day and hours of all, of what each reservation left unused and best effort took."""
    whole = sum(row.mu_per_min for row in sold)
    broken = {row.pk: breach_minutes(row, minute) for row in sold}
    made: list[GuaranteeMinute] = []
    hourly: list[GuaranteeHour] = []
    for row in sold:
        share = row.mu_per_min / whole

        def sums(at: datetime, share: float = share, row: Reservation = row) -> dict[str, float]:
            asked = offered("chat-32b", at)
            used = min(1.0, RESERVING * asked / whole)
            lent = min(_LENT_SHARE * asked, whole * (1.0 - used))
            return {
                "entitled_mu": row.mu_per_min,
                "used_mu": row.mu_per_min * used,
                "lent_mu": lent * share,
                "requests": int(asked * share / 0.29),
            }

        for back in range(2, min(hours, 24) * 60):
            at = minute - timedelta(minutes=back)
            if at not in broken[row.pk]:
                made.append(GuaranteeMinute(reservation=row, starts_at=at, **sums(at)))
        for back in range(hours):
            at = minute.replace(minute=0) - timedelta(hours=back)
            if at < row.starts_at:
                break
            told = {name: value * 60 for name, value in sums(at + timedelta(minutes=30)).items()}
            count = sum(at <= one < at + timedelta(hours=1) for one in broken[row.pk])
            hourly.append(GuaranteeHour(reservation=row, starts_at=at, minutes=60, breach_minutes=count, **told))
    GuaranteeMinute.objects.bulk_create(made, batch_size=500)
    GuaranteeHour.objects.bulk_create(hourly, batch_size=500)


_REFUSED = (
    ("support-assist", "capacity_exceeded", 429, 7, 5),
    ("sandbox", "tokens_per_min", 429, 3, 9),
    ("core-banking", "requests_per_min", 429, 11, 3),
    ("triage", "capacity_exceeded", 429, 13, 4),
    ("sandbox", "model_not_allowed", 403, 61, 1),
)
"""Key, reason, status, every how many minutes, and how many requests."""


def refused(
    now: datetime, hours: int, keys: dict[str, tuple[Tenant, Deployment, float]], made: dict[str, ApiKey]
) -> None:
    """Minutes of the last day and hours of all, of what gateways refused."""
    minute = now.replace(second=0, microsecond=0)
    rows: list[RefusalRollup] = []
    for name, reason, status, every, count in _REFUSED:
        tenant, deployment, _ = keys[name]
        same = {
            "tenant_id": tenant.pk,
            "key_id": made[name].pk,
            "pool_id": deployment.pool_id,
            "reason": reason,
            "status": status,
        }
        for back in range(every, min(hours, 24) * 60, every):
            at = minute - timedelta(minutes=back)
            rows.append(RefusalRollup(period="minute", starts_at=at, requests=count + back % 3, **same))
        for back in range(hours):
            at = minute.replace(minute=0) - timedelta(hours=back)
            total = sum(count + step % 3 for step in range(every, 60, every)) or count
            rows.append(RefusalRollup(period="hour", starts_at=at, requests=total, **same))
    RefusalRollup.objects.bulk_create(rows, batch_size=500)
