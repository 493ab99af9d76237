"""From journal to books: each request once, whoever dies."""

import asyncio
import os
import random
import signal
import subprocess
import sys
import time
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from serving.gateway import shipper as shipper_module
from serving.gateway.journal import Journal
from serving.gateway.records import AdmitLine, EndLine, ProgressLine, Usage
from serving.gateway.segment import Segment
from serving.gateway.shipper import Shipper
from serving.gateway.state import EPOCH, State
from tests.gateway.state.books import Books


def admit(name, at=None):
    return AdmitLine(
        id=name,
        at=at or time.time(),
        tenant="t",
        key="k",
        pool="p",
        deployment="d",
        revision="r",
        model="m",
        dialect="chat",
        profile_version=3,
        estimated_mu=1.5,
        estimated=Usage(input_tokens=10, output_tokens=20),
    )


def end(name, tokens=5):
    usage = Usage(input_tokens=10, output_tokens=tokens)
    return EndLine(id=name, at=time.time(), outcome="completed", status=200, usage=usage, actual_mu=1.0)


def price(admit_line, usage):
    return admit_line.profile_version * 100 + usage.output_tokens


@asynccontextmanager
async def gateway(url, directory, name="gw", **options):
    state = State(url)
    journal = Journal(directory, name, time.time, **options)
    shipper = Shipper(state, journal, price=price)
    await journal.start()
    await shipper.start()
    try:
        yield journal, shipper
    finally:
        await journal.close()
        await shipper.stop()
        await state.close()


async def until(condition, timeout_s=10.0):
    async with asyncio.timeout(timeout_s):
        while not condition():
            await asyncio.sleep(0.02)


@pytest.fixture
def books(state_url):
    made = Books(state_url)
    yield made
    made.client.close()


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(shipper_module, "_PERIOD_S", 0.02)
    monkeypatch.setattr(shipper_module, "_ADOPT_EVERY_S", 0.05)
    monkeypatch.setattr(shipper_module, "_STOP_WITHIN_S", 0.2)


async def test_closed_requests_arrive_and_the_file_goes(state_url, tmp_path, books, quick, monkeypatch):
    monkeypatch.setattr(shipper_module, "_STOP_WITHIN_S", 5.0)
    async with gateway(state_url, tmp_path) as (journal, _):
        for i in range(1200):
            journal.admit(admit(str(i)))
            journal.end(end(str(i), tokens=i))
        journal.admit(admit("open"))
        await until(lambda: books.write() * 0 + len(books.rows) == 1200)
        (segment,) = books.sequence
        assert books.closed == set()
        assert books.gaps == 0
        journal.end(end("open"))
        await until(lambda: books.write() * 0 + len(books.rows) == 1201)
        written = asyncio.ensure_future(_write_until_closed(books, 5.0))
    await written
    assert books.closed == {segment}
    assert books.doubles == 0
    assert list(tmp_path.iterdir()) == []
    assert books.rows["7"][1]["usage"]["output_tokens"] == 7


async def _write_until_closed(books, seconds):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and not books.closed:
        books.write()
        await asyncio.sleep(0.01)


async def test_an_idle_gateway_moves_its_watermark(state_url, tmp_path, books, quick, monkeypatch):
    monkeypatch.setattr(shipper_module, "_HEARTBEAT_S", 0.1)
    async with gateway(state_url, tmp_path) as (journal, _):
        name = journal.segments[0].name
        await until(lambda: books.write() * 0 + books.watermark.get(name, 0) > time.time() - 1.5)
        first = books.watermark[name]
        await until(lambda: books.write() * 0 + books.watermark[name] > first + 0.3)
        assert books.watermark[name] <= time.time() - 0.9


async def test_memory_is_bounded_while_nobody_writes(state_url, tmp_path, books, quick, monkeypatch):
    monkeypatch.setattr(shipper_module, "WINDOW", 4)
    monkeypatch.setattr(shipper_module, "_AGAIN_S", 0.05)
    async with gateway(state_url, tmp_path) as (journal, shipper):
        for i in range(5000):
            journal.admit(admit(str(i)))
            journal.end(end(str(i)))
        await until(lambda: books.client.xlen("penstock:usage") == 4)
        await asyncio.sleep(0.4)
        assert books.client.xlen("penstock:usage") == 4, "sent again only when it is no longer in the stream"
        assert len(shipper._shipments[journal.segments[0].name].flying) == 4
        await until(lambda: books.write() * 0 + len(books.rows) == 5000)
    assert books.doubles == 0


