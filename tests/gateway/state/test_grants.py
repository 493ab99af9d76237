"""Plain limits over several gateways in one process, against a real server."""

import asyncio
import signal
import time

import pytest

from serving.gateway.demands import Demand, Granted, Refused
from serving.gateway.records import LimitRecord
from serving.gateway.state import EPOCH, StateUnavailable, connect
from tests.gateway.state.team import limit, settled_epoch, until


@pytest.mark.parametrize("count", [1, 2, 4])
async def test_a_hundred_tokens_admit_exactly_three_requests_of_thirty(gateways, count):
    team = await gateways(count)
    record = limit()
    together = await asyncio.gather(*(team[i % count].acquire([Demand(record, 30.0)]) for i in range(20)))
    assert sum(isinstance(r, Granted) for r in together) == 3
    refused = next(r for r in together if isinstance(r, Refused))
    assert 10 < refused.retry_after_s <= 12
    assert refused.remaining == pytest.approx(10, abs=1)
    other = limit(name="l2")
    one_by_one = [await team[i % count].acquire([Demand(other, 30.0)]) for i in range(10)]
    assert sum(isinstance(r, Granted) for r in one_by_one) == 3


async def test_a_request_larger_than_the_limit_is_admitted_when_the_bucket_is_empty(gateways):
    (grants,) = await gateways()
    record = limit(value=100.0)
    assert isinstance(await grants.acquire([Demand(record, 500.0)]), Granted)
    refused = await grants.acquire([Demand(record, 1.0)])
    assert isinstance(refused, Refused)
    assert refused.retry_after_s == pytest.approx((500 + 1 - 100) * 0.6, rel=0.02)


def reservation(burst=20.0, mu_per_min=120.0):
    return LimitRecord(id="sold", kind="mu_per_min", value=burst, window_s=60.0 * burst / mu_per_min)


@pytest.mark.parametrize("count", [1, 4])
async def test_a_reservations_bucket_holds_its_burst_and_drains_at_its_rate(gateways, count):
    team = await gateways(count)
    record = reservation()
    together = await asyncio.gather(*(team[i % count].acquire([Demand(record, 6.0)]) for i in range(20)))
    assert sum(isinstance(r, Granted) for r in together) == 3, "18 of 20 MU, whoever was asked"
    refused = next(r for r in together if isinstance(r, Refused))
    assert 1.5 < refused.retry_after_s <= 2.0, "4 MU drain in 2 s"
    await asyncio.sleep(refused.retry_after_s + 0.05)
    again = await asyncio.gather(*(team[i % count].acquire([Demand(record, 6.0)]) for i in range(4)))
    assert sum(isinstance(r, Granted) for r in again) == 1


async def test_a_reservations_bucket_drains_at_its_rate_without_the_state(gateways, valkey_server):
    server = valkey_server()
    settled_epoch(server.url)
    (grants,) = await gateways(url=server.url)
    record = reservation()
    assert isinstance(await grants.acquire([Demand(record, 18.0)]), Granted)
    server.stop(signal.SIGKILL)
    await until(lambda: grants.mode == "alone")
    refused = await grants.acquire([Demand(record, 18.0)])
    assert isinstance(refused, Refused)
    assert refused.retry_after_s < 8.1
    assert isinstance(await grants.acquire([Demand(record, 2.0)]), Granted)


async def test_a_limit_of_zero_admits_nothing(gateways):
    (grants,) = await gateways()
    assert isinstance(await grants.acquire([Demand(limit(value=0.0), 1.0)]), Refused)


async def test_settlement_gives_back_and_makes_debt(gateways):
    (grants,) = await gateways()
    record = limit()
    granted = await grants.acquire([Demand(record, 90.0)])
    assert isinstance(await grants.acquire([Demand(record, 30.0)]), Refused)
    grants.settle(granted, {record.id: 10.0})
    grants.settle(granted, {record.id: 0.0})
    second = await grants.acquire([Demand(record, 80.0)])
    assert isinstance(second, Granted)
    grants.settle(second, {record.id: 180.0})
    await until(lambda: grants._limits[record.id].known_level > 150)
    refused = await grants.acquire([Demand(record, 10.0)])
    assert isinstance(refused, Refused)
    assert refused.retry_after_s == pytest.approx((190 + 10 - 100) * 0.6, rel=0.1)


