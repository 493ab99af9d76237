"""The leaky bucket of a plain limit, exactly (``docs/protocols.md``, *Grants*).

The level is what was charged and has not drained yet. It drains continuously at ``rate`` and is never below zero.
A request of ``amount`` is admitted iff ``level + amount <= capacity``, or the bucket is empty when one amount exceeds
the capacity; only settlement may raise the level above it. Hence, in any window of length T, what was admitted and not
refunded is at most ``max(capacity, largest amount) + rate·T`` (plus the debts that settlement made in it).

``lua/grants.lua`` does the same arithmetic in the shared state; a property test keeps the two alike. Times are in
milliseconds of one clock, rates per millisecond, amounts in the limit's unit.

A refund gives back what is still in the bucket of its charge, and no more: what has drained since has been given back
by time already. Had the charge been smaller from the start, the level would now be lower by the least level seen since
(at most by the refund). So the bucket keeps ``valleys``: the least ``level + refunded`` since each of some moments.
``refunded`` (all refunds so far) makes a refund lower the past as well as the present, as it must: a second refund
must not give back the same content again.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

WINDOW_MS = 60_000.0
"""A per-minute limit holds one minute's worth; a reservation's bucket what was agreed."""

VALLEYS = 40
_TOLERANCE = 1e-9


@dataclass(frozen=True, slots=True)
class Bucket:
    """``valleys``: pairs (until ms, least level + refunded before it), both rising."""

    level: float = 0.0
    at_ms: float = 0.0
    refunded: float = 0.0
    valleys: tuple[tuple[float, float], ...] = ()


def rate_per_ms(capacity: float, window_ms: float = WINDOW_MS) -> float:
    """The drain of a bucket that holds ``window_ms``'s worth of its rate."""
    return capacity / window_ms


def drained(bucket: Bucket, *, rate: float, now_ms: float) -> Bucket:
    """The bucket at ``now_ms``. A clock that went back drains nothing."""
    elapsed_ms = max(0.0, now_ms - bucket.at_ms)
    return replace(bucket, level=max(0.0, bucket.level - rate * elapsed_ms), at_ms=now_ms)


def fits(committed: float, amount: float, *, capacity: float) -> bool:
    """Whether ``amount`` may be admitted on top of ``committed`` (level and leases). A limit of 0 admits nothing."""
    if capacity <= 0.0:
        return False
    slack = _TOLERANCE * capacity
    if amount > capacity + slack:
        return committed <= slack
    return committed + amount <= capacity + slack


def charged(bucket: Bucket, amount: float) -> Bucket:
    """The bucket with ``amount`` (not negative) added at ``bucket.at_ms``, admitted or not: a debit."""
    return replace(bucket, level=bucket.level + amount, valleys=_with_valley(bucket))


def refunded(bucket: Bucket, amount: float, *, charged_at_ms: float) -> Bucket:
    """The bucket with up to ``amount`` of a charge made at ``charged_at_ms`` given back."""
    least = bucket.level + bucket.refunded
    for until_ms, valley in bucket.valleys:
        if until_ms > charged_at_ms:
            least = min(least, valley)
            break
    given = min(amount, max(0.0, least - bucket.refunded), bucket.level)
    return replace(bucket, level=bucket.level - given, refunded=bucket.refunded + given)


def _with_valley(bucket: Bucket) -> tuple[tuple[float, float], ...]:
    """``valleys`` with the moment before a charge added.

    When there are too many, the two that differ least become one that keeps the lower: it errs to small refunds.
    """
    depth = bucket.level + bucket.refunded
    valleys = [valley for valley in bucket.valleys if valley[1] < depth]
    valleys.append((bucket.at_ms, depth))
    if len(valleys) > VALLEYS:
        closest = min(range(len(valleys) - 1), key=lambda i: valleys[i + 1][1] - valleys[i][1])
        valleys[closest] = (valleys[closest + 1][0], valleys[closest][1])
        del valleys[closest + 1]
    return tuple(valleys)
