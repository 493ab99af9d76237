"""HTTP/1.1 for the simulated engine: a protocol per connection, and the routes."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import httptools
import msgspec

from worker.simulated.api import ENGINE_ERROR, Call, Responder
from worker.simulated.engine import Engine, Fault
from worker.simulated.requestlog import RequestLine, RequestLog
from worker.simulated.requests import (
    ApiError,
    DetokenizeRequest,
    TokenizeRequest,
    check_model,
    decode_body,
    plan_chat,
    plan_completion,
)
from worker.simulated.responses import ResponsesResponder, chat_of
from worker.simulated.tokenizer import VOCABULARY, decode, encode, encode_chat

VERSION = "0.32.0+simulated"
"""The vLLM version whose API is spoken, marked as what it is."""

MAX_BODY_BYTES = 64 << 20
_REASONS = {
    200: "OK",
    400: "Bad Request",
    404: "Not Found",
    405: "Method Not Allowed",
    413: "Content Too Large",
    500: "Internal Server Error",
    503: "Service Unavailable",
}
_STREAM_HEAD = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\ncache-control: no-cache\r\n"
    b"x-engine: simulated\r\ntransfer-encoding: chunked\r\n\r\n"
)


@dataclass(slots=True)
class Settings:
    """What the command line fixes. ``max_queued`` requests may wait; 0: no bound."""

    model: str
    seed: int = 0
    max_queued: int = 0
    request_log: Path | None = None


@dataclass(slots=True)
class Request:
    method: str = ""
    path: str = ""
    headers: dict[bytes, bytes] = field(default_factory=dict)
    body: bytearray = field(default_factory=bytearray)
    keep_alive: bool = True


class App:
    """Routes and what they share."""

    def __init__(self, engine: Engine, settings: Settings) -> None:
        self.engine = engine
        self.settings = settings
        self.log = RequestLog(settings.request_log)
        self.calls: set[Call] = set()
        self.is_stopping = False
        self.created = int(time.time())

    def handle(self, request: Request, responder: Connection) -> Call | None:
        """Answer ``request``, or start the call that will. Raises ApiError."""
        route = (request.method, request.path)
        if request.method == "POST" and request.path in _GENERATING:
            return self._complete(request, responder)
        body = self._answer(route, bytes(request.body))
        if body is None:
            known = {path for _, path in _ROUTES} | _GENERATING
            status, detail = (405, "Method Not Allowed") if request.path in known else (404, "Not Found")
            responder.send(status, msgspec.json.encode({"detail": detail}))
        elif isinstance(body, str):
            responder.send(200, body.encode(), content_type="text/plain; version=0.0.4; charset=utf-8")
        else:
            responder.send(200, b"" if body == {} else msgspec.json.encode(body))
        return None

    def stop(self) -> None:
        """End every open call as an engine does that is told to go now."""
        for call in tuple(self.calls):
            call.fail(ENGINE_ERROR)

    def _answer(self, route: tuple[str, str], body: bytes) -> dict[str, Any] | str | None:
        """Return the body of a plain route, None where there is no such route. Raises ApiError."""
        if route not in _ROUTES:
            return None
        match route[1]:
            case "/health" | "/ping":
                return {}
            case "/version":
                return {"version": VERSION}
            case "/v1/models":
                return self._models()
            case "/metrics":
                return self.engine.metrics.text(self.engine.core, self.engine.profile, self.settings.model)
            case "/load":
                return {"server_load": len(self.calls)}
            case "/tokenize":
                return self._tokenize(body)
            case "/detokenize":
                return self._detokenize(body)
            case "/reset_prefix_cache":
                self.engine.core.cache.clear_idle()
                return {}
            case _:
                if route[0] == "POST":
                    self.engine.break_by(decode_body(body, Fault))
                fault: dict[str, Any] = msgspec.to_builtins(self.engine.fault)
                return fault

    def _complete(self, request: Request, responder: Connection) -> Call:
        if self.is_stopping:
            raise ApiError(500, "cannot schedule new futures after shutdown", kind="InternalServerError")
        limit, waiting = self.settings.max_queued, self.engine.core.waiting
        if self.engine.fault.mode == "refuse" or (limit and waiting >= limit):
            self.engine.metrics.rejected += 1
            raise ApiError(503, "The engine is currently busy. Please retry later.", kind="ServiceUnavailableError")
        is_chat, is_response = request.path != "/v1/completions", request.path == "/v1/responses"
        parse = plan_chat if is_chat else plan_completion
        body = chat_of(bytes(request.body)) if is_response else bytes(request.body)
        plan = parse(body, self.engine.profile, self.settings.model, self.settings.seed)
        request_id = request.headers.get(b"x-request-id", b"").decode("latin-1")
        answered: Responder = responder
        if is_response:
            response_id = f"resp_{request_id or uuid.uuid4().hex}"
            answered = ResponsesResponder(responder, response_id=response_id, model=self.settings.model)
        call = Call(
            plan,
            self.engine,
            answered,
            request_id=request_id,
            call_id=f"{'chatcmpl' if is_chat else 'cmpl'}-{request_id or uuid.uuid4().hex}",
            path=request.path,
            model=self.settings.model,
            on_end=self._ended,
        )
        self.calls.add(call)
        call.start()
        return call

    def _ended(self, call: Call, line: RequestLine) -> None:
        self.calls.discard(call)
        self.log.write(line)

    def _models(self) -> dict[str, Any]:
        card = {
            "id": self.settings.model,
            "object": "model",
            "created": self.created,
            "owned_by": "simulated",
            "root": self.settings.model,
            "parent": None,
            "max_model_len": self.engine.profile.max_model_len,
            "permission": [],
        }
        return {"object": "list", "data": [card]}

    def _tokenize(self, body: bytes) -> dict[str, Any]:
        request = decode_body(body, TokenizeRequest)
        check_model(request.model, self.settings.model)
        if request.messages is not None:
            messages = [(message.role, message.text) for message in request.messages]
            tokens = encode_chat(messages, add_generation_prompt=request.add_generation_prompt)
        elif request.prompt is not None:
            tokens = encode(request.prompt)
        else:
            raise ApiError(400, "either prompt or messages is required", param="prompt")
        limit = self.engine.profile.max_model_len
        return {"count": len(tokens), "max_model_len": limit, "tokens": tokens, "token_strs": None}

    def _detokenize(self, body: bytes) -> dict[str, Any]:
        request = decode_body(body, DetokenizeRequest)
        check_model(request.model, self.settings.model)
        if any(not 0 <= token < len(VOCABULARY) for token in request.tokens):
            raise ApiError(400, f"tokens must lie between 0 and {len(VOCABULARY) - 1}", param="tokens")
        return {"prompt": decode(request.tokens)}


_GENERATING = {"/v1/chat/completions", "/v1/completions", "/v1/responses"}
_ROUTES = {
    ("GET", "/health"),
    ("GET", "/ping"),
    ("POST", "/ping"),
    ("GET", "/version"),
    ("GET", "/v1/models"),
    ("GET", "/metrics"),
    ("GET", "/load"),
    ("POST", "/tokenize"),
    ("POST", "/detokenize"),
    ("POST", "/reset_prefix_cache"),
    ("GET", "/fault"),
    ("POST", "/fault"),
}


class Connection(asyncio.Protocol):
    """One client connection: parses requests, answers them one after another, aborts the call when the client goes."""

    def __init__(self, app: App) -> None:
        self.app = app
        self._parser = httptools.HttpRequestParser(self)
        self._transport: asyncio.Transport | None = None
        self._request = Request()
        self._queue: deque[Request] = deque()
        self._call: Call | None = None
        self._current: Request | None = None
        self._is_streaming = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # What create_server makes; uvloop's transports are not subclasses of asyncio's.
        self._transport = cast(asyncio.Transport, transport)

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._queue.clear()
        if self._call is not None:
            self._call.abort()

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            self._current = Request(keep_alive=False)
            self.send(400, b'{"detail":"Invalid HTTP request received."}')

    # Callbacks of the parser

    def on_message_begin(self) -> None:
        self._request = Request()

    def on_url(self, url: bytes) -> None:
        self._request.path += url.split(b"?", 1)[0].decode("latin-1")

    def on_header(self, name: bytes, value: bytes) -> None:
        self._request.headers[name.lower()] = value

    def on_headers_complete(self) -> None:
        if self._request.headers.get(b"expect", b"").lower() == b"100-continue" and self._transport is not None:
            self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def on_body(self, body: bytes) -> None:
        if len(self._request.body) + len(body) > MAX_BODY_BYTES:
            self._request.keep_alive = False
            self._current = self._request
            self.send(413, b'{"detail":"Content Too Large"}')
        else:
            self._request.body += body

    def on_message_complete(self) -> None:
        request = self._request
        request.method = self._parser.get_method().decode("latin-1")
        request.keep_alive = request.keep_alive and self._parser.should_keep_alive()
        self._queue.append(request)
        if self._current is None:
            self._next()

    # Responder

    def start_stream(self) -> None:
        self._is_streaming = True
        self._write(_STREAM_HEAD)

    def write(self, data: bytes) -> None:
        self._write(b"%x\r\n%b\r\n" % (len(data), data))

    def end_stream(self) -> None:
        self._write(b"0\r\n\r\n")
        self._is_streaming = False
        self._done()

    def send(self, status: int, body: bytes, *, content_type: str = "application/json") -> None:
        keep_alive = self._current is None or self._current.keep_alive
        connection = "" if keep_alive else "connection: close\r\n"
        head = (
            f"HTTP/1.1 {status} {_REASONS[status]}\r\ncontent-type: {content_type}\r\nx-engine: simulated\r\n"
            f"content-length: {len(body)}\r\n{connection}\r\n"
        )
        self._write(head.encode("latin-1") + body)
        self._done()

    def _write(self, data: bytes) -> None:
        if self._transport is not None:
            self._transport.write(data)

    def _done(self) -> None:
        request, self._current, self._call = self._current, None, None
        if request is not None and not request.keep_alive and self._transport is not None:
            self._transport.close()
        elif self._queue:
            self._next()

    def _next(self) -> None:
        self._current = request = self._queue.popleft()
        try:
            call = self.app.handle(request, self)
        except ApiError as error:
            self.send(error.status, error.body)
            return
        if call is not None and self._current is request:
            self._call = call