async def test_what_a_running_request_takes_beyond_its_charge_is_a_debt_at_once(gateways):
    (grants,) = await gateways()
    record, other = reservation(), limit()
    granted = await grants.acquire([Demand(other, 5.0), Demand(record, 2.0)])
    grants.overrun(granted, record, 1.5)
    grants.overrun(granted, record, 12.0)
    await until(lambda: grants._limits[record.id].known_level > 11)
    grants.overrun(granted, record, 25.0)
    await until(lambda: grants._limits[record.id].known_level > 23)
    assert isinstance(await grants.acquire([Demand(record, 2.0)]), Refused)
    assert [demand.amount for demand in granted.demands] == [5.0, 25.0]
    before = grants._limits[record.id].known_level
    grants.settle(granted, {record.id: 30.0})
    grants.overrun(granted, record, 99.0)
    await until(lambda: grants._limits[record.id].known_level > before + 3)
    await asyncio.sleep(0.15)
    assert grants._limits[record.id].known_level < before + 5.1, "what was charged as it went is not charged again"


async def test_all_or_nothing_over_several_limits(gateways):
    (grants,) = await gateways()
    tokens, requests, seats = limit(), limit("requests_per_min", 10.0, "r"), limit("concurrency", 2.0, "c")
    big = limit(value=1e9, name="big")
    demands = [Demand(requests), Demand(big, 30.0), Demand(tokens, 30.0), Demand(seats)]
    first = await grants.acquire(demands)
    second = await grants.acquire(demands)
    third = await grants.acquire(demands)
    assert isinstance(third, Refused)
    assert third.limit.id == "c"
    grants.settle(first, {})
    third = await grants.acquire(demands)
    assert isinstance(third, Granted), "two refused seats must not have cost tokens"
    fourth = await grants.acquire(demands)
    assert isinstance(fourth, Refused)
    grants.settle(second, {})
    assert (await grants.acquire(demands)).limit.id == "l1"


async def test_concurrency_is_exact_over_gateways_and_released_at_once(gateways):
    a, b = await gateways(2)
    record = limit("concurrency", 3.0)
    results = await asyncio.gather(*((a, b)[i % 2].acquire([Demand(record)]) for i in range(10)))
    granted = [(i, r) for i, r in enumerate(results) if isinstance(r, Granted)]
    assert len(granted) == 3
    for _ in range(20):
        i, held = granted.pop()
        (a, b)[i % 2].settle(held, {})
        again = await (a, b)[i % 2].acquire([Demand(record)])
        assert isinstance(again, Granted)
        granted.append((i, again))
        assert isinstance(await a.acquire([Demand(record)]), Refused)


async def test_a_dead_gateways_requests_vanish(gateways):
    a, b = await gateways(2)
    record = limit("concurrency", 1.0)
    assert isinstance(await a.acquire([Demand(record)]), Granted)
    assert isinstance(await b.acquire([Demand(record)]), Refused)
    a._ticker.cancel()
    started = time.monotonic()
    async with asyncio.timeout(5):
        while isinstance(await b.acquire([Demand(record)]), Refused):
            await asyncio.sleep(0.02)
    assert 1.5 < time.monotonic() - started < 2.6


async def test_a_cancelled_acquire_leaks_nothing(gateways):
    (grants,) = await gateways()
    record, seats = limit(), limit("concurrency", 2.0, "c")
    for i in range(30):
        task = asyncio.ensure_future(grants.acquire([Demand(record, 90.0), Demand(seats)]))
        for _ in range(i % 6):
            await asyncio.sleep(0)
        if i % 3 == 2:
            await asyncio.sleep(0.001)
        task.cancel()
        result = (await asyncio.gather(task, return_exceptions=True))[0]
        if isinstance(result, Granted):
            grants.settle(result, {record.id: 0.0})
    await until(lambda: not grants._asks and grants._limits["c"].held == 0)
    await asyncio.sleep(0.3)
    assert isinstance(await grants.acquire([Demand(record, 90.0), Demand(seats)]), Granted)


