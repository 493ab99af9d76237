"""A seeded platform for the pages' tests."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import TYPE_CHECKING, Any

import pytest
import redis
from asgiref.sync import sync_to_async
from django.db import connections
from django.test import Client

from tests.replay import replayed
from tests.web.playground import Gateway, Place
from tests.web.seed import Seeded, seed

if TYPE_CHECKING:
    from playwright.sync_api import Page

    from tests.web.browser import Site


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
    return replayed("platform of the pages", lambda: seed(state, hours=1), state=state, only_fresh=True)


@pytest.fixture
def as_operator(client: Client, platform: Seeded) -> Client:
    client.force_login(platform.operator)
    return client


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A web role of its own, with database and state of its own."""
    from tests.web.browser import seeded_site

    with seeded_site(tmp_path_factory.mktemp("pw")) as made:
        yield made


@pytest.fixture
def page(site: Site) -> Iterator[Page]:
    """A fresh browser that fails the test for any console error (a policy violation is one) or page error."""
    from tests.web.browser import strict_browser

    with strict_browser() as made:
        yield made


@pytest.fixture
async def no_connection_is_left() -> AsyncIterator[None]:
    """Queries ran in a thread of asgiref's; PostgreSQL drops no database that is in use."""
    yield
    await sync_to_async(connections.close_all)()


@pytest.fixture
async def gateway(settings: Any) -> AsyncIterator[Gateway]:
    """What the playground asks."""
    made = Gateway()
    async with made.listening() as address:
        settings.PENSTOCK_GATEWAY_URL = address
        yield made


@pytest.fixture
def place(transactional_db: None) -> Place:
    """Who opens the playground, and where."""
    return Place()
