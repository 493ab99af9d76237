"""JSON log lines on standard error, gathered for a moment: one system call for many requests.

Ids, counts, times and states only. Never a prompt, an answer or a key.
"""

from __future__ import annotations

import asyncio
import logging
import os
import stat
import sys
import traceback
from datetime import UTC, datetime
from typing import Any

import msgspec
import structlog

RequestFields = dict[str, str | int | float | bool | datetime]

_GATHER_S = 0.05
_GATHER_BYTES = 64 * 1024
_KEEP_BYTES = 1024 * 1024


class Sink:
    """Where log lines go. They wait up to ``_GATHER_S`` while a loop runs, else go at once.

    A reader that has stopped (a paused terminal) never stops the gateway: lines wait for it, and beyond
    ``_KEEP_BYTES`` the newest are lost, and counted in ``lost``.
    """

    def __init__(self, descriptor: int) -> None:
        self.lost = 0
        self._descriptor = descriptor
        self._lines: list[bytes] = []
        self._size = 0
        self._unsent = b""
        self._timer: asyncio.TimerHandle | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    def gather(self, loop: asyncio.AbstractEventLoop | None) -> None:
        """Gather lines on ``loop`` from now on; None: write each at once."""
        self._loop = loop
        if stat.S_ISFIFO(os.fstat(self._descriptor).st_mode):
            os.set_blocking(self._descriptor, loop is None)
        self.drain()

    def write(self, line: bytes) -> int:
        self._lines.append(line)
        self._size += len(line)
        if self._loop is None or self._size > _GATHER_BYTES:
            self.drain()
        elif self._timer is None:
            self._timer = self._loop.call_later(_GATHER_S, self.drain)
        return len(line)

    def flush(self) -> None:
        """structlog flushes after each line; ``drain`` decides when it really happens."""

    def drain(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        data = self._unsent + b"".join(self._lines)
        self._lines.clear()
        self._size = 0
        while data:
            try:
                data = data[os.write(self._descriptor, data) :]
            except BlockingIOError:
                break
            except OSError:  # nobody reads the log: serving goes on
                data = b""
        self._unsent = self._within_bounds(data)
        if self._unsent and self._loop is not None:
            self._timer = self._loop.call_later(_GATHER_S, self.drain)

    def _within_bounds(self, data: bytes) -> bytes:
        """``data`` cut after its last whole line within ``_KEEP_BYTES``: the first may have been sent in part."""
        if len(data) <= _KEEP_BYTES:
            return data
        end = data.rfind(b"\n", 0, _KEEP_BYTES) + 1 or data.find(b"\n") + 1
        self.lost += data.count(b"\n", end)
        return data[:end]


class _Bridge(logging.Handler):
    """Standard library loggers (uvicorn, asyncio) as JSON lines of the same kind."""

    def __init__(self, logger: Any) -> None:
        super().__init__()
        self._logger = logger

    def emit(self, record: logging.LogRecord) -> None:
        fields: dict[str, Any] = {"logger": record.name}
        message = record.getMessage()
        if record.exc_info and record.exc_info[1] is not None:
            # What asyncio adds in further lines holds the exception once more, with its data.
            message = message.partition("\n")[0]
            fields["error"] = describe(record.exc_info[1])[:500]
            fields["trace"] = _trace(record.exc_info[1])[-4000:]
        self._logger.log(record.levelno, message, **fields)


def describe(error: BaseException) -> str:
    """The kind of ``error``, and its words where these cannot be what a client or an engine sent.

    What a value error, a type error or a lookup says often is the value: those of a request must not reach a log.
    """
    if isinstance(error, UnicodeError):
        place = f" at {error.start}" if isinstance(error, (UnicodeDecodeError, UnicodeEncodeError)) else ""
        return f"{type(error).__name__}{place}"
    if isinstance(error, (ValueError, TypeError, LookupError, AttributeError)):
        return type(error).__name__
    return f"{type(error).__name__}: {error}"


def _trace(error: BaseException) -> str:
    """Where ``error`` came from and what was its cause, the innermost first."""
    found: list[str] = []
    seen: set[int] = set()
    step: BaseException | None = error
    while step is not None and id(step) not in seen:
        seen.add(id(step))
        found.append("".join(traceback.format_tb(step.__traceback__)) + describe(step))
        step = step.__cause__ or (None if step.__suppress_context__ else step.__context__)
    return "\n\n".join(reversed(found))


def _serialise(value: Any, **_: Any) -> bytes:
    return msgspec.json.encode(value, enc_hook=str)


class RequestLog:
    """One line per ended request, of the same kind as structlog's, which would take three times as long for it."""

    def __init__(self, sink: Sink, gateway: str) -> None:
        self._sink = sink
        self._gateway = gateway

    def write(self, fields: RequestFields) -> None:
        """``fields``: what the line says; gateway and time are added to them."""
        fields["gateway"] = self._gateway
        fields["at"] = datetime.now(UTC)
        self._sink.write(msgspec.json.encode(fields) + b"\n")


def configure(gateway: str) -> tuple[Any, Sink]:
    """Set up structlog and the standard loggers; return the gateway's logger and its sink."""
    sink = Sink(sys.stderr.fileno())
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True, key="at"),
            structlog.processors.JSONRenderer(serializer=_serialise),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        logger_factory=structlog.BytesLoggerFactory(file=sink),  # type: ignore[arg-type]
        cache_logger_on_first_use=True,
    )
    logger = structlog.get_logger().bind(gateway=gateway)
    root = logging.getLogger()
    root.handlers[:] = [_Bridge(logger)]
    root.setLevel(logging.WARNING)
    return logger, sink