async def test_one_gateway_goes_on_alone_and_reports_what_it_used(valkey_server, gateways):
    server = valkey_server()
    settled_epoch(server.url)
    (grants,) = await gateways(url=server.url)
    record = limit(value=100.0)
    await until(lambda: grants._started_shared, 5)
    assert isinstance(await grants.acquire([Demand(record, 30.0)]), Granted)
    server.stop(signal.SIGKILL)
    await until(lambda: grants.mode == "alone")
    seats = limit("concurrency", 1.0, "c")
    assert isinstance(await grants.acquire([Demand(record, 30.0)]), Granted)
    held = await grants.acquire([Demand(record, 30.0), Demand(seats)])
    assert isinstance(held, Granted)
    assert isinstance(await grants.acquire([Demand(record, 30.0)]), Refused)
    assert (await grants.acquire([Demand(seats)])).limit.id == "c"
    server.start()
    await until(lambda: grants.mode == "shared")
    refused = await grants.acquire([Demand(record, 30.0)])
    assert isinstance(refused, Refused), "what was used alone counts"
    assert refused.remaining < 25
    assert isinstance(await grants.acquire([Demand(seats)]), Refused)
    grants.settle(held, {record.id: 0.0})
    assert isinstance(await grants.acquire([Demand(seats)]), Granted)


async def test_two_gateways_alone_have_half_each(valkey_server, gateways):
    server = valkey_server()
    settled_epoch(server.url)
    team = await gateways(2, url=server.url)
    record = limit("requests_per_min", 60.0)
    seats = limit("concurrency", 3.0, "c")
    await until(lambda: all(g._started_shared for g in team), 5)
    for grants in team:
        grants.settle(await grants.acquire([Demand(record)]), {})
    server.stop(signal.SIGKILL)
    await until(lambda: all(g.mode == "alone" for g in team))
    admitted = [0, 0]
    for i, grants in enumerate(team):
        for _ in range(60):
            admitted[i] += isinstance(await grants.acquire([Demand(record)]), Granted)
    assert 28 <= admitted[0] <= 30
    assert 28 <= admitted[1] <= 30
    taken = [0, 0]
    for i, grants in enumerate(team):
        for _ in range(5):
            taken[i] += isinstance(await grants.acquire([Demand(seats)]), Granted)
    assert sorted(taken) == [1, 2]


async def test_alone_ends_after_its_time(valkey_server, gateways):
    server = valkey_server()
    settled_epoch(server.url)
    (grants,) = await gateways(url=server.url, alone_max_s=0.3)
    await until(lambda: grants._started_shared, 5)
    await grants.acquire([Demand(limit(value=1000.0), 1.0)])
    server.stop(signal.SIGKILL)
    await until(lambda: grants.mode == "alone")
    assert isinstance(await grants.acquire([Demand(limit(value=1000.0), 1.0)]), Granted)
    await asyncio.sleep(0.35)
    with pytest.raises(StateUnavailable, match=r"has not answered for 0\.3 s"):
        await grants.acquire([Demand(limit(value=1000.0), 1.0)])
    assert isinstance(await grants.acquire([]), Granted)


async def test_after_the_state_began_anew_nothing_is_granted_twice(valkey_server, gateways):
    server = valkey_server()
    settled_epoch(server.url)
    team = await gateways(2, url=server.url)
    record = limit(value=100.0)
    await until(lambda: all(g._started_shared for g in team), 5)
    first = [await team[i % 2].acquire([Demand(record, 30.0)]) for i in range(3)]
    assert all(isinstance(r, Granted) for r in first)
    server.stop(signal.SIGKILL)
    server.wipe()
    server.start()
    await until(lambda: all(g.mode == "alone" for g in team))
    began = time.monotonic()
    results = []
    while time.monotonic() - began < 3.0:
        results += [await grants.acquire([Demand(record, 30.0)]) for grants in team]
        await asyncio.sleep(0.1)
    assert all(g.mode == "shared" for g in team)
    assert not any(isinstance(r, Granted) for r in results)


async def test_a_fresh_state_waits_its_grace_and_then_grants(state_url, gateways):
    client = connect(state_url)
    client.delete(EPOCH)
    client.close()
    (grants,) = await gateways()
    began = time.monotonic()
    assert isinstance(await grants.acquire([Demand(limit(), 30.0)]), Granted)
    assert time.monotonic() - began < 2.6
