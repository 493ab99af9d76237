"""A gateway for a whole web role: it answers the playground's requests by script, in a thread of its own."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from aiohttp import web

from tests.web.playground import HEADERS, REQUEST_ID
from tests.web.seed import Seeded, usage_record

ANSWER = """The picture shows one column per replica: three are ready, one loads its weights.

```python
ready = [row for row in replicas if row.state == "ready"]
print(f"{len(ready)} of {len(replicas)} replicas are ready")
```

The dashed line is what the pool could have with all its hosts."""
REFUSED = "Your 3 requests per minute are used up."
USAGE = {"prompt_tokens": 812, "completion_tokens": 96, "prompt_tokens_details": {"cached_tokens": 256}}
WAIT_S = 12
"""A message with "again" in it is refused for so long."""


async def _serve(request: web.Request) -> web.StreamResponse:
    said = (await request.json())["messages"][-1]["content"]
    if "again" in (said if isinstance(said, str) else said[-1]["text"]):
        error = {"message": REFUSED, "type": "rate_limit_error", "code": "rate_limit_exceeded"}
        return web.json_response({"error": error}, status=429, headers={"retry-after": str(WAIT_S)})
    response = web.StreamResponse(headers=HEADERS)
    await response.prepare(request)
    pieces = [{"choices": [{"delta": {"content": word}}]} for word in ANSWER.split(" ")]
    for number, piece in enumerate(pieces):
        if number:
            piece["choices"][0]["delta"]["content"] = " " + piece["choices"][0]["delta"]["content"]
        await response.write(f"data: {json.dumps(piece)}\n\n".encode())
        await asyncio.sleep(0.002)
    for last in ({"choices": [{"delta": {}, "finish_reason": "stop"}]}, {"choices": [], "usage": USAGE}):
        await response.write(f"data: {json.dumps(last)}\n\n".encode())
    await response.write(b"data: [DONE]\n\n")
    return response


def book(seeded: Seeded) -> None:
    """Put what the owner's answer comes to into the books, for its receipt."""
    usage_record(
        seeded.northwind,
        seeded.owner.pk,
        seeded.chat.pool,
        id=REQUEST_ID,
        actual_mu=0.0738,
        input_tokens=USAGE["prompt_tokens"],
        cached_tokens=256,
        output_tokens=USAGE["completion_tokens"],
    )


@contextmanager
def answering() -> Iterator[str]:
    """The gateway's address, as ``PENSTOCK_GATEWAY_URL`` has it."""
    loop, begun = asyncio.new_event_loop(), threading.Event()
    app = web.Application()
    app.router.add_post("/v1/chat/completions", _serve)
    runner = web.AppRunner(app, shutdown_timeout=0.5)

    async def start() -> None:
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        begun.set()

    def run() -> None:
        loop.run_until_complete(start())
        loop.run_forever()
        loop.run_until_complete(runner.cleanup())
        loop.close()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    assert begun.wait(60)
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)
