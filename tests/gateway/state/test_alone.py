"""What gateways admit while no state answers: their shares, and what each is known to have."""

import asyncio
import signal

import pytest

from serving.gateway.alone import Place, seats
from serving.gateway.demands import Demand, Granted
from serving.gateway.grants import Grants
from serving.gateway.records import LimitRecord
from serving.gateway.state import EPOCH, State, connect

SEATS = Demand(LimitRecord(id="c", kind="concurrency", value=100.0))


@pytest.fixture
async def gateways(valkey_server):
    """``await make(count)``: a state of one's own and gateways that know each other."""
    made = []

    async def make(count):
        server = valkey_server()
        client = connect(server.url)
        client.set(EPOCH, "test.1000")
        client.close()
        team = [Grants(State(server.url), f"gw{i}") for i in range(count)]
        made.extend(team)
        for grants in team:
            await grants.start()
        await until(lambda: all(g._started_shared and len(g._gateways) == count for g in team))
        return server, *team

    yield make
    for grants in made:
        await grants.stop()
        await grants._state.close()


async def until(condition, timeout_s=8.0):
    async with asyncio.timeout(timeout_s):
        while not condition():
            await asyncio.sleep(0.005)


async def take(grants, demand, times):
    results = [await grants.acquire([demand]) for _ in range(times)]
    return [result for result in results if isinstance(result, Granted)]


async def kill(server, *team):
    server.stop(signal.SIGKILL)
    await until(lambda: all(grants.mode == "alone" for grants in team))


@pytest.mark.parametrize(("held", "more"), [((90, 10), (0, 0)), ((70, 5), (0, 12)), ((30, 10), (20, 30))])
async def test_free_seats_are_shared_and_those_held_stay_whose_they_are(gateways, held, more):
    server, *team = await gateways(2)
    for grants, count in zip(team, held, strict=True):
        assert len(await take(grants, SEATS, count)) == count
    # Longer than what is known keeps fresh: who holds seats hears of the limit again and again.
    await asyncio.sleep(2.5)
    await kill(server, *team)
    assert [len(await take(grants, SEATS, 60)) for grants in team] == list(more)


async def test_a_gateway_that_knows_nothing_of_a_limit_has_an_equal_share(gateways):
    server, a, b = await gateways(2)
    assert len(await take(a, SEATS, 20)) == 20
    await asyncio.sleep(0.7)
    await kill(server, a, b)
    assert len(await take(b, SEATS, 60)) == 50
    assert len(await take(a, SEATS, 60)) == 30


async def test_a_seat_left_alone_can_be_taken_again(gateways):
    server, a, b = await gateways(2)
    first = await take(a, SEATS, 90)
    assert len(await take(b, SEATS, 10)) == 10
    await asyncio.sleep(0.7)
    await kill(server, a, b)
    a.settle(first[0], {})
    assert len(await take(b, SEATS, 5)) == 0
    assert len(await take(a, SEATS, 5)) == 1


async def test_free_seats_leased_when_the_state_went_away_stay_within_the_limit(gateways):
    server, *team = await gateways(3)
    demand = Demand(LimitRecord(id="c", kind="concurrency", value=300.0))
    for _ in range(30):
        for grants in team:
            for granted in await take(grants, demand, 3):
                grants.settle(granted, {})
        await asyncio.sleep(0.01)
    assert sum(grants._limits["c"].lease for grants in team) > 0
    await kill(server, *team)
    assert sum([len(await take(grants, demand, 310)) for grants in team]) <= 300


@pytest.mark.parametrize("capacity", [0, 1, 7, 100])
@pytest.mark.parametrize("own", [(0, 0, 0), (1, 0, 0), (3, 3, 1), (90, 0, 10), (200, 50, 1)])
def test_parts_add_up_to_the_limit_at_most(capacity, own):
    committed = sum(own)
    parts = [seats(capacity, Place(3, rank), own=held, committed=committed) for rank, held in enumerate(own)]
    assert sum(parts) <= capacity
    if committed <= capacity:
        assert all(part >= held for part, held in zip(parts, own, strict=True))
