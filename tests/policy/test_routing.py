"""The first routing policy against a slow and obvious oracle."""

from __future__ import annotations

from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.policy.routing import Candidate, Load, least_wait, turns

LOAD = Load("w", 1.0, 2.0)


class Busy(NamedTuple):
    n: int = 0
    w: float = 0.0
    d: float = 0.0
    lent_w: float = 0.0
    lent_d: float = 0.0

    @property
    def owed(self) -> float:
        return self.w - self.lent_w


def candidate(
    name: str,
    requests: int = 0,
    ms: float = 0.0,
    *,
    decode_ms: float = 0.0,
    lent_ms: float = 0.0,
    target: int = 4,
    ready: bool = True,
    suspect: bool = False,
    turn: int = 0,
) -> Candidate:
    """An MU is a millisecond. ``ms`` of prompts wait there, ``lent_ms`` of best effort besides."""
    load = Busy(requests, ms + lent_ms, decode_ms, lent_ms)
    return Candidate(name, ready, target, load, suspect, 1.0, turn)


def test_the_shorter_wait_wins_over_fewest_requests() -> None:
    assert least_wait([candidate("a", 1, 90.0), candidate("b", 3, 2.0)], LOAD).replica == "b"


def test_answers_in_flight_count_for_little() -> None:
    assert least_wait([candidate("a", 1, 30.0), candidate("b", 1, decode_ms=700.0)], LOAD).replica == "b"
    assert least_wait([candidate("a", 1, 5.0), candidate("b", 1, decode_ms=700.0)], LOAD).replica == "a"


def test_requests_are_spread_where_no_prompt_waits() -> None:
    """As short prompts are read before the next one comes, and answers go on."""
    requests = {"a": 0, "b": 0, "c": 0}
    for _ in range(12):
        field = [candidate(name, requests[name], target=8, turn=turn) for turn, name in enumerate("bca")]
        requests[least_wait(field, LOAD).replica] += 1
    assert max(requests.values()) - min(requests.values()) <= 2, requests


def test_an_owners_short_prompt_goes_beside_a_long_one_rather_than_behind_several() -> None:
    def chosen(waits_ms: float, own_ms: float, *, is_lent: bool = False) -> str:
        field = [candidate("a", 1, waits_ms), candidate("b", 1, lent_ms=2_000.0)]
        return least_wait(field, Load("w", own_ms, 1.0, is_lent=is_lent)).replica

    assert chosen(120.0, 50.0) == "a", "the long one costs it 80 ms, and 50 more for its own 50"
    assert chosen(150.0, 50.0) == "b"
    assert chosen(150.0, 100.0) == "a", "it is slowed down for longer"
    assert chosen(1_500.0, 50.0, is_lent=True) == "a", "best effort waits for all of it"
    assert chosen(1_500.0, 200.0) == "a", "a long one shares: all that is before it counts"
    reserved = [candidate("a", 1, 150.0), candidate("b", 1, 2_000.0)]
    assert least_wait(reserved, Load("w", 50.0, 1.0)).replica == "a", "what is not lent goes first"


def test_the_clearest_replica_is_told() -> None:
    field = [candidate("a", 1, 700.0), candidate("b", 1, lent_ms=600.0), candidate("c", 4)]
    decision = least_wait(field, Load("w", 50.0, 1.0))
    assert (decision.replica, decision.wait_ms, decision.clearest_ms) == ("b", 130.0, 600.0)


def test_of_equal_replicas_the_one_that_has_read_some_of_it_is_taken() -> None:
    back = Load("w", 500.0, 2.0, is_lent=True, home="b")
    assert least_wait([candidate("a"), candidate("b", turn=1)], back).replica == "b"
    assert least_wait([candidate("a"), candidate("b", 1, 11.0)], back).replica == "a", "but it is not waited for"
    assert least_wait([candidate("a"), candidate("c")], back).replica == "a", "nor missed"


def test_equal_replicas_are_taken_by_turn_then_by_requests_then_by_id() -> None:
    assert least_wait([candidate("a", 0, 0.0, turn=1), candidate("b", 1, 9.0)], LOAD).replica == "b"
    assert least_wait([candidate("a", 0, 0.0, turn=1), candidate("b", 1, 11.0)], LOAD).replica == "a"
    assert least_wait([candidate("a", 0, 9.0, turn=1), candidate("b", 2, 0.0)], LOAD).replica == "a", "2 more"
    assert least_wait([candidate("a", 2, 5.0), candidate("b", 1, 5.0)], LOAD).replica == "b"
    assert least_wait([candidate("b"), candidate("a")], LOAD).replica == "a"


