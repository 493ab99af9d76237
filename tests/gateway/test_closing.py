"""The orderly end of a connection, on the loop that serves: who reads on gets everything, who does not is cut off."""

from __future__ import annotations

import asyncio
import socket
import time
from typing import cast

import pytest
import uvloop

from serving.gateway import protocol
from serving.gateway.protocol import Closing

ANSWER = b"x" * 4_000_000
PART = 100_000


class Server(asyncio.Protocol):
    """Sends all of the answer at once and closes."""

    def __init__(self, gone: asyncio.Event) -> None:
        self.gone = gone

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        closing = Closing(cast(asyncio.Transport, transport), asyncio.get_running_loop())
        closing.write(ANSWER)
        closing.close()
        closing.close()

    def connection_lost(self, exc: Exception | None) -> None:
        self.gone.set()


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    # Long enough that a reader on a busy machine takes something in each.
    monkeypatch.setattr(protocol, "LINGER_S", 1.0)


def read(address: tuple[str, int], first_s: float, pause_s: float) -> int:
    """How much comes to a client that rests ``first_s`` before it reads, and ``pause_s`` before each part."""
    took = 0
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, PART)
        client.settimeout(10)
        client.connect(address)
        time.sleep(first_s)
        try:
            while True:
                time.sleep(pause_s)
                part = client.recv(PART)
                if not part:
                    return took
                took += len(part)
        except ConnectionResetError:
            return took


async def fetch(first_s: float, pause_s: float) -> int:
    """What ``read`` got, once the server has let go of the connection."""
    loop, gone = asyncio.get_running_loop(), asyncio.Event()
    server = await loop.create_server(lambda: Server(gone), "127.0.0.1", 0)
    took = await asyncio.to_thread(read, server.sockets[0].getsockname(), first_s, pause_s)
    async with asyncio.timeout(5):
        await gone.wait()
    server.close()
    return took


def run(*, first_s: float = 0.0, pause_s: float = 0.0) -> int:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(fetch(first_s, pause_s))


def test_a_slow_reader_gets_all_of_it() -> None:
    # In a second of it, less than what the system keeps before it asks for more.
    assert run(pause_s=0.2) == len(ANSWER)


def test_one_that_reads_nothing_is_cut_off() -> None:
    assert run(first_s=3.0) < len(ANSWER)


def test_one_that_reads_for_ever_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "LINGERS", 1)
    assert run(pause_s=0.3) < len(ANSWER)
