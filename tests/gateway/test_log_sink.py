"""The gateway's log lines into a pipe that nobody reads for a while."""

import asyncio
import os
import time

from serving.gateway.logs import Sink


def read_all(descriptor: int) -> bytes:
    os.set_blocking(descriptor, False)
    parts = []
    try:
        while part := os.read(descriptor, 1 << 20):
            parts.append(part)
    except BlockingIOError:
        pass
    return b"".join(parts)


async def test_a_stalled_reader_stops_nothing_and_gets_its_lines_later() -> None:
    reader, writer = os.pipe()
    sink = Sink(writer)
    sink.gather(asyncio.get_running_loop())
    lines = [b'{"n": %06d, "filler": "%s"}\n' % (number, b"x" * 100) for number in range(5000)]
    began = time.monotonic()
    for line in lines:
        sink.write(line)
    sink.drain()
    assert time.monotonic() - began < 2.0
    got = b""
    while len(got) < sum(map(len, lines)):
        got += read_all(reader)
        await asyncio.sleep(0.01)
    assert got == b"".join(lines)
    assert sink.lost == 0
    os.close(reader)
    os.close(writer)


async def test_beyond_the_bound_whole_lines_are_lost_and_counted() -> None:
    reader, writer = os.pipe()
    sink = Sink(writer)
    sink.gather(asyncio.get_running_loop())
    count = 20_000
    for number in range(count):
        sink.write(b"%06d %s\n" % (number, b"x" * 200))
    sink.drain()
    got = b""
    for _ in range(200):
        got += read_all(reader)
        await asyncio.sleep(0.01)
    lines = got.splitlines(keepends=True)
    assert all(len(line) == 208 for line in lines)
    assert 0 < sink.lost == count - len(lines)
    os.close(reader)
    os.close(writer)
