"""The first routing policy against a slow and obvious oracle."""

from __future__ import annotations

from typing import NamedTuple

from hypothesis import given
from hypothesis import strategies as st

from serving.policy.routing import Candidate, Load, least_mu

LOAD = Load("w", 1.0, 2.0)


class Busy(NamedTuple):
    n: int = 0
    w: float = 0.0
    d: float = 0.0


def candidate(
    name: str, requests: int = 0, mu: float = 0.0, *, target: int = 4, ready: bool = True, suspect: bool = False
) -> Candidate:
    return Candidate(name, ready, target, Busy(requests, mu / 2, mu / 2), suspect)


def test_fewest_mu_wins_over_fewest_requests() -> None:
    assert least_mu([candidate("a", 1, 90.0), candidate("b", 3, 2.0)], LOAD).replica == "b"


def test_ties_go_to_fewest_requests_and_then_to_the_id() -> None:
    assert least_mu([candidate("a", 2, 5.0), candidate("b", 1, 5.0)], LOAD).replica == "b"
    assert least_mu([candidate("b"), candidate("a")], LOAD).replica == "a"


def test_rounding_dust_decides_nothing() -> None:
    assert least_mu([candidate("a", 0, 3e-12), candidate("b", 0, 0.0)], LOAD).replica == "a"


def test_a_suspect_is_taken_only_when_nothing_else_is_free() -> None:
    failed = candidate("a", suspect=True)
    assert least_mu([failed, candidate("b", 3, 99.0)], LOAD).replica == "b"
    assert least_mu([failed, candidate("b", 4, 99.0)], LOAD).replica == "a"


def test_no_replica_and_all_taken_are_told_apart() -> None:
    assert least_mu([], LOAD).verdict == "none"
    assert least_mu([candidate("a", ready=False)], LOAD).verdict == "none"
    assert least_mu([candidate("a")], LOAD, ("a",)).verdict == "none"
    assert least_mu([candidate("a", 4), candidate("b", 9)], LOAD).verdict == "wait"


CANDIDATES = st.lists(
    st.builds(
        Candidate,
        id=st.sampled_from("abcdefgh"),
        is_ready=st.booleans(),
        target_concurrency=st.integers(1, 6),
        load=st.builds(Busy, st.integers(0, 8), st.integers(0, 5).map(float), st.integers(0, 5).map(float)),
        is_suspect=st.booleans(),
    ),
    unique_by=lambda c: c.id,
    max_size=8,
)


@given(CANDIDATES, st.sets(st.sampled_from("abcdefgh"), max_size=3))
def test_the_choice_is_what_a_walk_over_all_finds(candidates: list[Candidate], tried: set[str]) -> None:
    decision = least_mu(candidates, LOAD, tried)
    able = [c for c in candidates if c.is_ready and c.id not in tried]
    free = [c for c in able if c.load.n < c.target_concurrency]
    assert decision.reason
    if not able:
        assert decision.verdict == "none"
    elif not free:
        assert decision.verdict == "wait"
    else:
        assert decision.verdict == "dispatch"
        chosen = next(c for c in free if c.id == decision.replica)
        for other in free:
            if chosen.is_suspect and not other.is_suspect:
                raise AssertionError("a suspect was preferred")
            if other.is_suspect == chosen.is_suspect:
                mine = chosen.load.w + chosen.load.d
                theirs = other.load.w + other.load.d
                assert mine < theirs or (
                    mine == theirs
                    and (chosen.load.n < other.load.n or (chosen.load.n == other.load.n and chosen.id <= other.id))
                )


@given(CANDIDATES, st.randoms())
def test_the_order_of_the_candidates_does_not_matter(candidates: list[Candidate], rng: object) -> None:
    shuffled = list(candidates)
    rng.shuffle(shuffled)  # type: ignore[attr-defined]
    assert least_mu(candidates, LOAD).replica == least_mu(shuffled, LOAD).replica
