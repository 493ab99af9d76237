"""A client that waits exactly as long as it was told is admitted, whatever others ask meanwhile; no bound breaks."""

from __future__ import annotations

import heapq
from typing import NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.policy import bucket, promises
from serving.policy.bucket import Bucket
from serving.policy.promises import Promise

CAPACITY = 600.0
RATE = CAPACITY / 60_000


class Desk:
    """One bucket with its book, and what it has admitted: (at, amount)."""

    def __init__(self) -> None:
        self.bucket = Bucket()
        self.book: promises.Book = []
        self.admitted: list[tuple[float, float]] = []

    def ask(self, now: float, amount: float, who: str) -> float:
        """0 when admitted, else milliseconds to wait."""
        self.bucket = bucket.drained(self.bucket, rate=RATE, now_ms=now)
        self.book = promises.standing(self.book, now)
        level = self.bucket.level
        fits, own = promises.admits(level, amount, who, self.book, capacity=CAPACITY, rate=RATE, now_ms=now)
        if fits:
            if own >= 0:
                del self.book[own]
            self.bucket = bucket.charged(self.bucket, amount)
            self.admitted.append((now, amount))
            return 0.0
        wait = promises.wait_ms(level, amount, who, self.book, capacity=CAPACITY, rate=RATE, now_ms=now)
        promises.promise(self.book, Promise(now + wait, amount, who))
        return wait


ASKED = st.lists(st.tuples(st.floats(0.0, 4000.0), st.floats(0.5, 700.0)), min_size=1, max_size=60)
"""After how long somebody asks, and for how much."""


@given(ASKED)
@settings(max_examples=400, deadline=None)
def test_who_waits_as_told_is_admitted(asked: list[tuple[float, float]]) -> None:
    desk, now = Desk(), 0.0
    # (when, which client, whether it comes again)
    coming: list[tuple[float, int, bool]] = []
    for client, (after, _) in enumerate(asked):
        now += after
        coming.append((now, client, False))
    while coming:
        at, client, is_again = heapq.heappop(coming)
        _, amount = asked[client]
        wait = desk.ask(at, amount, f"key {client}")
        if wait:
            assert not is_again, f"client {client} came when told, and is told to wait for another {wait} ms"
            heapq.heappush(coming, (at + wait, client, True))
    assert len(desk.admitted) == len(asked)
    for i, (begin, _) in enumerate(desk.admitted):
        total = largest = 0.0
        for at, amount in desk.admitted[i:]:
            total, largest = total + amount, max(largest, amount)
            assert total <= max(CAPACITY, largest) + RATE * (at - begin) + 1e-3


@given(
    st.lists(st.tuples(st.floats(0.0, 4000.0), st.floats(0.5, 300.0), st.booleans()), min_size=1, max_size=30),
    st.floats(0.02, 12.0),
)
@settings(max_examples=150, deadline=None)
def test_who_waits_as_told_is_admitted_beside_a_key_that_does_not_wait(
    asked: list[tuple[float, float, bool]], small: float
) -> None:
    """The third of each: whether it is the key that asks again and again, for ``small``, and never comes when told."""
    desk, now = Desk(), 0.0
    coming: list[tuple[float, int, bool]] = []
    for client, (after, _, _) in enumerate(asked):
        now += after
        coming.append((now, client, False))
    while coming:
        at, client, is_again = heapq.heappop(coming)
        _, amount, does_not_wait = asked[client]
        if does_not_wait:
            # Small beside the limit: else its promises, unclaimed, stand in the way of what comes behind them.
            for _ in range(30):
                desk.ask(at, small, "impatient")
            assert sum(not one.is_soft for one in desk.book if one.who == "impatient") <= promises.FIRM
            continue
        wait = desk.ask(at, amount, f"key {client}")
        if wait:
            assert not is_again, f"client {client} came when told, and is told to wait for another {wait} ms"
            heapq.heappush(coming, (at + wait, client, True))


class Seen(NamedTuple):
    """Of patient clients: the longest time they were told, how often they came as told, and how often in vain."""

    longest_ms: float
    came: int
    in_vain: int


def beside_an_impatient_key(*, patient: int, clients: int, every_ms: float, seconds: float = 40.0) -> Seen:
    """``patient`` keys of ``clients`` each who wait as told and ask again when admitted, and a key that asks all the
    time. Ten requests a second are allowed."""
    desk = Desk()
    longest, came, in_vain = 0.0, 0, 0
    # (when, a number, key, whether it was told to come)
    coming: list[tuple[float, int, str, bool]] = [(0.0, 0, "impatient", False)]
    coming += [(3000.0 + n, n + 1, f"key {n % patient}", False) for n in range(patient * clients)]
    while coming[0][0] < seconds * 1000:
        at, number, key, is_told = heapq.heappop(coming)
        wait = desk.ask(at, 1.0, key)
        if key == "impatient":
            heapq.heappush(coming, (at + every_ms, number, key, False))
            continue
        came, in_vain, longest = came + is_told, in_vain + bool(is_told and wait), max(longest, wait)
        heapq.heappush(coming, (at + (wait or 1.0), number, key, wait > 0.0))
    return Seen(longest, came, in_vain)


