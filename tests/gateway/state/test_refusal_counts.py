"""Counts of refusals come to the state, however many there are, and are told again where it did not answer."""

from __future__ import annotations

import asyncio
import time
import uuid

from serving.gateway.auth import Principal
from serving.gateway.records import KeyRecord, TenantRecord
from serving.gateway.refused import RefusalNotes
from serving.gateway.state import State, connect

KEYS = 3000


def refuse(notes: RefusalNotes, times: int) -> None:
    """As many keys of a tenant, each ``times`` times."""
    tenant = TenantRecord(id=str(uuid.UUID(int=1)), slug="t")
    for number in range(KEYS):
        key = KeyRecord(id=f"k{number}", uuid=str(uuid.UUID(int=number)), tenant=tenant.id, pepper=1, digest="")
        for _ in range(times):
            notes.count(Principal(key, tenant), str(uuid.UUID(int=2)), reason="limits_unavailable", status=503)


def told(url: str) -> list[int]:
    client = connect(url)
    found = [int(count) for key in client.keys("penstock:refusals:*") for count in client.hvals(key)]
    client.close()
    return found


async def test_many_counts_at_once_stop_nothing_else(state_url: str) -> None:
    state = State(state_url)
    notes = RefusalNotes(state)
    refuse(notes, 2)
    turns, over = 0, asyncio.Event()

    async def others() -> None:
        nonlocal turns
        while not over.is_set():
            turns += 1
            await asyncio.sleep(0.001)

    other = asyncio.create_task(others())
    await notes._tell()
    over.set()
    await other
    assert sum(told(state_url)) == 2 * KEYS
    assert turns > KEYS / 200, "others have had their turn between the pieces"
    await state.close()


async def test_what_was_not_told_is_told_again_also_when_the_gateway_stops_meanwhile(state_url: str) -> None:
    away = State("redis://127.0.0.1:1")
    notes = RefusalNotes(away)
    refuse(notes, 1)
    await notes._tell_counts()
    await away.close()
    notes._state = state = State(state_url)
    telling = asyncio.create_task(notes._tell_counts())
    began = time.monotonic()
    while not told(state_url) and time.monotonic() - began < 5:
        await asyncio.sleep(0.001)
    telling.cancel()
    await asyncio.gather(telling, return_exceptions=True)
    assert 0 < len(told(state_url)) < KEYS
    await notes.stop()
    counts = told(state_url)
    assert len(counts) == KEYS
    assert sum(counts) <= KEYS + 200, "only what was on its way may stand twice"
    await state.close()
