"""Leased seats of a concurrency limit: decided in the process, exact in sum, back when idle or their holder dies."""

import asyncio
import random

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from serving.gateway.demands import Demand, Granted, Refused
from serving.gateway.grants import Grants
from serving.gateway.limits import Limit
from serving.gateway.records import LimitRecord
from serving.gateway.state import State, connect
from serving.policy import seats as line
from serving.policy.seats import Pace
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
    assert arbiter.exchange(BEGIN_MS, "a", ["c", 100.0, 2, 0.0, 5.0], [], key=key)[4] == [[7, 0, 5, 7, 0]]
    asks = [[[1, 1]]] * 94
    answer = arbiter.exchange(BEGIN_MS, "b", ["c", 100.0, 0, 0.0, 0.0], asks, key=key)
    assert answer[5][:93] == [0] * 93
    assert answer[5][93] == [1, 1000, 0, 5], "the refusal says that five free seats are leased"
    arbiter.exchange(BEGIN_MS, "a", ["c", 100.0, 2, 0.0, 0.0], [], key=key)
    assert arbiter.exchange(BEGIN_MS, "b", ["c", 100.0, 93, 0.0, 0.0], [[[1, 1]]], key=key)[5] == [0]


def test_the_last_eighth_is_never_leased(arbiter):
    arbiter.clear()
    key = "penstock:held:seats"
    assert arbiter.exchange(BEGIN_MS, "a", ["c", 100.0, 80, 0.0, 50.0], [], key=key)[4] == [[87, 0, 7, 87, 0]]
    assert arbiter.exchange(BEGIN_MS, "a", ["c", 100.0, 90, 0.0, 50.0], [], key=key)[4] == [[90, 0, 0, 90, 0]]


def test_a_dead_gateways_seats_are_forgotten_even_if_its_name_comes_back(arbiter):
    arbiter.clear()
    key = "penstock:held:seats"
    arbiter.exchange(BEGIN_MS, "a", ["c", 100.0, 90, 5.0, 0.0], [], key=key)
    for now in (BEGIN_MS + 900, BEGIN_MS + 1800, BEGIN_MS + 2700):
        answer = arbiter.exchange(now, "b", ["c", 100.0, 0, 0.0, 0.0], [], key=key)
    assert answer[4][0][0] == 0
    arbiter.exchange(BEGIN_MS + 2800, "a", ["r", 100.0, 0.0, 0.0, [], 0.0, 0.0], [])
    assert arbiter.exchange(BEGIN_MS + 2900, "b", ["c", 100.0, 0, 0.0, 0.0], [], key=key)[4][0][0] == 0
    assert list(arbiter.client.hgetall(key)) == [b"pace:"]


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
        while set(client.hkeys("penstock:held:seats")) != {b"pace:"}:
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


STEPS = st.lists(
    st.tuples(st.sampled_from(["ask", "ask", "again", "end"]), st.integers(0, 3000), st.sampled_from(["", "a", "b"])),
    min_size=5,
    max_size=50,
)


@given(steps=STEPS, capacity=st.integers(1, 4))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_the_script_and_the_policy_keep_the_same_line(arbiter, steps, capacity):
    """``again``: the last that was refused or waits in line comes once more, under its name."""
    arbiter.clear()
    now, held, vacated = BEGIN_MS, 0, 0
    pace, book = Pace(BEGIN_MS), []
    last = ("", "0")
    for number, (action, wait, who) in enumerate(steps):
        now += wait
        if action == "end":
            vacated += held > 0
            held -= held > 0
            continue
        who, name = last = last if action == "again" else (who, str(number))
        pace = line.paced(pace, now, ended=vacated)
        book = line.standing(book, now)
        place = line.place_of(book, who, name, now)
        expected = line.wait_ms(capacity - held, book, pace, capacity=capacity, now_ms=now)
        entry = ["c", float(capacity), held, 0.0, 0.0, vacated]
        answer = arbiter.exchange(now, "g", entry, [[[1, 1]]], key="penstock:held:l", who=who, name=name)[5][0]
        vacated = 0
        if line.admits(capacity - held, book, place, now_ms=now):
            assert answer == 0
            held += 1
            if place >= 0:
                del book[place]
        elif expected is None:
            assert answer == [1, 1000, capacity - held, 0]
        elif place >= 0:
            assert answer == [1, pytest.approx(expected, abs=1e-3), capacity - held, -1]
            book[place] = book[place]._replace(until_ms=now + line.ALIVE_MS, ask=name, waits=True)
        else:
            assert answer == [1, pytest.approx(expected, abs=1e-3), capacity - held, 0]
            if who:
                line.promise(book, who, now + expected)
        pace = pace._replace(running=held)


