"""The loops' connection to the shared state, and the counters that operators may ask for."""

from functools import cache

import redis
from django.conf import settings

from serving.gateway.state import connect


def client() -> redis.Redis:
    """One client (a thread-safe pool of connections) for the process."""
    return _client(settings.REDIS_URL)


@cache
def _client(url: str) -> redis.Redis:
    return connect(url)


def count(name: str, reason: str, amount: int = 1) -> None:
    """Add to the counter ``reason`` of the hash ``penstock:count:<name>``."""
    client().hincrby(f"penstock:count:{name}", reason, amount)
