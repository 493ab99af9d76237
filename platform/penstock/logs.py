"""The terminal and the log files of ``penstock up``: prefixed lines, and one status line that moves on a terminal."""

import os
import shutil
import sys
import time
from pathlib import Path
from typing import TextIO

_COLOURS = {"state": 36, "gateway": 32, "web": 34, "loops": 35, "beat": 35, "agent": 33, "setup": 90, "penstock": 1}
_MAX_LOG_BYTES = 16 * 1024 * 1024


def wants_colour(stream: TextIO) -> bool:
    """Whether to colour ``stream``: a terminal, unless NO_COLOR is set; FORCE_COLOR overrides."""
    if os.environ.get("NO_COLOR"):
        return False
    return bool(os.environ.get("FORCE_COLOR")) or (stream.isatty() and os.environ.get("TERM") != "dumb")


class Terminal:
    """Writes whole lines. On a terminal ``status`` keeps one line at the bottom, elsewhere it prints each change."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stdout
        self.is_tty = self._stream.isatty()
        self._colour = wants_colour(self._stream)
        self._status = ""
        self._is_broken = False

    def line(self, text: str, *, source: str = "penstock") -> None:
        prefix = f"{source:<10}"
        if self._colour:
            colour = _COLOURS.get(source.split("-")[0], 37)
            prefix = f"\x1b[{colour}m{prefix}\x1b[0m"
        self._write(f"{prefix} {text}\n")

    def plain(self, text: str = "") -> None:
        self._write(f"{text}\n")

    def status(self, text: str) -> None:
        """Replace the status line; an empty text removes it."""
        if text == self._status:
            return
        if self.is_tty:
            width = max(20, shutil.get_terminal_size().columns)
            self._status = text[: width - 1]
            self._put(f"\r\x1b[K{self._status}")
        else:
            self._status = text
            if text:
                self._put(f"{text}\n")

    def _write(self, text: str) -> None:
        if self.is_tty and self._status:
            self._put(f"\r\x1b[K{text}{self._status}")
        else:
            self._put(text)

    def _put(self, text: str) -> None:
        # A terminal that was closed must not stop the installation: the log files go on.
        if self._is_broken:
            return
        try:
            try:
                self._stream.write(text)
            except UnicodeEncodeError:
                # One character that this terminal does not have must not silence it.
                encoding = self._stream.encoding
                self._stream.write(text.encode(encoding, "replace").decode(encoding))
            self._stream.flush()
        except (OSError, ValueError):
            self._is_broken = True


class RoleLog:
    """One role's log file (mode 0600): each line with its UTC time. Turned over once at 16 MiB, one old file kept."""

    def __init__(self, path: Path, *, max_bytes: int = _MAX_LOG_BYTES) -> None:
        self._path, self._max_bytes = path, max_bytes
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._open()

    def _open(self) -> None:
        descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        self._file = os.fdopen(descriptor, "a", encoding="utf-8", errors="replace", buffering=1)
        self._bytes = os.fstat(descriptor).st_size

    def write(self, text: str, *, now: float | None = None) -> None:
        moment = time.time() if now is None else now
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(moment)) + f".{int(moment % 1 * 1000):03d}Z"
        line = f"{stamp} {text}\n"
        try:
            if self._bytes + len(line) > self._max_bytes:
                self._file.close()
                os.replace(self._path, self._path.with_suffix(".log.1"))
                self._open()
            self._file.write(line)
        except OSError:
            # A full disk must not stop the roles; the terminal still has the line.
            return
        self._bytes += len(line.encode("utf-8", "replace"))

    def close(self) -> None:
        self._file.close()
