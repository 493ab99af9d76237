"""A request at the door: its headers, its body within bounds, and plain answers to it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, MutableMapping, Sequence
from typing import Any, Protocol, TypeVar

from serving.gateway.auth import Principal
from serving.gateway.errors import ANTHROPIC, OPENAI, ApiError, ErrorShape, Header
from serving.gateway.ids import client_request_id, new_request_id

Message = MutableMapping[str, Any]
Send = Callable[[Message], Awaitable[None]]
Receive = Callable[[], Awaitable[Message]]

T = TypeVar("T")

WHOLE = "penstock.whole"
"""ASGI extension of our server: a request's body is all there, so that reading it needs no clock."""
DIRECT = "penstock.direct"
"""ASGI extension of our server: what writes parts of an answer's body outside of a task, see ``Direct``."""
_FORWARDED = b"x-forwarded-for"
JSON: Header = (b"content-type", b"application/json")
EVENT_STREAM = (
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
)


class Direct(Protocol):
    """The answer's connection, for whoever has a part of the body in hand and must not wait."""

    @property
    def is_writable(self) -> bool:
        """Whether the answer has begun, is not complete, and the client takes what is written."""
        ...

    def write(self, body: bytes) -> None:
        """Write a part that is not the last, while ``is_writable``."""
        ...


class ClientGone(Exception):
    """The client left before its request was complete: there is nobody to answer."""


class Request:
    """One request at the door. ``arrived`` is on the monotonic clock."""

    __slots__ = (
        "arrived",
        "base",
        "client_id",
        "headers",
        "id",
        "method",
        "path",
        "peer",
        "pool",
        "principal",
        "receive",
        "scope",
        "send",
        "shape",
    )

    def __init__(self, scope: Message, receive: Receive, send: Send, arrived: float) -> None:
        self.scope = scope
        self.method: str = scope["method"]
        self.path: str = scope["path"]
        self.headers: dict[bytes, bytes] = dict(scope["headers"])
        if _FORWARDED in self.headers:
            # Each proxy may have added a line of its own; together they are one list, in order.
            self.headers[_FORWARDED] = b",".join(value for name, value in scope["headers"] if name == _FORWARDED)
        client = scope.get("client")
        self.peer: str = client[0] if client else ""
        self.receive = receive
        self.send = send
        self.arrived = arrived
        self.id = new_request_id()
        self.shape: ErrorShape = OPENAI
        self.principal: Principal | None = None
        """Who sent it, once that is known."""
        self.pool = ""
        """Id of the pool that it asks for, once that is known."""
        named = self.headers.get(b"x-request-id")
        self.client_id = client_request_id(named) if named else ""
        own = self.id.encode()
        self.base: list[Header] = [
            (b"x-request-id", self.client_id.encode() or own),
            (b"x-penstock-request-id", own),
        ]

    def answer_as(self, shape: ErrorShape) -> None:
        """Tell errors in this shape. Anthropic's clients also look for a request's id in a header of their own."""
        self.shape = shape
        if shape is ANTHROPIC:
            self.base.append((b"request-id", self.id.encode()))

    @property
    def direct(self) -> Direct | None:
        """None with a server that is not ours."""
        found: Direct | None = self.scope.get("extensions", {}).get(DIRECT)
        return found

    async def body(self, limit: int, seconds: float) -> bytes:
        """The whole body, at most ``limit`` bytes within ``seconds``. Raises ApiError 408 or 413, or ClientGone."""
        stated = self.headers.get(b"content-length", b"")
        if stated.isdigit() and int(stated) > limit:
            raise _too_large(limit)
        if WHOLE in self.scope.get("extensions", ()):
            return self._part(await self.receive(), limit, 0)
        parts: list[bytes] = []
        size = 0
        try:
            async with asyncio.timeout(seconds):
                more = True
                while more:
                    message = await self.receive()
                    parts.append(self._part(message, limit, size))
                    size += len(parts[-1])
                    more = message.get("more_body", False)
        except TimeoutError:
            raise ApiError(
                408,
                f"The body did not arrive within {seconds:g} s.",
                code="timeout",
                headers=[(b"connection", b"close")],
            ) from None
        return parts[0] if len(parts) == 1 else b"".join(parts)

    async def unless_gone(self, work: Coroutine[Any, Any, T]) -> T:
        """``work``, cancelled when the client leaves. Raises ClientGone then. The body must have been read."""
        task = asyncio.ensure_future(work)
        watcher = asyncio.ensure_future(self._next_message())
        try:
            await asyncio.wait((task, watcher), return_when=asyncio.FIRST_COMPLETED)
            if not task.done():
                raise ClientGone
            return task.result()
        finally:
            task.cancel()
            watcher.cancel()

    async def while_here(self, work: Coroutine[Any, Any, T], *, after_s: float = 0.5) -> T:
        """``work`` in this task, cancelled when the client leaves: raises ClientGone then. The body must be read.

        Nobody looks for the client before ``after_s``: what is quick costs no task.
        """
        task, watchers = asyncio.current_task(), list[asyncio.Task[Message]]()
        is_gone = is_over = False

        def left(watcher: asyncio.Task[Message]) -> None:
            nonlocal is_gone
            if not is_over and not watcher.cancelled() and watcher.exception() is None and task is not None:
                is_gone = True
                task.cancel()

        def look() -> None:
            watchers.append(asyncio.ensure_future(self._next_message()))
            watchers[0].add_done_callback(left)

        timer = asyncio.get_running_loop().call_later(after_s, look)
        try:
            return await work
        except asyncio.CancelledError:
            if not is_gone or task is None or task.uncancel():
                raise
            raise ClientGone from None
        finally:
            # ``left`` may be about to be called: what follows is not its to cancel.
            is_over = True
            timer.cancel()
            for watcher in watchers:
                watcher.cancel()

    async def _next_message(self) -> Message:
        return await self.receive()

    @staticmethod
    def _part(message: Message, limit: int, size: int) -> bytes:
        if message["type"] == "http.disconnect":
            raise ClientGone
        part: bytes = message.get("body", b"")
        if size + len(part) > limit:
            raise _too_large(limit)
        return part

    async def answer(self, status: int, body: bytes, headers: Sequence[Header] = (), *, kind: Header = JSON) -> None:
        await self.send(
            {
                "type": "http.response.start",
                "status": status,
                "headers": [kind, (b"content-length", str(len(body)).encode()), *self.base, *headers],
            }
        )
        await self.send({"type": "http.response.body", "body": body, "more_body": False})


def _too_large(limit: int) -> ApiError:
    return ApiError(413, f"The body may have at most {limit} bytes.", code="request_too_large")
