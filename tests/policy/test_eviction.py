"""Replicas on a host that is being drained: who stays until it is replaced, who leaves, and why."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.policy.replicas import EVICTED, Alive, Patience, plan
from tests.policy.test_replicas import NOW, alive, broken, removed, want

PATIENCE = Patience(room_s=30.0)


def test_an_evicted_replica_serves_until_another_does() -> None:
    old, new = alive("old", evicted=True), alive("new", "starting")
    first = plan(want(1), [old], [], now=NOW)
    assert (first.create, first.remove, set(first.kept)) == (1, (), {"old"})
    assert plan(want(1), [old, new], [], now=NOW).remove == ()
    done = plan(want(1), [old, alive("new")], [], now=NOW)
    assert [(one.id, one.drain) for one in done.remove] == [("old", True)]
    assert done.kept == {}


def test_what_does_not_serve_there_goes_at_once() -> None:
    made = plan(want(2), [alive("a", "starting", evicted=True), alive("b", "pending", evicted=True)], [], now=NOW)
    assert made.create == 2
    assert {(one.id, one.drain) for one in made.remove} == {("a", False), ("b", False)}


def test_the_evicted_leave_before_those_of_an_older_revision() -> None:
    there = [alive("older", is_current=False), alive("evicted", evicted=True), alive("new")]
    assert removed(plan(want(2), there, [], now=NOW)) == ["evicted"]


@pytest.mark.parametrize(("age_s", "leaves"), [(29.0, []), (31.0, ["idle"])])
def test_a_replacement_without_a_host_is_waited_for_so_long(age_s: float, leaves: list[str]) -> None:
    there = [
        alive("busy", mu=9.0, evicted=True),
        alive("idle", mu=1.0, evicted=True),
        alive("starts", "starting", age_s=age_s),
        alive("homeless", "pending", placed=False, age_s=age_s),
    ]
    made = plan(want(2), there, [], now=NOW, patience=PATIENCE)
    assert removed(made) == leaves
    if leaves:
        assert made.remove[0].reason.endswith("no other host has had room for its replacement for 30 s")
        # The other one's replacement starts: once the first has left, nothing more follows from the same want of room.
        rest = [one for one in there if one.id != "idle"]
        assert removed(plan(want(2), rest, [], now=NOW, patience=PATIENCE)) == []


def test_replacements_that_break_keep_the_evicted_and_say_so() -> None:
    made = plan(want(1), [alive("old", evicted=True)], broken(*range(10, 90, 10)), now=NOW)
    assert (made.create, made.gave_up, made.remove) == (0, True, ())
    assert made.kept["old"].startswith(EVICTED)
    assert "8 launches failed in a row" in made.kept["old"]


STATES = st.sampled_from(["pending", "starting", "ready"])


@st.composite
def platforms(draw: st.DrawFn) -> list[Alive]:
    def one(index: int) -> Alive:
        state = draw(STATES)
        return alive(
            str(index),
            state,
            mu=draw(st.floats(0, 50)),
            age_s=draw(st.floats(0, 100)),
            is_current=draw(st.booleans()),
            placed=state != "pending" or draw(st.booleans()),
            evicted=draw(st.booleans()),
        )

    return [one(index) for index in range(draw(st.integers(0, 8)))]


@settings(deadline=None)
@given(platforms(), st.integers(0, 6))
def test_no_drain_takes_what_serves_without_need(there: list[Alive], count: int) -> None:
    made = plan(want(count), there, [], now=NOW, patience=PATIENCE)
    gone = {one.id for one in made.remove}
    assert len(gone) == len(made.remove) <= len(there)
    serving = [one for one in there if one.state == "ready"]
    left = [one for one in serving if one.id not in gone]
    homeless = [
        one
        for one in there
        if one.is_current
        and not one.evicted
        and one.state == "pending"
        and not one.placed
        and NOW - one.created_at >= PATIENCE.room_s
    ]
    assert len(left) >= min(count, len(serving)) - len(homeless)
    # Everything on the host either leaves or says why it stays, and what leaves there is told so.
    evicted = {one.id for one in there if one.evicted}
    assert set(made.kept) == evicted - gone
    assert all(one.reason.startswith(EVICTED) for one in made.remove if one.id in evicted)
    assert made.create <= max(0, count - sum(one.is_current and not one.evicted for one in there))


@settings(deadline=None)
@given(st.integers(0, 5), st.integers(0, 5))
def test_a_drain_comes_to_its_end(count: int, on_it: int) -> None:
    """Whatever is created becomes ready a step later: in two steps nothing is left on the host."""
    there = [alive(f"old-{index}", evicted=True) for index in range(on_it)]
    for step in range(2):
        made = plan(want(count), there, [], now=NOW)
        gone = {one.id for one in made.remove}
        there = [one for one in there if one.id not in gone]
        there += [alive(f"new-{step}-{index}") for index in range(made.create)]
        assert sum(one.state == "ready" for one in there) >= min(count, on_it)
    assert [
        one.id for one in there if one.evicted and one.id not in removed(plan(want(count), there, [], now=NOW))
    ] == []
