"""The database settings, and that SQLite behaves as they promise."""

import sqlite3
from pathlib import Path

import pytest

from penstock.databases import database_settings
from penstock.env import SettingError


def test_sqlite_in_the_data_folder_is_the_default(tmp_path: Path) -> None:
    settings = database_settings("", tmp_path)
    assert settings["NAME"] == tmp_path / "penstock.sqlite3"
    assert settings["OPTIONS"]["transaction_mode"] == "IMMEDIATE"
    assert "ATOMIC_REQUESTS" not in settings


def test_the_first_statements_put_sqlite_into_write_ahead_mode(tmp_path: Path) -> None:
    settings = database_settings(f"sqlite://{tmp_path}/other%20name.sqlite3", tmp_path)
    assert settings["NAME"] == f"{tmp_path}/other name.sqlite3"
    connection = sqlite3.connect(settings["NAME"])
    connection.executescript(settings["OPTIONS"]["init_command"])
    assert connection.execute("pragma journal_mode").fetchone() == ("wal",)
    connection.close()


def test_postgresql_by_url(tmp_path: Path) -> None:
    settings = database_settings("postgres://me:p%40ss@db.example:5433/pen?sslmode=require", tmp_path)
    assert settings["ENGINE"] == "django.db.backends.postgresql"
    assert (settings["USER"], settings["PASSWORD"], settings["HOST"]) == ("me", "p@ss", "db.example")
    assert (settings["PORT"], settings["NAME"]) == ("5433", "pen")
    assert settings["OPTIONS"] == {"sslmode": "require"}


def test_postgresql_by_socket_folder(tmp_path: Path) -> None:
    settings = database_settings("postgresql://me@/pen?host=/run/postgresql", tmp_path)
    assert settings["HOST"] == "/run/postgresql"
    assert settings["OPTIONS"] == {}


def test_another_database_is_refused_with_what_is_possible(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="sqlite:// or postgres://, not mysql://"):
        database_settings("mysql://me@host/pen", tmp_path)
