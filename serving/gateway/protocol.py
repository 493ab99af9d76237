"""uvicorn's HTTP protocol with the bounds it lacks: time and size of headers, and of a body nobody reads."""

from __future__ import annotations

import asyncio
import fcntl
import math
import sys
import termios
from typing import Any
from urllib.parse import unquote

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from serving.gateway.cycle import Cycle
from serving.gateway.errors import INVALID, error_body
from serving.gateway.request import DIRECT, WHOLE

MAX_HEADER_BYTES = 64 * 1024
MAX_HEADERS = 128
MAX_PIPELINED = 32
"""Requests that a client may send ahead on one connection while one runs."""
MAX_UNREAD_BYTES = 64 * 1024 * 1024
"""A refused body is read on for a while, so that the client gets to read the answer; but not for ever."""
_TOO_LARGE = "request headers are too large"
LINGER_S = 5.0
"""A client that takes nothing for so long of what is still to be sent when its connection is closed is gone."""
LINGERS = 120
"""So many times as long it may take in all: as long as a request may."""


class Closing:
    """A transport whose orderly close comes to an end, read or not."""

    __slots__ = ("_loop", "_transport", "is_closing", "write")

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport = transport
        self._loop = loop
        self.write = transport.write
        self.is_closing = transport.is_closing

    def close(self) -> None:
        if self._transport.get_write_buffer_size() and not self._transport.is_closing():
            # An orderly close waits for the buffer, and a client that never reads would keep it for ever.
            self._loop.call_later(LINGER_S, self._look, self._unsent(), LINGERS)
        self._transport.close()

    def _look(self, before: int, left: int) -> None:
        if not self._transport.get_write_buffer_size():
            return  # The system has the rest, and its own patience.
        unsent = self._unsent()
        if unsent >= before or not left:
            self._transport.abort()
        else:
            self._loop.call_later(LINGER_S, self._look, unsent, left - 1)

    def _unsent(self) -> int:
        """Bytes that the client has not taken. The buffer alone moves in steps of a megabyte: the system keeps as much
        before it asks for more."""
        size = self._transport.get_write_buffer_size()
        try:
            kept = fcntl.ioctl(self._transport.get_extra_info("socket").fileno(), termios.TIOCOUTQ, bytes(4))
        except (OSError, ValueError, AttributeError):
            return size
        return size + int.from_bytes(kept, sys.byteorder)


