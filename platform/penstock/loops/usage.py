"""The usage stream's consumer: batches of closed requests from the gateways into the books, each request once.

Single flight by lease, so one consumer name serves all processes: what a process that died had taken is pending under
the same name and comes first. Batches of a segment are written in order, and only what is in the database is
acknowledged to the gateway.
"""

import hashlib
import logging
import time
from typing import Any

import redis
from redis.client import Pipeline

from capacity.usage.batch import BatchError
from capacity.usage.writer import booked_until, write_batch
from penstock.loops.isolation import AWAY

log = logging.getLogger(__name__)

STREAM, GROUP, CONSUMER = "penstock:usage", "writer", "loops"
POISON = "penstock:usage:poison"
"""Stream of entries that could not be read or written, kept whole: ``{b, why}``."""
_POISON_KEPT = 10_000
_POISON_ONCE_S = 86_400
_COUNT = 20
_BUDGET_S = 8.0
"""Well below the lease's life, whatever a batch takes: what is read and not yet written stays pending."""
_ACK_KEEP_S = 7 * 86_400

Entry = tuple[bytes, dict[bytes, bytes]]


def is_usage_waiting(client: redis.Redis) -> bool:
    """Whether the stream holds anything: written entries are deleted from it."""
    return bool(client.xlen(STREAM))


def write_usage(client: redis.Redis) -> int:
    """Write what is in the stream, until ``_BUDGET_S`` seconds are over; the number of batches written."""
    until, written = time.monotonic() + _BUDGET_S, 0
    start = b"0"
    while True:
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
            if time.monotonic() >= until:
                return written


def _write(client: redis.Redis, fields: dict[bytes, bytes]) -> int:
    raw = fields.get(b"b", b"")
    try:
        result = write_batch(raw)
    except AWAY:
        raise  # The database is away or busy: the entry stays pending and is written by a later tick.
    except BatchError as error:
        log.error("an entry of the usage stream is no batch (%s): kept in %s", error, POISON)
        _quarantine(client, raw, str(error))
        return 0
    except Exception as error:
        log.exception("a usage batch could not be written: kept in %s", POISON)
        _quarantine(client, raw, f"{type(error).__name__}: {error}")
        return 0
    _acknowledge(client, result.segment)
    if result.gap:
        log.warning(
            "usage segment %s: batches before this one are missing; its gateway sends them again", result.segment
        )
    if result.quarantined or result.late:
        log.error(
            "usage segment %s: %d record(s) in quarantine, %d came for a final minute",
            result.segment,
            result.quarantined,
            result.late,
        )
    return 1


def _acknowledge(client: redis.Redis, segment: str) -> None:
    """Tell the gateway what the books hold of ``segment`` now.

    A writer that outlived its lease may have written later batches since: a lower acknowledgement than before says that
    the books came back from a backup, and its gateway would ship the whole segment again.
    """
    key = f"penstock:usage:ack:{segment}"

    def set_it(pipeline: Pipeline) -> None:
        # Read while the key is watched: whatever stood in it then was read from the books before, and is no more.
        sequence = booked_until(segment)
        pipeline.multi()
        pipeline.set(key, sequence, ex=_ACK_KEEP_S)

    client.transaction(set_it, key)


def _quarantine(client: redis.Redis, raw: bytes, why: str) -> None:
    """Keep an entry aside, once: its gateway sends it again as long as nobody acknowledges it."""
    digest = hashlib.sha256(raw).hexdigest()
    if client.set(f"penstock:usage:poison:{digest}", b"1", nx=True, ex=_POISON_ONCE_S):
        client.xadd(POISON, {"b": raw, "why": why[:500]}, maxlen=_POISON_KEPT, approximate=True)


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
