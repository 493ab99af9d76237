"""Gateways' halves that decide by the shared state, several in one process."""

import asyncio

import pytest

from serving.gateway.grants import Grants
from serving.gateway.state import State


@pytest.fixture
async def gateways(state_url):
    made = []

    async def make(count=1, url=state_url, **options):
        fresh = []
        for _ in range(count):
            state = State(url)
            grants = Grants(state, f"gw{len(made)}", **options)
            made.append((grants, state))
            fresh.append(grants)
            await grants.start()
        async with asyncio.timeout(10):
            while any(len(g._gateways) < len(made) and g.mode == "shared" for g in fresh):
                await asyncio.sleep(0.01)
        return fresh

    yield make
    for grants, state in made:
        await grants.stop()
        await state.close()
