"""The journal: segment files of one gateway process, from which every admitted request reaches the books once.

Lines are written unbuffered, so they survive the process; they are brought to the disk each second, off the loop, so a
power failure loses at most about that. All lines of a request are in one segment.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import secrets
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from serving.gateway.records import AdmitLine, EndLine, ProgressLine, encode
from serving.gateway.segment import Segment

logger = logging.getLogger(__name__)

_SYNC_EVERY_S = 1.0
_TRIAL_EVERY_S = 1.0
_TRIAL_BYTES = 65_536


class JournalUnavailable(OSError):
    """The journal cannot be written (disk full, read-only ...): nothing may be served unmetered."""


class Journal:
    def __init__(
        self,
        directory: Path,
        gateway_id: str,
        clock: Callable[[], float],
        *,
        rotate_bytes: int = 64 * 2**20,
        rotate_s: float = 86_400.0,
    ) -> None:
        """``clock`` gives UNIX seconds. A folder that cannot be written is no error yet.

        A new segment is begun when the current one has ``rotate_bytes``, or has lines and is ``rotate_s`` old: what is
        in the books leaves the disk, also where there is little traffic.
        """
        self.directory = directory
        self.gateway_id = gateway_id
        self.clock = clock
        self.segments: list[Segment] = []
        """Every segment of this process that is not deleted yet, the current one last."""
        self.is_shipped = False
        """A shipper takes care of the segments, also after ``close``."""
        self._rotate_bytes = rotate_bytes
        self._rotate_s = rotate_s
        self._current: Segment | None = None
        self._begun_at = 0.0
        self._open: dict[str, Segment] = {}
        self._waiting: list[tuple[Segment, bytes, float]] = []
        self._works = True
        self._tried_at = 0.0
        self._is_closed = False
        self._syncer: asyncio.Task[None] | None = None
        with suppress(JournalUnavailable):
            self._segment()

    @property
    def writable(self) -> bool:
        """Whether the last write succeeded; a trial write is made at most once a second while it is not."""
        if not self._works and not self._is_closed and time.monotonic() - self._tried_at >= _TRIAL_EVERY_S:
            self._tried_at = time.monotonic()
            with suppress(OSError):
                self._trial()
                self._segment()
                self._works = True
                self._write_waiting()
        return self._works and not self._is_closed

    def admit(self, line: AdmitLine) -> None:
        """Raises JournalUnavailable: the request must then be refused with 503."""
        if self._is_closed:
            raise JournalUnavailable("the journal is closed: this gateway is stopping")
        segment = self._segment()
        self._write(segment, encode(line) + b"\n")
        segment.open_requests += 1
        self._open[line.id] = segment

    def progress(self, line: ProgressLine) -> None:
        """Best effort: a failure is kept in mind, not raised. Call at most once a second per stream."""
        segment = self._open.get(line.id)
        if segment is not None:
            with suppress(JournalUnavailable):
                self._write(segment, encode(line) + b"\n")

    def end(self, line: EndLine) -> None:
        """Never raises: an end that cannot be written is kept in memory and written when the disk is back."""
        segment = self._open.pop(line.id, None)
        if segment is None:
            logger.warning("journal: request %s ended but was never admitted, or ended twice", line.id)
            return
        data = encode(line) + b"\n"
        try:
            self._write(segment, data)
        except JournalUnavailable:
            self._waiting.append((segment, data, line.at))
        else:
            self._closed_one(segment)

    def watermark(self, segment: Segment) -> float:
        """Every request of ``segment`` that ended before this time has its end line in the file."""
        now = self.clock() - 1.0
        return min([now, *(at for waiting, _, at in self._waiting if waiting is segment)])

    def retire(self, segment: Segment) -> None:
        """Take ``segment`` out of service: new requests go to another, and it is nobody's to ship any more."""
        if segment is self._current:
            self._current = None
        if segment in self.segments:
            self.segments.remove(segment)

    async def start(self) -> None:
        """Begin the group fsync, each second, off the loop."""
        self._syncer = asyncio.get_running_loop().create_task(self._sync_on())

    async def close(self) -> None:
        """Orderly stop: no more lines. Open requests are closed by whoever adopts the segment."""
        self._is_closed = True
        if self._syncer is not None:
            self._syncer.cancel()
            with suppress(asyncio.CancelledError):
                await self._syncer
        with suppress(OSError):
            self._write_waiting()
        for segment in self.segments:
            segment.is_finished = segment.open_requests == 0
        await self._sync()
        if not self.is_shipped:
            for segment in self.segments:
                segment.release()

    def _segment(self) -> Segment:
        """The segment for new requests. Raises JournalUnavailable."""
        current = self._current
        if current is not None and not self._is_full(current):
            return current
        now = self.clock()
        name = f"{self.gateway_id}.{int(now * 1000)}-{secrets.token_hex(3)}"
        try:
            fresh = Segment.create(self.directory, name)
        except OSError as error:
            raise self._failed(error) from error
        self._current, self._begun_at = fresh, now
        self.segments.append(fresh)
        if current is not None:
            current.is_finished = current.open_requests == 0
        return fresh

    def _is_full(self, current: Segment) -> bool:
        is_old = current.size > 0 and self.clock() - self._begun_at >= self._rotate_s
        return is_old or current.size >= self._rotate_bytes

    def _write(self, segment: Segment, data: bytes) -> None:
        try:
            segment.append(data)
        except OSError as error:
            raise self._failed(error) from error
        if not self._works:
            self._works = True
            logger.warning("journal: it can be written again")
            self._write_waiting()

    def _write_waiting(self) -> None:
        while self._waiting:
            segment, data, _ = self._waiting[0]
            try:
                segment.append(data)
            except OSError as error:
                raise self._failed(error) from error
            del self._waiting[0]
            self._closed_one(segment)

    def _closed_one(self, segment: Segment) -> None:
        segment.open_requests -= 1
        if segment is not self._current:
            segment.is_finished = segment.open_requests == 0

    def _failed(self, error: OSError) -> JournalUnavailable:
        if self._works:
            logger.error("journal: it cannot be written, requests are refused: %s", error)
        self._works = False
        self._tried_at = time.monotonic()
        return JournalUnavailable(error.errno, f"the journal cannot be written: {error.strerror}")

    def _trial(self) -> None:
        """Write and delete a file of the size of many lines. Raises OSError."""
        path = self.directory / f".{self.gateway_id}.trial"
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        try:
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
            try:
                if os.write(descriptor, b"\0" * _TRIAL_BYTES) < _TRIAL_BYTES:
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            finally:
                os.close(descriptor)
        finally:
            path.unlink(missing_ok=True)

    async def _sync_on(self) -> None:
        while True:
            await asyncio.sleep(_SYNC_EVERY_S)
            if self._current is not None and self._is_full(self._current):
                with suppress(JournalUnavailable):
                    self._segment()
            await self._sync()

    async def _sync(self) -> None:
        for segment in list(self.segments):
            try:
                await asyncio.to_thread(segment.sync)
            except OSError as error:
                self._failed(error)
                if segment is self._current:
                    # New requests go to a new file; this one's lines can still be read while we hold it.
                    self._current = None
                    segment.is_finished = segment.open_requests == 0
