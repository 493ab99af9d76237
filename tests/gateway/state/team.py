"""What tests of several gateways before one state share."""

import asyncio

from serving.gateway.records import LimitRecord
from serving.gateway.state import EPOCH, connect


def limit(kind="tokens_per_min", value=100.0, name="l1"):
    return LimitRecord(id=name, kind=kind, value=value)


def settled_epoch(url):
    """An epoch older than the grace, so that grants begin at once."""
    client = connect(url)
    client.set(EPOCH, "test.1000")
    client.close()


async def until(condition, timeout_s=5.0):
    async with asyncio.timeout(timeout_s):
        while not condition():
            await asyncio.sleep(0.005)
