"""A closed-loop load generator on bare protocols. Prints one JSON line; the CPU of ``--watch`` is read from /proc.

Each connection sends its next request when the last is answered. Times in milliseconds, CPU in microseconds.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import time
from urllib.parse import urlsplit

import uvloop

HERTZ = os.sysconf("SC_CLK_TCK")


def cpu_s(pids: list[int]) -> float:
    total = 0.0
    for pid in pids:
        with open(f"/proc/{pid}/stat", encoding="ascii") as file:
            fields = file.read().rpartition(")")[2].split()
        total += (int(fields[11]) + int(fields[12])) / HERTZ
    return total


class Book:
    """What was counted between ``begin`` and ``end`` (monotonic seconds)."""

    def __init__(self) -> None:
        self.begin = self.end = 0.0
        self.requests = self.chunks = self.errors = 0
        self.latency: list[float] = []
        self.ttft: list[float] = []

    @property
    def is_open(self) -> bool:
        return self.begin <= time.monotonic() < self.end


class Client(asyncio.Protocol):
    def __init__(self, request: bytes, book: Book) -> None:
        self.request, self.book = request, book
        self.is_stream = b'"stream":true' in request

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport: asyncio.Transport = transport  # type: ignore[assignment]
        self.next()

    def next(self) -> None:
        if time.monotonic() >= self.book.end:
            self.transport.close()
            return
        self.sent = time.monotonic()
        self.first = 0.0
        self.head = b""
        self.length = self.got = -1
        self.tail = b""
        self.transport.write(self.request)

    def data_received(self, data: bytes) -> None:
        if self.length == -1:
            self.head += data
            at = self.head.find(b"\r\n\r\n")
            if at < 0:
                return
            head, data = self.head[:at].lower(), self.head[at + 4 :]
            if head[9:12] != b"200":
                self.book.errors += 1
                self.transport.abort()
                return
            stated = head.find(b"content-length:")
            self.length = int(head[stated + 15 :].split(b"\r\n", 1)[0]) if stated >= 0 else 0
            self.got = 0
        self.got += len(data)
        if self.is_stream:
            self.streamed(data)
        elif self.got >= self.length:
            self.finish()

    def streamed(self, data: bytes) -> None:
        if not data:
            return
        text = self.tail + data
        count = text.count(b"data: ")
        if self.book.is_open:
            self.book.chunks += count
        if count and not self.first:
            self.first = time.monotonic()
        if text.endswith(b"0\r\n\r\n") and b"[DONE]" in text:
            self.finish()
            return
        # A split marker is kept, a counted one is not.
        at = text.rfind(b"data: ")
        self.tail = text[max(at + 6, len(text) - 40) :]

    def finish(self) -> None:
        now = time.monotonic()
        if self.book.is_open:
            self.book.requests += 1
            self.book.latency.append(now - self.sent)
            if self.first:
                self.book.ttft.append(self.first - self.sent)
        self.next()


def share(values: list[float], at: float) -> float | None:
    values = sorted(values)
    return round(values[min(len(values) - 1, int(len(values) * at))] * 1000, 3) if values else None


async def main(a: argparse.Namespace) -> None:
    parts = urlsplit(a.url)
    text = "The quick brown fox jumps over the lazy dog. " * 36
    messages = [{"role": "system", "content": "You are a helpful assistant."}, {"role": "user", "content": text}]
    sent = {"model": a.model, "messages": messages, "max_tokens": a.tokens, "temperature": 0.7}
    if a.stream:
        sent["stream"] = True
    body = json.dumps(sent, separators=(",", ":")).encode()
    head = f"POST {parts.path} HTTP/1.1\r\nhost: {parts.netloc}\r\nauthorization: Bearer {a.key}\r\n"
    request = head.encode() + b"content-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(body) + body
    book = Book()
    loop = asyncio.get_running_loop()
    book.begin = time.monotonic() + a.warm
    book.end = book.begin + a.seconds
    for number in range(a.connections):
        await loop.create_connection(lambda: Client(request, book), parts.hostname, parts.port)
        await asyncio.sleep(a.warm / 2 / a.connections if number < a.connections - 1 else 0)
    await asyncio.sleep(max(0.0, book.begin - time.monotonic()))
    before = cpu_s(a.watch)
    await asyncio.sleep(book.end - time.monotonic())
    spent = cpu_s(a.watch) - before
    print(
        json.dumps(
            {
                "requests_per_s": round(book.requests / a.seconds, 1),
                "chunks_per_s": round(book.chunks / a.seconds),
                "errors": book.errors,
                "latency_ms_p50": share(book.latency, 0.5),
                "latency_ms_p99": share(book.latency, 0.99),
                "ttft_ms_p50": share(book.ttft, 0.5),
                "ttft_ms_p99": share(book.ttft, 0.99),
                "cpu_us_per_request": round(spent * 1e6 / book.requests, 1) if book.requests else None,
                "cpu_us_per_chunk": round(spent * 1e6 / book.chunks, 1) if book.chunks else None,
                "cpu_cores": round(spent / a.seconds, 3),
            }
        )
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--url", required=True)
    parser.add_argument("--model", default="mock")
    parser.add_argument("--key", default="none")
    parser.add_argument("--connections", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=100)
    parser.add_argument("--stream", action="store_true")
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--warm", type=float, default=1.5)
    parser.add_argument("--watch", type=int, action="append", default=[])
    uvloop.run(main(parser.parse_args()))
