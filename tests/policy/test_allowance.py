"""What a reservation's requests may take beyond their estimates is bounded, whatever the estimates were."""

from __future__ import annotations

import heapq
import math
from typing import NamedTuple

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from bench.fairness.till import Till, share_of
from capacity.policy.cost import CostProfile
from serving.gateway.demands import Granted
from serving.gateway.records import ReplicaRecord
from serving.policy import allowance
from serving.policy.admission import Ask, Learned, estimate
from serving.policy.allowance import Hold, Unsettled

PROFILE = CostProfile(version=1, base=0.5, alpha=0.01, beta=0.2, gamma=0.0, epsilon=0.0, cached_factor=0.1)


def most(ask: Ask, learned: Learned, *, slot_mu: float = math.inf, context: int | None = None) -> float:
    expected = estimate(ask, PROFILE, learned, key="k", deployment="d", max_model_len=context)
    return allowance.most_mu(ask, expected, PROFILE, learned, deployment="d", max_model_len=context, slot_mu=slot_mu)


def taught(ask: Ask, *, inputs: int, cached: int = 0, outputs: int = 1) -> Learned:
    learned = Learned()
    for _ in range(2000):
        learned.note("k", "d", ask, input_tokens=inputs, cached_tokens=cached, output_tokens=outputs)
    return learned


def test_the_most_is_all_output_that_was_asked_for_and_nothing_cached() -> None:
    ask = Ask(prompts=1, choices=1, text_bytes=400, max_output=50)
    learned = taught(ask, inputs=100, cached=100)
    expected = estimate(ask, PROFILE, learned, key="k", deployment="d", max_model_len=None)
    assert expected.mu == pytest.approx(0.5 + 100 * 0.001 + 0.2, abs=0.01)
    assert most(ask, learned) == pytest.approx(0.5 + 100 * 0.01 + 50 * 0.2)
    assert most(ask._replace(max_output=None), learned, context=300) == pytest.approx(0.5 + 1.0 + 200 * 0.2)


def test_the_most_is_what_a_slot_serves_in_a_minute() -> None:
    ask = Ask(prompts=1, choices=3, text_bytes=400, max_output=5000)
    learned = taught(ask, inputs=100, outputs=3)
    assert most(ask, learned, slot_mu=6.0) == pytest.approx(0.5 + 1.0 + 3 * 6.0)
    unbounded = ask._replace(max_output=None)
    assert most(unbounded, learned, slot_mu=6.0) == pytest.approx(0.5 + 1.0 + 3 * 6.0)
    expected = estimate(unbounded, PROFILE, learned, key="k", deployment="d", max_model_len=None)
    assert most(unbounded, learned) == pytest.approx(expected.mu), "nothing bounds it, and nothing serves it"


def test_text_that_was_taught_to_be_thin_counts_as_it_usually_is() -> None:
    ask = Ask(prompts=1, choices=0, text_bytes=16_000, max_output=0)
    learned = taught(ask, inputs=1000)
    assert estimate(ask, PROFILE, learned, key="k", deployment="d", max_model_len=None).input_tokens == 1000
    assert most(ask, learned) == pytest.approx(0.5 + 4000 * 0.01)
    assert most(ask, learned, context=2048) == pytest.approx(0.5 + 2048 * 0.01)


ASKS = st.builds(
    Ask,
    prompts=st.integers(1, 3),
    choices=st.integers(0, 4),
    text_bytes=st.integers(0, 50_000),
    messages=st.integers(0, 5),
    max_output=st.one_of(st.none(), st.integers(0, 9000)),
    token_ids=st.just(0),
    media=st.just(0),
    echo=st.just(False),
    cut_to=st.sampled_from([None, -1, 50]),
    units=st.none(),
    images=st.just(()),
)


