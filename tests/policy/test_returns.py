"""Places of best-effort requests that were refused, by themselves: whose they are, what they count, what is told."""

from __future__ import annotations

import itertools

import msgspec
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from serving.policy import returns
from serving.policy.returns import HOLD_S, LATE_S, LONGEST_S, MARGIN, SOONEST_S, Moved, Place, Returns, Word

KEYS = ("k1", "k2", "k3")


def promised(
    book: Returns, key: str = "k1", mu: float = 1.0, *, due: float = 10.0, mark: str = "m", tenant: str = "t"
) -> Place:
    place = Place(tenant, key, mu, since=due - 10.0, due=due, mark=mark)
    assert book.promise(place, 0.0)
    return place


def take(book: Returns, now: float, *, key: str = "k1", mu: float = 1.0, mark: str = "m") -> Place | None:
    return book.take("t", key, mu, lambda: mark, now)


@pytest.mark.parametrize("now", [0.0, 9.0, 10.0, 10.0 + HOLD_S - 0.01])
def test_the_same_request_has_its_place_whenever_it_comes(now: float) -> None:
    book = Returns()
    place = promised(book)
    assert take(book, now) is place
    assert take(book, now) is None, "one request at a time"
    book.leave(place)
    assert take(book, now) is place


def test_another_request_of_the_key_has_it_only_when_nobody_came_in_time() -> None:
    book = Returns()
    place = promised(book)
    assert take(book, 10.0 + LATE_S - 0.01, mark="another") is None
    assert list(book.unclaimed(10.0 + LATE_S - 0.01)) == []
    assert list(book.unclaimed(10.0 + LATE_S)) == [place]
    assert take(book, 10.0 + LATE_S, mark="another") is place


@pytest.mark.parametrize(("key", "mu"), [("k2", 1.0), ("k1", 1.3)])
def test_nobody_has_another_keys_place_or_one_that_is_too_small(key: str, mu: float) -> None:
    book = Returns()
    promised(book)
    assert take(book, 10.0, key=key, mu=mu) is None
    assert take(book, 10.0 + LATE_S, key=key, mu=mu, mark="x") is None


def test_no_tenant_has_another_tenants_place() -> None:
    book = Returns()
    promised(book, tenant="other")
    assert take(book, 10.0 + LATE_S) is None
    assert book.ahead_mu("t", "k1") == 0.0


def test_a_place_to_which_nobody_comes_is_forgotten_and_one_that_waits_is_not() -> None:
    book = Returns()
    waits, gone = promised(book), promised(book, mark="gone")
    assert take(book, 10.0) is waits
    book.forget(10.0 + HOLD_S)
    assert book.of("t") == [waits]
    assert gone not in book.of("t")
    assert take(book, 10.0 + HOLD_S, mark="gone") is None


@given(
    st.lists(st.tuples(st.sampled_from(KEYS), st.floats(0.1, 9.0), st.floats(1.0, 500.0)), min_size=1, max_size=80),
    st.sampled_from(KEYS),
)
@settings(deadline=None)
def test_what_goes_before_a_key_is_all_of_its_own_and_of_others_twenty_or_as_many_as_it_has(
    asked: list[tuple[str, float, float]], key: str
) -> None:
    book = Returns()
    for number, (who, mu, due) in enumerate(asked):
        promised(book, who, mu, due=due, mark=str(number))
    own = sum(who == key for who, _, _ in asked)
    want = 0.0
    for who in KEYS:
        theirs = [(due, number, mu) for number, (one, mu, due) in enumerate(asked) if one == who]
        firm, soft = theirs[: returns.FIRM], sorted(theirs[returns.FIRM :])
        counted = theirs if who == key else firm + soft[: max(0, own - returns.FIRM)]
        want += sum(mu for _, _, mu in counted)
    assert book.ahead_mu("t", key) == pytest.approx(want)


@given(st.integers(1, 3 * returns.MOST))
@settings(max_examples=20, deadline=None)
def test_a_flood_of_one_key_binds_others_by_twenty_of_its_places_and_fills_no_more_than_its_share(count: int) -> None:
    book = Returns()
    kept = sum(
        book.promise(Place("t", "flood", 1.0, since=0.0, due=10.0 + number, mark=str(number)), 0.0)
        for number in range(count)
    )
    assert kept == len(book) == min(count, returns.MOST)
    assert book.ahead_mu("t", "patient") == min(count, returns.FIRM)
    promised(book, "patient", mark="patient")
    assert take(book, 10.0, key="patient", mark="patient") is not None, "a firm one finds room among soft ones"
    assert len(book) <= returns.MOST


def test_who_would_wait_for_more_than_an_hour_has_no_place() -> None:
    book = Returns()
    assert not book.promise(Place("t", "k1", 1.0, since=0.0, due=LONGEST_S, mark="m"), 0.0)
    assert len(book) == 0


@given(
    st.lists(st.floats(0.01, 50.0), min_size=1, max_size=40),
    st.floats(0.05, 50.0),
)
@settings(deadline=None)
def test_in_a_line_that_moves_as_it_did_all_have_had_their_turn_when_they_are_due(
    costs: list[float], mu_per_s: float
) -> None:
    """Told one after the other; served in that order, at the pace that was seen. And turns do not lie further apart
    than the margin, and the second below which nobody is told, account for."""
    assume(MARGIN * sum(costs) / mu_per_s < LONGEST_S)
    book, now, done_at = Returns(), 0.0, 0.0
    for number, mu in enumerate(costs):
        told_s = returns.wait_s(book.ahead_mu("t", "k1"), mu, mu_per_s)
        book.promise(Place("t", "k1", mu, since=now, due=now + told_s, mark=str(number)), now)
        done_at += mu / mu_per_s
        assert told_s >= done_at - 1e-6
        assert told_s <= max(SOONEST_S, MARGIN * done_at) + 1e-6


