"""The engine's own account of each request, apart from anything the platform writes."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec


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
    """Appends lines with one ``write`` each, so that a kill loses none that was written."""

    def __init__(self, path: Path | None) -> None:
        self._file = None if path is None else os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)

    def write(self, line: RequestLine) -> None:
        if self._file is not None:
            os.write(self._file, msgspec.json.encode(line) + b"\n")

    def close(self) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None
