"""The snapshot on disk: enough for a gateway to start from when everything else is down. Several gateways may write."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import msgspec

_MAGIC = "penstock-snapshot-1"


class SnapshotFileError(ValueError):
    """The file is there but cannot be trusted; the message says why."""


class StoredSnapshot(msgspec.Struct):
    """``digest`` is a decimal number (JSON knows none so large)."""

    version: int
    digest: str
    published_at: float
    records: dict[str, dict[str, msgspec.Raw]]


class SnapshotFile:
    """First line: format, version, SHA-256 of the rest; the rest is JSON."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def load(self) -> StoredSnapshot | None:
        """The stored snapshot, or None when there is no file. Raises SnapshotFileError."""
        try:
            head, _, body = self.path.read_bytes().partition(b"\n")
        except FileNotFoundError:
            return None
        except OSError as error:
            raise SnapshotFileError(f"{self.path.name} cannot be read: {error.strerror}") from error
        words = head.decode("ascii", "replace").split()
        if len(words) != 3 or words[0] != _MAGIC:
            raise SnapshotFileError(f"{self.path.name} is not a snapshot of this version; it is not used")
        if hashlib.sha256(body).hexdigest() != words[2]:
            raise SnapshotFileError(f"{self.path.name} is damaged (its checksum differs); it is not used")
        try:
            return msgspec.json.decode(body, type=StoredSnapshot)
        except msgspec.DecodeError as error:
            raise SnapshotFileError(f"{self.path.name} cannot be understood: {error}") from error

    def save(self, version: int, digest: int, published_at: float, records: Mapping[str, Mapping[str, bytes]]) -> None:
        """Replace the file atomically (mode 0600), unless it holds this version already. Raises OSError."""
        if self._stored_version() == version:
            return
        stored = StoredSnapshot(
            version,
            str(digest),
            published_at,
            {kind: {rid: msgspec.Raw(raw) for rid, raw in table.items()} for kind, table in records.items()},
        )
        body = msgspec.json.encode(stored)
        head = f"{_MAGIC} {version} {hashlib.sha256(body).hexdigest()}\n".encode()
        descriptor, temporary = tempfile.mkstemp(prefix=".snapshot.", dir=self.path.parent)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(head)
                file.write(body)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, self.path)
        except BaseException:
            with suppress(FileNotFoundError):
                os.unlink(temporary)
            raise

    def _stored_version(self) -> int | None:
        try:
            with self.path.open("rb") as file:
                words = file.readline(200).split()
        except OSError:
            return None
        return int(words[1]) if len(words) == 3 and words[1].isdigit() else None
