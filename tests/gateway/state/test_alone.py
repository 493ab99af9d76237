"""What gateways admit while no state answers: their shares, and what each is known to have."""

import asyncio
import signal
from dataclasses import replace

import pytest

from penstock.roles import Options, gateway_role, role_named
from serving.gateway.alone import Place, seats
from serving.gateway.config import ConfigError, load_config
from serving.gateway.demands import Demand, Granted
from serving.gateway.grants import Grants
from serving.gateway.records import LimitRecord
from serving.gateway.server import parse_arguments
from serving.gateway.state import EPOCH, State, StateUnavailable, connect

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


@pytest.fixture
async def started_alone(valkey_server):
    """``await make(gateways)``: a server that is down, and a gateway that has started since."""
    made = []

    async def make(gateways):
        server = valkey_server()
        server.stop()
        made.append(Grants(State(server.url), "fresh", gateways=gateways))
        await made[0].start()
        return server, made[0]

    yield make
    for grants in made:
        await grants.stop()
        await grants._state.close()


async def test_a_gateway_that_never_heard_the_state_admits_nothing_that_has_limits(started_alone):
    server, fresh = await started_alone(0)
    with pytest.raises(StateUnavailable, match="start the state"):
        await fresh.acquire([SEATS])
    await until(lambda: fresh.mode == "alone")
    with pytest.raises(StateUnavailable):
        await fresh.acquire([SEATS])
    assert fresh.take((SEATS,)) is None
    assert isinstance(await fresh.acquire([]), Granted)
    server.start()
    await until(lambda: fresh._is_in_grace)
    assert isinstance(await fresh.acquire([SEATS]), Granted), "it waits for the end of the grace"


async def test_a_caller_that_goes_before_that_is_known_leaves_nothing(started_alone):
    _, fresh = await started_alone(0)
    task = asyncio.ensure_future(fresh.acquire([SEATS]))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises((asyncio.CancelledError, StateUnavailable)):
        await task
    await until(lambda: fresh.mode == "alone" and not fresh._asks)
    assert fresh._limits["c"].held == 0


async def test_the_only_gateway_of_an_installation_serves_without_the_state(started_alone):
    _, fresh = await started_alone(1)
    assert len(await take(fresh, SEATS, 110)) == 100
    rate = Demand(LimitRecord(id="r", kind="requests_per_min", value=6000.0))
    assert len(await take(fresh, rate, 1)) == 0, "what was used before it started is not known"
    await asyncio.sleep(0.2)
    assert 15 <= len(await take(fresh, rate, 100)) <= 25


async def test_one_of_several_has_its_share_without_the_remainder(started_alone):
    _, fresh = await started_alone(3)
    assert len(await take(fresh, SEATS, 110)) == 33


def test_gateways_are_told_how_many_they_are_where_that_is_known(tmp_path):
    options = Options(data=tmp_path, gateways=3)
    assert gateway_role(options, 1).argv[-2:] == ("--gateways", "3")
    assert "--gateways" not in gateway_role(replace(options, redis_url="redis://elsewhere"), 1).argv
    assert "--gateways" not in role_named("gateway", options, instance=2).argv
    assert parse_arguments(["--data", ".", "--port", "1", "--gateways", "3"]).gateways == 3


def test_a_wrong_count_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="--gateways"):
        load_config(data=tmp_path, host="h", port=1, name="g", gateways=-1, environment={})


@pytest.mark.parametrize("capacity", [0, 1, 7, 100])
@pytest.mark.parametrize("own", [(0, 0, 0), (1, 0, 0), (3, 3, 1), (90, 0, 10), (200, 50, 1)])
def test_parts_add_up_to_the_limit_at_most(capacity, own):
    committed = sum(own)
    parts = [seats(capacity, Place(3, rank), own=held, committed=committed) for rank, held in enumerate(own)]
    assert sum(parts) <= capacity
    if committed <= capacity:
        assert all(part >= held for part, held in zip(parts, own, strict=True))
