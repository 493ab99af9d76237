"""The usage stream: every batch into the books once, acknowledged only when it is there, poison kept aside."""

from __future__ import annotations

import time
import uuid
from types import SimpleNamespace

import msgspec
import pytest
import redis
from django.db import OperationalError

from capacity.models import QuarantinedUsage, UsageRecord, UsageRollup
from capacity.usage.lines import AdmitLine, EndLine, Usage, UsageBatch
from penstock.loops import usage as loop
from penstock.loops.usage import is_usage_waiting, write_usage

pytestmark = pytest.mark.django_db

STREAM = "penstock:usage"


def batch(sequence: int, pairs: int = 3, segment: str = "gw-1.1", **fields: float) -> UsageBatch:
    now = time.time()
    lines = []
    for _ in range(pairs):
        usage = Usage(input_tokens=10, output_tokens=5)
        ids = {name: str(uuid.uuid4()) for name in ("tenant", "key", "pool", "deployment", "revision")}
        name = str(uuid.uuid4())
        admit = AdmitLine(
            id=name, at=now - 1, model="m", dialect="chat", profile_version=1, estimated_mu=2.0, estimated=usage, **ids
        )
        lines.append((admit, EndLine(id=name, at=now, outcome="completed", status=200, usage=usage, actual_mu=1.0)))
    return UsageBatch(gateway="gw-1", segment=segment, sequence=sequence, watermark=now, pairs=tuple(lines))


def ship(client: redis.Redis, *batches: UsageBatch | bytes) -> None:
    for item in batches:
        client.xadd(STREAM, {"b": item if isinstance(item, bytes) else msgspec.json.encode(item)})


def acknowledged(client: redis.Redis, segment: str = "gw-1.1") -> int | None:
    raw = client.get(f"penstock:usage:ack:{segment}")
    return None if raw is None else int(raw)  # type: ignore[arg-type]


def test_batches_become_records_and_leave_the_stream(state: redis.Redis) -> None:
    ship(state, batch(1), batch(2, pairs=4))
    assert is_usage_waiting(state)
    assert write_usage(state) == 2
    assert UsageRecord.objects.count() == 7
    assert acknowledged(state) == 2
    assert not is_usage_waiting(state)
    assert state.xpending(STREAM, "writer")["pending"] == 0  # type: ignore[index]


def test_a_batch_sent_twice_counts_once(state: redis.Redis) -> None:
    same = batch(1)
    ship(state, same, same)
    write_usage(state)
    ship(state, same)
    write_usage(state)
    assert UsageRecord.objects.count() == 3
    assert sum(UsageRollup.objects.filter(period="minute").values_list("requests", flat=True)) == 3


def test_more_than_one_read_fits_is_written_in_one_tick(state: redis.Redis) -> None:
    ship(state, *[batch(number, pairs=1) for number in range(1, 46)])
    assert write_usage(state) == 45
    assert acknowledged(state) == 45


