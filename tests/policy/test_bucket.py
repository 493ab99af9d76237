"""The leaky bucket against its definition; the oracle below shares no code with it."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.policy import bucket
from serving.policy.bucket import Bucket

CAPACITY = 600.0
RATE = CAPACITY / 60_000

STEPS = st.lists(
    st.tuples(
        st.sampled_from(["ask", "ask", "settle"]),
        st.floats(0.0, 30_000.0).map(lambda ms: round(ms, 1)),
        st.floats(0.0, 900.0).map(lambda amount: round(amount, 2)),
        st.floats(0.0, 1.0),
    ),
    max_size=60,
)


def run(steps, *, debts=False):
    """Admit and settle; the admitted requests as [at, estimate, actual]. Refunds only, unless ``debts``."""
    state, now, admitted, unsettled = Bucket(), 0.0, [], []
    for action, wait, amount, share in steps:
        now += wait
        state = bucket.drained(state, rate=RATE, now_ms=now)
        assert state.level >= 0
        if action == "ask":
            if bucket.fits(state.level, amount, capacity=CAPACITY):
                state = bucket.charged(state, amount)
                admitted.append([now, amount, amount])
                unsettled.append(admitted[-1])
        elif unsettled:
            request = unsettled.pop(int(share * (len(unsettled) - 1)))
            actual = request[1] * share * (1.5 if debts else 1.0)
            if actual > request[1]:
                state = bucket.charged(state, actual - request[1])
            else:
                state = bucket.refunded(state, request[1] - actual, charged_at_ms=request[0])
            request[2] = actual
    return state, admitted, now


def worst_excess(requests):
    """By how much any window of time breaks ``burst + rate·T``: from the definition, over every pair of moments."""
    excess = -math.inf
    for i, (begin, *_) in enumerate(requests):
        total = largest = 0.0
        for at, _, actual in requests[i:]:
            total += actual
            largest = max(largest, actual)
            excess = max(excess, total - max(CAPACITY, largest) - RATE * (at - begin))
    return excess


@given(STEPS)
@settings(max_examples=400, deadline=None)
def test_what_was_used_in_any_window_is_within_the_bound(steps):
    """Also with refunds at any time: what they give back cannot be used twice."""
    _, admitted, _ = run(steps)
    # A request larger than the limit stands for its estimate when the next ones are decided.
    whole = [r for r in admitted if r[1] <= CAPACITY]
    if len(whole) == len(admitted):
        assert worst_excess(admitted) <= 1e-3


@given(STEPS)
@settings(max_examples=200, deadline=None)
def test_estimates_alone_are_within_the_bound(steps):
    _, admitted, _ = run([step for step in steps if step[0] == "ask"])
    assert worst_excess(admitted) <= 1e-3


def simulate(charges, now):
    """The level of a bucket that was charged so from the beginning: Lindley's recursion."""
    level, last = 0.0, 0.0
    for at, amount in charges:
        level = max(0.0, level - RATE * (at - last)) + amount
        last = at
    return max(0.0, level - RATE * (now - last))


@given(STEPS)
@settings(max_examples=400, deadline=None)
def test_the_level_is_never_below_that_of_the_true_charges(steps):
    state, admitted, now = run(steps)
    assert state.level >= simulate([(at, actual) for at, _, actual in admitted], now) - 1e-6


@given(STEPS)
@settings(max_examples=300, deadline=None)
def test_one_refund_is_exact(steps):
    """With a single refund the level is exactly what it had been, had the charge been right from the start."""
    seen = 0
    wanted = []
    for step in steps:
        if step[0] == "settle":
            seen += 1
            if seen > 1:
                continue
        wanted.append(step)
    state, admitted, now = run(wanted)
    assert state.level == pytest.approx(simulate([(at, actual) for at, _, actual in admitted], now), abs=1e-6)


def test_a_refund_of_what_has_drained_gives_nothing():
    state = bucket.charged(Bucket(), 600.0)
    state = bucket.drained(state, rate=RATE, now_ms=60_000)
    state = bucket.charged(state, 600.0)
    refunded = bucket.refunded(state, 600.0, charged_at_ms=0.0)
    assert refunded.level == 600.0
    assert bucket.refunded(refunded, 600.0, charged_at_ms=60_000.0).level == 0.0


def test_under_saturation_refunds_are_whole():
    """A busy bucket of large estimates and small actual amounts must not clog."""
    state, now, admitted = Bucket(), 0.0, 0
    running = []
    for _ in range(3000):
        now += 20.0
        state = bucket.drained(state, rate=RATE, now_ms=now)
        if running and now - running[0] >= 2000:
            state = bucket.refunded(state, 45.0, charged_at_ms=running.pop(0))
        if bucket.fits(state.level, 50.0, capacity=CAPACITY):
            state = bucket.charged(state, 50.0)
            running.append(now)
            admitted += 1
    # A minute at 600 a minute, and the burst: 240 requests of 5.
    assert admitted >= 0.9 * 240 * 0.5
    assert len(state.valleys) <= bucket.VALLEYS


def test_a_limit_of_nothing_admits_nothing():
    assert not bucket.fits(0.0, 1.0, capacity=0.0)


def test_a_clock_that_goes_back_drains_nothing():
    state = bucket.charged(bucket.drained(Bucket(), rate=RATE, now_ms=5000), 100.0)
    assert bucket.drained(state, rate=RATE, now_ms=1000).level == 100.0
