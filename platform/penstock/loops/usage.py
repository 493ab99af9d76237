"""The usage stream's consumer: batches of closed requests from the gateways into the books, each request once.

Single flight by lease, so one consumer name serves all processes: what a process that died had taken is pending under
the same name and comes first. Batches of a segment are written in order, and only what is in the database is
acknowledged to the gateway.
"""

import logging
import time
from typing import Any

import msgspec
import redis

from capacity.usage.lines import UsageBatch
from capacity.usage.writer import write_batch

log = logging.getLogger(__name__)

STREAM, GROUP, CONSUMER = "penstock:usage", "writer", "loops"
POISON = "penstock:usage:poison"
"""Stream of entries that are no batch, kept whole: ``{b, why}``."""
_POISON_KEPT = 10_000
_COUNT = 20
_BUDGET_S = 20.0
_ACK_KEEP_S = 7 * 86_400

Entry = tuple[bytes, dict[bytes, bytes]]


def is_usage_waiting(client: redis.Redis) -> bool:
    """Whether the stream holds anything: written entries are deleted from it."""
    return bool(client.xlen(STREAM))


def write_usage(client: redis.Redis) -> int:
    """Write what is in the stream, for at most ``_BUDGET_S`` seconds; the number of batches written."""
    started, written = time.monotonic(), 0
    start = b"0"
    while time.monotonic() - started < _BUDGET_S:
        entries = _read(client, start)
        if not entries:
            if start == b">":
                return written
            start = b">"
            continue
        for entry_id, fields in entries:
            # Deleted from the stream while pending: there is nothing left to write.
            if fields:
                written += _write(client, fields)
            pipeline = client.pipeline()
            pipeline.xack(STREAM, GROUP, entry_id)
            pipeline.xdel(STREAM, entry_id)
            pipeline.execute()
    return written


def _write(client: redis.Redis, fields: dict[bytes, bytes]) -> int:
    raw = fields.get(b"b", b"")
    try:
        batch = msgspec.json.decode(raw, type=UsageBatch)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        log.error("an entry of the usage stream is no batch (%s): kept in %s", error, POISON)
        client.xadd(POISON, {"b": raw, "why": str(error)[:500]}, maxlen=_POISON_KEPT, approximate=True)
        return 0
    result = write_batch(batch)
    client.set(f"penstock:usage:ack:{batch.segment}", result.sequence, ex=_ACK_KEEP_S)
    return 1


def _read(client: redis.Redis, start: bytes) -> list[Entry]:
    """The next entries: ``0`` what is pending, ``>`` what is new. Makes the group where it is missing."""
    try:
        answer: Any = client.xreadgroup(GROUP, CONSUMER, {STREAM: start}, count=_COUNT)
    except redis.ResponseError as error:
        if "NOGROUP" not in str(error):
            raise
        client.xgroup_create(STREAM, GROUP, id="0", mkstream=True)
        answer = client.xreadgroup(GROUP, CONSUMER, {STREAM: start}, count=_COUNT)
    streams = answer.items() if isinstance(answer, dict) else answer or ()
    return [entry for _, entries in streams for entry in entries]