def test_the_longest_time_is_an_hour() -> None:
    assert returns.wait_s(10.0, 1.0, 1e-9) == LONGEST_S


def test_where_nothing_is_known_nobody_is_told_to_come_in_an_hour() -> None:
    assert returns.wait_s(10.0, 1.0, 0.0) == returns.UNKNOWN_S
    assert returns.wait_s(10.0, 1.0, 0.0, hold_s=40.0) == 40.0


def test_after_a_claw_back_nobody_is_told_less_than_its_hold() -> None:
    assert returns.wait_s(0.0, 0.1, 1.0, hold_s=5.0) == pytest.approx(5.0 + MARGIN * 0.1)


def test_of_what_waits_only_so_much_goes_before_as_the_line_takes_in_a_wait() -> None:
    assert returns.waiting_mu(3.0, 100.0, 2.0, 5.0) == 13.0
    assert returns.waiting_mu(3.0, 1.0, 2.0, 5.0) == 4.0


def test_a_place_that_is_told_anew_keeps_its_request_and_moves() -> None:
    book = Returns()
    first, second = promised(book, due=10.0, mark="1"), promised(book, due=11.0, mark="2")
    assert take(book, 10.0, mark="1") is first
    book.leave(first, due=20.0)
    assert book.of("t") == [second, first]
    assert (first.since, first.due, first.is_here, len(book)) == (0.0, 20.0, False, 2)
    assert book.ahead_mu("t", "k1", first) == 1.0


class House:
    """Gateways with a book each, and what they last told, as JSON."""

    def __init__(self, count: int) -> None:
        self.books = {f"g{n}": Returns() for n in range(count)}

    def exchange(self, now: float, *names: str) -> None:
        told = {name: self.books[name].tell(now) for name in names or self.books}
        wire = {name: msgspec.json.encode(word) for name, word in told.items() if word is not None}
        for name in told:
            others = {other: msgspec.json.decode(raw, type=Word) for other, raw in wire.items() if other != name}
            self.books[name].hear(others, name, now)


@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3), st.floats(1.0, 60.0)), min_size=1, max_size=60),
    st.integers(1, 4),
)
@settings(max_examples=60, deadline=None)
def test_whoever_comes_to_another_gateway_finds_its_place_there_once(
    clients: list[tuple[int, int, float]], gateways: int
) -> None:
    house = House(gateways)
    for number, (at, _, due) in enumerate(clients):
        promised(house.books[f"g{at % gateways}"], f"k{number}", due=due, mark=str(number))
    house.exchange(0.0)
    for number, (_, to, due) in enumerate(clients):
        book, key = house.books[f"g{to % gateways}"], f"k{number}"
        place = take(book, due, key=key, mark=str(number))
        assert place is not None
        assert (place.mark, place.since) == (str(number), pytest.approx(due - 10.0))
        book.done(place)
        house.exchange(0.0)
        house.exchange(0.0)
        for other in house.books.values():
            assert take(other, due, key=key, mark=str(number)) is None
    house.exchange(0.0)
    assert all(len(book) == 0 and not book.are_any for book in house.books.values()), "nothing stays"


def test_all_gateways_count_what_any_has_promised() -> None:
    house = House(3)
    for name, mu in zip(house.books, (1.0, 2.0, 4.0), strict=True):
        promised(house.books[name], mu=mu, mark=name)
    house.exchange(0.0)
    assert [book.ahead_mu("t", "k2") for book in house.books.values()] == [7.0] * 3


def test_firm_places_are_counted_over_all_gateways() -> None:
    house = House(2)
    for number in range(returns.FIRM):
        promised(house.books["g0"], mark=str(number))
    house.exchange(0.0)
    promised(house.books["g1"], mark="one more")
    house.exchange(0.0)
    assert [book.ahead_mu("t", "k2") for book in house.books.values()] == [returns.FIRM] * 2


def test_without_word_of_others_each_knows_its_own() -> None:
    house = House(2)
    promised(house.books["g0"])
    house.exchange(0.0)
    for name in house.books:
        house.exchange(0.0, name)
    assert take(house.books["g1"], 10.0) is None
    assert take(house.books["g0"], 10.0) is not None


def test_what_is_told_is_bounded_and_has_of_each_tenant_what_is_due_first() -> None:
    book = Returns()
    for tenant, number in itertools.product(("a", "b", "c", "d"), range(returns.MOST)):
        promised(book, due=100.0 - number / 10, mark=str(number), tenant=tenant)
    word = book.tell(0.0)
    assert word is not None
    told = {tenant: keys["k1"] for tenant, keys in word.places.items()}
    assert sum(map(len, told.values())) <= returns.TOLD
    for places in told.values():
        assert len(places) == returns.TOLD // 4
        assert max(place.in_s for place in places) < 100.0 - (returns.MOST - len(places)) / 10 + 0.11


def test_a_word_of_a_newer_version_is_understood() -> None:
    raw = (
        b'{"places":{"t":{"k1":[[7,5.0,1.0,99.0,"m",false,false,"news"]]}},"news":1,"lines":{"t":[1.0,2.0,false,3.0]}}'
    )
    word = msgspec.json.decode(raw, type=Word)
    assert word.lines["t"] == Moved(1.0, 2.0)
    book = Returns()
    book.hear({"newer": word}, "me", 0.0)
    assert take(book, 5.0) is not None
