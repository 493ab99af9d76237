"""A deployment's bytes per token are measured before its first request, and asking for them bothers nobody."""

from __future__ import annotations

import asyncio
import contextlib
from types import SimpleNamespace
from typing import Any

import httpx
import pytest

from serving.gateway.records import ReplicaRecord
from serving.gateway.services import Services
from serving.gateway.upstream import UpstreamPool
from serving.policy.admission import Learned
from tests.gateway.conftest import AUTH, Model, Shared
from tests.gateway.harness import Engine, wait_for


def estimated_input(model: Model) -> int:
    """Estimated input tokens of a first request of 40 bytes by a key that has learned nothing here."""
    answer = httpx.post(f"{model.gateway.url}/v1/completions", json=model.body(), headers=AUTH, timeout=20)
    assert answer.status_code == 200
    request = model.cluster.journal()[answer.headers["x-penstock-request-id"]]
    return int(request["a"]["estimated"]["input_tokens"])


def control(engine: Engine) -> dict[str, Any]:
    return httpx.get(f"{engine.url}/log").json()["control"]  # type: ignore[no-any-return]


@pytest.mark.parametrize(("bytes_per_token", "expected"), [(1, 40), (2.5, 16), (8, 5)])
def test_the_first_estimate_is_the_engines_own_count(
    shared: Shared, spare: Engine, bytes_per_token: float, expected: int
) -> None:
    spare.control(bytes_per_token=bytes_per_token)

    def first() -> bool:
        # A model that nobody has asked anything of before: all that can be known of it is what was measured.
        shared.models += 1
        model = Model(shared, f"m{shared.models}").place(spare)
        asked = lambda: control(spare).get("tokenized", []).count(model.name) >= len(shared.gateways)  # noqa: E731
        wait_for("every gateway to ask", asked)
        # The engine rounds its count of the sample up.
        return estimated_input(model) in (expected, expected + 1)

    # The engine's answer may be on its way to the gateway still.
    assert any(first() for _ in range(12))


def test_an_engine_that_cannot_say_is_asked_again_and_serves_meanwhile(shared: Shared, spare: Engine) -> None:
    spare.control(fail="tokenize", bytes_per_token=1)
    shared.models += 1
    Model(shared, f"m{shared.models}").place(spare)
    wait_for("a second try", lambda: control(spare).get("tokenize_failures", 0) >= 3, seconds=5)
    assert control(spare)["tokenize_failures"] <= 6


def test_a_measured_ratio_gives_way_to_what_was_seen() -> None:
    learned = Learned()
    assert not learned.knows("d")
    learned.seed("d", 1.0)
    assert learned.knows("d")
    assert learned.ratio("d") == 1.0
    learned.seed("d", 3.0)
    assert learned.ratio("d") == 1.0
    learned.seed("odd", 1e9)
    assert learned.ratio("odd") == 16.0


@pytest.mark.parametrize("stop", ["too slow", "cancelled"])
async def test_an_answer_that_never_ends_leaves_no_connection(stop: str) -> None:
    reached, left = asyncio.Event(), asyncio.Event()

    async def drip(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\n{")
        await writer.drain()
        reached.set()
        with contextlib.suppress(ConnectionResetError):
            await reader.read()
        writer.close()
        left.set()

    server = await asyncio.start_server(drip, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    pool = UpstreamPool(connect_s=1, keep_alive_s=1)

    async def call(replica: ReplicaRecord, path: bytes, body: bytes, _: str) -> Any:
        return await pool.exchange(replica.address, b"POST " + path + b" HTTP/1.1\r\n\r\n", body)

    replica = ReplicaRecord(
        id="r", deployment="d", revision="v", host="h", address=f"http://127.0.0.1:{port}", state="ready",
        target_concurrency=1,
    )  # fmt: skip
    owner: Any = SimpleNamespace(call_replica=call)
    seconds = 0.2 if stop == "too slow" else 60
    asking = asyncio.create_task(
        Services.ask_replica(owner, replica, b"/tokenize", b"", "id", seconds=seconds, limit=9999)
    )
    await asyncio.wait_for(reached.wait(), 2)
    if stop == "cancelled":
        asking.cancel()
    with pytest.raises((TimeoutError, asyncio.CancelledError)):
        await asking
    async with asyncio.timeout(2):
        while pool.open_connections:
            await asyncio.sleep(0.01)
        await left.wait()
    server.close()
    await server.wait_closed()
    pool.close()
