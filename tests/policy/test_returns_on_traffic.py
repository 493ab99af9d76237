"""Whoever is refused best effort and waits as it was told gets room: the gateways' own dispatching before simulated
engines, clients that ask a gateway by chance each time, a virtual clock."""

from __future__ import annotations

import pytest

from bench.fairness import returns
from bench.fairness.returns import STREETS, Crowd, Outcome


def run(crowds: tuple[Crowd, ...], gateways: int) -> Outcome:
    """What comes after 40 s is counted: lines are as long then as they become."""
    return returns.street(crowds, replicas=1, gateways=gateways, seconds=85.0, since=40.0)


def halved(name: str) -> tuple[Crowd, ...]:
    """For one replica, as ``STREETS`` are for two."""
    return tuple(
        crowd if not crowd.clients else crowd.__class__(**{**vars(crowd), "clients": crowd.clients // 2})
        for crowd in STREETS[name]
    )


def kept(found: Outcome) -> float:
    """The share of all that came again for the first time that got room."""
    told = [one for one in found.told.values() if one.count]
    return sum(one.count * one.admitted for one in told) / sum(one.count for one in told)


@pytest.mark.parametrize("gateways", [1, 2, 4])
def test_whoever_waits_as_it_was_told_gets_room(gateways: int) -> None:
    found = run(halved("steady"), gateways)
    assert sum(told.count for told in found.told.values()) > 100
    assert kept(found) >= 0.99
    assert max(told.longest_s for told in found.told.values()) < 45.0
    assert found.index >= 0.95, "and tenants get equal MU"


@pytest.mark.parametrize("gateways", [1, 2])
def test_beside_clients_that_do_not_wait_it_does_too_and_is_told_no_longer_time(gateways: int) -> None:
    found = run(halved("beside impatient ones"), gateways)
    assert kept(found) >= 0.99
    assert found.told["patient"].longest_s < 30.0
    assert found.index >= 0.95


def test_nobody_is_refused_where_all_find_room() -> None:
    found = returns.street(STREETS["quiet"], replicas=2, gateways=2, seconds=20.0, since=0.0)
    assert all(told.count == 0 for told in found.told.values())


def test_what_an_owner_has_evicted_gets_room_when_it_was_told() -> None:
    found = returns.claw_back(replicas=2, gateways=2, seconds=75.0)
    assert min(told.count for told in found.told.values()) > 30
    assert kept(found) >= 0.99
