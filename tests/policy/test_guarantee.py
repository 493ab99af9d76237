"""A minute of a reservation is judged as the definition says; the oracle is written from the definition alone."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from capacity.policy.guarantee import (
    DEFAULT_CREDIT_TIERS,
    Ended,
    Objectives,
    Promise,
    attainment,
    credit,
    entitled,
    fault_of_tiers,
    judge,
    judge_minute,
    lent,
    words_of_tiers,
)

NOON = datetime.datetime(2026, 11, 20, 12, 0, tzinfo=datetime.UTC)
OBJECTIVES = Objectives(ttft_ms=1000.0, tpot_ms=50.0, tolerated_share=0.1)


def ended(**fields: Any) -> Ended:
    whole = {
        "asked_mu": 2.0,
        "mu": 1.0,
        "outcome": "completed",
        "status": 200,
        "is_stream": True,
        "first_byte_ms": 200.0,
        "duration_ms": 1200.0,
        "output_tokens": 101,
    }
    return Ended(**{**whole, **fields})


def promise(
    mu_per_min: float = 60.0,
    begins_s: float = -600.0,
    ends_s: float | None = None,
    name: str = "r",
    gaps: Sequence[tuple[float, float]] = (),
) -> Promise:
    def at(seconds: float) -> datetime.datetime:
        return NOON + datetime.timedelta(seconds=seconds)

    spans = tuple((at(since), at(until)) for since, until in gaps)
    return Promise(name, mu_per_min, at(begins_s), None if ends_s is None else at(ends_s), spans)


@pytest.mark.parametrize(
    ("fields", "verdict"),
    [
        ({}, "fine"),
        ({"first_byte_ms": 1001.0}, "slow"),
        ({"first_byte_ms": 2900.0, "duration_ms": 3000.0, "prefill_ms": 1000.0}, "fine"),
        ({"duration_ms": 200 + 100 * 50.0}, "fine"),
        ({"duration_ms": 201 + 100 * 50.0}, "slow"),
        ({"output_tokens": 1, "duration_ms": 900_000.0}, "fine"),
        ({"is_stream": False, "first_byte_ms": 6000.0, "duration_ms": 6000.0}, "fine"),
        ({"is_stream": False, "first_byte_ms": 6001.0, "duration_ms": 6001.0}, "slow"),
        ({"outcome": "client_closed", "first_byte_ms": None, "duration_ms": 900.0}, "client"),
        ({"outcome": "client_closed", "first_byte_ms": None, "duration_ms": 1100.0}, "slow"),
        ({"outcome": "client_closed", "output_tokens": 11, "duration_ms": 300.0}, "fine"),
        ({"outcome": "refused", "status": 400}, "client"),
        ({"outcome": "refused", "status": 429}, "throttled"),
        ({"outcome": "refused", "status": 503}, "throttled"),
        ({"outcome": "engine_error", "status": 502}, "unserved"),
        ({"outcome": "engine_lost", "status": 502}, "unserved"),
        ({"outcome": "gateway_lost", "status": 0}, "unserved"),
        ({"outcome": "timeout", "status": 504}, "unserved"),
        # A client that does not read makes no answer slow, and none fail.
        ({"duration_ms": 90_000.0, "held_ms": 85_000.0}, "fine"),
        ({"duration_ms": 90_000.0, "held_ms": 84_000.0}, "slow"),
        ({"outcome": "timeout", "status": 504, "duration_ms": 600_000.0, "held_ms": 596_000.0}, "fine"),
        ({"outcome": "timeout", "status": 504, "duration_ms": 600_000.0, "held_ms": 1500.0}, "slow"),
        ({"outcome": "timeout", "status": 504, "duration_ms": 600_000.0, "held_ms": 100.0}, "unserved"),
        ({"outcome": "engine_lost", "status": 502, "duration_ms": 90_000.0, "held_ms": 85_000.0}, "unserved"),
    ],
)
def test_each_request_is_judged(fields: dict[str, Any], verdict: str) -> None:
    assert judge(ended(**fields), OBJECTIVES) == verdict


def test_a_minute_tells_what_was_used_and_why_it_is_a_breach() -> None:
    requests = [ended()] * 8 + [ended(first_byte_ms=5000.0, mu=3.0)] * 2
    requests += [ended(outcome="refused", status=429, mu=0.0), ended(outcome="engine_lost", mu=0.5)]
    (minute,) = judge_minute(minute=NOON, promises=[promise()], requests=requests, objectives=OBJECTIVES, lent_mu=7.0)
    assert (minute.entitled_mu, minute.used_mu, minute.lent_mu) == (60.0, 14.5, 7.0)
    assert (minute.requests, minute.throttled, minute.slow, minute.unserved) == (12, 1, 2, 1)
    assert (minute.throttled_mu, minute.slow_mu, minute.unserved_mu) == (2.0, 6.0, 2.0)
    assert minute.is_breach
    assert minute.reason.startswith(
        "1 throttled and 1 unserved of 12 requests (tolerated: 0.1); 2 of 12 requests slower"
    )


def test_a_minute_without_a_request_keeps_every_promise() -> None:
    (minute,) = judge_minute(minute=NOON, promises=[promise()], requests=[], objectives=OBJECTIVES)
    assert (minute.is_breach, minute.reason, minute.used_mu) == (False, "", 0.0)


def test_what_is_not_promised_any_more_cannot_be_broken() -> None:
    broken = [ended(outcome="engine_lost")]
    (minute,) = judge_minute(minute=NOON, promises=[promise(ends_s=0.0)], requests=broken, objectives=OBJECTIVES)
    assert (minute.is_breach, minute.entitled_mu) == (False, 0.0)


def test_two_reservations_of_a_tenant_share_what_was_used() -> None:
    promises = [promise(30.0, name="a"), promise(90.0, name="b", begins_s=30.0)]
    found = judge_minute(minute=NOON, promises=promises, requests=[ended(mu=7.5)], objectives=OBJECTIVES)
    assert [(each.reservation, each.entitled_mu, each.used_mu) for each in found] == [
        ("a", 30.0, 3.0),
        ("b", 45.0, 4.5),
    ]


# ------------------------------------------------------------------------------------------------ the oracle
_moments = st.integers(-90, 150)


@given(
    rate=st.integers(1, 1000),
    begins=_moments,
    lasts=st.none() | st.integers(1, 300),
    cuts=st.lists(_moments, unique=True, max_size=6),
)
def test_entitled_is_the_promise_summed_by_the_second(
    rate: int, begins: int, lasts: int | None, cuts: list[int]
) -> None:
    ends = None if lasts is None else begins + lasts
    inside = sorted(cut for cut in cuts if begins <= cut and (ends is None or cut < ends))
    gaps = list(zip(inside[::2], inside[1::2], strict=False))
    seconds = sum(
        begins <= second and (ends is None or second < ends) and not any(a <= second < b for a, b in gaps)
        for second in range(60)
    )
    told = entitled(promise(rate, begins, ends, gaps=gaps), NOON)
    assert told == pytest.approx(float(Fraction(rate * seconds, 60)))
    assert (told == 0.0) == (seconds == 0)


_requests = st.builds(
    ended,
    asked_mu=st.integers(0, 50).map(float),
    mu=st.integers(0, 50).map(float),
    outcome=st.sampled_from(
        ["completed", "client_closed", "refused", "engine_error", "engine_lost", "gateway_lost", "timeout"]
    ),
    status=st.sampled_from([200, 400, 413, 429, 503, 529]),
    is_stream=st.booleans(),
    first_byte_ms=st.none() | st.integers(0, 4000).map(float),
    duration_ms=st.integers(0, 20_000).map(float),
    output_tokens=st.integers(0, 300),
    prefill_ms=st.sampled_from([0.0, 100.0, 900.0]),
).map(lambda one: one._replace(first_byte_ms=min(one.first_byte_ms, one.duration_ms)) if one.first_byte_ms else one)


def oracle(requests: list[Ended], tolerated: float, untold: int) -> tuple[int, int, int, int, bool]:
    """(judged, throttled, unserved, slow, breach), read off the definition."""
    throttled = [r for r in requests if r.outcome == "refused" and r.status in (429, 503, 529)]
    unserved = [r for r in requests if r.outcome in ("engine_error", "engine_lost", "gateway_lost", "timeout")]
    served = [r for r in requests if r.outcome in ("completed", "client_closed")]

    def patience(r: Ended) -> float:
        return 3 * r.prefill_ms if 3 * r.prefill_ms > 1000 else 1000

    def late(r: Ended) -> bool:
        gaps = r.output_tokens - 1 if r.output_tokens > 1 else 0
        if not r.is_stream:
            return r.duration_ms > patience(r) + 50 * gaps
        first = r.duration_ms if r.first_byte_ms is None else r.first_byte_ms
        return first > patience(r) or (r.first_byte_ms is not None and r.duration_ms - first > 50 * gaps > 0)

    slow = [r for r in served if late(r)]
    gone = [
        r
        for r in served
        if not late(r) and r.outcome == "client_closed" and (not r.is_stream or r.first_byte_ms is None)
    ]
    judged = len(throttled) + len(unserved) + len(served) - len(gone) + untold
    failed = len(throttled) + len(unserved) + untold
    breach = judged > 0 and (
        Fraction(failed, judged) > Fraction(tolerated) or Fraction(len(slow), judged) > Fraction(tolerated)
    )
    return judged, len(throttled) + untold, len(unserved), len(slow), breach


@given(
    requests=st.lists(_requests, max_size=12),
    tolerated=st.sampled_from([0.125, 0.25, 0.5]),
    untold=st.sampled_from([0, 0, 1, 3]),
)
def test_a_minute_is_what_the_oracle_says(requests: list[Ended], tolerated: float, untold: int) -> None:
    objectives = OBJECTIVES._replace(tolerated_share=tolerated)
    (found,) = judge_minute(minute=NOON, promises=[promise()], requests=requests, objectives=objectives, untold=untold)
    told = (found.requests, found.throttled, found.unserved, found.slow, found.is_breach)
    assert told == oracle(requests, tolerated, untold)
    assert bool(found.reason) == found.is_breach
    assert found.used_mu == sum(request.mu for request in requests)


@given(unused=st.lists(st.integers(0, 100).map(float), max_size=6), taken=st.integers(0, 400).map(float))
def test_what_is_lent_is_what_was_free_and_no_more_than_was_taken(unused: list[float], taken: float) -> None:
    parts = lent(unused, taken)
    assert sum(parts) == pytest.approx(min(taken, sum(unused)))
    assert all(0.0 <= part <= free + 1e-9 for part, free in zip(parts, unused, strict=True))


def test_attainment_and_credit() -> None:
    assert attainment(minutes=0, breaches=0) == 1.0
    month = 30 * 24 * 60
    for breaches, share in ((0, 0.0), (43, 0.0), (44, 0.1), (432, 0.1), (433, 0.25), (2161, 1.0)):
        assert credit(attainment(minutes=month, breaches=breaches), DEFAULT_CREDIT_TIERS) == share
    assert credit(0.5, ((0.9, 0.2),)) == 0.2
    assert credit(0.9, ((0.9, 0.2),)) == 0.0
    assert credit(0.0, ()) == 0.0


@pytest.mark.parametrize(
    ("tiers", "word"),
    [
        (DEFAULT_CREDIT_TIERS, ""),
        ([], ""),
        ([[1.0, 1.0]], ""),
        ([[0.99, 0.1], [0.999, 0.2]], "below the one before"),
        ([[0.99, 0.1], [0.99, 0.2]], "below the one before"),
        ([[0.99, 0.2], [0.9, 0.1]], "more than the one before"),
        ([[99.9, 0.1]], "not above 1"),
        ([[0.9, float("nan")]], "not above 1"),
        ([[0.9, True]], "not above 1"),
        ([[0.0, 0.5]], "above 0"),
        ([[0.9]], "pairs"),
        ([0.9, 0.1], "pairs"),
        ({"0.9": 0.1}, "pairs"),
        ("none", "pairs"),
        (None, "pairs"),
        ([[0.99 - n / 100, 0.01 + n / 100] for n in range(11)], "at most 10"),
    ],
)
def test_tiers_are_checked_and_the_fault_is_said(tiers: Any, word: str) -> None:
    fault = fault_of_tiers(tiers)
    assert bool(word) == bool(fault)
    assert word in fault


def test_tiers_are_told_in_words() -> None:
    told = "10 % of the month's price below 99.9 % of minutes kept, 25 % below 99 %, 100 % below 95 %"
    assert words_of_tiers(DEFAULT_CREDIT_TIERS) == told
    assert words_of_tiers([]) == "nothing is credited"
