"""A client that leaves while its request waits, and one that leaves just when it need not wait any more."""

from __future__ import annotations

import asyncio
from collections.abc import MutableMapping
from typing import Any

import pytest

from serving.gateway.request import ClientGone, Request


class Client:
    """Who has sent a request, and leaves when told to."""

    def __init__(self) -> None:
        self.leaves: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        scope = {"method": "POST", "path": "/", "headers": []}
        self.request = Request(scope, self.receive, self.send, 0.0)

    async def receive(self) -> MutableMapping[str, Any]:
        await self.leaves
        return {"type": "http.disconnect"}

    async def send(self, message: MutableMapping[str, Any]) -> None:
        raise AssertionError(message)


async def test_who_leaves_is_waited_for_no_longer() -> None:
    client = Client()
    asyncio.get_running_loop().call_later(0.02, client.leaves.set_result, None)
    with pytest.raises(ClientGone):
        await client.request.while_here(asyncio.sleep(5), after_s=0.0)
    await asyncio.sleep(0)


async def test_who_leaves_when_the_answer_is_there_ends_nothing_that_follows() -> None:
    loop = asyncio.get_running_loop()
    client = Client()
    answer: asyncio.Future[str] = loop.create_future()

    async def work() -> str:
        return await answer

    def both() -> None:
        # The answer just before the watcher hears of it: its callback is called when the answer has been taken.
        loop.call_soon(answer.set_result, "granted")
        client.leaves.set_result(None)

    loop.call_later(0.02, both)
    assert await client.request.while_here(work(), after_s=0.0) == "granted"
    await asyncio.sleep(0.01)
