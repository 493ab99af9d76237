"""The gateway's own HTTP/1.1 client: pooled connections, backpressure both ways, cancel closes at once.

One request per connection at a time. A connection goes back to the pool only after its answer was read to the end.
"""

from __future__ import annotations

import asyncio
import socket
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Any, cast
from urllib.parse import urlsplit

import httptools

HIGH_WATER = 256 * 1024
"""Bytes of an answer that may wait for a slow client before the replica is no longer read from."""
_SLICE = 256 * 1024
_INTERIM = 100


class UpstreamError(Exception):
    """The replica's own failure: another one may be tried. ``reason`` is short and holds no data of the request."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class ConnectFailed(UpstreamError):
    """Nothing was sent."""


class ConnectionBroken(UpstreamError):
    """The connection ended, or the answer was not HTTP, before the answer was complete."""


class AnswerTooLarge(ConnectionBroken):
    """The replica did what it was asked, but says more than the caller takes."""


class Connection(asyncio.Protocol):
    """One connection to a replica. ``status`` is 0 until the answer's headers are there."""

    __slots__ = (
        "_body",
        "_buffered",
        "_can_write",
        "_is_delimited",
        "_is_lingering",
        "_keep_alive",
        "_parser",
        "_pump",
        "_reading_paused",
        "_transport",
        "_waiter",
        "address",
        "content_type",
        "error",
        "idle_since",
        "is_complete",
        "is_reused",
        "pool",
        "received",
        "retry_after",
        "status",
    )

    def __init__(self, pool: UpstreamPool, address: str) -> None:
        self.pool = pool
        self.address = address
        self.is_reused = False
        self.idle_since = 0.0
        self.error = ""
        self._transport: asyncio.Transport | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._pump: Callable[[], bool] | None = None
        self._can_write: asyncio.Future[None] | None = None
        self._parser: Any = httptools.HttpResponseParser(self)
        self._reading_paused = False
        self._reset()

    def _reset(self) -> None:
        self._body: list[bytes] = []
        self._buffered = 0
        self._keep_alive = False
        self._is_delimited = False
        self._is_lingering = False
        self.status = 0
        self.content_type = b""
        self.retry_after = b""
        self.is_complete = True
        self.received = False

    # ------------------------------------------------------- asyncio.Protocol
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        sock = transport.get_extra_info("socket")
        if sock is not None and sock.family != socket.AF_UNIX:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.pool.opened(self)

    def data_received(self, data: bytes) -> None:
        if self.is_complete:
            # Bytes that nobody asked for: the connection cannot be trusted any more.
            self.abort()
            return
        self.received = True
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            self.error = "the replica's answer is not HTTP/1.1"
            self.abort()
        if self._is_lingering and self.is_complete:
            self._body.clear()
            self._buffered = 0
            self.release()
            return
        if self._buffered > HIGH_WATER and not self._reading_paused and self._transport is not None:
            self._reading_paused = True
            self._transport.pause_reading()
        if self._pump is None or self.is_complete or self.error or not self._pump():
            self._wake()

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.is_complete and not self.error:
            self.error = "the connection to the replica broke"
        self._transport = None
        self._wake()
        if self._can_write is not None and not self._can_write.done():
            self._can_write.set_result(None)
        self.pool.lost(self)

    def eof_received(self) -> bool:
        # An answer without length ends with the connection.
        if self.status and not self._is_delimited:
            self.is_complete = True
        return False

    def pause_writing(self) -> None:
        if self._can_write is None:
            self._can_write = asyncio.get_running_loop().create_future()

    def resume_writing(self) -> None:
        waiter, self._can_write = self._can_write, None
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    # ------------------------------------------------------ httptools callbacks
    def on_header(self, name: bytes, value: bytes) -> None:
        name = name.lower()
        if name == b"content-type":
            self.content_type = value
        elif name == b"retry-after":
            self.retry_after = value
        elif name in (b"content-length", b"transfer-encoding"):
            self._is_delimited = True

    def on_headers_complete(self) -> None:
        status = self._parser.get_status_code()
        if status // 100 * 100 != _INTERIM:
            self.status = status
            self._keep_alive = self._parser.should_keep_alive()

    def on_body(self, body: bytes) -> None:
        self._body.append(body)
        self._buffered += len(body)

    def on_message_complete(self) -> None:
        if self.status:
            self.is_complete = True

    # ---------------------------------------------------------------- one request
    async def send(self, head: bytes, body: bytes) -> None:
        """Write a request. Raises ConnectionBroken."""
        self._reset()
        self.is_complete = False
        transport = self._transport
        if transport is None:
            raise ConnectionBroken("the connection to the replica broke")
        if len(body) <= _SLICE:
            transport.write(head + body)
            return
        transport.write(head)
        view = memoryview(body)
        for start in range(0, len(body), _SLICE):
            if self._can_write is not None:
                await self._can_write
            if self._transport is None:
                raise ConnectionBroken(self.error or "the connection to the replica broke")
            transport.write(view[start : start + _SLICE])

    async def wait(self, pump: Callable[[], bool] | None = None) -> None:
        """Return when there is something new: headers, body, the end or a failure.

        ``pump`` is called for each part of the body as it arrives and may ``take`` it; while it answers True there is
        nothing new for the caller, and no task has to run.
        """
        if self._buffered or self.is_complete or self._transport is None:
            return
        waiter = self._waiter = asyncio.get_running_loop().create_future()
        self._pump = pump
        try:
            await waiter
        finally:
            self._waiter = self._pump = None

    async def headers(self) -> int:
        """Wait for the answer's status. Raises ConnectionBroken."""
        while not self.status:
            if self._transport is None or self.error:
                raise ConnectionBroken(self.error or "the connection to the replica broke")
            await self.wait()
        return self.status

    def take(self) -> bytes:
        """All body bytes that have arrived; reading goes on when it was paused."""
        parts = self._body
        if not parts:
            return b""
        self._body = []
        self._buffered = 0
        if self._reading_paused and self._transport is not None:
            self._reading_paused = False
            self._transport.resume_reading()
        return parts[0] if len(parts) == 1 else b"".join(parts)

    async def read_all(self, limit: int) -> bytes:
        """The whole body. Raises ConnectionBroken, and AnswerTooLarge when it exceeds ``limit`` bytes."""
        parts: list[bytes] = []
        size = 0
        while True:
            part = self.take()
            if part:
                parts.append(part)
                size += len(part)
                if size > limit:
                    self.abort()
                    raise AnswerTooLarge(f"the replica's answer exceeds {limit} bytes")
            elif self.is_complete:
                return parts[0] if len(parts) == 1 else b"".join(parts)
            elif self._transport is None or self.error:
                raise ConnectionBroken(self.error or "the connection to the replica broke")
            else:
                await self.wait()

    @property
    def has_body(self) -> bool:
        """Whether ``take`` has something to give."""
        return self._buffered > 0

    @property
    def is_open(self) -> bool:
        return self._transport is not None and not self._transport.is_closing()

    def release(self) -> None:
        """The answer was read to the end: keep the connection for the next request, else close it."""
        if self.is_complete and self._keep_alive and self.is_open and not self._buffered and not self._reading_paused:
            self.pool.keep(self)
        else:
            self.abort()

    def linger(self) -> None:
        """All that matters was read, though the end of the answer may still be on its way: release it when it is."""
        if self.is_complete:
            self.take()
            self.release()
        else:
            self._is_lingering = True
            self.pool.await_end(self)

    def abort(self) -> None:
        """Close at once; the replica sees it and stops generating."""
        transport = self._transport
        if transport is not None and not transport.is_closing():
            transport.abort()

    def _wake(self) -> None:
        waiter = self._waiter
        if waiter is not None and not waiter.done():
            waiter.set_result(None)


