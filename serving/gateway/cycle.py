"""One request and its answer on uvicorn's HTTP connection, with an answer's head and first bytes in one write.

uvicorn's own cycle writes the head by itself and looks at every header with two regular expressions.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, RequestResponseCycle

_END = b"0\r\n\r\n"


class Cycle(RequestResponseCycle):
    """As ASGI asks, the head waits for the body's first part. Header names must be in lower case."""

    _head = b""

    async def send(self, message: Mapping[str, Any]) -> None:
        """Raises RuntimeError for messages out of turn, header values with line ends, and a wrong length."""
        if self.flow.write_paused and not self.disconnected:
            await self.flow.drain()
        if self.disconnected:
            return
        if message["type"] == "http.response.body" and self.response_started and not self.response_complete:
            self._send_body(message.get("body", b""), message.get("more_body", False))
        elif message["type"] == "http.response.start" and not self.response_started:
            self._head = self._make_head(message["status"], message["headers"])
            self.response_started = True
            self.waiting_for_100_continue = False
        else:
            raise RuntimeError(f"unexpected ASGI message {message['type']!r}")

    @property
    def is_writable(self) -> bool:
        return (
            self.response_started
            and not self.response_complete
            and not self.disconnected
            and not self.flow.write_paused
        )

    def write(self, body: bytes) -> None:
        """A part of the body that is not the last."""
        self._send_body(body, True)

    def _make_head(self, status: int, headers: list[tuple[bytes, bytes]]) -> bytes:
        lines = [b": ".join(header) for header in (*self.default_headers, *headers)]
        named = dict(headers)
        length = named.get(b"content-length")
        if length is not None:
            self.expected_content_length = int(length)
        elif self.scope["method"] != "HEAD" and status not in (204, 304):
            self.chunked_encoding = True
            lines.append(b"transfer-encoding: chunked")
        if b"connection" in named:
            self.keep_alive = self.keep_alive and b"close" not in named[b"connection"]
        elif not self.keep_alive:
            lines.append(b"connection: close")
        block = b"\r\n".join(lines)
        # What comes out as other than one line per header would let a value write headers or an answer of its own.
        ends = len(lines) - 1
        if block.count(b"\n") != ends or block.count(b"\r") != ends or b"\0" in block:
            raise RuntimeError("an answer's header holds a line end")
        return b"%b%b\r\n\r\n" % (STATUS_LINE[status], block)

    def _send_body(self, body: bytes, more: bool) -> None:
        head, self._head = self._head, b""
        if self.scope["method"] == "HEAD":
            self.expected_content_length = 0
            data = head
        elif self.chunked_encoding:
            chunk = b"%x\r\n%b\r\n" % (len(body), body) if body else b""
            data = head + chunk if more else head + chunk + _END
        else:
            self.expected_content_length -= len(body)
            if self.expected_content_length < 0 or (self.expected_content_length and not more):
                raise RuntimeError("the answer's body is not as long as its content-length")
            data = head + body
        if data:
            self.transport.write(data)
        if not more:
            self.response_complete = True
            self.message_event.set()
            if not self.keep_alive:
                self.transport.close()
            self.on_response()
