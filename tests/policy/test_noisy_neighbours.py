"""What a reservation is worth beside a flood: the gateway's own dispatching, simulated engines, a virtual clock."""

from __future__ import annotations

from functools import cache

import pytest

from bench.fairness import scenarios
from bench.fairness.scenarios import Outcome
from bench.fairness.world import Scheme

REPLICAS, SECONDS = 4, 45.0


@cache
def run(scheme: Scheme, with_flood: bool, gateways: int = 1) -> Outcome:
    return scenarios.neighbours(scheme, replicas=REPLICAS, seconds=SECONDS, with_flood=with_flood, gateways=gateways)


@pytest.mark.parametrize("gateways", [1, 2, 4])
def test_owners_inside_their_mu_do_not_notice_a_flood(gateways: int) -> None:
    quiet, flooded = run("classes", False, gateways), run("classes", True, gateways)
    assert flooded.owners_reserved == 1.0
    assert flooded.owners_refused == 0
    assert flooded.owners_p99 <= 2 * quiet.owners_p99
    assert flooded.owners_in_time >= 0.99
    assert flooded.small_in_time >= 0.99
    assert flooded.flood_mu_per_min > 0.4 * 100 * REPLICAS, "what is idle is lent"


def test_gateways_that_do_not_see_each_other_at_once_do_not_crowd() -> None:
    """In one order all of them would send what comes between two beats to the same replica."""
    assert run("classes", False, 4).owners_p99 <= 1.6 * run("classes", False).owners_p99


@pytest.mark.parametrize("gateways", [1, 2])
def test_before_two_replicas_owners_do_not_notice_a_flood_either(gateways: int) -> None:
    """One of them is always read full of long prompts: these make way where owners would wait for each other."""
    runs = [
        scenarios.neighbours("classes", replicas=2, seconds=120.0, with_flood=flooded, gateways=gateways)
        for flooded in (False, True)
    ]
    assert runs[1].owners_reserved == 1.0
    assert runs[1].owners_refused == 0
    assert runs[1].owners_p99 <= 1.8 * runs[0].owners_p99
    assert runs[1].owners_in_time >= 0.99
    assert runs[1].small_in_time >= 0.99
    assert runs[1].flood_mu_per_min > 0.65 * 100 * 2, "what is idle is lent"


def test_small_best_effort_requests_are_in_time_beside_a_flood() -> None:
    assert run("classes", True).small_in_time >= 0.99


def test_over_several_gateways_it_is_the_same() -> None:
    """None sees at once what the others place: two long prompts too many, and small ones wait for seconds."""
    flooded = scenarios.neighbours("classes", replicas=2, seconds=60.0, with_flood=True, gateways=2, seed=2)
    assert flooded.owners_refused == 0
    assert flooded.owners_in_time >= 0.99
    assert flooded.small_in_time >= 0.99
    assert flooded.flood_mu_per_min > 0.3 * 100 * 2, "what is idle is lent"


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


def test_owners_do_not_notice_one_whose_long_answers_were_taken_for_short_ones() -> None:
    """Were they believed, one would spoil a minute for all with what it has not bought."""
    quiet = scenarios.liar(replicas=1, believes=False, flooded=False)
    believed = scenarios.liar(replicas=1, believes=True)
    held = scenarios.liar(replicas=1, believes=False)
    assert believed.owners_p99 > 20 * quiet.owners_p99
    assert believed.owners_in_time < 0.5
    assert held.owners_reserved == quiet.owners_reserved == 1.0
    assert held.owners_p99 < 0.7 < believed.owners_p99 / 5
    assert held.owners_in_time >= 0.99
    assert held.reserved_mu_per_min < 0.5 * believed.reserved_mu_per_min