async def test_what_is_booked_between_two_looks_is_not_sent_again(state_url, tmp_path, books, quick, monkeypatch):
    monkeypatch.setattr(shipper_module, "_AGAIN_S", 0.0)
    async with gateway(state_url, tmp_path) as (journal, shipper):
        call, looks = shipper._state.call, []

        async def call_late(command, *words):
            if command == "XRANGE":
                looks.append(books.write())
            return await call(command, *words)

        monkeypatch.setattr(shipper._state, "call", call_late)
        for i in range(1200):
            journal.admit(admit(str(i)))
            journal.end(end(str(i)))
        await until(lambda: len(books.rows) == 1200)
        await asyncio.sleep(0.2)
        books.write()
    assert any(looks), "an entry was taken out while the shipper looked for it"
    assert books.doubles == 0


async def test_batches_that_were_lost_are_sent_again(state_url, tmp_path, books, quick, monkeypatch):
    monkeypatch.setattr(shipper_module, "_AGAIN_S", 0.3)
    async with gateway(state_url, tmp_path) as (journal, _):
        for i in range(700):
            journal.admit(admit(str(i)))
            journal.end(end(str(i)))
        await until(lambda: books.client.xlen("penstock:usage") >= 2)
        books.client.delete("penstock:usage")
        await until(lambda: books.write() * 0 + len(books.rows) == 700)


async def test_a_new_epoch_sends_what_is_not_acknowledged_at_once(state_url, tmp_path, books, quick):
    async with gateway(state_url, tmp_path) as (journal, shipper):
        for i in range(700):
            journal.admit(admit(str(i)))
            journal.end(end(str(i)))
        await until(lambda: books.client.xlen("penstock:usage") >= 2)
        books.client.flushall()
        books.client.set(EPOCH, "anew.1000")
        shipper._state.note_epoch("anew.1000")
        await until(lambda: books.write() * 0 + len(books.rows) == 700, 3)


async def test_books_set_back_to_a_backup_are_filled_from_the_file(state_url, tmp_path, books, quick):
    async with gateway(state_url, tmp_path) as (journal, _):
        for i in range(600):
            journal.admit(admit(str(i)))
            journal.end(end(str(i)))
        await until(lambda: books.write() * 0 + len(books.rows) == 600)
        await asyncio.sleep(0.1)
        books.rows.clear()
        for segment in books.sequence:
            books.sequence[segment] = 0
            books.watermark[segment] = 0.0
            books.client.set(f"penstock:usage:ack:{segment}", 0)
        await until(lambda: books.write() * 0 + len(books.rows) == 600)


async def test_a_dead_gateways_open_requests_are_closed_with_their_last_progress(state_url, tmp_path, books, quick):
    dead = Journal(tmp_path, "dead", time.time)
    dead.admit(admit("closed"))
    dead.end(end("closed"))
    dead.admit(admit("silent"))
    dead.admit(admit("seen"))
    for tokens in (1, 4):
        dead.progress(
            ProgressLine(
                id="seen",
                at=time.time(),
                replica="r9",
                usage=Usage(input_tokens=10, cached_tokens=2, output_tokens=tokens),
            )
        )
    (segment,) = dead.segments
    path = segment.path
    segment.release()
    with path.open("ab") as file:
        file.write(b'{"t":"a","id":"torn","at":1')
    async with gateway(state_url, tmp_path):
        await until(lambda: books.write() * 0 + len(books.rows) == 3)
        await until(lambda: books.write() * 0 + (path.stem in books.closed))
        await until(lambda: not path.exists())
    seen, silent = books.rows["seen"][1], books.rows["silent"][1]
    assert seen["outcome"] == silent["outcome"] == "gateway_lost"
    assert seen["lower_bound"] is True
    assert seen["usage"] == {"input_tokens": 10, "cached_tokens": 2, "output_tokens": 4}
    assert (seen["actual_mu"], seen["replica"]) == (304.0, "r9")
    assert silent["actual_mu"] == 0.0
    assert books.rows["closed"][1]["outcome"] == "completed"


async def test_an_adopter_trusts_only_an_acknowledgement_that_is_newer_than_the_dead_gateways_batches(
    state_url, tmp_path, books, quick
):
    """The dead gateway's many small batches were acknowledged; the adopter's few large ones must not seem to be."""
    dead = Journal(tmp_path, "dead", time.time)
    for i in range(900):
        dead.admit(admit(str(i)))
        dead.end(end(str(i)))
    (segment,) = dead.segments
    books.sequence[segment.name] = 40
    books.client.set(f"penstock:usage:ack:{segment.name}", 40)
    segment.release()
    async with gateway(state_url, tmp_path):
        # Only the adopter's first, empty batch is taken; the acknowledgement it brings is about others.
        await until(lambda: books.write(1) * 0 + (books.sequence[segment.name] == 40 and books.batches == 2))
        await asyncio.sleep(0.3)
        assert segment.path.exists()
        assert books.rows == {}
        await until(lambda: books.write() * 0 + (segment.name in books.closed))
        assert len(books.rows) == 900
        assert books.gaps == 0
        await until(lambda: not segment.path.exists())


