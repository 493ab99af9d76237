"""An exponential mean over time: what comes steadily is found, what has stopped is forgotten."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.policy.pace import Pace


@given(st.floats(0.1, 100.0), st.floats(0.01, 0.5))
def test_what_comes_steadily_is_found(amount: float, every_s: float) -> None:
    pace, now = Pace(5.0), 0.0
    while now < 40.0:
        pace.add(amount, now)
        now += every_s
    assert pace.now(now) == pytest.approx(amount / every_s, rel=0.12)


def test_what_has_stopped_is_forgotten() -> None:
    pace = Pace(5.0)
    assert pace.now(1e9) == 0.0
    pace.add(10.0, 100.0)
    assert pace.now(100.0) == 2.0
    assert 0.0 < pace.now(129.0) < 0.01
    assert pace.now(130.0) == 0.0
    assert pace.now(99.0) == 2.0, "a clock that went back changes nothing"