def ask_of_two(arbiter, now_ms, entries, asks):
    """One exchange about the tenant's seats and a limit of key a; ``asks``: (who, indices of limits, name)."""
    seconds, micros = divmod(round(now_ms * 1000), 1_000_000)
    request = {"g": "g", "e": "x", "life": 2000, "grace": 2000, "silence": 1e12, "l": entries}
    request["a"] = [[who, True, [[index, 1] for index in found], name, True] for who, found, name in asks]
    keys = ["penstock:epoch", "penstock:gws", "penstock:grace-until", "penstock:held:tenant", "penstock:held:a"]
    raw = arbiter.run(keys=keys, args=[msgspec.msgpack.encode(request), seconds, micros])
    return msgspec.msgpack.decode(raw)[5]


def test_a_key_that_waits_for_its_own_seat_keeps_the_tenants_free_for_others(arbiter):
    arbiter.clear()
    both = [1, 2]

    def seats_of(a, b, vacated=0):
        return [["c", 3.0, a + b, 0.0, 0.0, vacated], ["c", 1.0, a, 0.0, 0.0, vacated]]

    ask_of_two(arbiter, BEGIN_MS, seats_of(0, 0), [("a", both, "1")])
    ask_of_two(arbiter, BEGIN_MS + 500, seats_of(0, 0, 1), [("a", both, "2")])
    waits = []
    for number in range(4):
        waits.append(ask_of_two(arbiter, BEGIN_MS + 500, seats_of(1, 0), [("a", both, f"a{number}")])[0][1])
    now = BEGIN_MS + 500 + max(waits)
    told = ask_of_two(arbiter, now, seats_of(1, 0), [("a", both, f"w{number}") for number in range(4)])
    assert [answer[3] for answer in told] == [-1] * 4, "they wait in line for the seat of their key"
    assert ask_of_two(arbiter, now, seats_of(1, 0), [("b", [1], "b1"), ("b", [1], "b2")]) == [0, 0]
    # The key's seat comes free, but by now the tenant's are taken: for those it waits now, and nobody passes it.
    assert ask_of_two(arbiter, now + 50, seats_of(0, 3), [("a", both, "w0")])[0][3] == -1
    assert ask_of_two(arbiter, now + 60, seats_of(0, 2), [("b", [1], "b3")])[0] != 0
    assert ask_of_two(arbiter, now + 70, seats_of(0, 2), [("a", both, "w0")]) == [0]


def test_a_key_that_is_told_hours_makes_nobody_else_of_its_tenant_wait_so_long(arbiter):
    arbiter.clear()

    def entries(held, vacated=0):
        return [["c", 4.0, held, 0.0, 0.0, vacated], ["r", 1.0, 0.0, 0.0, [], 0.0, 0.0, False, 60000]]

    ask_of_two(arbiter, BEGIN_MS, entries(3), [("a", [1, 2], "a0")])
    for number in range(250):
        told = ask_of_two(arbiter, BEGIN_MS + 2000, entries(3, int(number == 0)), [("a", [1, 2], f"n{number}")])[0]
    assert told[1] > 3_600_000
    assert ask_of_two(arbiter, BEGIN_MS + 2000, entries(3), [("b", [1], "b0")]) == [0], "a seat is free"
    wait_ms = ask_of_two(arbiter, BEGIN_MS + 2000, entries(4), [("b", [1], "b1")])[0][1]
    assert wait_ms < 10_000
    assert ask_of_two(arbiter, BEGIN_MS + 2001 + wait_ms, entries(4), [("b", [1], "b1")])[0][3] == -1, "it has a place"


async def test_who_comes_when_told_gets_a_seat_at_any_gateway(team):
    """Three seats, requests of 60 ms, a dozen clients with a key each at three gateways, and one who asks all the time
    and is promised nothing."""
    record = seats(3)
    kept = broken = 0

    async def client(number):
        nonlocal kept, broken
        told = False
        for turn in range(12):
            grants = team[(number + turn) % 3]
            while isinstance(answer := await grants.acquire([Demand(record)], f"key {number}"), Refused):
                broken += told
                told = answer.retry_after_s != 1.0  # nothing is known yet: nothing is promised
                await asyncio.sleep(answer.retry_after_s)
            kept, told = kept + told, False
            await asyncio.sleep(0.06)
            grants.settle(answer, {})

    async def intruder():
        while True:
            answer = await team[0].acquire([Demand(record)])
            if isinstance(answer, Granted):
                await asyncio.sleep(0.03)
                team[0].settle(answer, {})
            await asyncio.sleep(0.01)

    other = asyncio.create_task(intruder())
    async with asyncio.timeout(60):
        await asyncio.gather(*(client(number) for number in range(12)))
    other.cancel()
    print(kept, "kept", broken, "broken")
    assert kept > 50
    assert broken <= (kept + broken) / 100
