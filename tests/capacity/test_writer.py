"""Usage batches become records and roll-ups, each request once, whatever comes twice, wrong or out of order."""

from __future__ import annotations

import datetime
import random
import uuid
from collections import defaultdict
from typing import Any

import msgspec
import pytest
from django.utils import timezone

from capacity.models import BooksState, QuarantinedUsage, UsageRecord, UsageRollup, Watermark
from capacity.usage.batch import BatchError
from capacity.usage.books import finalise_minutes, usage_delete_old
from capacity.usage.chain import anchors_take
from capacity.usage.lines import Usage, UsageBatch
from capacity.usage.writer import write_batch
from serving.gateway.usage import EngineUsage
from tenants.models import AuditEntry
from tests.factories import Traffic, api_key, batch

pytestmark = pytest.mark.django_db

NOON = datetime.datetime(2026, 11, 20, 12, 0, tzinfo=datetime.UTC)
T = NOON.timestamp()


def rollups(period: str = "minute") -> dict[str, tuple[int, float]]:
    rows = UsageRollup.objects.filter(period=period)
    return {row.starts_at.strftime("%d %H:%M"): (row.requests, row.mu) for row in rows}


def test_a_batch_is_written_and_rolled_up() -> None:
    traffic = Traffic()
    result = write_batch(batch(traffic.pair(T + 10), traffic.pair(T + 70, outcome="engine_error", mu=0.5)))
    assert (result.written, result.known, result.quarantined, result.late, result.gap) == (2, 0, 0, 0, False)
    assert result.acknowledge == 1
    assert rollups() == {"20 12:00": (1, 1.25), "20 12:01": (1, 0.5)}
    assert rollups("hour") == {"20 12:00": (2, 1.75)}
    assert rollups("day") == {"20 00:00": (2, 1.75)}
    hour = UsageRollup.objects.get(period="hour")
    assert (hour.failed, hour.input_tokens, hour.cached_tokens, hour.output_tokens) == (1, 200, 80, 40)
    assert hour.ttft_count == 2
    assert hour.ttft_ms_sum == pytest.approx(1000.0, abs=1e-3)
    assert hour.duration_ms_sum == pytest.approx(3000.0, abs=1e-3)


def test_a_record_holds_what_the_journal_said() -> None:
    traffic = Traffic()
    pair = traffic.pair(T + 3, client_request_id="req-7", usage=Usage(input_tokens=5, units={"image_tile": 2.0}))
    write_batch(batch(pair, gateway="gw-9"))
    row = UsageRecord.objects.get(pk=pair[0].id)
    assert str(row.tenant_id) == traffic.tenant
    assert (row.client_request_id, row.gateway, row.units) == ("req-7", "gw-9", {"image_tile": 2.0})
    assert (row.estimated_input_tokens, row.estimated_output_tokens, row.estimated_mu) == (90, 30, 2.0)
    assert row.ended_at == NOON + datetime.timedelta(seconds=3)
    assert row.admitted_at == NOON + datetime.timedelta(seconds=1.5)
    assert row.attempts[0]["replica"] == str(uuid.UUID(int=9))


def test_the_same_batch_again_changes_nothing() -> None:
    sent = batch(Traffic().pair(T + 10), Traffic().pair(T + 20))
    write_batch(sent)
    before = list(UsageRollup.objects.order_by("pk").values())
    again = write_batch(msgspec.json.encode(sent))
    assert (again.written, again.known, again.acknowledge) == (0, 2, 1)
    assert list(UsageRollup.objects.order_by("pk").values()) == before


def test_a_batch_that_overlaps_adds_only_what_is_new() -> None:
    traffic = Traffic()
    first, second = traffic.pair(T + 10), traffic.pair(T + 20)
    write_batch(batch(first))
    result = write_batch(batch(first, second, sequence=2))
    assert (result.written, result.known) == (1, 1)
    assert rollups() == {"20 12:00": (2, 2.5)}


def test_one_request_twice_in_a_batch_counts_once() -> None:
    pair = Traffic().pair(T + 10)
    result = write_batch(batch(pair, pair))
    assert (result.written, result.known) == (1, 1)


def test_two_requests_under_one_id_are_not_both_believed() -> None:
    traffic = Traffic()
    first = traffic.pair(T + 10)
    other = traffic.pair(T + 10, id=first[0].id, mu=99.0)
    result = write_batch(batch(first, other))
    assert (result.written, result.quarantined) == (1, 1)
    assert rollups() == {"20 12:00": (1, 1.25)}


