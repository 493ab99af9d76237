"""The loops' connection to the shared state, and the keys that only they use."""

from functools import cache

import redis
from django.conf import settings

from serving.gateway.state import connect


@cache
def client() -> redis.Redis:
    """One client (a thread-safe pool of connections) for the process."""
    return connect(settings.REDIS_URL)


def count(name: str, reason: str, amount: int = 1) -> None:
    """Count something that operators may ask about: field ``reason`` of ``penstock:count:<name>``."""
    client().hincrby(f"penstock:count:{name}", reason, amount)
