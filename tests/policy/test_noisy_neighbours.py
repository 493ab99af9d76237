"""What a reservation is worth beside a flood: the gateway's own dispatching, simulated engines, a virtual clock."""

from __future__ import annotations

from functools import cache

import pytest

from bench.fairness import scenarios
from bench.fairness.scenarios import Outcome
from bench.fairness.world import Scheme

REPLICAS, SECONDS = 4, 45.0


@cache
def run(scheme: Scheme, with_flood: bool) -> Outcome:
    return scenarios.neighbours(scheme, replicas=REPLICAS, seconds=SECONDS, with_flood=with_flood)


def test_owners_inside_their_mu_do_not_notice_a_flood() -> None:
    quiet, flooded = run("classes", False), run("classes", True)
    assert flooded.owners_reserved == 1.0
    assert flooded.owners_refused == 0
    assert flooded.owners_p99 <= 2 * quiet.owners_p99
    assert flooded.owners_in_time >= 0.99


def test_small_best_effort_requests_are_in_time_beside_a_flood() -> None:
    assert run("classes", True).small_in_time >= 0.99


def test_the_flood_gets_what_is_spare_and_no_more() -> None:
    flooded = run("classes", True)
    assert flooded.flood_refused > 0
    assert flooded.flood_mu_per_min > 0.3 * 100 * REPLICAS, "what is idle is lent"


def test_limits_of_requests_alone_protect_nobody() -> None:
    quiet, flooded = run("classes", False), run("requests", True)
    assert flooded.flood_refused < 0.05 * 60 * REPLICAS, "the flood is within them"
    assert flooded.owners_p99 > 20 * quiet.owners_p99
    assert flooded.owners_in_time < 0.5
    assert flooded.small_in_time < 0.5


@pytest.mark.parametrize(("replicas", "long"), [(1, True), (1, False), (3, True), (3, False)])
def test_owners_who_return_have_what_they_bought_within_the_deadline(replicas: int, long: bool) -> None:
    back = scenarios.owner_returns(replicas=replicas, at=15.0, seconds=30.0, long=long)
    assert back.lent_before > 60.0 * replicas, "all of it was lent"
    assert back.refused == 0
    assert back.full_service_s < back.deadline_s
    assert back.worst_ttft_s < back.deadline_s


def test_two_tenants_whose_prompts_differ_fifty_times_get_equal_mu() -> None:
    shares = scenarios.fifty_times(replicas=2, seconds=45.0)
    assert shares.index >= 0.95
    assert shares.short_mu > 0.8 * shares.long_mu