async def test_a_lost_request_ends_after_every_watermark_of_its_segment(state_url, tmp_path, books, quick, monkeypatch):
    """Else it would fall into a minute that is final already."""
    monkeypatch.setattr(shipper_module, "_HEARTBEAT_S", 0.1)
    async with gateway(state_url, tmp_path, "dead") as (journal, shipper):
        (segment,) = journal.segments
        journal.admit(admit("1"))
        admitted_at = time.time()
        await until(lambda: books.write() * 0 + books.watermark.get(segment.name, 0) > admitted_at + 0.2)
        for task in shipper._tasks:
            task.cancel()
        books.write()
        segment.release()
        journal.retire(segment)
        shipper._shipments.clear()
        async with gateway(state_url, tmp_path, "heir"):
            await until(lambda: books.write() * 0 + len(books.rows))
    assert admitted_at + 0.2 < books.rows["1"][1]["at"] <= time.time()


async def test_a_damaged_segment_is_kept_aside(state_url, tmp_path, quick):
    path = tmp_path / "dead.1.jsonl"
    path.write_bytes(b'{"t":"a","id":"1","at":1.0}\nrubbish\n{"t":"a","id":"2","at":1.0}\n')
    async with gateway(state_url, tmp_path):
        await until(lambda: not path.exists())
    assert (tmp_path / "dead.1.jsonl.damaged").exists()


async def test_a_living_gateways_segment_is_left_alone(state_url, tmp_path, books, quick):
    async with gateway(state_url, tmp_path, "a") as (a, _), gateway(state_url, tmp_path, "b"):
        a.admit(admit("1"))
        await asyncio.sleep(0.3)
        a.end(end("1"))
        await until(lambda: books.write() * 0 + len(books.rows) == 1)
    assert books.rows["1"][1]["outcome"] == "completed"


def run_child(directory, url, seed, name, rng):
    """Run a child, kill it at a random moment; what it said."""
    process = subprocess.Popen(
        [sys.executable, str(Path(__file__).parent / "journal_child.py"), str(directory), url, str(seed), name],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
    )
    said = [process.stdout.readline()]
    time.sleep(rng.uniform(0.0, 0.25) if rng.random() < 0.7 else rng.uniform(0.5, 1.2))
    process.send_signal(signal.SIGKILL)
    said += process.stdout.read().split(b"\n")
    process.stdout.close()
    process.wait(60)
    return [line.split() for line in said if line.strip()]


async def kill_and_adopt(seed, url, directory, books):
    rng = random.Random(seed)
    print(f"seed {seed}")
    said = run_child(directory, url, seed, f"dead{seed}", rng)
    admitted = {words[1].decode() for words in said if words[0] == b"admit"}
    reached, ended = {}, {}
    for words in said:
        if words[0] == b"progress":
            reached[words[1].decode()] = int(words[2])
        elif words[0] == b"end":
            ended[words[1].decode()] = int(words[2])
    if rng.random() < 0.5:
        books.write()
    async with gateway(url, directory, f"heir{seed}"):
        await until(lambda: books.write() * 0 + (not list(directory.glob(f"dead{seed}.*"))), 20)
        books.write()
    rows = {name: row for name, row in books.rows.items() if name.startswith(f"dead{seed}-")}
    assert admitted <= set(rows), f"lost: {sorted(admitted - set(rows))[:5]}"
    assert len(set(rows) - admitted) <= 1, "at most the one whose call had not returned"
    for name, (_, last) in rows.items():
        tokens = last["usage"].get("output_tokens", 0)
        if name in ended:
            assert (last["outcome"], tokens) == ("completed", ended[name])
        else:
            assert reached.get(name, 0) <= tokens <= reached.get(name, 0) + 1
    return len(rows)


@pytest.mark.faults
@pytest.mark.slow
async def test_a_gateway_killed_at_any_moment_loses_nothing(state_url, tmp_path, books, quick):
    first = int(os.environ.get("PENSTOCK_SEED", random.SystemRandom().randrange(10**6)))
    total = 0
    for seed in range(first, first + 12):
        total += await kill_and_adopt(seed, state_url, tmp_path, books)
    print(f"{total} requests, {books.batches} batches, {books.doubles} came twice")
    assert total > 200


async def test_an_adopter_killed_in_turn_leaves_it_to_the_next(state_url, tmp_path, books, quick):
    dead = Journal(tmp_path, "dead", time.time)
    for i in range(50):
        dead.admit(admit(str(i)))
    path = dead.segments[0].path
    dead.segments[0].release()
    half = Segment.take(path)
    half.append(b"")
    shipper_module.close_open_requests(half, price=price)
    os.truncate(path, half.size - 700)
    half.release()
    async with gateway(state_url, tmp_path):
        await until(lambda: books.write() * 0 + (not path.exists()))
    assert len(books.rows) == 50
    assert books.doubles == 0
