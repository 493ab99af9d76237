"""The engine's own account of each request, apart from anything the platform writes."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import msgspec

MAX_BYTES = 64 << 20


class RequestLine(msgspec.Struct, kw_only=True):
    """One ended request. Times in UNIX seconds; ``request_id`` as the header said it.

    ``output_tokens`` went out to the client, ``generated_tokens`` were made (an answer that is not streamed and is
    aborted was made in part, and never sent).
    """

    id: str
    request_id: str
    path: str
    stream: bool
    prompt_tokens: int
    cached_tokens: int
    output_tokens: int
    generated_tokens: int
    finish: str
    received_at: float
    first_token_at: float | None
    ended_at: float


class RequestLog:
    """Appends lines with one ``write`` each, so that a kill loses none that was written.

    At ``MAX_BYTES`` the file becomes ``<name>.1``, replacing an older one. A full disk silences the log, not the
    engine.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._file: int | None = None
        self._size = 0
        self._open()

    def write(self, line: RequestLine) -> None:
        if self._file is None or self._path is None:
            return
        data = msgspec.json.encode(line) + b"\n"
        with contextlib.suppress(OSError):
            if self._size + len(data) > MAX_BYTES:
                self.close()
                os.replace(self._path, self._path.with_name(f"{self._path.name}.1"))
                self._open()
            self._size += os.write(self._file, data)

    def close(self) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def _open(self) -> None:
        if self._path is not None:
            self._file = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
            self._size = os.fstat(self._file).st_size
