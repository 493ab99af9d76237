"""One gateway is cut off from the state while another is not: what both admit stays within the limit and its share."""

import asyncio
import contextlib
import shutil
import tempfile
from pathlib import Path

import pytest

from serving.gateway.demands import Demand, Granted, Refused
from serving.gateway.grants import Grants
from serving.gateway.records import LimitRecord
from serving.gateway.state import State
from tests.gateway.state.test_grants import settled_epoch, until

RATE = LimitRecord(id="r", kind="requests_per_min", value=600.0)
SEATS = LimitRecord(id="c", kind="concurrency", value=4.0)
SHARE = 0.5
"""Of one of two gateways."""


class Way:
    """A way to the state's socket that can be cut, and opened again."""

    def __init__(self, url: str) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="pc"))
        self._to = url.removeprefix("unix://")
        self._open: set[asyncio.StreamWriter] = set()
        self._running: set[asyncio.Task[None]] = set()
        self.is_cut = False
        self.url = f"unix://{self._folder / 's'}"

    async def start(self) -> None:
        self._server = await asyncio.start_unix_server(self._accept, self._folder / "s")

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.is_cut:
            writer.transport.abort()
            return
        there, onward = await asyncio.open_unix_connection(self._to)
        self._open |= {writer, onward}
        for one, other in ((reader, onward), (there, writer)):
            self._running.add(asyncio.ensure_future(self._pass_on(one, other)))

    @staticmethod
    async def _pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                writer.write(data)
        writer.close()

    def cut(self) -> None:
        self.is_cut = True
        for writer in self._open:
            writer.transport.abort()
        self._open.clear()

    async def stop(self) -> None:
        self.cut()
        self._server.close()
        await asyncio.gather(*self._running)
        shutil.rmtree(self._folder)


@pytest.fixture
async def apart(valkey_server):
    """``near`` talks to the state, ``far`` by a way that can be cut. They know each other."""
    server = valkey_server()
    settled_epoch(server.url)
    way = Way(server.url)
    await way.start()
    near, far = (Grants(State(url), name) for url, name in ((server.url, "near"), (way.url, "far")))
    for grants in (near, far):
        await grants.start()
    await until(lambda: all(g._started_shared and len(g._gateways) == 2 for g in (near, far)))
    yield way, near, far
    for grants in (near, far):
        await grants.stop()
        await grants._state.close()
    await way.stop()


async def taken(grants, record, most):
    """What is granted of ``most``, up to the first that is refused."""
    found = []
    for _ in range(most):
        answer = await grants.acquire([Demand(record)])
        if not isinstance(answer, Granted):
            break
        found.append(answer)
    return found


async def test_what_is_cut_off_adds_its_share_and_no_more(apart):
    way, near, far = apart
    loop = asyncio.get_running_loop()
    began, per_s = loop.time(), RATE.value / 60.0
    admitted = [0, 0]

    async def ask_until(when):
        while loop.time() < when:
            for number, grants in enumerate((near, far)):
                admitted[number] += len(await taken(grants, RATE, 20))
            await asyncio.sleep(0.02)

    await ask_until(began + 0.5)
    way.cut()
    await until(lambda: far.mode == "alone")
    # The state takes it for dead: what is free is for those that it hears.
    await asyncio.sleep(2.2)
    assert near.mode == "shared"
    seats = [await taken(near, SEATS, 8), await taken(far, SEATS, 8)]
    assert [len(held) for held in seats] == [4, 2], "the limit, and the share of it"
    before = admitted[1]
    await ask_until(began + 5.0)
    passed = loop.time() - began
    alone = admitted[1] - before
    assert 5 <= alone <= SHARE * (RATE.value + per_s * passed) + 1, "it serves on, by its share"
    assert RATE.value <= sum(admitted) <= RATE.value + per_s * passed + alone + 2
    way.is_cut = False
    await until(lambda: far.mode == "shared" and len(near._gateways) == 2)
    assert isinstance(await near.acquire([Demand(SEATS)]), Refused)
    for granted, grants in ((seats[0][0], near), (seats[1][0], far)):
        grants.settle(granted, {})
    await asyncio.sleep(0.3)
    assert isinstance(await near.acquire([Demand(SEATS)]), Refused), "four of four are still held"
    far.settle(seats[1][1], {})
    await asyncio.sleep(0.3)
    assert isinstance(await near.acquire([Demand(SEATS)]), Granted)
    # Back in touch, what it used alone counts for both.
    so_far = sum(admitted)
    await ask_until(loop.time() + 1.0)
    assert sum(admitted) <= max(so_far, RATE.value + per_s * (loop.time() - began)) + 2
