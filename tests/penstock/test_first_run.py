"""``penstock setup``: the real command on a real folder, and what a repetition leaves alone."""

import json
import os
import sqlite3
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.slow


def setup(data: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    dropped = ("PENSTOCK_", "DATABASE_URL", "REDIS_URL")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(dropped)}
    command = [sys.executable, "-P", "-m", "penstock", "setup", "--data", str(data), "--json", *arguments]
    return subprocess.run(command, env=kept | environment, capture_output=True, text=True, timeout=120, check=False)


def outcome(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)  # type: ignore[no-any-return]


def count(data: Path, table: str) -> int:
    connection = sqlite3.connect(data / "penstock.sqlite3")
    try:
        return int(connection.execute(f"select count(*) from {table}").fetchone()[0])
    finally:
        connection.close()


@pytest.fixture(scope="module")
def demo_data(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    data = tmp_path_factory.mktemp("setup") / "data"
    return data, outcome(setup(data, "--demo"))


def test_the_first_time_makes_everything(demo_data: tuple[Path, dict[str, Any]]) -> None:
    data, first = demo_data
    assert first["migrations"] > 0
    assert first["is_demo"] is True
    assert [tenant["api_key"][:3] for tenant in first["tenants"]] == ["mu_", "mu_"]
    assert first["sign_in_url"].startswith("http://127.0.0.1:8000/")
    assert json.loads((data / "agent" / "agent.json").read_text())["host_id"]


def test_everything_in_the_folder_is_for_its_owner_alone(demo_data: tuple[Path, dict[str, Any]]) -> None:
    data, _ = demo_data
    loose = [path for path in [data, *data.rglob("*")] if stat.S_IMODE(path.stat().st_mode) & 0o077]
    assert loose == []


def test_a_repetition_keeps_secrets_host_and_demo(demo_data: tuple[Path, dict[str, Any]]) -> None:
    data, first = demo_data
    kept = [(data / name).read_text() for name in ("secrets.json", "agent/agent.json")]
    tables = ("tenants_tenant", "tenants_apikey", "capacity_host", "serving_deployment")
    before = [count(data, table) for table in tables]
    second = outcome(setup(data, "--demo"))
    assert (second["migrations"], second["tenants"], second["is_demo"]) == (0, [], True)
    assert second["sign_in_url"] != first["sign_in_url"]
    assert [(data / name).read_text() for name in ("secrets.json", "agent/agent.json")] == kept
    assert [count(data, table) for table in tables] == before


def test_without_the_demo_there_is_one_operator_and_no_tenant(tmp_path: Path) -> None:
    made = outcome(setup(tmp_path / "data"))
    assert (made["is_demo"], made["tenants"]) == (False, [])
    assert made["sign_in_url"]
    assert count(tmp_path / "data", "tenants_user") == 1
    assert count(tmp_path / "data", "tenants_tenant") == 0


def test_a_database_that_cannot_be_reached_is_told_in_a_line(tmp_path: Path) -> None:
    done = setup(tmp_path / "data", DATABASE_URL="postgres://me:hunter2@127.0.0.1:1/penstock")
    assert done.returncode == 1
    assert "penstock setup: the database refused" in done.stderr
    assert "Traceback" not in done.stderr
    assert "hunter2" not in done.stderr
