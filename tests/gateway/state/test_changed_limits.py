"""Limits whose value changes while requests run: what ends must not bring the old value back."""

import asyncio
import time

import pytest

from serving.gateway.demands import Demand, Granted, Refused
from serving.gateway.grants import Grants
from serving.gateway.limits import Limit
from serving.gateway.records import LimitRecord
from serving.gateway.state import State
from tests.gateway.state.test_grants_script import BEGIN_MS, Arbiter

OLD = LimitRecord(id="r", kind="tokens_per_min", value=6_000_000.0)
NEW = LimitRecord(id="r", kind="tokens_per_min", value=600.0)


@pytest.fixture
async def team(state_url):
    """Two gateways that know each other."""
    made = [Grants(State(state_url), f"gw{i}") for i in range(2)]
    for grants in made:
        await grants.start()
    async with asyncio.timeout(5):
        while any(len(grants._gateways) < 2 for grants in made):
            await asyncio.sleep(0.01)
    yield made
    for grants in made:
        await grants.stop()
        await grants._state.close()


@pytest.fixture(scope="module")
def arbiter(valkey_url):
    made = Arbiter(valkey_url)
    yield made
    made.client.close()


async def spend(grants, record):
    """How much of ``record`` is admitted until it is refused."""
    admitted = 0
    while isinstance(await grants.acquire([Demand(record, 100.0)]), Granted):
        admitted += 100
    return admitted


async def test_the_end_of_an_old_request_does_not_bring_back_the_old_value(team):
    grants = team[0]
    streams = [await grants.acquire([Demand(OLD, 100.0)]) for _ in range(5)]
    await asyncio.sleep(0.5)
    began = time.monotonic()
    admitted = await spend(grants, NEW)
    for stream in streams:
        grants.settle(stream, {"r": 150.0})
        await asyncio.sleep(0.25)
        admitted += await spend(grants, NEW)
    assert admitted <= 600 + 10 * (time.monotonic() - began)


async def test_a_gateway_that_only_knows_the_old_value_does_not_drain_the_bucket_by_it(team):
    streams = [await team[0].acquire([Demand(OLD, 100.0)]) for _ in range(3)]
    await asyncio.sleep(1.2)
    began = time.monotonic()
    admitted = await spend(team[1], NEW)
    assert admitted >= 500
    for stream in streams:
        team[0].settle(stream, {"r": 150.0})
        await asyncio.sleep(0.25)
        admitted += await spend(team[1], NEW)
    assert admitted <= 600 + 10 * (time.monotonic() - began)


def test_a_bucket_drains_by_the_value_in_force_until_the_new_one_is_heard_of(arbiter):
    arbiter.clear()
    arbiter.exchange(BEGIN_MS, "a", ["r", 600.0, 0.0, 0.0, [], 0.0, 0.0, False], [[[1, 600]]])
    entry = ["r", 6_000_000.0, 0.0, 0.0, [[50.0, BEGIN_MS]], 0.0, 0.0, True]
    assert arbiter.exchange(BEGIN_MS + 500, "b", entry, [])[4][0][0] == pytest.approx(645.0)
    entry = ["r", 60_000.0, 0.0, 0.0, [], 0.0, 0.0, False]
    assert arbiter.exchange(BEGIN_MS + 900, "a", entry, [])[4][0][0] == pytest.approx(641.0)
    assert arbiter.exchange(BEGIN_MS + 1000, "a", entry, [])[4][0][0] == pytest.approx(541.0)


async def test_a_limit_of_another_kind_gets_no_seats_from_tokens(team):
    grants = team[0]
    stream = await grants.acquire([Demand(OLD, 100.0)])
    seats = LimitRecord(id="r", kind="concurrency", value=1.0)
    held = await grants.acquire([Demand(seats)])
    assert isinstance(held, Granted)
    grants.settle(stream, {"r": 150.0})
    await asyncio.sleep(0.2)
    assert isinstance(await grants.acquire([Demand(seats)]), Refused)
    assert isinstance(await grants.acquire([Demand(OLD, 100.0)]), Granted)
    grants.settle(held, {})
    assert isinstance(await grants.acquire([Demand(seats)]), Granted)


def test_seats_are_kept_when_a_limit_changes_its_kind_and_back():
    seats = LimitRecord(id="r", kind="concurrency", value=4.0)
    limit = Limit(seats)
    limit.note(1.0)
    limit.renew(OLD)
    limit.renew(seats)
    assert limit.held == 1


@pytest.mark.parametrize("kinds", [("tokens_per_min", "concurrency"), ("concurrency", "tokens_per_min")])
async def test_a_limit_that_becomes_another_while_it_is_asked_begins_anew(team, kinds):
    grants = team[0]
    old, new = (LimitRecord(id="k", kind=kind, value=600.0) for kind in kinds)
    task = asyncio.create_task(grants.acquire([Demand(old, 50.0)]))
    async with asyncio.timeout(5):
        while "k" not in grants._limits or not grants._limits["k"]._is_under_way:
            await asyncio.sleep(0)
    limit = grants._ledger.renewed(new)
    granted = await task
    assert isinstance(granted, Granted)
    assert (limit.held, limit.lease, limit.taken, limit.known_at_ms) == (0, 0.0, 0.0, 0.0)
    grants.settle(granted, {})
    assert (limit.held, limit.lease, limit.settlements) == (0, 0.0, [])
    assert isinstance(await grants.acquire([Demand(new, 600.0)]), Granted)


def test_settlements_of_one_time_are_told_as_one_by_sign() -> None:
    """A busy gateway tells a bucket as much as an idle one. Debts stay apart from refunds: only they are told again."""
    limit = Limit(LimitRecord(id="l", kind="tokens_per_min", value=1e6))
    for difference, at in ((5.0, 1.0), (7.0, 1.0), (-3.0, 1.0), (-4.0, 1.0), (-1.0, 2.0), (2.0, 2.0)):
        limit.settled(difference, at)
    assert limit.settlements == [(12.0, 1.0), (-7.0, 1.0), (-1.0, 2.0), (2.0, 2.0)]
    limit.report(is_asked=False, gateways=1)
    limit.report_lost()
    assert limit.settlements == [(12.0, 1.0), (2.0, 2.0)]
