"""An engine that costs next to nothing: OpenAI chat answers and streams in vLLM's shape, from templates.

``python mock_engine.py PORT``. ``max_tokens`` chunks; a model named ``…-dN`` waits N ms before each, else it answers
at once. Usage stands on every chunk when ``continuous_usage_stats`` is asked for, as the gateway does.
"""

from __future__ import annotations

import asyncio
import gc
import re
import sys

import uvloop

_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_TOKENS = re.compile(rb'"max_tokens": ?(\d+)')
_STREAM = re.compile(rb'"stream": ?true')
_FINAL = re.compile(rb'"include_usage": ?true')
_CONTINUOUS = re.compile(rb'"continuous_usage_stats": ?true')
_DELAY = re.compile(rb'"model": ?"[^"]*-d(\d+)"')

_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\ntransfer-encoding: chunked\r\n\r\n"
_COMMON = (
    b'data: {"id":"chatcmpl-0123456789abcdef0123456789abcdef","object":"chat.completion.chunk",'
    b'"created":1700000000,"model":"mock",'
)
_ROLE = (
    _COMMON + b'"choices":[{"index":0,"delta":{"role":"assistant","content":""},"logprobs":null,"finish_reason":null}]'
)
_TOKEN = _COMMON + b'"choices":[{"index":0,"delta":{"content":" token"},"logprobs":null,"finish_reason":null}]'
_LAST = _COMMON + b'"choices":[{"index":0,"delta":{"content":" token"},"logprobs":null,"finish_reason":"length"}]'
_ANSWER = (
    b'{"id":"chatcmpl-1","object":"chat.completion","created":1,"model":"mock","choices":[{"index":0,"message":'
    b'{"role":"assistant","content":"%s"},"logprobs":null,"finish_reason":"length"}],'
    b'"usage":{"prompt_tokens":400,"total_tokens":%d,"completion_tokens":%d}}'
)


def framed(payload: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(payload), payload)


def usage(done: int) -> bytes:
    return b',"usage":{"prompt_tokens":400,"total_tokens":%d,"completion_tokens":%d}' % (400 + done, done)


class Engine(asyncio.Protocol):
    def __init__(self) -> None:
        self.buffer = b""
        self.timer: asyncio.Handle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport: asyncio.Transport = transport  # type: ignore[assignment]

    def connection_lost(self, exc: Exception | None) -> None:
        if self.timer is not None:
            self.timer.cancel()

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        end = self.buffer.find(b"\r\n\r\n")
        if end < 0:
            return
        stated = _LENGTH.search(self.buffer, 0, end + 2)
        whole = end + 4 + (int(stated[1]) if stated else 0)
        if len(self.buffer) < whole:
            return
        body, self.buffer = self.buffer[end + 4 : whole], self.buffer[whole:]
        tokens = _TOKENS.search(body)
        self.count = int(tokens[1]) if tokens else 16
        if not _STREAM.search(body):
            text = _ANSWER % (b"tok " * min(self.count, 100), 400 + self.count, self.count)
            head = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(text)
            self.transport.write(head + text)
            return
        delay = _DELAY.search(body)
        self.delay_s = int(delay[1]) / 1000 if delay else 0.0
        self.final, self.continuous = bool(_FINAL.search(body)), bool(_CONTINUOUS.search(body))
        self.done = 0
        self.transport.write(_HEAD + self.chunk(_ROLE, 0))
        self.token()

    def chunk(self, text: bytes, done: int) -> bytes:
        return framed(text + (usage(done) if self.continuous else b"") + b"}\n\n")

    def token(self) -> None:
        self.done += 1
        if self.done < self.count:
            self.transport.write(self.chunk(_TOKEN, self.done))
            loop = asyncio.get_running_loop()
            self.timer = loop.call_later(self.delay_s, self.token) if self.delay_s else loop.call_soon(self.token)
            return
        end = self.chunk(_LAST, self.done)
        if self.final:
            end += framed(_COMMON + b'"choices":[]' + usage(self.done) + b"}\n\n")
        self.transport.write(end)
        # vLLM's server ends the body in a write of its own.
        self.transport.write(framed(b"data: [DONE]\n\n") + b"0\r\n\r\n")


async def main(port: int) -> None:
    server = await asyncio.get_running_loop().create_server(Engine, "127.0.0.1", port, backlog=4096)
    gc.freeze()
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(main(int(sys.argv[1])))