@given(
    ASKS, st.integers(1, 8000), st.integers(0, 500), st.one_of(st.none(), st.integers(16, 9000)), st.floats(0.01, 99)
)
def test_the_most_is_never_less_than_is_expected(
    ask: Ask, inputs: int, outputs: int, context: int | None, slot_mu: float
) -> None:
    learned = Learned()
    for _ in range(3):
        learned.note("k", "d", ask, input_tokens=inputs, cached_tokens=inputs // 2, output_tokens=outputs)
    expected = estimate(ask, PROFILE, learned, key="k", deployment="d", max_model_len=context)
    assert most(ask, learned, slot_mu=slot_mu, context=context) >= expected.mu


def test_a_slot_serves_its_part_of_the_supply() -> None:
    def replica(name: str, supply: float, slots: int) -> ReplicaRecord:
        return ReplicaRecord(
            id=name,
            deployment="d",
            revision="r",
            host="h",
            address="",
            state="ready",
            target_concurrency=slots,
            supply_mu_per_min=supply,
        )

    assert allowance.slot_mu([replica("a", 100.0, 10), replica("b", 50.0, 20)]) == pytest.approx(5.0)
    assert allowance.slot_mu([]) == math.inf


@given(st.lists(st.tuples(st.booleans(), st.floats(0.001, 30.0)), max_size=60))
def test_what_is_held_is_what_has_not_ended(steps: list[tuple[bool, float]]) -> None:
    unsettled = Unsettled()
    open_: list[tuple[Hold, float]] = []
    for is_end, discount in steps:
        if is_end and open_:
            hold, _ = open_.pop(len(open_) // 2)
            hold.release()
            hold.release()
        else:
            open_.append((unsettled.hold("r", discount), discount))
        total = sum(amount for _, amount in open_)
        assert unsettled.tell().get("r", 0.0) == pytest.approx(total)
        assert unsettled.room("r", 100.0) == pytest.approx(100.0 - total)
    for hold, _ in open_:
        hold.release()
    assert unsettled.tell() == {}


def test_gateways_have_equal_parts_of_what_was_free_when_they_heard_of_each_other() -> None:
    unsettled = Unsettled()
    first = unsettled.hold("r", 20.0)
    unsettled.hear({"r": 40.0}, 4)
    assert unsettled.room("r", 100.0) == pytest.approx((100.0 - 60.0) / 4)
    unsettled.hold("r", 4.0)
    assert unsettled.room("r", 100.0) == pytest.approx(6.0)
    first.release()
    assert unsettled.room("r", 100.0) == pytest.approx(26.0), "what has ended here is free here at once"
    unsettled.hear({"r": 120.0}, 4)
    assert unsettled.room("r", 100.0) == pytest.approx(0.0)
    assert unsettled.room("other", 100.0) == pytest.approx(25.0)
    assert unsettled.room("r", 100.0, alone=4) == pytest.approx(21.0), "nobody hears of anybody: its own part"


class Sent(NamedTuple):
    """``after`` the one before, in seconds. It was taught to be estimated at ``share`` of the ``most`` that it can take
    in a minute; it takes ``used`` of that in each minute that it runs, for ``lasts`` seconds, and ``tells`` as it goes.
    """

    after: float
    at: int
    most: float
    share: float
    used: float
    lasts: float
    tells: bool


SENT = st.lists(
    st.builds(
        Sent,
        after=st.one_of(st.just(0.0), st.floats(0.0, 20.0)),
        at=st.integers(0, 3),
        most=st.floats(0.1, 12.0),
        share=st.one_of(st.just(0.001), st.floats(0.0, 1.0)),
        used=st.one_of(st.just(1.0), st.floats(0.0, 1.0)),
        lasts=st.floats(0.1, 180.0),
        tells=st.booleans(),
    ),
    min_size=1,
    max_size=80,
)
RATE = 60.0
"""MU/min of the reservation: its bucket holds 10, its allowance 120."""


class Run(NamedTuple):
    began: float
    ended: float
    mu_per_s: float
    charged: float

    def used(self, since: float, until: float) -> float:
        return max(0.0, min(until, self.ended) - max(since, self.began)) * self.mu_per_s


FLOOD = [Sent(0.0, n % 4, 6.0, 0.001, 1.0, 60.0, n % 2 == 0) for n in range(400)]


def runs_of(sent: list[Sent], gateways: int) -> list[Run]:
    """What was admitted as reserved, in the product's own words."""
    now = 0.0
    till = Till(lambda: now * 1000, gateways)
    share = share_of("r", RATE, PROFILE, slot_mu=6.0)
    runs: list[Run] = []
    # (when, in which order, what)
    events: list[tuple[float, int, tuple[str, int, Granted | None]]] = []
    at = 0.0
    for number, one in enumerate(sent):
        at += one.after
        heapq.heappush(events, (at, number, ("come", number, None)))
    order = len(sent)
    beaten = 0.0
    while events:
        now, _, (what, number, granted) = heapq.heappop(events)
        one = sent[number]
        for _ in range(min(3, int((now - beaten) / 0.1))):
            till.beat()
            beaten = now
        mu_per_s = one.used * one.most / 60
        if granted is None:
            answer = till.charge(share, one.share * one.most, one.most, at=one.at % gateways).answer
            if not isinstance(answer, Granted):
                continue
            runs.append(Run(now, now + one.lasts, mu_per_s, answer.demands[0].amount))
            heapq.heappush(events, (now + one.lasts, order, ("end", number, answer)))
            for second in range(1, int(one.lasts) + 1 if one.tells else 0):
                order += 1
                heapq.heappush(events, (now + second, order, (f"tell {second}", number, answer)))
            order += 1
        elif what == "end":
            till.settle(granted, mu_per_s * one.lasts)
        else:
            till.overrun(granted, share.bucket, mu_per_s * int(what.split()[1]))
    assert all(desk.unsettled.tell() == {} for desk in till.desks), "nothing leaks"
    return runs


@given(SENT, st.sampled_from([1, 2, 4]))
@example(FLOOD, 1)
@example(FLOOD, 4)
@settings(max_examples=150, deadline=None)
def test_whatever_estimates_say_the_use_of_any_minute_is_bounded(sent: list[Sent], gateways: int) -> None:
    """By the rate, what the bucket holds, the allowance (twice, where several gateways fill it at once), one request at
    each gateway, and what was charged before the window and is used in it."""
    runs = runs_of(sent, gateways)
    beyond = 2 * RATE * (1 if gateways == 1 else 2) + gateways * max(one.most for one in sent)
    largest = max((run.charged for run in runs), default=0.0)
    for begin in {run.began for run in runs}:
        for length in (0.5, 5.0, 20.0, 60.0):
            until = begin + length
            used = sum(run.used(begin, until) for run in runs)
            carried = sum(run.charged for run in runs if run.began < begin < run.ended)
            bound = max(RATE / 6, largest) + RATE * length / 60 + beyond + carried
            assert used <= bound + 1e-6


def test_without_the_allowance_a_flood_takes_many_times_as_much() -> None:
    """The same flood, were its estimates believed: all of them fit into the bucket."""
    believed = [one._replace(share=1.0, most=one.share * one.most) for one in FLOOD]
    assert len(runs_of(believed, 1)) == len(FLOOD)
    bound = RATE / 6 + RATE + 2 * RATE
    assert sum(one.most for one in FLOOD) > 12 * bound
    for gateways in (1, 4):
        used = sum(run.used(0.0, 60.0) for run in runs_of(FLOOD, gateways))
        assert 0.5 * bound < used <= bound + gateways * 6.0