class BoundedProtocol(HttpToolsProtocol):
    """``header_s`` seconds for a request's headers, from the connection or from the first byte of the next request."""

    header_s = 20.0

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._header_timer: asyncio.TimerHandle | None = None
        self._header_bytes = 0
        self._unparsed = 0
        self._unread_bytes = 0
        self._running: RequestResponseCycle | None = None
        self._is_in_headers = False
        self._idle_since = math.inf
        self._idle_timer: asyncio.TimerHandle | None = None
        self._is_offer = False
        self._body_left = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.transport = Closing(transport, self.loop)  # type: ignore[assignment]
        self._await_headers()

    def connection_lost(self, exc: Exception | None) -> None:
        self._headers_came()
        if self._idle_timer is not None:
            self._idle_timer.cancel()
            self._idle_timer = None
        super().connection_lost(exc)
        running = self._running
        if running is not None and not running.response_complete:
            # The server tells the newest request alone; one that is answered while others wait must know too.
            running.disconnected = True
            running.message_event.set()

    def data_received(self, data: bytes) -> None:
        if self._is_offer:
            self._take_offered_body(data)
            return
        self._idle_since = math.inf
        self._unparsed += len(data)
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserError:
            self.logger.warning("Invalid HTTP request received.")
            self.send_400_response("")
            return
        except httptools.HttpParserUpgrade as offer:
            self._take_offered_body(data[offer.args[0] :])
            return
        if self._unparsed > MAX_HEADER_BYTES + len(data):
            # A header, trailer or chunk extension that never ends: the parser would join its pieces for ever.
            self.logger.warning("A request header does not end.")
            self.send_400_response("")
            return
        # Headers nearly always come whole: only others get a clock. The keep-alive clock has just been unset, and
        # bytes that begin no request (line ends, the body of a refused one) must not keep the connection.
        is_idle = self.cycle is not None and self.cycle.response_complete
        # The head of the next request may lie about while one runs: its clock must not end that one.
        is_due = (is_idle or self._is_in_headers) and not self._is_running
        if is_due and self._header_timer is None and not self.transport.is_closing():
            self._await_headers()

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        self._running = cycle
        super()._start_asgi_task(cycle, app)

    def on_response_complete(self) -> None:
        """As uvicorn's, with one keep-alive clock for the connection instead of a new one for each request."""
        self.server_state.total_requests += 1
        if self.transport.is_closing():
            return
        self.flow.resume_reading()
        if self.pipeline:
            cycle, app = self.pipeline.pop()
            self._start_asgi_task(cycle, app)
            return
        if self._is_in_headers:
            self._await_headers()
        self._idle_since = self.loop.time()
        if self._idle_timer is None:
            self._idle_timer = self.loop.call_later(self.timeout_keep_alive, self._look_idle)

    def _look_idle(self) -> None:
        self._idle_timer = None
        left = self._idle_since + self.timeout_keep_alive - self.loop.time()
        if self.transport.is_closing():
            return
        if left <= 0.0:
            self.transport.close()
        else:
            self._idle_timer = self.loop.call_later(min(left, self.timeout_keep_alive), self._look_idle)

    @property
    def _is_running(self) -> bool:
        return self._running is not None and not self._running.response_complete

    def _await_headers(self) -> None:
        self._headers_came()
        self._header_timer = self.loop.call_later(self.header_s, self._too_slow)

    def _headers_came(self) -> None:
        if self._header_timer is not None:
            self._header_timer.cancel()
            self._header_timer = None

    def _too_slow(self) -> None:
        self._header_timer = None
        if not self.transport.is_closing():
            self.transport.close()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._header_bytes = 0
        self._unread_bytes = 0
        self._is_in_headers = True

    def on_url(self, url: bytes) -> None:
        self._header_bytes += len(url)
        if self._header_bytes > MAX_HEADER_BYTES:
            raise ValueError(_TOO_LARGE)
        self.url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self._is_in_headers:
            return  # a trailer: what it says comes too late to be believed
        self._header_bytes += len(name) + len(value) + 4
        headers = self.headers
        if self._header_bytes > MAX_HEADER_BYTES or len(headers) >= MAX_HEADERS:
            # httptools wraps what a callback raises in its own parser error.
            raise ValueError(_TOO_LARGE)
        name = name.lower()
        if name == b"expect" and value.lower() == b"100-continue":
            self.expect_100_continue = True
        headers.append((name, value))

    def on_headers_complete(self) -> None:
        """As uvicorn's, which has no limit of concurrency and no WebSocket here, with a cycle of our own."""
        self._is_in_headers = False
        self._unparsed = 0
        self._headers_came()
        version = self.parser.get_http_version()
        url = httptools.parse_url(self.url)
        path = url.path.decode("ascii")
        scope = self.scope
        scope["method"] = self.parser.get_method().decode("ascii")
        scope["http_version"] = version
        scope["path"] = unquote(path) if "%" in path else path
        scope["raw_path"] = url.path
        scope["query_string"] = url.query or b""
        before = self.cycle
        cycle = self.cycle = Cycle(
            scope=scope,
            transport=self.transport,
            flow=self.flow,
            logger=self.logger,
            access_logger=self.access_logger,
            access_log=False,
            default_headers=self.server_state.default_headers,
            message_event=asyncio.Event(),
            expect_100_continue=self.expect_100_continue,
            keep_alive=version != "1.0" and self.parser.should_keep_alive(),
            on_response=self.on_response_complete,
        )
        extensions: dict[str, Any] = {DIRECT: cycle}
        scope["extensions"] = extensions
        if before is None or before.response_complete:
            self._start_asgi_task(cycle, self.app)
        elif len(self.pipeline) < MAX_PIPELINED:
            # Reading goes on: a client that leaves must be seen, or the engine would generate for nobody.
            self.pipeline.appendleft((cycle, self.app))
        else:
            raise ValueError("too many requests wait behind one that runs")
        if self.parser.should_upgrade():
            self._read_plainly()

    def _read_plainly(self) -> None:
        """The request offers another protocol, which nobody takes up. The parser takes what follows its head for that
        protocol; it is the request's body, of the stated length, and the last that is read of this connection."""
        headers = dict(self.headers)
        if b"transfer-encoding" in headers:
            raise ValueError("an offer to upgrade needs a body of a stated length")
        self._is_offer = True
        self._body_left = int(headers.get(b"content-length", b"0"))
        self.cycle.keep_alive = False

    def _take_offered_body(self, data: bytes) -> None:
        part = data[: self._body_left]
        self._body_left -= len(part)
        if part:
            self.on_body(part)
            if not self._body_left:
                self.on_message_complete()

    def on_message_complete(self) -> None:
        self._unparsed = 0
        if not self._body_left:
            self.scope["extensions"][WHOLE] = {}
            super().on_message_complete()

    def on_body(self, body: bytes) -> None:
        self._unparsed = 0
        if self.cycle.response_complete:
            self._unread_bytes += len(body)
            if self._unread_bytes > MAX_UNREAD_BYTES:
                self.transport.close()
            return
        super().on_body(body)

    def send_400_response(self, msg: str) -> None:
        body = error_body("The request is not valid HTTP/1.1.", type=INVALID, code="invalid_http")
        head = b"HTTP/1.1 400 Bad Request\r\ncontent-type: application/json\r\nconnection: close\r\ncontent-length: %d"
        self.transport.write(head % len(body) + b"\r\n\r\n" + body)
        self.transport.close()
