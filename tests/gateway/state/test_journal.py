"""The journal's file: whole lines, whatever fails; and nobody's segments."""

import asyncio
import errno
import json
import os
import time

import pytest

from serving.gateway.journal import Journal, JournalUnavailable
from serving.gateway.records import AdmitLine, EndLine, ProgressLine, Usage
from serving.gateway.segment import Reader, Segment


def admit(name, at=1000.0):
    return AdmitLine(
        id=name,
        at=at,
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


def end(name, at=1001.0, tokens=5):
    return EndLine(
        id=name, at=at, outcome="completed", status=200, usage=Usage(input_tokens=10, output_tokens=tokens), actual_mu=1
    )


def progress(name, tokens, at=1000.5):
    return ProgressLine(id=name, at=at, replica="r1", usage=Usage(input_tokens=10, output_tokens=tokens))


def lines(path):
    return [json.loads(line) for line in path.read_bytes().splitlines()]


@pytest.fixture
def journal(tmp_path):
    made = Journal(tmp_path / "journal", "gw", time.time)
    yield made
    for segment in list(made.segments):
        segment.release()


def files(journal):
    return sorted(journal.directory.glob("*.jsonl"))


def test_lines_are_on_the_file_when_the_call_returns(journal):
    journal.admit(admit("1"))
    journal.progress(progress("1", 3))
    journal.end(end("1"))
    (path,) = files(journal)
    assert [line["t"] for line in lines(path)] == ["a", "p", "e"]
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700


def test_an_end_without_admission_and_a_second_end_write_nothing(journal):
    journal.end(end("nobody"))
    journal.admit(admit("1"))
    journal.end(end("1"))
    journal.end(end("1"))
    assert [line["t"] for line in lines(files(journal)[0])] == ["a", "e"]


def test_a_rotated_segment_keeps_its_requests_until_they_end(tmp_path):
    journal = Journal(tmp_path, "gw", time.time, rotate_bytes=300)
    journal.admit(admit("1"))
    journal.admit(admit("2"))
    first = journal.segments[0]
    journal.admit(admit("3"))
    assert len(journal.segments) == 2
    journal.end(end("3"))
    journal.end(end("1"))
    assert not first.is_finished
    journal.end(end("2"))
    assert first.is_finished
    assert [line["id"] for line in lines(first.path)] == ["1", "2", "1", "2"]
    for segment in journal.segments:
        segment.release()


DAY = 86_400


async def test_a_day_old_segment_is_turned_over_with_and_without_traffic(tmp_path, monkeypatch):
    now = [1_000_000.0]
    journal = Journal(tmp_path, "gw", lambda: now[0])
    now[0] += 3 * DAY
    journal.admit(admit("1"))
    assert len(journal.segments) == 1, "an empty one has nothing to hand over"
    journal.end(end("1"))
    first = journal.segments[0]
    journal.admit(admit("2"))
    assert journal.segments[-1] is not first
    assert first.is_finished
    second = journal.segments[-1]
    journal.end(end("2"))
    monkeypatch.setattr("serving.gateway.journal._SYNC_EVERY_S", 0.01)
    await journal.start()
    await asyncio.sleep(0.1)
    assert not second.is_finished
    now[0] += DAY
    async with asyncio.timeout(5):
        while not second.is_finished:
            await asyncio.sleep(0.01)
    assert len(journal.segments) == 3
    await journal.close()
    assert len(files(journal)) == 3


class FailingDisk:
    """``os.write`` that takes ``room`` bytes more and then says that the disk is full."""

    def __init__(self, monkeypatch):
        self.room = None
        original = os.write

        def write(descriptor, data):
            if self.room is None:
                return original(descriptor, data)
            if self.room == 0:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            written = original(descriptor, bytes(data)[: self.room])
            self.room -= written
            return written

        monkeypatch.setattr(os, "write", write)


def test_a_full_disk_refuses_admission_keeps_ends_and_recovers(journal, monkeypatch):
    disk = FailingDisk(monkeypatch)
    journal.admit(admit("1"))
    disk.room = 17
    with pytest.raises(JournalUnavailable, match="No space left"):
        journal.admit(admit("2"))
    assert not journal.writable
    journal.progress(progress("1", 2))
    disk.room = 9
    journal.end(end("1"))
    assert [line["t"] for line in lines(files(journal)[0])] == ["a"], "half a line must not stay"
    assert journal.watermark(journal.segments[0]) <= 1001.0
    disk.room = None
    assert not journal.writable, "tried at most once a second"
    journal._tried_at -= 2
    assert journal.writable
    journal.admit(admit("3"))
    assert [(line["t"], line["id"]) for line in lines(files(journal)[0])] == [("a", "1"), ("e", "1"), ("a", "3")]
    assert list(journal.directory.glob(".*")) == []


def test_a_folder_that_cannot_be_made_is_no_traceback_but_a_refusal(tmp_path):
    blocker = tmp_path / "journal"
    blocker.write_text("a file where the folder should be")
    journal = Journal(blocker, "gw", time.time)
    assert not journal.writable
    with pytest.raises(JournalUnavailable):
        journal.admit(admit("1"))
    blocker.unlink()
    journal.admit(admit("1"))
    assert journal.writable
    journal.segments[0].release()


async def test_a_deleted_segment_is_noticed_and_replaced(journal):
    journal.admit(admit("1"))
    files(journal)[0].unlink()
    await journal._sync()
    journal.admit(admit("2"))
    journal.end(end("1"))
    assert [line["id"] for line in lines(files(journal)[0])] == ["2"]
    kept = [line for _, line in Reader(journal.segments[0]).lines()]
    assert [json.loads(line)["t"] for line in kept] == ["a", "e"]


async def test_after_close_nothing_is_admitted(journal):
    journal.admit(admit("1"))
    await journal.start()
    await journal.close()
    with pytest.raises(JournalUnavailable):
        journal.admit(admit("2"))
    assert not journal.writable


def test_a_segment_is_taken_by_one_only_and_its_torn_tail_is_cut(tmp_path):
    path = tmp_path / "gw.1.jsonl"
    whole = b'{"t":"a","id":"1","at":1.0}\n'
    path.write_bytes(whole + b'{"t":"a","id":"2"')
    taken = Segment.take(path)
    assert taken is not None
    assert Segment.take(path) is None
    assert path.read_bytes() == whole
    taken.append(b'{"t":"e","id":"1","at":2.0}\n')
    assert [head.t for head, _ in Reader(taken).lines()] == ["a", "e"]
    taken.delete()
    assert Segment.take(path) is None


def test_a_reader_goes_on_over_block_ends_and_long_lines(tmp_path):
    path = tmp_path / "gw.1.jsonl"
    wanted = [json.dumps({"t": "a", "id": str(i), "at": 1.0, "x": "y" * (i * 37 % 900)}) for i in range(200)]
    path.write_text("\n".join(wanted) + "\n")
    segment = Segment.take(path)
    reader = Reader(segment)
    seen = []
    while not reader.is_caught_up:
        seen += [line.decode() for _, line in reader.lines(most_bytes=64)]
    assert seen == wanted
    segment.release()
