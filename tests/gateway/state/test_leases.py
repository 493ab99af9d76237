"""What is decided from leases in one process, against a real server, and when limits are forgotten."""

import asyncio
import time

from serving.gateway.demands import Demand, Granted, Refused
from serving.gateway.state import connect
from tests.gateway.state.team import limit, until


async def test_a_large_limit_is_leased_and_stays_exact(gateways):
    team = await gateways(3)
    record = limit(value=60_000.0)
    began = time.monotonic()
    admitted = refused = 0

    async def client(i):
        nonlocal admitted, refused
        while time.monotonic() - began < 2.0:
            result = await team[i % 3].acquire([Demand(record, 50.0)])
            if isinstance(result, Granted):
                admitted += 50
                team[i % 3].settle(result, {})
                await asyncio.sleep(0.001)
            else:
                refused += 1
                await asyncio.sleep(0.02)

    calls = []
    for grants in team:
        original = grants._exchange

        async def counted(original=original):
            calls.append(1)
            await original()

        grants._exchange = counted
    await asyncio.gather(*(client(i) for i in range(30)))
    elapsed = time.monotonic() - began
    assert refused, "the test must reach the limit"
    assert admitted <= 60_000 + 1000 * elapsed
    assert admitted >= 0.97 * 60_000, "idle leases must not keep a gateway from what is left"


async def test_leases_make_most_decisions_in_the_process(gateways):
    (grants,) = await gateways()
    record = limit(value=10_000_000.0)
    asked = 0
    original = grants._exchange

    async def counted():
        nonlocal asked
        asked += len(grants._asks)
        await original()

    grants._exchange = counted
    for _ in range(3000):
        assert isinstance(await grants.acquire([Demand(record, 100.0)]), Granted)
        await asyncio.sleep(0)
        if _ % 100 == 0:
            await asyncio.sleep(0.01)
    assert asked < 300


async def test_leases_count_from_when_the_state_was_asked(gateways):
    (grants,) = await gateways()
    original, sent = grants._state.run, []

    async def slow_way_back(*arguments):
        sent.append(time.monotonic())
        answer = await original(*arguments)
        # One answer comes late, and then none.
        await asyncio.sleep(0.3 if len(sent) == 1 else 10)
        return answer

    before = grants._answered_at
    grants._state.run = slow_way_back
    await until(lambda: len(sent) > 1 and grants._answered_at > before)
    assert abs(sent[0] - grants._answered_at) < 0.05


async def test_a_limit_is_not_forgotten_before_its_seats_are_told(gateways):
    (grants,) = await gateways()
    seats = limit("concurrency", 1.0, "c")
    held = await grants.acquire([Demand(seats)])
    kept = grants._limits["c"]
    kept.used_at = kept.reported_at = time.monotonic() - 1000  # as after a long stream
    grants.settle(held, {})
    grants._ledger.sweep(time.monotonic())
    assert grants._limits.get("c") is kept
    assert isinstance(await grants.acquire([Demand(seats)]), Granted)
    await until(lambda: not grants._urgent)
    assert isinstance(await grants.acquire([Demand(seats)]), Refused)


async def test_a_limit_is_not_forgotten_while_an_exchange_tells_of_it(gateways):
    (grants,) = await gateways()
    record = limit()
    granted = await grants.acquire([Demand(record, 50.0)])
    kept = grants._limits[record.id]
    kept.used_at = kept.reported_at = time.monotonic() - 1000
    kept.settlements.append((30.0, granted.charged_at_ms))
    kept.report(False, 1)
    grants._ledger.sweep(time.monotonic())
    kept.report_lost()
    assert grants._limits.get(record.id) is kept
    grants._ledger.sweep(time.monotonic() + 1000)
    assert grants._limits.get(record.id) is kept, "it has a debt to tell"


async def test_idle_limits_are_forgotten(gateways):
    (grants,) = await gateways()
    assert isinstance(await grants.acquire([Demand(limit(), 1.0)]), Granted)
    await until(lambda: not grants._dirty)
    grants._ledger.sweep(time.monotonic() + 100)
    assert grants._limits
    grants._ledger.sweep(time.monotonic() + 1000)
    assert not grants._limits


async def test_idle_leases_go_back(gateways):
    (grants,) = await gateways()
    record = limit(value=1_000_000.0)
    for _ in range(20):
        await grants.acquire([Demand(record, 100.0)])
        await asyncio.sleep(0.02)
    assert grants._limits[record.id].lease > 0
    await until(lambda: grants._limits[record.id].lease == 0)
    client = connect(grants._state.url)
    await until(lambda: client.hget(grants._limits[record.id].key, "lease:gw0") is None)
    client.close()
