"""Backups: one file with all that an installation cannot make again, taken while it runs.

The journals are copied before the database: a request that ends meanwhile is then in one of them at least, and one that
is in both is written once. Shared state, environments, weights and logs are made anew by whoever needs them.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import sqlite3
import subprocess
import tarfile
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import msgspec

from penstock.secrets import VARIABLES, secrets_path

FORMAT = 1
_MANIFEST = "backup.json"
_SQLITE, _DUMP = "database.sqlite3", "database.pgdump"
_DUMP_S = 3600.0


class BackupError(Exception):
    """It cannot be done; the message says why and what to do."""


@dataclass(frozen=True)
class Manifest:
    """What a backup says of itself. ``migrations``: those that its database has, as ``app.name``."""

    format: int
    version: str
    made_at: str
    database: str
    migrations: tuple[str, ...]
    files: dict[str, str]
    """SHA-256 by name."""


def make(data: Path, database: Mapping[str, Any], target: Path) -> Manifest:
    """Write a backup of the installation in ``data`` to ``target`` (mode 0600), whole or not at all.

    ``database``: as Django's settings have it. Raises BackupError.
    """
    target = target.resolve()
    if target.exists():
        raise BackupError(f"{target} is there already: name another file")
    with tempfile.TemporaryDirectory(dir=_parent(target), prefix=".penstock-backup-") as folder:
        work = Path(folder)
        # Also what was set aside for a person to look at.
        _copy(data / "journal", work / "journal", "*.jsonl*")
        if secrets_path(data).is_file():
            _copy_file(secrets_path(data), work / "secrets.json")
        elif missing := [name for name in VARIABLES if not (os.environ.get(name) or os.environ.get(f"{name}_FILE"))]:
            raise BackupError(f"{data} holds no installation: no secrets.json there, and {missing[0]} is not set")
        if (data / "agent" / "agent.json").is_file():
            (work / "agent").mkdir()
            _copy_file(data / "agent" / "agent.json", work / "agent" / "agent.json")
        is_sqlite = "sqlite" in database["ENGINE"]
        migrations = _dump_sqlite(database, work / _SQLITE) if is_sqlite else _dump_postgres(database, work / _DUMP)
        files = {str(path.relative_to(work)): _digest(path) for path in sorted(work.rglob("*")) if path.is_file()}
        manifest = Manifest(
            format=FORMAT,
            version=metadata.version("penstock"),
            made_at=datetime.now(UTC).isoformat(timespec="seconds"),
            database="sqlite" if is_sqlite else "postgresql",
            migrations=tuple(migrations),
            files=files,
        )
        packed = work.with_suffix(".tar")
        try:
            _pack(work, manifest, packed)
            os.replace(packed, target)
        finally:
            packed.unlink(missing_ok=True)
    return manifest


def read(source: Path) -> Manifest:
    """What the backup says of itself. Raises BackupError for a file that is none, or of a later format."""
    try:
        with tarfile.open(source) as tar:
            first = tar.next()
            file = tar.extractfile(first) if first is not None and first.name == _MANIFEST else None
            told = json.loads(file.read()) if file is not None else None
    except (OSError, tarfile.TarError, ValueError, EOFError) as error:
        raise BackupError(f"{source} cannot be read: {error}") from None
    if not isinstance(told, dict) or "format" not in told:
        raise BackupError(f"{source} is no backup of Penstock")
    if told["format"] != FORMAT:
        raise BackupError(
            f"{source} is of format {told['format']}, this version reads {FORMAT}: install a newer Penstock"
        )
    try:
        return msgspec.convert(told, Manifest)
    except msgspec.ValidationError as error:
        raise BackupError(f"{source} is damaged: {error}") from None


def restore(source: Path, data: Path, database: Mapping[str, Any], known: Sequence[str]) -> Manifest:
    """Put the backup's contents into ``data`` and the database, both of which must be empty.

    ``known``: the migrations that this version has. Raises BackupError, and then leaves ``data`` as it was.
    """
    manifest = read(source)
    if unknown := sorted(set(manifest.migrations) - set(known)):
        raise BackupError(
            f"the backup was made by Penstock {manifest.version}, whose database has {unknown[0]}: "
            "install that version or a later one, and restore again"
        )
    is_sqlite = "sqlite" in database["ENGINE"]
    if is_sqlite != (manifest.database == "sqlite"):
        wanted = (
            "unset DATABASE_URL"
            if manifest.database == "sqlite"
            else "set DATABASE_URL to an empty PostgreSQL database"
        )
        raise BackupError(f"the backup is of {manifest.database}: {wanted}")
    place = Path(str(database["NAME"])) if is_sqlite else None
    _require_empty(data, place)
    is_new = not data.exists()
    data.mkdir(parents=True, exist_ok=True, mode=0o700)
    try:
        _fill(source, manifest, data, database, place)
    except BaseException:
        if is_new:
            with suppress(OSError):  # not empty: something of it is there already
                data.rmdir()
        raise
    return manifest


def _fill(source: Path, manifest: Manifest, data: Path, database: Mapping[str, Any], place: Path | None) -> None:
    with tempfile.TemporaryDirectory(dir=data, prefix=".restore-") as folder:
        work = Path(folder)
        _unpack(source, manifest, work)
        if place is None:
            _load_postgres(database, work / _DUMP)
            (work / _DUMP).unlink()
        else:
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.move(work / _SQLITE, place)
        for path in work.iterdir():
            shutil.move(path, data / path.name)


def _require_empty(data: Path, database: Path | None) -> None:
    there = [path.name for path in data.iterdir()] if data.is_dir() else []
    if there:
        raise BackupError(f"{data} is not empty ({there[0]} is in it): restore into a new folder, by --data")
    if database is not None and database.exists():
        raise BackupError(f"{database} is there already: move it away, or set DATABASE_URL to another file")


# ------------------------------------------------------------------ the file
def _pack(work: Path, manifest: Manifest, target: Path) -> None:
    descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        with tarfile.open(fileobj=file, mode="w:gz", compresslevel=6) as tar:
            text = json.dumps(asdict(manifest), indent=2).encode()
            entry = tarfile.TarInfo(_MANIFEST)
            entry.size, entry.mode, entry.mtime = len(text), 0o600, int(time.time())
            tar.addfile(entry, io.BytesIO(text))
            for name in manifest.files:
                tar.add(work / name, arcname=name)
        file.flush()
        os.fsync(file.fileno())


def _unpack(source: Path, manifest: Manifest, work: Path) -> None:
    try:
        with tarfile.open(source) as tar:
            for entry in tar:
                if entry.name not in manifest.files or not entry.isfile():
                    continue
                tar.extract(entry, work, filter="data")
                (work / entry.name).chmod(0o600)
    except (OSError, tarfile.TarError, EOFError) as error:
        raise BackupError(f"{source} cannot be unpacked: {error}") from None
    for name, digest in manifest.files.items():
        path = work / name
        if not path.is_file() or _digest(path) != digest:
            raise BackupError(f"{source} is damaged: {name} is not what it was. Take another backup")


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _copy(source: Path, target: Path, pattern: str) -> None:
    target.mkdir()
    for path in sorted(source.glob(pattern)):
        try:
            _copy_file(path, target / path.name)
        except FileNotFoundError:
            continue  # Everything in it is in the database by now.


def _copy_file(source: Path, target: Path) -> None:
    shutil.copyfile(source, target)
    target.chmod(0o600)


def _parent(target: Path) -> Path:
    if not target.parent.is_dir():
        raise BackupError(f"there is no folder {target.parent}")
    return target.parent


# ------------------------------------------------------------------ the database
def _dump_sqlite(database: Mapping[str, Any], target: Path) -> list[str]:
    path = Path(str(database["NAME"]))
    if not path.is_file():
        raise BackupError(f"there is no database at {path}")
    target.touch(mode=0o600)
    try:
        source = sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=20)
        copy = sqlite3.connect(target)
        try:
            source.backup(copy)
            copy.execute("PRAGMA journal_mode=DELETE")
            rows = copy.execute("select app || '.' || name from django_migrations order by id").fetchall()
        finally:
            copy.close()
            source.close()
    except sqlite3.Error as error:
        raise BackupError(f"the database {path} cannot be copied: {error}") from None
    return [row[0] for row in rows]


def _dump_postgres(database: Mapping[str, Any], target: Path) -> list[str]:
    import psycopg

    try:
        with psycopg.connect(**_connection(database)) as connection:
            rows = connection.execute("select app || '.' || name from django_migrations order by id").fetchall()
    except psycopg.Error as error:
        raise BackupError(f"the database cannot be read: {' '.join(str(error).split())}") from None
    _run(database, ["pg_dump", "--format=custom", "--no-owner", "--no-privileges", f"--file={target}"])
    return [row[0] for row in rows]


def _load_postgres(database: Mapping[str, Any], source: Path) -> None:
    import psycopg

    try:
        with psycopg.connect(**_connection(database)) as connection:
            found = connection.execute("select tablename from pg_tables where schemaname = 'public' limit 1").fetchone()
    except psycopg.Error as error:
        raise BackupError(f"the database cannot be opened: {' '.join(str(error).split())}") from None
    if found is not None:
        raise BackupError(f"the database {database['NAME']} is not empty: it has a table {found[0]}. Make a new one")
    options = ["--no-owner", "--no-privileges", "--exit-on-error", "--single-transaction"]
    _run(database, ["pg_restore", *options, f"--dbname={database['NAME']}", str(source)])


def _connection(database: Mapping[str, Any]) -> dict[str, Any]:
    names = {"dbname": "NAME", "user": "USER", "password": "PASSWORD", "host": "HOST", "port": "PORT"}
    return {name: database[key] for name, key in names.items() if database.get(key)} | dict(database.get("OPTIONS", {}))


def _run(database: Mapping[str, Any], command: list[str]) -> None:
    """One of PostgreSQL's own tools; how to connect goes by the environment, where nobody else sees the password."""
    names = {"PGDATABASE": "NAME", "PGUSER": "USER", "PGPASSWORD": "PASSWORD", "PGHOST": "HOST", "PGPORT": "PORT"}
    environment = {**os.environ, **{name: str(database[key]) for name, key in names.items() if database.get(key)}}
    environment |= {f"PG{name.upper()}": str(value) for name, value in dict(database.get("OPTIONS", {})).items()}
    if shutil.which(command[0]) is None:
        raise BackupError(
            f"{command[0]} is not installed: install the client programs of PostgreSQL (postgresql-client)"
        )
    try:
        done = subprocess.run(
            command,
            env=environment,
            capture_output=True,
            text=True,
            timeout=_DUMP_S,
            stdin=subprocess.DEVNULL,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise BackupError(f"{command[0]} did not end within {_DUMP_S:.0f} s") from None
    if done.returncode:
        raise BackupError(f"{command[0]} failed: {' '.join(done.stderr.split())[:500]}")
