"""CPU of one admission by plain limits: none, leased, central. ``uv run python bench/grants.py``

Prints µs of this process's CPU and of wall time per call; the state is a private bundled Valkey on its own.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

from penstock import bundled_state
from serving.gateway.demands import Demand, Granted
from serving.gateway.grants import Grants
from serving.gateway.records import LimitRecord
from serving.gateway.state import EPOCH, State, connect

LEASED = (
    LimitRecord(id="requests", kind="requests_per_min", value=1e9),
    LimitRecord(id="tokens", kind="tokens_per_min", value=1e12),
)
CENTRAL = LimitRecord(id="seats", kind="concurrency", value=1e6)
ONE = [Demand(LEASED[0])]
TWO = [Demand(LEASED[0]), Demand(LEASED[1], 300.0)]
ALL = [*TWO, Demand(CENTRAL)]


async def admit(grants: Grants, demands: list[Demand], count: int) -> None:
    for i in range(count):
        granted = await grants.acquire(demands)
        assert isinstance(granted, Granted), granted
        grants.settle(granted, {"tokens": 290.0})
        if i % 50 == 0:
            await asyncio.sleep(0)


async def measure(name: str, work: Callable[[], Awaitable[object]], calls: int) -> None:
    cpu, wall = time.process_time(), time.perf_counter()
    await work()
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    print(f"{name:44} {cpu / calls * 1e6:8.2f} µs CPU {wall / calls * 1e6:8.2f} µs wall")


async def main(url: str) -> None:
    state = State(url)
    grants = Grants(state, "bench")
    await grants.start()
    for _ in range(30):
        await admit(grants, TWO, 2000)
        await asyncio.sleep(0.02)
    count = 50_000
    await measure("no limit", lambda: admit(grants, [], count), count)
    await measure("one leased limit, settled", lambda: admit(grants, ONE, count), count)
    await measure("two leased limits, one with a refund", lambda: admit(grants, TWO, count), count)
    few = 3000
    central = [Demand(CENTRAL)]
    await measure("central, one at a time", lambda: admit(grants, central, few), few)
    many = 64
    await measure(
        f"central, {many} at a time",
        lambda: asyncio.gather(*(admit(grants, central, few // 8) for _ in range(many))),
        few // 8 * many,
    )
    await measure(
        f"two leased and one central, {many} at a time",
        lambda: asyncio.gather(*(admit(grants, ALL, few // 8) for _ in range(many))),
        few // 8 * many,
    )
    await grants.stop()
    await state.close()


if __name__ == "__main__":
    data = Path(tempfile.mkdtemp(prefix="pb"))
    server = subprocess.Popen(bundled_state.command(data), stdout=subprocess.DEVNULL)
    try:
        address = f"unix://{bundled_state.socket_path(data)}"
        bundled_state.wait_ready(address, 10)
        connect(address).set(EPOCH, "bench.1000")
        print(f"Python {sys.version.split()[0]}, {os.cpu_count()} cores")
        asyncio.run(main(address))
    finally:
        server.terminate()
        server.wait(10)
        shutil.rmtree(data, ignore_errors=True)
