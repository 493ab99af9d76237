"""The shared state (Valkey or Redis, 6.2 commands only): keys, clients, scripts and ring buffers.

``State`` is the gateway's asyncio client; ``connect`` gives the loops a synchronous one. No Django.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import redis


class StateUnavailable(ConnectionError):
    """The shared state does not answer; the message says where it was looked for."""


class State:
    """Asyncio client of one gateway process. Concurrent calls made in one turn of the loop share one round trip."""

    def __init__(self, url: str, *, timeout_s: float = 1.0) -> None:
        """``url``: ``unix:///path`` or ``redis://[user:password@]host:port/db``."""
        raise NotImplementedError

    @property
    def epoch(self) -> str:
        """Identity of the state's contents as last seen; empty before the first contact."""
        raise NotImplementedError

    async def call(self, *command: str | bytes | float) -> Any:
        """One command. Raises StateUnavailable, or redis.ResponseError for a refused command."""
        raise NotImplementedError

    async def close(self) -> None:
        raise NotImplementedError


def connect(url: str, *, timeout_s: float = 5.0) -> redis.Redis:
    """A synchronous client for the loops and the web (bytes in, bytes out)."""
    raise NotImplementedError


def ensure_epoch(client: redis.Redis) -> str:
    """Make ``penstock:epoch`` if it is absent and return it."""
    raise NotImplementedError


def deployment_ring(deployment_id: str) -> str:
    """Key of a deployment's ring buffer (one sample a second, 7,200 kept)."""
    return f"penstock:ring:deployment:{deployment_id}"


def replica_ring(replica_id: str) -> str:
    """Key of a replica's ring buffer of engine metrics (one sample a second, 900 kept)."""
    return f"penstock:ring:replica:{replica_id}"


def ring_push(client: redis.Redis, samples: dict[str, Any], *, keep: int) -> None:
    """Push one JSON-able sample per ring key, newest first, and trim each ring to ``keep``; one round trip."""
    raise NotImplementedError


def ring_read(client: redis.Redis, key: str, count: int) -> list[dict[str, Any]]:
    """The newest ``count`` samples of a ring, newest first."""
    raise NotImplementedError


def ring_read_many(client: redis.Redis, keys: Sequence[str], count: int) -> dict[str, list[dict[str, Any]]]:
    """``ring_read`` of several rings in one round trip."""
    raise NotImplementedError


def policy_state_read(client: redis.Redis, loop: str, object_id: str) -> dict[str, Any] | None:
    """A loop's policy state, or None."""
    raise NotImplementedError


def policy_state_write(client: redis.Redis, loop: str, object_id: str, value: dict[str, Any]) -> None:
    raise NotImplementedError
