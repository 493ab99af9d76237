"""Service classes: what is inside a reservation, what is lent, and what a tenant gets when neither has room.

A request of a tenant who has a reservation of the pool is *reserved* while the reservation's bucket holds it. What
exceeds the bucket, and what others ask for, is *best effort*, where pool and tenant allow it.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

from capacity.policy.cost import CostProfile, request_cost, token_costs
from serving.gateway.records import LimitRecord, PoolRecord, ReservationRecord, TenantRecord

ServiceClass = Literal["reserved", "best_effort"]
RESERVED: ServiceClass = "reserved"
BEST_EFFORT: ServiceClass = "best_effort"

PRIORITY: dict[ServiceClass, int] = {RESERVED: 0, BEST_EFFORT: 10}
"""Engine priority: lower is sooner. Probes go before both."""
TYPICAL_OUTPUT_TOKENS = 256


def first_to_end(reservations: Iterable[ReservationRecord]) -> list[ReservationRecord]:
    """The order in which a tenant's reservations of a pool are used up: what ends first is of no use later."""
    return sorted(reservations, key=lambda one: (one.ends_at is None, one.ends_at or 0.0, one.id))


def holds(reservation: ReservationRecord, now: float) -> bool:
    """Whether the reservation is in force at ``now`` (UNIX s)."""
    return reservation.starts_at <= now and (reservation.ends_at is None or now < reservation.ends_at)


def largest_request_mu(profile: CostProfile, max_model_len: int | None) -> float:
    """What a request costs that fills the context with its prompt and answers in a typical length; 0: not known."""
    if max_model_len is None:
        return 0.0
    output = min(TYPICAL_OUTPUT_TOKENS, max_model_len // 2)
    return request_cost(profile, input_tokens=max_model_len - output, output_tokens=output)


def largest_prefill_mu(profile: CostProfile, max_model_len: int | None) -> float:
    """Engine work of reading a prompt that fills the context, nothing of it cached; 0: not known."""
    return 0.0 if max_model_len is None else token_costs(profile, input_tokens=max_model_len).prefill


def bucket_of(reservation: ReservationRecord, *, largest_mu: float) -> LimitRecord:
    """The reservation's bucket: it drains at its rate, and holds its burst or one request of ``largest_mu``, whichever
    is more."""
    capacity = max(reservation.burst_mu, largest_mu)
    return LimitRecord(
        id=reservation.id,
        kind="mu_per_min",
        value=capacity,
        holder="reservation",
        window_s=60.0 * capacity / reservation.mu_per_min,
    )


def lends(pool: PoolRecord, tenant: TenantRecord) -> bool:
    """Whether the tenant may use the pool beyond what it has reserved."""
    return pool.best_effort and tenant.best_effort