def test_the_most_that_an_engine_can_tell_does_not_overflow_the_sums() -> None:
    most = EngineUsage(prompt_tokens=2**62, completion_tokens=2**62).record()
    traffic = Traffic()
    result = write_batch(batch(*(traffic.pair(T + second, usage=most) for second in range(4))))
    assert (result.written, result.quarantined) == (4, 0)
    day = UsageRollup.objects.get(period="day")
    assert (day.input_tokens, day.output_tokens) == (4 * most.input_tokens, 4 * most.output_tokens)
    assert 1_000_000 * most.input_tokens < 2**63


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"mu": -1.0}, "actual_mu"),
        ({"usage": Usage(input_tokens=1, cached_tokens=5)}, "cached"),
        ({"usage": Usage(output_tokens=2**70)}, "output_tokens"),
        ({"usage": Usage(input_tokens=2**40 + 1)}, "input_tokens"),
        ({"status": 70000}, "status"),
        ({"id": "not-a-uuid"}, "UUID"),
        ({"service_class": ""}, "service class"),
    ],
)
def test_a_poisoned_record_goes_to_quarantine_and_holds_up_nobody(fields: dict[str, Any], reason: str) -> None:
    traffic = Traffic()
    good = [traffic.pair(T + second) for second in range(3)]
    result = write_batch(batch(good[0], traffic.pair(T + 30, **fields), *good[1:]))
    assert (result.written, result.quarantined, result.acknowledge) == (3, 1, 1)
    item = QuarantinedUsage.objects.get()
    assert reason.lower() in item.reason.lower()
    assert msgspec.json.decode(item.payload)[0]["t"] == "a"
    assert rollups() == {"20 12:00": (3, 3.75)}


def test_a_pair_that_cannot_be_read_is_kept_whole() -> None:
    sent = msgspec.json.decode(msgspec.json.encode(batch(Traffic().pair(T), Traffic().pair(T + 1))))
    sent["pairs"][0][1]["outcome"] = "exploded"
    data = msgspec.json.encode(sent)
    assert write_batch(data).quarantined == 1
    assert write_batch(data).quarantined == 1
    item = QuarantinedUsage.objects.get()
    assert item.record_id == sent["pairs"][0][0]["id"]
    assert msgspec.json.decode(item.payload) == sent["pairs"][0]
    assert UsageRecord.objects.count() == 1


def test_what_is_no_batch_is_refused() -> None:
    with pytest.raises(BatchError):
        write_batch(b'{"gateway": 1}')
    assert not Watermark.objects.exists()


def test_texts_are_cut_and_cleaned_to_their_columns() -> None:
    pair = Traffic().pair(T, error="x" * 2000 + "\0", client_request_id="a\0b" * 200)
    assert write_batch(batch(pair)).written == 1
    row = UsageRecord.objects.get()
    assert len(row.error) == 500
    assert "\0" not in row.client_request_id


def test_a_clock_set_back_loses_no_request() -> None:
    pair = Traffic().pair(T + 10, duration_s=-3.0)
    assert write_batch(batch(pair)).written == 1
    row = UsageRecord.objects.get()
    assert row.ended_at == row.admitted_at


def test_the_watermark_moves_forward_only() -> None:
    write_batch(batch(sequence=1, watermark=T + 100))
    write_batch(batch(sequence=1, watermark=T + 50))
    mark = Watermark.objects.get()
    assert (mark.sequence, mark.at) == (1, NOON + datetime.timedelta(seconds=100))


def test_behind_a_gap_the_watermark_stands_still() -> None:
    traffic = Traffic()
    write_batch(batch(traffic.pair(T), sequence=1, watermark=T + 1))
    result = write_batch(batch(traffic.pair(T + 20), sequence=3, watermark=T + 21, closed=True))
    assert (result.written, result.gap, result.acknowledge) == (1, True, 1)
    mark = Watermark.objects.get()
    assert (mark.sequence, mark.at.timestamp(), mark.is_closed) == (1, T + 1, False)
    assert write_batch(batch(traffic.pair(T + 10), sequence=2, watermark=T + 11)).acknowledge == 2
    again = write_batch(batch(traffic.pair(T + 20), sequence=3, watermark=T + 21, closed=True))
    assert again.acknowledge == 3
    assert Watermark.objects.get().is_closed


def test_a_keys_last_use_moves_in_steps_of_a_minute() -> None:
    key, _ = api_key()
    traffic = Traffic(key=str(key.pk))
    write_batch(batch(traffic.pair(T + 10, duration_s=0.0)))
    write_batch(batch(traffic.pair(T + 40, duration_s=0.0), sequence=2))
    key.refresh_from_db()
    assert key.last_used_at == NOON + datetime.timedelta(seconds=10)
    write_batch(batch(traffic.pair(T + 75, duration_s=0.0), sequence=3))
    key.refresh_from_db()
    assert key.last_used_at == NOON + datetime.timedelta(seconds=75)


