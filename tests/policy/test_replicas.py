"""The plan of the reconcile loop: what to start, what to let go, when to stop trying."""

from hypothesis import given
from hypothesis import strategies as st

from serving.policy.replicas import Alive, Failure, Patience, Want, backoff_s, plan

NOW = 1_000_000.0
PATIENCE = Patience(base_s=2.0, max_s=60.0, limit=5, stable_s=60.0, forget_s=3600.0)
DEFAULT = Patience()


def want(desired: int = 1, *, minimum: int = 0, maximum: int = 10, **kwargs: object) -> Want:
    return Want(enabled=True, minimum=minimum, maximum=maximum, desired=desired, **kwargs)  # type: ignore[arg-type]


def alive(name: str, state: str = "ready", *, mu: float = 0.0, age_s: float = 100.0, **kwargs: bool) -> Alive:
    return Alive(
        id=name,
        state=state,  # type: ignore[arg-type]
        is_current=kwargs.get("is_current", True),
        placed=kwargs.get("placed", True),
        created_at=NOW - age_s,
        in_flight_mu=mu,
        makes_room=kwargs.get("makes_room", False),
        evicted=kwargs.get("evicted", False),
        held=kwargs.get("held", False),
    )


def broken(*seconds_ago: float, served_s: float = 0.0) -> list[Failure]:
    return [Failure(NOW - ago, "out of memory", served_s) for ago in seconds_ago]


def removed(made: object) -> list[str]:
    return [removal.id for removal in made.remove]  # type: ignore[attr-defined]


def test_missing_replicas_are_made() -> None:
    made = plan(want(3), [alive("a")], [], now=NOW)
    assert (made.create, made.remove) == (2, ())


def test_a_disabled_deployment_keeps_none() -> None:
    off = Want(enabled=False, minimum=1, maximum=4, desired=2, pinned=3)
    made = plan(off, [alive("a"), alive("b", "starting")], [], now=NOW)
    assert made.create == 0
    assert {(r.id, r.drain) for r in made.remove} == {("a", True), ("b", False)}


def test_a_pin_overrules_desired_and_bounds() -> None:
    assert plan(want(1, minimum=1, maximum=2, pinned=5), [], [], now=NOW).create == 5


def test_what_costs_least_goes_first() -> None:
    there = [
        alive("busy", mu=50.0),
        alive("idle-old", age_s=500),
        alive("idle-new", age_s=5),
        alive("starting", "starting"),
        alive("unplaced", "pending", placed=False),
    ]
    order = [removed(plan(want(count), there, [], now=NOW)) for count in (4, 3, 2, 1)]
    assert order == [
        ["unplaced"],
        ["unplaced", "starting"],
        ["unplaced", "starting", "idle-new"],
        ["unplaced", "starting", "idle-new", "idle-old"],
    ]


def test_a_first_failure_is_answered_at_once_and_the_next_ones_wait_longer() -> None:
    assert plan(want(1), [], broken(0.0), now=NOW).create == 1
    waits = [plan(want(1), [], broken(*[0.0] * count), now=NOW).wait_until for count in (2, 3, 4)]
    assert [at - NOW for at in waits if at is not None] == [2.0, 4.0, 8.0]


def test_the_wait_ends() -> None:
    assert plan(want(1), [], broken(30.0, 20.0, 3.9), now=NOW).create == 0
    assert plan(want(1), [], broken(30.0, 20.0, 4.1), now=NOW).create == 1


def test_five_failures_in_a_row_are_the_end_and_say_what_to_do() -> None:
    made = plan(want(1), [], broken(1000, 900, 800, 700, 600), now=NOW, patience=PATIENCE)
    assert made.gave_up
    assert made.create == 0
    assert "out of memory" in made.reason
    assert "retry" in made.reason


def test_the_longest_wait_is_reached_before_the_end() -> None:
    waits = [backoff_s(failures, DEFAULT) for failures in range(DEFAULT.limit)]
    assert waits[-1] == DEFAULT.max_s


def test_an_outage_of_half_a_minute_is_lived_through() -> None:
    """Each launch fails at once while the outage lasts; the first one after it serves."""
    failed: list[float] = []
    now = NOW
    while now < NOW + 30.0:
        made = plan(want(1), [], [Failure(at, "the hub does not answer") for at in failed], now=now)
        assert not made.gave_up
        if made.create:
            failed.append(now)
        now += 2.0
    made = plan(want(1), [], [Failure(at, "the hub does not answer") for at in failed], now=NOW + 90.0)
    assert made.create == 1


def test_a_replica_that_had_served_begins_a_new_row() -> None:
    failures = [*broken(500, 400, 300, 200), *broken(100, served_s=90.0)]
    assert plan(want(1), [], failures, now=NOW, patience=PATIENCE).create == 1


def test_failures_before_the_deployment_last_worked_are_forgiven() -> None:
    failures = broken(500, 400, 300, 200, 190)
    assert plan(want(2), [alive("a")], failures, now=NOW, last_stable_at=NOW - 100, patience=PATIENCE).create == 1


def test_a_working_replica_does_not_hide_that_others_fail_since() -> None:
    failures = broken(50, 40, 30, 20, 10)
    made = plan(want(2), [alive("a")], failures, now=NOW, last_stable_at=NOW - 100, patience=PATIENCE)
    assert made.gave_up
    assert made.remove == ()


