"""What a reservation's bucket holds, when it is in force, and to whom nothing is lent."""

from __future__ import annotations

import pytest

from capacity.policy.cost import CostProfile
from serving.gateway.records import PoolRecord, ProfileRecord, ReservationRecord, TenantRecord
from serving.policy import bucket, classes

PRICE = ProfileRecord(version=1, base=0.5, alpha=0.01, beta=0.2, gamma=0.0, epsilon=0.0, cached_factor=0.1)
PROFILE = CostProfile(version=1, base=0.5, alpha=0.01, beta=0.2, gamma=0.0, epsilon=0.0, cached_factor=0.1)


def sold(name: str = "r", *, mu_per_min: float = 120.0, burst_mu: float = 20.0, **more: float) -> ReservationRecord:
    made = {"starts_at": 100.0, "ends_at": 200.0, **more}
    return ReservationRecord(
        id=name,
        tenant="t",
        pool="p",
        mu_per_min=mu_per_min,
        burst_mu=burst_mu,
        starts_at=made["starts_at"],
        ends_at=made["ends_at"],
        profile=PRICE,
    )


@pytest.mark.parametrize("now", [99.9, 100.0, 199.9, 200.0])
def test_it_holds_from_its_start_until_its_end(now: float) -> None:
    assert classes.holds(sold(), now) == (100.0 <= now < 200.0)
    assert classes.holds(sold(ends_at=None), now) == (now >= 100.0)  # type: ignore[arg-type]


def test_what_ends_first_is_used_first() -> None:
    order = classes.first_to_end([sold("c", ends_at=None), sold("b"), sold("a"), sold("d", ends_at=150.0)])  # type: ignore[arg-type]
    assert [one.id for one in order] == ["d", "a", "b", "c"]


@pytest.mark.parametrize(("largest", "capacity"), [(0.0, 20.0), (19.0, 20.0), (75.0, 75.0)])
def test_the_bucket_holds_its_burst_or_the_largest_request_and_drains_at_its_rate(
    largest: float, capacity: float
) -> None:
    made = classes.bucket_of(sold(), largest_mu=largest)
    assert (made.id, made.kind, made.value) == ("r", "mu_per_min", capacity)
    assert bucket.rate_per_ms(made.value, made.window_ms) == pytest.approx(120.0 / 60_000)


def test_the_largest_request_fills_the_context() -> None:
    assert classes.largest_request_mu(PROFILE, 4096) == pytest.approx(0.5 + 0.01 * 3840 + 0.2 * 256)
    assert classes.largest_request_mu(PROFILE, 100) == pytest.approx(0.5 + 0.01 * 50 + 0.2 * 50)
    assert classes.largest_prefill_mu(PROFILE, 4096) == pytest.approx(40.96)
    assert classes.largest_request_mu(PROFILE, None) == classes.largest_prefill_mu(PROFILE, None) == 0.0


@pytest.mark.parametrize("by_pool", [True, False])
@pytest.mark.parametrize("by_tenant", [True, False])
def test_both_must_allow_what_is_lent(by_pool: bool, by_tenant: bool) -> None:
    pool = PoolRecord(id="p", slug="p", profile=PRICE, best_effort=by_pool)
    tenant = TenantRecord(id="t", slug="t", best_effort=by_tenant)
    assert classes.lends(pool, tenant) == (by_pool and by_tenant)


def test_what_is_reserved_goes_before_what_is_lent() -> None:
    assert classes.PRIORITY[classes.RESERVED] < classes.PRIORITY[classes.BEST_EFFORT]
