"""A client that waits exactly as long as it was told is admitted, whatever others ask meanwhile; no bound breaks."""

from __future__ import annotations

import heapq

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
        wait = promises.wait_ms(level, amount, self.book, capacity=CAPACITY, rate=RATE, now_ms=now)
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
