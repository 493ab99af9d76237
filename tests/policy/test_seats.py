"""Whoever is refused for want of a seat and comes when it was told is admitted, on a virtual clock."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from random import Random  # noqa: TID251

import pytest

from serving.policy import seats
from serving.policy.seats import Pace, Turn

Duration = Callable[[Random], float]

DURATIONS: dict[str, Duration] = {
    "all alike": lambda rng: 2000.0,
    "exponential": lambda rng: rng.expovariate(1 / 2000),
    "log-normal": lambda rng: rng.lognormvariate(7.1, 1.0),
}
"""In ms; 2 s in the mean."""


class World:
    """``capacity`` seats, clients who come again at once when they are done, and come when they are told; others who
    ask every ``others_ms`` and wait for nothing."""

    def __init__(self, capacity: int, clients: int, duration: Duration, seed: int, others_ms: float = 0.0) -> None:
        self.capacity, self.duration, self.rng = capacity, duration, Random(seed)
        self.others_ms = others_ms
        self.now, self.running, self.number = 0.0, 0, 0
        self.pace, self.book = Pace(), list[Turn]()
        self.kept = self.broken = self.ended = 0
        self.work = 0.0
        self.events: list[tuple[float, int, str, str, float]] = []
        for client in range(clients):
            self.at(self.rng.uniform(0, 1000), "ask", f"c{client}")
        if others_ms:
            self.at(1.0, "other", "")

    def at(self, when: float, what: str, who: str, line_until: float = 0.0) -> None:
        self.number += 1
        heapq.heappush(self.events, (when, self.number, what, who, line_until))

    def run(self, ends: int) -> None:
        while self.ended < ends:
            when, _, what, who, line_until = heapq.heappop(self.events)
            self.work += self.running * (when - self.now)
            self.now = when
            self.pace = seats.paced(self.pace, when, ended=what == "end")
            self.book = seats.standing(self.book, when)
            getattr(self, what)(who, line_until)
            self.pace = self.pace._replace(running=self.running)

    def end(self, who: str, _: float) -> None:
        self.running -= 1
        self.ended += 1
        if who:
            self.at(self.now + self.rng.uniform(0, 100), "ask", who)

    def other(self, who: str, _: float) -> None:
        self.at(self.now + self.others_ms, "other", "")
        if seats.admits(self.capacity - self.running, self.book, -1, now_ms=self.now):
            self.start("")

    def start(self, who: str) -> None:
        self.running += 1
        assert self.running <= self.capacity
        self.at(self.now + self.duration(self.rng), "end", who)

    def ask(self, who: str, line_until: float) -> None:
        """``line_until``: it has been told to come now, and may wait so long; 0: it was told nothing."""
        free = self.capacity - self.running
        place = seats.place_of(self.book, who, who, self.now)
        if seats.admits(free, self.book, place, now_ms=self.now):
            if place >= 0:
                del self.book[place]
            self.kept += line_until > 0
            self.start(who)
        elif place >= 0 and self.now < line_until:
            self.book[place] = self.book[place]._replace(until_ms=self.now + seats.ALIVE_MS, ask=who, waits=True)
            self.at(self.now + 50.0, "ask", who, line_until)
        else:
            self.broken += line_until > 0
            wait = seats.wait_ms(free, self.book, self.pace, capacity=self.capacity, now_ms=self.now)
            if wait is None:
                self.at(self.now + 1000.0, "ask", who)
                return
            seats.promise(self.book, who, self.now + wait)
            self.at(self.now + wait, "ask", who, self.now + wait + 1000 * seats.LINE_S)


@pytest.mark.parametrize(("capacity", "clients", "others_ms"), [(1, 4, 0), (2, 5, 100), (4, 20, 100), (64, 100, 50)])
@pytest.mark.parametrize("durations", DURATIONS)
def test_who_comes_when_told_gets_a_seat(durations: str, capacity: int, clients: int, others_ms: float) -> None:
    kept = broken = 0
    for seed in range(3):
        world = World(capacity, clients, DURATIONS[durations], seed, others_ms)
        world.run(800)
        kept, broken = kept + world.kept, broken + world.broken
        share = world.work / world.now / capacity
        assert share > 0.9, f"seats are not kept empty for promises: {share:.2f} of them are used"
    print(f"{durations}, {capacity} seats, {clients} clients: {kept} promises kept, {broken} broken")
    assert kept > 300
    assert broken <= (kept + broken) / 100


def test_the_time_told_is_about_when_a_seat_comes() -> None:
    # 4 seats, requests of 2 s: a seat comes free each 500 ms.
    pace = Pace(0.0, 4, 64 * 2000.0, 64.0)
    waits = []
    book: list[Turn] = []
    for client in range(5):
        wait = seats.wait_ms(0, book, pace, capacity=4, now_ms=0.0)
        assert wait is not None
        waits.append(wait)
        seats.promise(book, f"c{client}", wait)
    expected = [seats.SOONEST_MS + seats.MARGIN * 500.0 * (place + 1) for place in range(5)]
    assert waits == pytest.approx(expected)


def test_nothing_is_promised_before_anything_has_ended() -> None:
    assert seats.wait_ms(0, [], Pace(0.0, 4, 5000.0, 0.0), capacity=4, now_ms=0.0) is None


def test_nobody_passes_those_whose_turn_has_come() -> None:
    book = [Turn(1000.0, 4000.0, "a", "a1", True), Turn(2000.0, 5000.0, "a"), Turn(3000.0, 6000.0, "b")]
    assert not seats.admits(1, book, -1, now_ms=1500.0), "a's turn has come"
    assert seats.admits(2, book, -1, now_ms=1500.0)
    assert seats.admits(1, book, -1, now_ms=900.0), "until then what is free is used"
    assert seats.place_of(book, "a", "a1", 1500.0) == 0
    assert seats.place_of(book, "a", "a2", 2000.0) == 1, "another request of the key has the key's next place"
    assert seats.place_of(book, "a", "a2", 1500.0) == -1, "but not before its turn"
    assert seats.place_of(book, "", "x", 9000.0) == -1
    assert seats.standing(book, 4500.0) == book[1:]


def test_those_who_do_not_come_keep_no_seat_empty() -> None:
    book = [Turn(float(due), due + 3000.0, f"gone {due}") for due in range(0, 2000, 100)]
    assert seats.admits(1, book, -1, now_ms=2500.0), "nobody has come for it"
    assert seats.place_of(book, "gone 100", "x", 2500.0) == 1
    book[1] = book[1]._replace(ask="x", waits=True)
    assert not seats.admits(1, book, -1, now_ms=2500.0), "one waits for it"
    assert seats.admits(1, book, 1, now_ms=2500.0), "and gets it before those who have not come"
    elsewhere = [book[1]._replace(waits=False)]
    assert seats.admits(1, elsewhere, -1, now_ms=2500.0), "it waits for a seat of another limit"


def test_places_far_ahead_make_nobody_else_wait_as_long() -> None:
    """A key's own limit says an hour; those who share only the seats with it are told when one comes free."""
    pace = Pace(0.0, 4, 64 * 2000.0, 64.0)
    book = list[Turn]()
    for number in range(seats.MOST):
        seats.promise(book, "slow", 3_600_000.0 + 60_000.0 * number)
    assert seats.wait_ms(0, book, pace, capacity=4, now_ms=0.0) == pytest.approx(seats.SOONEST_MS + seats.MARGIN * 500)
    seats.promise(book, "quick", 700.0)
    assert len(book) == seats.MOST
    assert book[0].who == "quick", "of a full book the last makes way"
    assert seats.wait_ms(0, book, pace, capacity=4, now_ms=0.0) == pytest.approx(seats.SOONEST_MS + seats.MARGIN * 1000)
    seats.promise(book, "later", 1e9)
    assert book[-1].who == "slow"