def test_who_waits_as_told_waits_for_few_requests_of_a_key_that_does_not_wait() -> None:
    seen = beside_an_impatient_key(patient=4, clients=2, every_ms=40.0)
    assert seen.came > 100
    assert seen.in_vain == 0
    assert seen.longest_ms <= (promises.FIRM + 4 * 2) * 1.0 / RATE + 1.0


def test_before_a_key_could_keep_others_waiting_for_all_that_a_book_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(promises, "FIRM", promises.MOST)
    seen = beside_an_impatient_key(patient=4, clients=2, every_ms=40.0)
    assert seen.longest_ms > 3 * (20 + 4 * 2) / RATE


def test_many_patient_clients_of_each_key_come_in_vain_less_than_once_in_a_hundred_times() -> None:
    seen = beside_an_impatient_key(patient=3, clients=promises.FIRM // 2, every_ms=40.0)
    assert seen.came > 100
    assert seen.in_vain <= seen.came / 100


def test_patient_clients_of_one_key_need_no_firm_promise_while_nobody_else_asks() -> None:
    desk = Desk()
    coming = [(0.0, n, False) for n in range(6 * promises.FIRM)]
    came = in_vain = 0
    while coming[0][0] < 200_000:
        at, number, is_told = heapq.heappop(coming)
        wait = desk.ask(at, 20.0, "key")
        came, in_vain = came + is_told, in_vain + bool(is_told and wait)
        heapq.heappush(coming, (at + (wait or 1.0), number, wait > 0.0))
    assert came > 50
    assert in_vain <= came / 100


def test_a_firm_promise_pushes_a_soft_one_out_of_a_full_book() -> None:
    desk = Desk()
    desk.ask(0.0, 600.0, "a")
    for _ in range(promises.MOST):
        desk.ask(0.0, 60.0, "flood")
    wait = desk.ask(0.0, 60.0, "b")
    assert wait == pytest.approx((promises.FIRM + 1) * 60 / RATE)
    assert len(desk.book) == promises.MOST
    assert desk.ask(wait, 60.0, "b") == 0.0


@given(st.integers(1, 60), st.floats(1.0, 600.0))
@settings(max_examples=100, deadline=None)
def test_clients_of_one_key_that_are_refused_at_once_take_turns(clients: int, amount: float) -> None:
    desk = Desk()
    desk.ask(0.0, CAPACITY, "first")
    waits = [desk.ask(0.0, amount, "key") for _ in range(clients)]
    assert waits == [pytest.approx(amount * (place + 1) / RATE) for place in range(clients)]
    for wait in waits:
        assert desk.ask(wait - 1.0, amount, "key") > 0 or wait < 1.0, "not earlier"
        desk.book.pop()
        assert desk.ask(wait, amount, "key") == 0.0


def test_a_small_request_goes_before_a_large_one_only_where_that_can_spare_it() -> None:
    desk = Desk()
    assert desk.ask(0.0, 400.0, "a") == 0.0
    assert desk.ask(0.0, 500.0, "large") == pytest.approx(300 / RATE)
    wait = desk.ask(0.0, 10.0, "small")
    assert wait == pytest.approx(310 / RATE), "it fits now, but then the large one would not when it was told"
    assert desk.ask(300 / RATE, 500.0, "large") == 0.0
    assert desk.ask(wait, 10.0, "small") == 0.0


def test_what_was_given_back_is_there_for_others_at_once() -> None:
    desk = Desk()
    desk.ask(0.0, 600.0, "a")
    assert desk.ask(0.0, 60.0, "b") > 0
    desk.bucket = bucket.refunded(desk.bucket, 590.0, charged_at_ms=0.0)
    assert desk.ask(1.0, 500.0, "c") == 0.0
    assert desk.ask(2.0, 60.0, "b") == 0.0, "and so is it for who was promised"


def test_a_promise_that_is_not_claimed_is_forgotten() -> None:
    desk = Desk()
    desk.ask(0.0, 600.0, "a")
    due = desk.ask(0.0, 600.0, "gone")
    assert desk.ask(due + 1.0, 300.0, "b") > 0
    desk.book = [Promise(due, 600.0, "gone")]
    assert desk.ask(due + promises.HOLD_MS, 300.0, "b") == 0.0


def test_who_comes_late_makes_nobody_wait_longer() -> None:
    desk = Desk()
    desk.ask(0.0, 600.0, "a")
    waits = [desk.ask(0.0, 60.0, f"key {place}") for place in range(20)]
    coming = sorted((wait + 900.0 * (place % 3 == 0), place) for place, wait in enumerate(waits))
    assert [desk.ask(at, 60.0, f"key {place}") for at, place in coming] == [0.0] * 20


def test_a_somewhat_larger_retry_claims_what_was_promised() -> None:
    desk = Desk()
    desk.ask(0.0, 600.0, "a")
    due = desk.ask(0.0, 60.0, "b")
    assert desk.ask(due + 500.0, 64.0, "b") == 0.0
    assert not desk.book
    desk.ask(due + 500.0, 60.0, "b")
    desk.ask(due + 500.0, 80.0, "b")
    assert len(desk.book) == 2, "one much larger is another"


def test_the_book_is_bounded() -> None:
    desk = Desk()
    desk.ask(0.0, 600.0, "a")
    waits = [desk.ask(0.0, 60.0, "b") for _ in range(promises.MOST + 10)]
    assert len(desk.book) == promises.MOST
    assert waits[-1] == waits[-10] == pytest.approx((promises.MOST + 1) * 60 / RATE)
