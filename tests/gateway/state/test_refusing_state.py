"""A state that answers every write with an error (full, read-only): as bad as one that is away, and no worse."""

from __future__ import annotations

import asyncio

import pytest

from serving.gateway.demands import Demand, Granted
from serving.gateway.grants import Grants
from serving.gateway.records import LimitRecord
from serving.gateway.state import State, connect


@pytest.fixture
def full_state(state_url):
    client = connect(state_url)
    client.config_set("maxmemory-policy", "noeviction")
    yield lambda: client.config_set("maxmemory", "1")
    client.config_set("maxmemory", "0")
    client.close()


async def test_requests_are_decided_alone_and_the_stop_is_orderly(state_url, full_state):
    state = State(state_url)
    grants = Grants(state, "gateway-1")
    await grants.start()
    limit = Demand(LimitRecord(id="small", kind="requests_per_min", value=5.0), 1.0)
    async with asyncio.timeout(5):
        while not isinstance(await grants.acquire([limit]), Granted):
            await asyncio.sleep(0.05)
    full_state()
    async with asyncio.timeout(2):
        answers = [await grants.acquire([limit]) for _ in range(6)]
    assert [isinstance(answer, Granted) for answer in answers] == [True] * 4 + [False] * 2
    assert grants.mode == "alone"
    async with asyncio.timeout(2):
        await grants.stop()
    await state.close()
