"""A gateway process that is killed and started again under its name: another gateway for the shared state."""

import asyncio
import time

import pytest

from serving.gateway import logs
from serving.gateway.config import load_config
from serving.gateway.demands import Demand, Granted
from serving.gateway.records import LimitRecord
from serving.gateway.services import Services
from serving.policy.observation import GatewayCounts, differences


@pytest.fixture
async def gateway(state_url, tmp_path):
    """Grants and loads of processes as ``Services`` makes them; ``name`` as on the command line."""
    made = []

    async def start(name):
        environment = {"REDIS_URL": state_url, "PENSTOCK_KEY_PEPPERS": '{"1": "pepper"}'}
        config = load_config(data=tmp_path, host="127.0.0.1", port=1, name=name, environment=environment)
        log, sink = logs.configure(name)
        services = Services(config, log, sink)
        await services.grants.start()
        await services.loads.start()
        made.append(services)
        return services

    yield start
    for services in made:
        await services.grants.stop()
        await services.loads.stop()
        await services.state.close()


async def test_the_seats_of_a_killed_gateway_are_free_though_its_name_is_back(gateway):
    first, other = await gateway("gateway-1"), await gateway("gateway-2")
    seats = Demand(LimitRecord(id="c", kind="concurrency", value=100.0))
    async with asyncio.timeout(5):
        while len(other.grants._gateways) < 2:
            await asyncio.sleep(0.01)
    for _ in range(95):
        assert isinstance(await first.grants.acquire([seats]), Granted)
    first.grants._ticker.cancel()
    first.loads._ticker.cancel()
    await asyncio.sleep(0.5)
    began = time.monotonic()
    again = await gateway("gateway-1")
    assert again.loads.beat().gateway.startswith("gateway-1.")
    async with asyncio.timeout(4):
        while not isinstance(await other.grants.acquire([seats] * 50), Granted):
            await asyncio.sleep(0.1)
    assert time.monotonic() - began < 2.5


def test_what_a_restarted_gateway_counts_is_added_to_what_its_forerunner_did():
    def beat(gateway, started_at, completed):
        return GatewayCounts(gateway=gateway, started_at=started_at, counts={"d": {"completed": completed}})

    _, memory = differences(None, [beat("gateway-1.a", 1.0, 100.0)], now=1000.0)
    # For two seconds the beats of both are there.
    both = [beat("gateway-1.a", 1.0, 104.0), beat("gateway-1.b", 1000.5, 3.0)]
    rises, memory = differences(memory, both, now=1001.0)
    assert rises["d"]["completed"] == 7.0
    rises, _ = differences(memory, [beat("gateway-1.b", 1000.5, 5.0)], now=1002.0)
    assert rises["d"]["completed"] == 2.0
