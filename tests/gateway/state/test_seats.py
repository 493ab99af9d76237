"""Leased seats of a concurrency limit: decided in the process, exact in sum, back when idle or their holder dies."""

import asyncio
import random

import pytest

from serving.gateway.demands import Demand, Granted, Refused
from serving.gateway.grants import Grants
from serving.gateway.limits import Limit
from serving.gateway.records import LimitRecord
from serving.gateway.state import State, connect
from tests.gateway.state.test_grants_script import BEGIN_MS, Arbiter


def seats(value):
    return LimitRecord(id="seats", kind="concurrency", value=float(value))


@pytest.fixture
async def team(state_url):
    """Three gateways that know each other."""
    made = [Grants(State(state_url), f"gw{i}") for i in range(3)]
    for grants in made:
        await grants.start()
    async with asyncio.timeout(10):
        while any(len(grants._gateways) < 3 for grants in made):
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


@pytest.mark.parametrize("seed", range(12))
def test_requests_at_once_never_exceed_the_limit_whatever_exchanges_when(arbiter, seed):
    """Random takes and ends, exchanges at random times, and gateways that die with all they hold."""
    rng = random.Random(seed)
    print("seed", seed)
    arbiter.clear()
    record = seats(300)
    limits = {f"g{i}": Limit(record) for i in range(3)}
    heard = dict.fromkeys(limits, BEGIN_MS)
    now, taken_here, refused, deaths = BEGIN_MS, 0, 0, 0

    def exchange(name, asks):
        limit = limits[name]
        if now - heard[name] > 1500:
            limit.lease = 0.0
        entry = limit.report(asks, len(limits))
        answer = arbiter.exchange(now, name, entry, [[[1, 1]]] if asks else [], key="penstock:held:seats")
        limit.reported(answer[4][0][0], answer[4][0][2], 0.0)
        heard[name] = now
        if asks and answer[5][0] == 0:
            limit.note(1.0)
        return answer

    busy = True
    for step in range(4000):
        now += rng.expovariate(1 / 5)
        if step % 400 == 0:
            busy = not busy
        name = rng.choice(list(limits))
        limit = limits[name]
        action = rng.random()
        if action < (0.7 if busy else 0.35):
            if limit.lease >= 1 and now - heard[name] < 1500:
                limit.take(1.0)
                taken_here += 1
            elif exchange(name, True)[5][0] != 0:
                refused += 1
        elif action < 0.75 and limit.held:
            limit.put_back(1.0, is_leased=not limit.is_central(3))
        elif action < 0.998:
            exchange(name, False)
        else:
            deaths += 1
            # What a dead gateway held ends with it; the others may know of it two seconds later.
            del limits[name]
            fresh = f"g{rng.random()}"
            limits[fresh], heard[fresh] = Limit(record), now
        assert sum(limit.held for limit in limits.values()) <= 300
    assert taken_here > 300
    assert refused > 10
    assert deaths


def test_free_seats_of_others_stand_in_the_way_until_they_come_back(arbiter):
    arbiter.clear()
    key = "penstock:held:seats"
    arbiter.exchange(BEGIN_MS, "b", ["c", 100.0, 0, 0.0, 0.0], [], key=key)
    assert arbiter.exchange(BEGIN_MS, "a", ["c", 100.0, 2, 0.0, 5.0], [], key=key)[4] == [[7, 0, 5, 7]]
    asks = [[[1, 1]]] * 94
    answer = arbiter.exchange(BEGIN_MS, "b", ["c", 100.0, 0, 0.0, 0.0], asks, key=key)
    assert answer[5][:93] == [0] * 93
    assert answer[5][93] == [1, 1000, 0, 5], "the refusal says that five free seats are leased"
    arbiter.exchange(BEGIN_MS, "a", ["c", 100.0, 2, 0.0, 0.0], [], key=key)
    assert arbiter.exchange(BEGIN_MS, "b", ["c", 100.0, 93, 0.0, 0.0], [[[1, 1]]], key=key)[5] == [0]


def test_the_last_eighth_is_never_leased(arbiter):
    arbiter.clear()
    key = "penstock:held:seats"
    assert arbiter.exchange(BEGIN_MS, "a", ["c", 100.0, 80, 0.0, 50.0], [], key=key)[4] == [[87, 0, 7, 87]]
    assert arbiter.exchange(BEGIN_MS, "a", ["c", 100.0, 90, 0.0, 50.0], [], key=key)[4] == [[90, 0, 0, 90]]


def test_a_dead_gateways_seats_are_forgotten_even_if_its_name_comes_back(arbiter):
    arbiter.clear()
    key = "penstock:held:seats"
    arbiter.exchange(BEGIN_MS, "a", ["c", 100.0, 90, 5.0, 0.0], [], key=key)
    for now in (BEGIN_MS + 900, BEGIN_MS + 1800, BEGIN_MS + 2700):
        answer = arbiter.exchange(now, "b", ["c", 100.0, 0, 0.0, 0.0], [], key=key)
    assert answer[4][0][0] == 0
    arbiter.exchange(BEGIN_MS + 2800, "a", ["r", 100.0, 0.0, 0.0, [], 0.0, 0.0], [])
    assert arbiter.exchange(BEGIN_MS + 2900, "b", ["c", 100.0, 0, 0.0, 0.0], [], key=key)[4][0][0] == 0
    assert arbiter.client.hgetall(key) == {}


def count_asks(grants):
    asked = []
    original = grants._exchange

    async def counted():
        asked.extend(grants._asks)
        await original()

    grants._exchange = counted
    return asked


async def test_a_large_limit_is_decided_in_the_process(team):
    record = seats(100_000)
    asked = [count_asks(grants) for grants in team]
    for turn in range(1000):
        granted = await team[turn % 3].acquire([Demand(record)])
        assert isinstance(granted, Granted)
        await asyncio.sleep(0.001)
        team[turn % 3].settle(granted, {})
    assert sum(map(len, asked)) < 100


async def test_every_seat_can_be_had_though_others_lease_some(team):
    record = seats(200)
    for _ in range(100):
        team[0].settle(await team[0].acquire([Demand(record)]), {})
        await asyncio.sleep(0.002)
    assert team[0]._limits["seats"].lease > 0
    results = await asyncio.gather(*(team[1].acquire([Demand(record)]) for _ in range(200)))
    assert all(isinstance(result, Granted) for result in results)
    assert isinstance(await team[2].acquire([Demand(record)]), Refused)


async def test_free_seats_go_back_when_nobody_comes(team, state_url):
    record = seats(1000)
    for _ in range(50):
        team[0].settle(await team[0].acquire([Demand(record)]), {})
        await asyncio.sleep(0.005)
    client = connect(state_url)
    async with asyncio.timeout(5):
        while client.hlen("penstock:held:seats"):
            await asyncio.sleep(0.02)
    client.close()
    assert team[0]._limits["seats"].lease == 0


async def test_a_gateway_that_stood_still_does_not_use_its_free_seats(team):
    record = seats(1000)
    for _ in range(50):
        team[0].settle(await team[0].acquire([Demand(record)]), {})
        await asyncio.sleep(0.005)
    limit = team[0]._limits["seats"]
    assert limit.lease > 0
    team[0]._answered_at -= 2.0  # as after a stop of two seconds
    asked = count_asks(team[0])
    assert isinstance(await team[0].acquire([Demand(record)]), Granted)
    assert len(asked) == 1, "the state decides"
