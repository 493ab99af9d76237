"""Small file work: atomic private writes, the tail of a log, rotation of a log that a process keeps open."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path


def write_atomic(path: Path, data: bytes) -> None:
    """Replace ``path`` with ``data``, mode 0600: readers see the old or the new content, never a part."""
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def read_tail(path: Path, *, bytes_: int = 8192) -> str:
    """Return the end of a log as text, from the first complete line on; empty when there is none."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - bytes_))
            data = file.read(bytes_)
    except OSError:
        return ""
    if size > bytes_ and b"\n" in data:
        data = data.split(b"\n", 1)[1]
    return data.decode("utf-8", "replace")


def rotate_in_place(path: Path, *, limit_bytes: int) -> bool:
    """Copy a log beyond ``limit_bytes`` to ``<name>.1`` and truncate it; return whether it was.

    The writer has opened the file for appending, so it goes on at the new end; lines written between copy and
    truncation are lost.
    """
    try:
        if path.stat().st_size <= limit_bytes:
            return False
        with path.open("rb") as source, path.with_name(path.name + ".1").open("wb") as copy:
            source.seek(-limit_bytes, os.SEEK_END)
            while chunk := source.read(1 << 20):
                copy.write(chunk)
        os.truncate(path, 0)
    except OSError:
        return False
    return True