def test_after_an_hour_a_launch_is_tried_again() -> None:
    assert plan(want(1), [], broken(3700, 900, 800, 700, 600), now=NOW, patience=PATIENCE).create == 1


def test_after_repeated_failures_launches_come_one_at_a_time() -> None:
    assert plan(want(4), [], broken(100, 50), now=NOW).create == 1


def test_an_older_revision_leaves_as_the_newer_one_gets_ready() -> None:
    old = [alive("old-1", is_current=False, mu=3.0), alive("old-2", is_current=False, mu=1.0)]
    first = plan(want(2), old, [], now=NOW)
    assert (first.create, removed(first)) == (2, [])
    half = plan(want(2), [*old, alive("new-1"), alive("new-2", "starting")], [], now=NOW)
    assert (half.create, removed(half)) == (0, ["old-2"])
    whole = plan(want(2), [*old, alive("new-1"), alive("new-2")], [], now=NOW)
    assert removed(whole) == ["old-2", "old-1"]


def test_an_older_revision_that_does_not_serve_yet_goes_at_once() -> None:
    made = plan(want(1), [alive("old", "starting", is_current=False)], [], now=NOW)
    assert (made.create, removed(made), made.remove[0].drain) == (1, ["old"], False)


class TestRoom:
    """The older revision holds all accelerators: one of its replicas makes room for one newer at a time."""

    def older(self, *names: str) -> list[Alive]:
        return [alive(name, is_current=False, makes_room=True, mu=mu) for mu, name in enumerate(names)]

    def test_it_waits_for_room_first(self) -> None:
        there = [*self.older("old"), alive("new", "pending", placed=False, age_s=29.0)]
        assert removed(plan(want(1), there, [], now=NOW)) == []

    def test_then_the_idlest_that_makes_room_is_drained(self) -> None:
        there = [
            alive("elsewhere", is_current=False, makes_room=False),
            *self.older("old-1", "old-2"),
            *(alive(f"new-{number}", "pending", placed=False) for number in range(3)),
        ]
        made = plan(want(3), there, [], now=NOW)
        assert [(r.id, r.drain) for r in made.remove] == [("old-1", True)]
        assert "found no host" in made.remove[0].reason

    def test_the_next_waits_until_the_first_has_left_and_its_successor_serves(self) -> None:
        waiting = alive("new-2", "pending", placed=False)
        old = self.older("old-2", "old-3")
        assert removed(plan(want(3), [*old, waiting], [], now=NOW, leaving=1)) == []
        starting = alive("new-1", "starting")
        assert removed(plan(want(3), [*old, starting, waiting], [], now=NOW)) == []
        ready = alive("new-1")
        assert removed(plan(want(3), [*old, ready, waiting], [], now=NOW)) == ["old-2"]

    def test_where_nobody_makes_room_everything_serves_on(self) -> None:
        there = [alive("old", is_current=False), alive("new", "pending", placed=False)]
        assert removed(plan(want(1), there, [], now=NOW)) == []

    def test_one_that_found_its_host_asks_for_no_room(self) -> None:
        there = [*self.older("old"), alive("new", "starting"), alive("new-2", "pending")]
        assert removed(plan(want(2), there, [], now=NOW)) == []


@given(
    desired=st.integers(0, 12),
    minimum=st.integers(0, 5),
    spread=st.integers(0, 5),
    states=st.lists(st.sampled_from(["pending", "starting", "ready"]), max_size=10),
)
def test_one_pass_without_failures_reaches_what_is_wanted(
    desired: int, minimum: int, spread: int, states: list[str]
) -> None:
    there = [alive(str(number), state, age_s=number) for number, state in enumerate(states)]
    made = plan(want(desired, minimum=minimum, maximum=minimum + spread), there, [], now=NOW)
    after = len(there) + made.create - len(made.remove)
    assert minimum <= after <= minimum + spread
    assert after == min(max(desired, minimum), minimum + spread)
    assert len(set(removed(made))) == len(made.remove)
    assert not (made.create and made.remove)


def test_what_is_measured_is_neither_stopped_nor_replaced_and_does_not_count_as_serving() -> None:
    held = alive("held", held=True)
    made = plan(want(2), [held, alive("a")], [], now=NOW)
    assert (made.create, made.remove) == (0, ())
    # One is enough by now: the other one serves it, and what is measured stays until it comes back.
    made = plan(want(1), [held, alive("a")], [], now=NOW)
    assert (made.create, made.remove) == (0, ())
    made = plan(want(0), [held], [], now=NOW)
    assert (made.create, made.remove) == (0, ())
    # More are wanted than there are with it.
    assert plan(want(3), [held, alive("a")], [], now=NOW).create == 1
    # A newer revision waits for one that serves, not for one that is measured.
    older = alive("older", is_current=False)
    assert removed(plan(want(1), [held, older], [], now=NOW)) == []


@given(failures=st.integers(0, 40))
def test_back_off_never_falls_and_is_bounded(failures: int) -> None:
    assert 0.0 <= backoff_s(failures, PATIENCE) <= backoff_s(failures + 1, PATIENCE) <= PATIENCE.max_s
