"""The journal: one segment file per gateway process, from which every admitted request reaches the books once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from serving.gateway.records import AdmitLine, EndLine, ProgressLine


class JournalUnavailable(OSError):
    """The journal cannot be written (disk full, read-only ...): nothing may be served unmetered."""


class Journal:
    def __init__(self, directory: Path, gateway_id: str, clock: Callable[[], float]) -> None:
        """``clock`` gives UNIX seconds. Opens the first segment; a folder that cannot be written is no error yet."""
        raise NotImplementedError

    @property
    def writable(self) -> bool:
        """Whether the last write succeeded; a trial write is made at most once a second while it is not."""
        raise NotImplementedError

    def admit(self, line: AdmitLine) -> None:
        """Raises JournalUnavailable: the request must then be refused with 503."""
        raise NotImplementedError

    def progress(self, line: ProgressLine) -> None:
        """Best effort: a failure is kept in mind, not raised. Call at most once a second per stream."""
        raise NotImplementedError

    def end(self, line: EndLine) -> None:
        """Never raises: an end that cannot be written is kept in memory and written when the disk is back."""
        raise NotImplementedError

    async def start(self) -> None:
        """Begin the group fsync, each second, off the loop."""
        raise NotImplementedError

    async def close(self) -> None:
        """Orderly stop: finish the segment (open requests are closed by whoever adopts it)."""
        raise NotImplementedError
