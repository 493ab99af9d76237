"""The shared state away and back with its data: nobody is granted what others used meanwhile."""

import asyncio
import signal
import time

import pytest

from serving.gateway.demands import Demand, Granted
from serving.gateway.grants import Grants
from serving.gateway.loads import Loads
from serving.gateway.records import LimitRecord
from serving.gateway.state import EPOCH, GATEWAYS, State, connect
from tests.gateway.state.test_grants_script import BEGIN_MS, Arbiter

SEATS = Demand(LimitRecord(id="c", kind="concurrency", value=100.0))


@pytest.fixture
async def team(valkey_server):
    """A state of one's own and two gateways that know each other."""
    server = valkey_server()
    client = connect(server.url)
    client.set(EPOCH, "test.1000")
    client.close()
    made = [Grants(State(server.url), f"gw{i}") for i in range(2)]
    for grants in made:
        await grants.start()
    await until(lambda: all(len(g._gateways) == 2 and g._started_shared for g in made))
    yield server, *made
    for grants in made:
        await grants.stop()
        await grants._state.close()


@pytest.fixture(scope="module")
def arbiter(valkey_url):
    made = Arbiter(valkey_url)
    yield made
    made.client.close()


async def until(condition, timeout_s=8.0):
    async with asyncio.timeout(timeout_s):
        while not condition():
            await asyncio.sleep(0.005)


async def take(grants, demand, times):
    results = [await grants.acquire([demand]) for _ in range(times)]
    return sum(isinstance(result, Granted) for result in results)


def held(*team):
    return sum(grants._limits["c"].held for grants in team if "c" in grants._limits)


async def hammer(grants, demand, admitted):
    while True:
        results = await asyncio.gather(*(grants.acquire([demand]) for _ in range(20)))
        admitted.append(sum(isinstance(result, Granted) for result in results))
        await asyncio.sleep(0.002)


@pytest.mark.parametrize("away_s", [0.0, 3.0])
async def test_seats_of_gateways_that_are_not_back_yet_are_not_given_to_others(team, away_s):
    server, a, b = team
    assert await take(a, SEATS, 50) == 50
    server.stop(signal.SIGKILL)
    await until(lambda: a.mode == b.mode == "alone")
    assert await take(b, SEATS, 60) == 50
    await asyncio.sleep(away_s)
    # Slow to come back, as by its back-off.
    b._state._retry_at = asyncio.get_running_loop().time() + 1.2
    server.start()
    task = asyncio.create_task(hammer(a, SEATS, []))
    await until(lambda: a.mode == b.mode == "shared")
    await asyncio.sleep(0.5)
    task.cancel()
    assert held(a, b) == 100


async def test_rates_used_alone_count_before_anything_is_granted(team):
    server, a, b = team
    demand = Demand(LimitRecord(id="r", kind="tokens_per_min", value=6000.0), 100.0)
    for grants in (a, b):
        assert await take(grants, demand, 1) == 1
    began = time.monotonic()
    server.stop(signal.SIGKILL)
    await until(lambda: a.mode == b.mode == "alone")
    a._state._retry_at += 1.2
    admitted = [2, await take(a, demand, 40), await take(b, demand, 40)]
    assert sum(admitted) >= 58
    server.start()
    tasks = [asyncio.create_task(hammer(grants, demand, admitted)) for grants in (a, b)]
    await until(lambda: a.mode == b.mode == "shared")
    await asyncio.sleep(0.5)
    for task in tasks:
        task.cancel()
    assert sum(admitted) * 100 <= 6000 + 100 * (time.monotonic() - began)


async def test_seats_that_others_free_and_take_at_the_end_of_the_grace_stay_exact(team):
    server, a, b = team
    for grants in (a, b):
        assert await take(grants, SEATS, 30) == 30
    server.stop(signal.SIGKILL)
    await until(lambda: a.mode == b.mode == "alone")
    server.start()
    tasks = [asyncio.create_task(hammer(grants, SEATS, [])) for grants in (a, b)]
    most = 0
    end = time.monotonic() + 4
    while time.monotonic() < end:
        most = max(most, held(a, b))
        await asyncio.sleep(0.005)
    for task in tasks:
        task.cancel()
    assert a.mode == b.mode == "shared"
    assert most == 100


def test_after_a_silence_nothing_is_granted_for_two_seconds(arbiter):
    arbiter.clear()

    def ask(now, gateway):
        entry = ["c", 100.0, 0, 0.0, 0.0]
        return arbiter.exchange(now, gateway, entry, [[[1, 1]]], key="penstock:held:c", silence_ms=1000)

    assert ask(BEGIN_MS, "a")[3:6:2] == [0, [0]]
    assert ask(BEGIN_MS + 990, "b")[3:6:2] == [0, [0]]
    assert ask(BEGIN_MS + 2500, "b")[3:6:2] == [2000, [1]]
    assert ask(BEGIN_MS + 3000, "a")[3:6:2] == [1500, [1]], "the grace does not begin again"
    assert ask(BEGIN_MS + 3900, "a")[5] == [1]
    assert ask(BEGIN_MS + 4501, "a")[3:6:2] == [0, [0]]


def test_in_a_grace_what_is_known_is_charged_before_what_was_used_alone(arbiter):
    arbiter.clear()
    arbiter.exchange(BEGIN_MS, "a", ["c", 1.0, 0, 0.0, 0.0], [], key="penstock:held:c")
    entry = ["r", 6000.0, 0.0, 0.0, [[100.0, BEGIN_MS]], 0.0, 1000.0]
    assert arbiter.exchange(BEGIN_MS + 3000, "a", entry, [], silence_ms=1000)[4][0][0] == pytest.approx(1100.0)


def test_in_a_grace_the_leases_of_others_are_not_charged_as_well(arbiter):
    arbiter.clear()
    rate = 6000.0 / 60_000

    def report(now, gateway, left, known, wanted=0.0):
        entry = ["r", 6000.0, left, left, [], wanted, known]
        level, others, given, _ = arbiter.exchange(now, gateway, entry, [], silence_ms=1000)[4][0]
        return level, others, given

    report(BEGIN_MS, "b", 0.0, 0.0)
    given = report(BEGIN_MS, "a", 0.0, 0.0, 400.0)[2]
    level, others, _ = report(BEGIN_MS, "b", 0.0, 0.0)
    assert (level, others) == (given, given) == (400.0, 400.0)
    now = BEGIN_MS + 1500
    for _ in range(10):
        now += 20
        level, others, _ = report(now, "b", 0.0, level - 20 * rate)
        report(now, "a", given, level)
        assert (level, others) == (400.0, 400.0)


async def test_a_heartbeat_that_ends_the_silence_begins_the_grace(state_url):
    client = connect(state_url)
    seconds, micros = client.time()
    client.zadd(GATEWAYS, {"gone": seconds * 1000 + micros / 1000 - 1500})
    state = State(state_url)
    loads, grants = Loads(state, "gw0"), Grants(state, "gw0")
    await loads.start()
    began = time.monotonic()
    await grants.start()
    assert await take(grants, SEATS, 1) == 1
    assert 1.7 < time.monotonic() - began < 2.5
    for part in (grants, loads, state):
        await (part.close() if part is state else part.stop())
    client.close()
