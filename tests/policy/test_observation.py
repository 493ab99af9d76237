"""Heartbeats to samples: what rose since the last look, over restarts, pauses and loops that begin late."""

from hypothesis import given
from hypothesis import strategies as st

from serving.policy.observation import FORGET_S, GatewayCounts, Memory, differences

NOW = 1_000_000.0


def beat(gateway: str = "a", *, offered: float = 0.0, started_at: float = 1.0, deployment: str = "d") -> GatewayCounts:
    return GatewayCounts(gateway, started_at, {deployment: {"offered_mu": offered, "offered_requests": offered}})


def offered(rises: dict[str, dict[str, float]], deployment: str = "d") -> float:
    return rises.get(deployment, {}).get("offered_mu", 0.0)


def base(*beats: GatewayCounts, now: float = NOW) -> Memory:
    return differences(None, beats, now=now)[1]


def test_a_first_look_is_only_a_base_line() -> None:
    rises, memory = differences(None, [beat(offered=1e6)], now=NOW)
    assert offered(rises) == 0.0
    assert offered(differences(memory, [beat(offered=1e6 + 7)], now=NOW + 1)[0]) == 7.0


def test_gateways_add_up() -> None:
    memory = base(beat("a", offered=10), beat("b", offered=100))
    rises, _ = differences(memory, [beat("a", offered=13), beat("b", offered=104)], now=NOW + 1)
    assert offered(rises) == 7.0


def test_a_restarted_gateway_counts_from_zero() -> None:
    memory = base(beat(offered=500))
    rises, _ = differences(memory, [beat(offered=4, started_at=2.0)], now=NOW + 1)
    assert offered(rises) == 4.0


def test_a_gateway_that_has_just_joined_counts_whole() -> None:
    rises, _ = differences(base(beat("a")), [beat("a"), beat("b", offered=5)], now=NOW + 1)
    assert offered(rises) == 5.0


def test_after_a_long_sleep_of_the_loops_a_strange_gateway_is_a_base_line() -> None:
    rises, _ = differences(base(beat("a")), [beat("b", offered=5000)], now=NOW + 60)
    assert offered(rises) == 0.0


def test_a_pause_of_a_known_gateway_loses_nothing() -> None:
    memory = base(beat(offered=10))
    for second in range(1, 30):
        _, memory = differences(memory, [], now=NOW + second)
    rises, _ = differences(memory, [beat(offered=25)], now=NOW + 30)
    assert offered(rises) == 15.0


def test_a_gateway_is_forgotten_in_time() -> None:
    _, memory = differences(base(beat("gone")), [], now=NOW + FORGET_S + 1)
    assert memory.gateways == {}


def test_a_counter_that_fell_is_no_negative_load() -> None:
    assert offered(differences(base(beat(offered=10)), [beat(offered=3)], now=NOW + 1)[0]) == 0.0


@given(
    steps=st.lists(st.tuples(st.integers(0, 50), st.booleans(), st.booleans()), min_size=1, max_size=60),
)
def test_the_rises_sum_up_to_what_was_counted(steps: list[tuple[int, bool, bool]]) -> None:
    """A gateway counts, sometimes restarts after being seen, sometimes misses a look."""
    total, counter, started, unseen_restart = 0, 0, 1.0, False
    memory, seen_sum = base(beat(offered=0, started_at=started)), 0.0
    for number, (amount, restarts, missed) in enumerate(steps, start=1):
        if restarts and not unseen_restart:
            counter, started = 0, started + 1
        counter += amount
        total += amount
        unseen_restart = missed
        rises, memory = differences(
            memory, [] if missed else [beat(offered=counter, started_at=started)], now=NOW + number
        )
        seen_sum += offered(rises)
    rises, _ = differences(memory, [beat(offered=counter, started_at=started)], now=NOW + len(steps) + 1)
    assert seen_sum + offered(rises) == total