def test_roll_ups_equal_plain_sums_over_the_raw_rows() -> None:
    """The oracle adds up the rows of the database in plain Python, by calendar arithmetic of its own."""
    rng = random.Random(20261120)
    traffics = [Traffic() for _ in range(3)]
    start = datetime.datetime(2026, 11, 19, 22, 30, tzinfo=datetime.UTC).timestamp()
    outcomes = ("completed", "client_closed", "engine_error", "refused", "gateway_lost")
    sent: list[UsageBatch] = []
    for sequence in range(1, 21):
        pairs = [
            rng.choice(traffics).pair(
                start + rng.uniform(0, 3 * 3600),
                mu=rng.random() * 10 ** rng.randint(-3, 4),
                outcome=rng.choice(outcomes),
                service_class=rng.choice(("best_effort", "reserved")),
                first_byte_at=rng.choice((0.0, start)),
                stream=rng.random() < 0.7,
                usage=Usage(input_tokens=rng.randint(50, 9000), cached_tokens=rng.randint(0, 50), output_tokens=7),
            )
            for _ in range(rng.randint(0, 25))
        ]
        sent.append(batch(*pairs, sequence=sequence, watermark=start + sequence))
    for usage_batch in sent + rng.sample(sent, 8):
        write_batch(usage_batch)
    check_rollups()


def check_rollups() -> None:
    for period, width in (("minute", 16), ("hour", 13), ("day", 10)):
        expected: dict[tuple[str, ...], dict[str, float]] = defaultdict(lambda: defaultdict(float))
        for row in UsageRecord.objects.all():
            starts = row.ended_at.astimezone(datetime.UTC).isoformat()[:width]
            who = (row.tenant_id, row.key_id, row.pool_id, row.deployment_id)
            sums = expected[(starts, *map(str, who), row.service_class)]
            sums["requests"] += 1
            sums["failed"] += row.outcome in ("engine_error", "engine_lost", "refused", "timeout", "gateway_lost")
            sums["input"] += row.input_tokens
            sums["cached"] += row.cached_tokens
            sums["output"] += row.output_tokens
            sums["mu"] += row.actual_mu
            sums["ttft"] += row.stream and row.first_byte_at is not None
            sums["ms"] += (row.ended_at - row.admitted_at) / datetime.timedelta(milliseconds=1)
        booked = {}
        for total in UsageRollup.objects.filter(period=period):
            who = (total.tenant_id, total.key_id, total.pool_id, total.deployment_id)
            key = (total.starts_at.isoformat()[:width], *map(str, who), total.service_class)
            booked[key] = {
                "requests": total.requests,
                "failed": total.failed,
                "input": total.input_tokens,
                "cached": total.cached_tokens,
                "output": total.output_tokens,
                "mu": total.mu,
                "ttft": total.ttft_count,
                "ms": total.duration_ms_sum,
            }
        assert set(booked) == set(expected)
        for key, sums in expected.items():
            assert booked[key] == pytest.approx(dict(sums), rel=1e-9, abs=1e-6), (period, key)


def test_minutes_are_final_when_every_open_watermark_has_passed() -> None:
    write_batch(batch(Traffic().pair(T + 10), Traffic().pair(T + 130), segment="a", watermark=T + 130))
    write_batch(batch(Traffic().pair(T + 20), segment="b", watermark=T + 59))
    later = NOON + datetime.timedelta(hours=1)
    closing = finalise_minutes(later)
    assert (closing.held_by, closing.behind_s) == ("b", 3541.0)
    assert not UsageRollup.objects.filter(is_final=True).exists()
    write_batch(batch(segment="b", sequence=2, watermark=T + 60))
    assert finalise_minutes(later).final_until == NOON + datetime.timedelta(minutes=1)
    final = UsageRollup.objects.filter(is_final=True)
    assert {(row.period, row.starts_at) for row in final} == {("minute", NOON)}
    write_batch(batch(segment="a", sequence=2, watermark=T + 131, closed=True))
    write_batch(batch(segment="b", sequence=3, watermark=T + 61, closed=True))
    finalise_minutes(later)
    assert not UsageRollup.objects.filter(period="minute", is_final=False).exists()
    assert not UsageRollup.objects.filter(period="hour", is_final=True).exists()
    finalise_minutes(NOON + datetime.timedelta(days=1))
    assert not UsageRollup.objects.filter(is_final=False).exists()


def test_minutes_stay_open_for_a_grace_time() -> None:
    write_batch(batch(Traffic().pair(T + 10), watermark=T + 600))
    finalise_minutes(NOON + datetime.timedelta(seconds=80))
    assert not UsageRollup.objects.filter(is_final=True).exists()
    finalise_minutes(NOON + datetime.timedelta(seconds=91))
    assert UsageRollup.objects.filter(is_final=True).count() == 1


