"""A seeded platform for the pages' tests."""

from collections.abc import Iterator

import pytest
import redis
from django.test import Client

from tests.web.seed import Seeded, seed


@pytest.fixture(autouse=True)
def _quick_passwords(settings: object) -> None:
    settings.PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]  # type: ignore[attr-defined]


@pytest.fixture
def no_state(settings: object, tmp_path: object) -> None:
    """The shared state is down."""
    settings.REDIS_URL = f"unix://{tmp_path}/nobody.sock"  # type: ignore[attr-defined]


@pytest.fixture
def state(settings: object, state_url: str) -> Iterator[redis.Redis]:
    settings.REDIS_URL = state_url  # type: ignore[attr-defined]
    with redis.Redis.from_url(state_url) as client:
        yield client


@pytest.fixture
def platform(db: None, state: redis.Redis) -> Seeded:
    return seed(state, hours=1)


@pytest.fixture
def as_operator(client: Client, platform: Seeded) -> Client:
    client.force_login(platform.operator)
    return client
