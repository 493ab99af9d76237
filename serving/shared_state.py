"""The control plane's connection to the shared state."""

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
