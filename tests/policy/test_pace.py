"""An exponential mean over time: what comes steadily is found, what has stopped is forgotten."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.policy.pace import Flow, Pace


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


def test_a_flow_counts_only_the_time_in_which_somebody_waits() -> None:
    flow = Flow(20.0, 60.0)
    now = 0.0
    for _ in range(200):
        flow.note(True, now)
        flow.add(3.0, now + 1.0)
        flow.note(False, now + 1.0)
        now += 10.0
    assert flow.now(now, presumed=3.0) == pytest.approx(3.0, rel=0.05)


def test_a_flow_of_which_nothing_is_known_is_as_presumed_and_learns() -> None:
    flow = Flow(20.0, 60.0)
    assert flow.now(5.0, presumed=7.0) == pytest.approx(7.0)
    flow.note(True, 5.0)
    for second in range(30):
        flow.add(1.0, 6.0 + second)
    assert flow.now(35.0, presumed=7.0) == pytest.approx(1.3, abs=0.2)


def test_a_flow_forgets_when_nobody_has_waited_for_long() -> None:
    flow = Flow(20.0, 60.0)
    flow.note(True, 0.0)
    flow.add(50.0, 5.0)
    flow.note(False, 5.0)
    flow.note(True, 70.0)
    assert flow.now(70.0, presumed=2.0) == pytest.approx(2.0)
