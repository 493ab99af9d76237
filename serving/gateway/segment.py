"""One journal segment on disk: a file of whole lines, locked by whoever writes it, and how it is read."""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

import msgspec

SUFFIX = ".jsonl"


class LineHead(msgspec.Struct):
    """What a reader must know of a line: its kind (``a``, ``p``, ``e``), request and time."""

    t: str
    id: str
    at: float


class SegmentDamaged(ValueError):
    """A line in the middle of a segment cannot be read."""


_head = msgspec.json.Decoder(LineHead)


class Segment:
    """An open, locked segment. ``size``: bytes of whole lines; ``name`` is the file's without its suffix."""

    def __init__(self, path: Path, descriptor: int) -> None:
        self.path = path
        self.name = path.name.removesuffix(SUFFIX)
        self.descriptor = descriptor
        self.size = os.fstat(descriptor).st_size
        self.open_requests = 0
        self.is_finished = False
        """Nothing will be appended any more."""
        self._torn = False

    @classmethod
    def create(cls, directory: Path, name: str) -> Segment:
        """A new segment; it appears under its name only when it is locked. Raises OSError."""
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        hidden = directory / f".{name}.new"
        descriptor = os.open(hidden, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path = directory / f"{name}{SUFFIX}"
            os.rename(hidden, path)
        except BaseException:
            os.close(descriptor)
            hidden.unlink(missing_ok=True)
            raise
        return cls(path, descriptor)

    @classmethod
    def take(cls, path: Path) -> Segment | None:
        """The segment at ``path`` if nobody holds it, its torn last line cut off. Raises OSError."""
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Whoever held it before may have deleted it between our open and our lock.
            if os.fstat(descriptor).st_nlink == 0:
                os.close(descriptor)
                return None
            segment = cls(path, descriptor)
            segment._cut_tail()
        except BlockingIOError:
            os.close(descriptor)
            return None
        except BaseException:
            os.close(descriptor)
            raise
        return segment

    def append(self, data: bytes) -> None:
        """Write whole lines, unbuffered. After a failure nothing of ``data`` is left behind. Raises OSError."""
        if self._torn:
            os.ftruncate(self.descriptor, self.size)
            self._torn = False
        written = 0
        try:
            while written < len(data):
                written += os.write(self.descriptor, data[written:] if written else data)
        except OSError:
            if written:
                self._torn = True
                os.ftruncate(self.descriptor, self.size)
                self._torn = False
            raise
        self.size += len(data)

    def sync(self) -> None:
        """Bring it to the disk; safe in a thread. Raises OSError, FileNotFoundError when somebody deleted the file."""
        held = self.descriptor
        if held < 0:
            return
        # A descriptor of its own: the segment may be let go of meanwhile.
        descriptor = os.dup(held)
        try:
            os.fdatasync(descriptor)
            if os.fstat(descriptor).st_nlink == 0 and self.descriptor == held:
                raise FileNotFoundError(errno.ENOENT, f"journal segment {self.path.name} was deleted")
        finally:
            os.close(descriptor)

    def touch(self) -> None:
        """Leave the time on the file: its writer lived until at least now."""
        os.utime(self.descriptor)

    def touched_at(self) -> float:
        return os.fstat(self.descriptor).st_mtime

    def delete(self) -> None:
        self.path.unlink(missing_ok=True)
        self.release()

    def release(self) -> None:
        """Let go of it: another gateway may take it."""
        held, self.descriptor = self.descriptor, -1
        if held >= 0:
            os.close(held)

    def _cut_tail(self) -> None:
        """Cut off what follows the last newline: its writer died in the middle of a line."""
        end = self.size
        while end > 0:
            start = max(0, end - 65536)
            at = os.pread(self.descriptor, end - start, start).rfind(b"\n")
            if at >= 0:
                end = start + at + 1
                break
            end = start
        if end != self.size:
            os.ftruncate(self.descriptor, end)
            self.size = end


class Reader:
    """Walks a segment's lines in order, from its beginning to what is whole."""

    def __init__(self, segment: Segment) -> None:
        self.segment = segment
        self.offset = 0

    @property
    def is_caught_up(self) -> bool:
        return self.offset >= self.segment.size

    def lines(self, most_bytes: int = 262_144) -> Iterator[tuple[LineHead, bytes]]:
        """The next lines, about ``most_bytes`` of them. Raises SegmentDamaged, OSError."""
        wanted = min(most_bytes, self.segment.size - self.offset)
        while wanted > 0:
            data = os.pread(self.segment.descriptor, wanted, self.offset)
            end = data.rfind(b"\n") + 1
            if end == 0 and len(data) == wanted and wanted < self.segment.size - self.offset:
                wanted = min(2 * wanted, self.segment.size - self.offset)
                continue
            break
        else:
            return
        for line in data[:end].splitlines(keepends=True):
            try:
                head = _head.decode(line)
            except msgspec.DecodeError as error:
                raise SegmentDamaged(f"{self.segment.path.name}, byte {self.offset}: {error}") from error
            # Moved line by line: a reader that stops early goes on where it stopped.
            self.offset += len(line)
            yield head, line.rstrip(b"\n")
