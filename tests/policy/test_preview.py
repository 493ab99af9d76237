"""Who pays more and who less: the arithmetic of the preview, against sums written out here."""

from __future__ import annotations

import uuid

import pytest
from hypothesis import given
from hypothesis import strategies as st

from capacity.policy.cost import CostProfile
from capacity.policy.preview import TenantUse, Use, preview

NEW = CostProfile(version=2, base=0.5, alpha=0.01, beta=0.1, gamma=0.0, epsilon=0.0, cached_factor=0.5)
A, B = uuid.UUID(int=1), uuid.UUID(int=2)


def use(tenant: uuid.UUID, *sample: Use, **totals: float) -> TenantUse:
    given_ = {"requests": len(sample), "mu": sum(one.mu for one in sample), **totals}
    tokens = dict.fromkeys(("input_tokens", "cached_tokens", "output_tokens"), 0)
    return TenantUse(tenant_id=tenant, sample=sample, **{**tokens, **given_})  # type: ignore[arg-type]


def test_factors_are_ratios_of_sums_and_totals_scale_with_them() -> None:
    long = Use(input_tokens=1000, cached_tokens=200, output_tokens=10, mu=4.0)
    short = Use(input_tokens=10, cached_tokens=0, output_tokens=100, mu=20.0)
    found = preview([use(A, long, requests=100, mu=400.0), use(B, short, requests=10, mu=200.0)], NEW)
    # 0.5 + 800 · 0.01 + 200 · 0.005 + 10 · 0.1 = 10.5; 0.5 + 0.1 + 10 = 10.6
    assert [(row.tenant_id, row.factor) for row in found.rows] == [
        (A, pytest.approx(10.5 / 4.0)),
        (B, pytest.approx(10.6 / 20.0)),
    ]
    assert found.mu_new == pytest.approx(400 * 10.5 / 4 + 200 * 10.6 / 20)
    assert found.factor == pytest.approx(found.mu_new / 600.0)
    assert [row.share_now for row in found.rows] == pytest.approx([4 / 6, 2 / 6])


def test_without_records_the_mean_request_must_do_and_without_a_charge_nothing_is_said() -> None:
    gone = use(A, requests=10, mu=50.0, input_tokens=10_000, cached_tokens=0, output_tokens=100)
    free = use(B, Use(input_tokens=5, cached_tokens=0, output_tokens=0, mu=0.0))
    rows = {row.tenant_id: row for row in preview([free, gone], NEW).rows}
    # 0.5 + 1000 · 0.01 + 10 · 0.1 = 11.5 a request
    assert (rows[A].basis, rows[A].factor) == ("mean", pytest.approx(115 / 50))
    assert (rows[B].basis, rows[B].factor, rows[B].mu_new) == ("none", 1.0, 0.0)


def test_units_are_priced_too() -> None:
    priced = CostProfile(
        version=2, base=0, alpha=0, beta=0, gamma=0, epsilon=0, cached_factor=0, modalities={"row": 0.2}
    )
    found = preview([use(A, Use(0, 0, 0, 1.0, {"row": 10.0}))], priced)
    assert found.rows[0].factor == pytest.approx(2.0)


def test_nothing_used_changes_nothing() -> None:
    found = preview([], NEW)
    assert (found.rows, found.factor) == ((), 1.0)


@given(st.lists(st.tuples(st.integers(0, 9000), st.integers(0, 900), st.floats(0.001, 1e4)), min_size=1, max_size=20))
def test_the_same_price_again_changes_nobody(requests: list[tuple[int, int, float]]) -> None:
    uses = [
        use(uuid.UUID(int=index + 1), Use(inputs, 0, outputs, 0.5 + 0.01 * inputs + 0.1 * outputs))
        for index, (inputs, outputs, _) in enumerate(requests)
    ]
    found = preview(uses, NEW)
    assert all(row.factor == pytest.approx(1.0) for row in found.rows)
    assert sum(row.share_new for row in found.rows) == pytest.approx(1.0)
