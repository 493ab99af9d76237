"""The deadline that a pool states for the return of an owner."""

from __future__ import annotations

import pytest

from capacity.policy import claw_back
from capacity.policy.cost import CostProfile

MS = 372.0
"""Engine milliseconds of an MU where a replica supplies 100 MU/min at a knee of 0.62."""


def price(ms_per_token: float) -> CostProfile:
    return CostProfile(
        version=1, base=0.0, alpha=ms_per_token / MS, beta=0.1, gamma=0.0, epsilon=0.0, cached_factor=0.1
    )


def test_an_mu_takes_what_is_left_of_a_minute_at_the_knee() -> None:
    assert claw_back.ms_per_mu(100.0) == pytest.approx(MS)
    assert claw_back.engine_ms(2.0, 200.0) == pytest.approx(MS)
    with pytest.raises(ValueError, match="more than 0"):
        claw_back.ms_per_mu(0.0)


@pytest.mark.parametrize(
    ("ms_per_token", "context", "supply", "expected"),
    [
        (0.05, 8192, 100.0, 2.4),  # a backlog of 2 s, 150 ms, and 200 ms until all gateways know
        (0.05, None, 100.0, 2.4),
        (1.0, 8_000, 100.0, 8.4),  # one prompt of 8 s
        (1.0, 4_000, 50.0, 8.4),
        (1.0, 10_000, 1000.0, 2.4),
        (1.0, 10_000, 100.0, 10.0),  # what is lent is ended before
        (1.0, 10_000, 1e-308, 10.0),
        (1.0, None, 100.0, 8.6),  # a context of 8,192 where nobody knows
    ],
)
def test_the_deadline_counts_the_largest_prompt(
    ms_per_token: float, context: int | None, supply: float, expected: float
) -> None:
    found = claw_back.deadline_s(price(ms_per_token), context_tokens=context, supply_mu_per_min=supply)
    assert found == pytest.approx(expected)
