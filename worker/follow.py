"""Which engines' logs somebody reads right now, and their ends. They travel with the reports while they are read."""

from __future__ import annotations

import json
import os
from pathlib import Path

from worker.spec import LogPiece
from worker.state import replica_folder

PIECE_BYTES = 64 * 1024
"""What a second of an engine's log may hold before a reader misses some of it."""
MOST = 4
"""Logs in one report; others wait until somebody stops reading."""


def follow_key(host_id: str) -> str:
    """Return the key that names the replicas of a host whose logs are read: a JSON list, gone when nobody asks."""
    return f"agent:follow:{host_id}"


def followed(kept: object) -> tuple[str, ...]:
    """Return the ids that ``kept``, the value of ``follow_key``, names; none when it makes no sense."""
    try:
        found = json.loads(kept) if isinstance(kept, bytes) else ()
    except (ValueError, RecursionError):
        return ()
    return tuple(one for one in found if isinstance(one, str))[:MOST] if isinstance(found, list) else ()


def read_piece(replicas: Path, replica_id: str) -> LogPiece | None:
    """Return the end of a replica's log; None where there is none, or for what is no replica's id."""
    try:
        path = replica_folder(replicas, replica_id) / "engine.log"
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - PIECE_BYTES))
            data = file.read(PIECE_BYTES)
            return LogPiece(data=data, end=file.tell())
    except (OSError, ValueError):
        return None
