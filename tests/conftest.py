"""Fixtures that several areas use: a real, private shared state.

``valkey_url`` (session): URL of a Valkey started for this test process as production starts it; empty at first.
``state_url`` (function): the same server, emptied, with an epoch old enough that grants begin at once.
``valkey_server`` (factory): more servers of one's own, to kill and start again.
"""

from __future__ import annotations

import functools
import gc
import os
import shutil
import signal
import ssl
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest
from django.conf import settings
from django.db import connections

from penstock import bundled_state
from serving.gateway.state import EPOCH, connect
from tests.migrated import migrated

# Another server for the same tests: the oldest that docs/protocols.md promises to run on.
if OTHER_SERVER := os.environ.get("PENSTOCK_TEST_STATE_SERVER"):
    bundled_state.get_binary_path = lambda: Path(OTHER_SERVER).resolve(strict=True)  # type: ignore[assignment]

# Under CI hypothesis has no deadline by itself. Elsewhere machines are busy, too, and no test asserts a speed.
hypothesis.settings.register_profile("penstock", deadline=None)
if "CI" not in os.environ:
    hypothesis.settings.load_profile("penstock")


def pytest_configure(config: pytest.Config) -> None:
    # Every test client loads the middleware anew, and this one would look all static files up each time: 0.2 s.
    settings.SERVESTATIC_USE_FINDERS = False
    # Every httpx client reads the system's certificates anew, also for plain HTTP: 0.05 s of CPU, at each poll.
    ssl.create_default_context = functools.cache(ssl.create_default_context)
    # Nearly all that is made until the tests begin stays: looking for garbage in it took a third of the time. Whoever
    # only gives the tests to other processes collects none.
    if hasattr(config, "workerinput") or not config.getoption("numprocesses", None):
        gc.disable()


def pytest_collection_finish() -> None:
    # What was imported by then stays until the end: no search for garbage has to look through it again.
    gc.collect()
    gc.freeze()
    gc.enable()


@pytest.fixture(scope="module", autouse=True)
def nothing_left_open() -> Iterator[None]:
    """A socket or a file that a test left open fails a test of its own module, not one that runs an hour later."""
    yield
    gc.collect()
    gc.freeze()


class ValkeyServer:
    """A bundled Valkey in a folder of its own (short: a unix socket's path is limited)."""

    def __init__(self) -> None:
        self.data = Path(tempfile.mkdtemp(prefix="pv"))
        self.url = f"unix://{bundled_state.socket_path(self.data)}"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        argv = bundled_state.command(self.data)
        self.process = subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        bundled_state.wait_ready(self.url, 10)

    def stop(self, how: int = signal.SIGTERM) -> None:
        if self.process is not None:
            self.process.send_signal(how)
            self.process.wait(60)
            self.process = None

    def wipe(self) -> None:
        """Forget everything that was kept on disk."""
        for kept in ("appendonlydir", "appendonly.aof", "dump.rdb"):
            path = self.data / "state" / kept
            shutil.rmtree(path, ignore_errors=True)
            path.unlink(missing_ok=True)

    def remove(self) -> None:
        self.stop(signal.SIGKILL)
        shutil.rmtree(self.data, ignore_errors=True)


@pytest.fixture
def valkey_server() -> Iterator[Callable[[], ValkeyServer]]:
    made: list[ValkeyServer] = []

    def make() -> ValkeyServer:
        made.append(ValkeyServer())
        made[-1].start()
        return made[-1]

    yield make
    for server in made:
        server.remove()


@pytest.fixture(scope="session")
def valkey_url() -> Iterator[str]:
    server = ValkeyServer()
    server.start()
    yield server.url
    server.remove()


@pytest.fixture
def state_url(valkey_url: str) -> str:
    client = connect(valkey_url)
    client.flushall()
    client.set(EPOCH, "test.1000")
    client.close()
    return valkey_url


@pytest.fixture(scope="session")
def django_db_modify_db_settings(
    tmp_path_factory: pytest.TempPathFactory, django_db_modify_db_settings_parallel_suffix: None
) -> bool:
    """SQLite in a file, as in production: threads that race each other need connections of their own.

    True: it is there already, with all migrations applied.
    """
    default = connections.databases["default"]
    if "sqlite" not in default["ENGINE"]:
        return False
    path = tmp_path_factory.mktemp("database") / "test.sqlite3"
    default["TEST"]["NAME"] = str(path)
    return migrated(path)


@pytest.fixture(scope="session")
def django_db_keepdb(django_db_keepdb: bool, django_db_modify_db_settings: bool) -> bool:
    """What is there is not made again."""
    return django_db_keepdb or django_db_modify_db_settings


@pytest.fixture(scope="session")
def django_db_setup(django_db_setup: None, django_db_blocker: Any) -> Iterator[None]:
    """PostgreSQL drops no database that somebody has open: a thread of an asynchronous view keeps its connection for as
    long as the thread lives, which is longer than the tests.
    """
    yield
    with django_db_blocker.unblock():
        if connections["default"].vendor == "postgresql":
            with connections["default"].cursor() as cursor:
                cursor.execute(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                    "WHERE datname = current_database() AND pid <> pg_backend_pid()"
                )