def test_a_slow_database_does_not_take_a_tick_past_its_lease(
    state: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One read brings 20 batches; at a second each they would take as long as the lease lives."""
    clock, write = SimpleNamespace(now=0.0), loop.write_batch

    def slow(raw: bytes) -> object:
        clock.now += 1.0
        return write(raw)

    monkeypatch.setattr(loop, "write_batch", slow)
    monkeypatch.setattr(loop, "time", SimpleNamespace(monotonic=lambda: clock.now))
    ship(state, *[batch(number, pairs=1) for number in range(1, 21)])
    assert write_usage(state) == 8
    assert (acknowledged(state), state.xlen(STREAM)) == (8, 12)
    assert [write_usage(state), write_usage(state)] == [8, 4]
    assert (acknowledged(state), UsageRecord.objects.count()) == (20, 20)


@pytest.mark.parametrize("overtaken_after", ["write_batch", "booked_until"])
def test_a_slower_writer_does_not_take_back_what_a_faster_one_acknowledged(
    state: redis.Redis, monkeypatch: pytest.MonkeyPatch, overtaken_after: str
) -> None:
    """It stands still after its transaction, or just before the acknowledgement; the other writes the next batch."""
    step, others = getattr(loop, overtaken_after), [batch(2)]

    def overtaken(argument: object) -> object:
        outcome = step(argument)
        if others:
            loop._write(state, {b"b": msgspec.json.encode(others.pop())})
        return outcome

    monkeypatch.setattr(loop, overtaken_after, overtaken)
    ship(state, batch(1))
    write_usage(state)
    assert not others
    assert acknowledged(state) == 2


def test_the_acknowledgement_falls_back_with_books_that_were_restored(state: redis.Redis) -> None:
    state.set("penstock:usage:ack:gw-1.1", 40)
    ship(state, batch(1), batch(41))
    write_usage(state)
    assert acknowledged(state) == 1


def test_a_gap_is_not_acknowledged_over(state: redis.Redis) -> None:
    first, second, third = batch(1), batch(2), batch(3)
    ship(state, first, third)
    write_usage(state)
    assert UsageRecord.objects.count() == 6
    assert acknowledged(state) == 1
    ship(state, second, third)
    write_usage(state)
    assert (UsageRecord.objects.count(), acknowledged(state)) == (9, 3)


def test_what_a_dead_process_had_taken_is_written_by_the_next(state: redis.Redis) -> None:
    ship(state, batch(1), batch(2))
    state.xgroup_create(STREAM, "writer", id="0")
    taken = state.xreadgroup("writer", "loops", {STREAM: ">"}, count=1)
    assert taken
    assert write_usage(state) == 2
    assert UsageRecord.objects.count() == 6


def test_while_the_database_is_away_everything_waits(state: redis.Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    ship(state, batch(1), batch(2))

    def away(raw: bytes) -> None:
        raise OperationalError("database is locked")

    with monkeypatch.context() as patched:
        patched.setattr(loop, "write_batch", away)
        for _ in range(3):
            with pytest.raises(OperationalError):
                write_usage(state)
    assert (UsageRecord.objects.count(), acknowledged(state), state.xlen(STREAM)) == (0, None, 2)
    assert write_usage(state) == 2
    assert UsageRecord.objects.count() == 6


@pytest.mark.parametrize("rubbish", [b"", b"not json", b"[]", b'{"gateway": 1}', b"\xff\xfe"])
def test_what_is_no_batch_is_kept_aside_and_holds_nothing_up(state: redis.Redis, rubbish: bytes) -> None:
    ship(state, rubbish, batch(1))
    state.xadd(STREAM, {"other": b"field"})
    assert write_usage(state) == 1
    assert UsageRecord.objects.count() == 3
    assert state.xlen(STREAM) == 0
    kept = state.xrange("penstock:usage:poison")
    assert rubbish in [fields[b"b"] for _, fields in kept]  # type: ignore[union-attr]


def test_a_bug_in_the_writer_holds_nothing_up(state: redis.Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    bad, good = batch(1, segment="bad.1"), batch(1)
    write = loop.write_batch

    def buggy(raw: bytes) -> object:
        if b"bad.1" in raw:
            raise ZeroDivisionError
        return write(raw)

    monkeypatch.setattr(loop, "write_batch", buggy)
    ship(state, bad, good, bad)
    write_usage(state)
    assert UsageRecord.objects.count() == 3
    assert acknowledged(state, "bad.1") is None
    assert state.xlen("penstock:usage:poison") == 1


def test_one_bad_record_does_not_take_its_batch_along(state: redis.Redis) -> None:
    whole = batch(1)
    whole.pairs[1][1].actual_mu = -5.0
    ship(state, whole)
    write_usage(state)
    assert (UsageRecord.objects.count(), QuarantinedUsage.objects.count(), acknowledged(state)) == (2, 1, 1)


def test_a_state_that_came_back_empty_is_no_obstacle(state: redis.Redis) -> None:
    ship(state, batch(1))
    write_usage(state)
    state.flushall()
    assert not is_usage_waiting(state)
    ship(state, batch(2))
    assert write_usage(state) == 1
    assert acknowledged(state) == 2