@pytest.mark.parametrize(("replicas", "gateways"), [(4, 1), (4, 2), (4, 4), (8, 3), (2, 4), (1, 3)])
def test_gateways_begin_at_replicas_of_their_own(replicas: int, gateways: int) -> None:
    ids = [f"r{n}" for n in range(replicas)]
    firsts = []
    for gateway in range(gateways):
        order = turns(reversed(ids), gateway=gateway, gateways=gateways)
        assert sorted(order.values()) == list(range(replicas))
        firsts.append(min(order, key=order.__getitem__))
    shares = [firsts.count(id) for id in ids]
    assert len(set(firsts)) == min(replicas, gateways)
    assert max(shares) - min(shares) <= 1


def test_no_replicas_have_no_turns() -> None:
    assert turns([], gateway=1, gateways=2) == {}


def test_a_suspect_is_taken_only_when_nothing_else_is_free() -> None:
    failed = candidate("a", suspect=True)
    assert least_wait([failed, candidate("b", 3, 99.0)], LOAD).replica == "b"
    assert least_wait([failed, candidate("b", 4, 99.0)], LOAD).replica == "a"


def test_no_replica_and_all_taken_are_told_apart() -> None:
    assert least_wait([], LOAD).verdict == "none"
    assert least_wait([candidate("a", ready=False)], LOAD).verdict == "none"
    assert least_wait([candidate("a")], LOAD, ("a",)).verdict == "none"
    assert least_wait([candidate("a", 4), candidate("b", 9)], LOAD).verdict == "wait"


CANDIDATES = st.lists(
    st.builds(
        Candidate,
        id=st.sampled_from("abcdefgh"),
        is_ready=st.booleans(),
        target_concurrency=st.integers(1, 6),
        load=st.builds(
            lambda n, w, d, part: Busy(n, w, d, part * w),
            st.integers(0, 8),
            st.sampled_from([0.0, 5.0, 20.0, 60.0, 500.0]),
            st.sampled_from([0.0, 100.0, 1_000.0]),
            st.sampled_from([0.0, 0.5, 1.0]),
        ),
        is_suspect=st.booleans(),
        ms_per_mu=st.just(1.0),
        turn=st.integers(0, 7),
    ),
    unique_by=lambda c: c.id,
    max_size=8,
)


@given(
    CANDIDATES, st.sets(st.sampled_from("abcdefgh"), max_size=3), st.sampled_from([10.0, 149.0, 150.0]), st.booleans()
)
def test_the_choice_is_what_a_walk_over_all_finds(
    candidates: list[Candidate], tried: set[str], own: float, is_lent: bool
) -> None:
    def wait(c: Candidate) -> float:
        lent = c.load.lent_w if is_lent or own >= 150.0 else min(c.load.lent_w, 80.0 + own)
        return c.load.w - c.load.lent_w + lent + c.load.d / 40

    decision = least_wait(candidates, Load("w", own, 2.0, is_lent=is_lent), tried)
    able = [c for c in candidates if c.is_ready and c.id not in tried]
    free = [c for c in able if c.load.n < c.target_concurrency]
    assert decision.reason
    if not able:
        assert decision.verdict == "none"
    elif not free:
        assert decision.verdict == "wait"
    else:
        assert decision.verdict == "dispatch"
        assert decision.clearest_ms == min(c.load.w for c in free)
        sound = [c for c in free if not c.is_suspect] or free
        shortest = min(map(wait, sound))
        equal = [c for c in sound if wait(c) <= shortest + 10.0]
        fewest = min(c.load.n for c in equal)
        equal = [c for c in equal if c.load.n <= fewest + 1]
        equal.sort(key=lambda c: (c.turn, c.load.n, c.id))
        assert decision.replica == equal[0].id


@given(CANDIDATES, st.randoms())
def test_the_order_of_the_candidates_does_not_matter(candidates: list[Candidate], rng: object) -> None:
    shuffled = list(candidates)
    rng.shuffle(shuffled)  # type: ignore[attr-defined]
    assert least_wait(candidates, LOAD).replica == least_wait(shuffled, LOAD).replica