class UpstreamPool:
    """Connections to replicas by address, last used first: the others age and are closed."""

    def __init__(self, *, connect_s: float, keep_alive_s: float) -> None:
        """``keep_alive_s`` must stay below the engine's own (5 s for vLLM), else a request may meet a closing one."""
        self._connect_s = connect_s
        self._keep_alive_s = keep_alive_s
        self._idle: dict[str, deque[Connection]] = {}
        self._open: set[Connection] = set()
        self._lingering: dict[Connection, float] = {}
        self._reaper: asyncio.TimerHandle | None = None

    @property
    def open_connections(self) -> int:
        return len(self._open)

    async def exchange(self, address: str, head: bytes, body: bytes, *, once: bool = False) -> Connection:
        """Send a request and return its connection once the answer's status is there. Raises UpstreamError.

        A kept connection that was closed meanwhile is replaced; ``once`` takes a new one: nobody knows what was read.
        """
        connection = (None if once else self._pop(address)) or await self._connect(address)
        while True:
            try:
                await connection.send(head, body)
                await connection.headers()
                return connection
            except ConnectionBroken:
                is_stale = connection.is_reused and not connection.received
                connection.abort()
                if not is_stale:
                    raise
            except BaseException:
                connection.abort()
                raise
            connection = await self._connect(address)

    async def _connect(self, address: str) -> Connection:
        parts = urlsplit(address)
        if parts.scheme != "http" or not parts.hostname or not parts.port:
            raise ConnectFailed(f"the replica's address {address!r} is not http://host:port")
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(self._connect_s):
                _, connection = await loop.create_connection(
                    lambda: Connection(self, address), parts.hostname, parts.port
                )
        except TimeoutError as error:
            raise ConnectFailed(f"no connection to the replica within {self._connect_s:g} s") from error
        except OSError as error:
            raise ConnectFailed(f"no connection to the replica: {error.strerror or 'refused'}") from error
        return connection

    def _pop(self, address: str) -> Connection | None:
        idle = self._idle.get(address)
        if not idle:
            return None
        oldest = time.monotonic() - self._keep_alive_s
        while idle:
            connection = idle.pop()
            if connection.is_open and connection.idle_since > oldest:
                connection.is_reused = True
                return connection
            connection.abort()
        return None

    def keep(self, connection: Connection) -> None:
        self._lingering.pop(connection, None)
        connection.idle_since = time.monotonic()
        self._idle.setdefault(connection.address, deque()).append(connection)
        self._schedule()

    def await_end(self, connection: Connection) -> None:
        """Close a lingering connection that has not ended within a second."""
        self._lingering[connection] = time.monotonic() + 1.0
        self._schedule()

    def _schedule(self) -> None:
        if self._reaper is None:
            self._reaper = asyncio.get_running_loop().call_later(1.0, self._reap)

    def _reap(self) -> None:
        self._reaper = None
        now = time.monotonic()
        oldest = now - self._keep_alive_s
        for address, idle in list(self._idle.items()):
            while idle and (not idle[0].is_open or idle[0].idle_since <= oldest):
                idle.popleft().abort()
            if not idle:
                del self._idle[address]
        for connection in [c for c, deadline in self._lingering.items() if deadline <= now]:
            connection.abort()
        if self._idle or self._lingering:
            self._schedule()

    def opened(self, connection: Connection) -> None:
        self._open.add(connection)

    def lost(self, connection: Connection) -> None:
        self._open.discard(connection)
        self._lingering.pop(connection, None)
        idle = self._idle.get(connection.address)
        if idle is not None and connection.is_complete:
            with suppress(ValueError):
                idle.remove(connection)

    def close(self) -> None:
        """Close every connection, busy ones too."""
        if self._reaper is not None:
            self._reaper.cancel()
            self._reaper = None
        self._idle.clear()
        for connection in list(self._open):
            connection.abort()