def test_a_late_record_is_booked_counted_and_told() -> None:
    traffic = Traffic()
    write_batch(batch(traffic.pair(T + 10), watermark=T + 600, closed=True))
    finalise_minutes(NOON + datetime.timedelta(minutes=10))
    late = traffic.pair(T + 20)
    result = write_batch(batch(late, segment="lost and found"))
    assert (result.written, result.late) == (1, 1)
    minute = UsageRollup.objects.get(period="minute")
    assert (minute.requests, minute.is_final) == (2, False)
    state = BooksState.objects.get()
    assert state.late_records == 1
    assert state.last_late_at is not None
    assert AuditEntry.objects.get(action="usage.correct").object_id == late[0].id
    write_batch(batch(segment="lost and found", sequence=2, watermark=T + 900, closed=True))
    finalise_minutes(NOON + datetime.timedelta(minutes=10))
    assert UsageRollup.objects.get(period="minute").is_final
    check_rollups()


def test_finality_never_goes_back() -> None:
    finalise_minutes(NOON)
    write_batch(batch(segment="slow", sequence=5, watermark=T))
    assert finalise_minutes(NOON + datetime.timedelta(minutes=5)).final_until == NOON - datetime.timedelta(minutes=1)


def test_retention_deletes_only_what_is_final_and_keeps_the_sums() -> None:
    write_batch(batch(Traffic().pair(T + 10), Traffic().pair(T + 400), watermark=T + 180))
    assert usage_delete_old(before=timezone.now(), actor="retention") == 0
    finalise_minutes(NOON + datetime.timedelta(hours=1))
    anchors_take(now=NOON + datetime.timedelta(minutes=1))
    assert usage_delete_old(before=NOON + datetime.timedelta(days=1), actor="retention") == 1
    assert UsageRecord.objects.count() == 1
    assert UsageRollup.objects.filter(period="minute").count() == 2
    assert AuditEntry.objects.filter(action="usage.delete_old").count() == 1


@pytest.mark.parametrize("closed", [False, True], ids=["its gateway was killed", "closed, and back from a backup"])
def test_a_segment_shipped_again_after_retention_is_not_booked_twice(closed: bool) -> None:
    """An adopted segment is shipped from its beginning under new numbers, whatever the books still have of it."""
    traffic = Traffic()
    old = [traffic.pair(T + second) for second in (10, 20, 30)]
    write_batch(batch(*old, watermark=T + 600, closed=closed))
    finalise_minutes(NOON + datetime.timedelta(minutes=11))
    anchors_take(now=NOON + datetime.timedelta(minutes=4))
    assert usage_delete_old(before=NOON + datetime.timedelta(minutes=5), actor="retention") == 3
    assert BooksState.objects.get().deleted_until == NOON + datetime.timedelta(minutes=5)
    before = rollups()
    lost = [] if closed else [traffic.pair(T + 610, outcome="gateway_lost")]
    again = write_batch(batch(*old, *lost, sequence=2, watermark=0.0, closed=True))
    assert (again.written, again.known, again.quarantined, again.acknowledge) == (len(lost), 3, 0, 2)
    assert {**rollups(), "20 12:10": None} == {**before, "20 12:10": None}


def test_what_was_never_booked_is_late_however_old() -> None:
    """A gateway that never reached the books: retention has passed its requests, and yet they count."""
    traffic = Traffic()
    write_batch(batch(traffic.pair(T + 10), watermark=T + 600))
    finalise_minutes(NOON + datetime.timedelta(minutes=11))
    anchors_take(now=NOON + datetime.timedelta(minutes=4))
    assert usage_delete_old(before=NOON + datetime.timedelta(minutes=5), actor="retention") == 1
    result = write_batch(batch(traffic.pair(T + 20), segment="found on a shelf", watermark=0.0))
    more = write_batch(batch(traffic.pair(T + 25), segment="found on a shelf", sequence=2, watermark=0.0))
    assert (result.written, result.late, more.written) == (1, 1, 1)
    assert rollups() == {"20 12:00": (3, 3.75)}


def test_retention_remembers_how_far_it_has_come_and_never_less() -> None:
    write_batch(batch(Traffic().pair(T + 10), Traffic().pair(T + 200), watermark=T + 600))
    finalise_minutes(NOON + datetime.timedelta(minutes=11))
    anchors_take(now=NOON + datetime.timedelta(minutes=1))
    assert usage_delete_old(before=NOON + datetime.timedelta(minutes=2), actor="retention") == 1
    write_batch(batch(Traffic().pair(T + 15), segment="late", watermark=0.0))
    anchors_take(now=NOON + datetime.timedelta(minutes=1))
    assert usage_delete_old(before=NOON + datetime.timedelta(minutes=1), actor="retention") == 1
    assert BooksState.objects.get().deleted_until == NOON + datetime.timedelta(minutes=2)
