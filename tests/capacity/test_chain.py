"""Usage records are chained when they are booked; anchors outlive them, and what is left can be checked from there."""

from __future__ import annotations

import datetime
import hashlib
import json
import uuid
from typing import Any

import pytest
from django.db import connection

from capacity.models import UsageAnchor, UsageChain, UsageRecord
from capacity.usage.books import finalise_minutes, usage_delete_old
from capacity.usage.chain import anchors_take, starts_after
from capacity.usage.lines import Usage
from capacity.usage.writer import write_batch
from tests.factories import Traffic, batch, race

NOON = datetime.datetime(2026, 11, 20, 12, 0, tzinfo=datetime.UTC)
T = NOON.timestamp()
DAY = datetime.timedelta(days=1)

SEEN = [
    "id",
    "client_request_id",
    "key_id",
    "pool_id",
    "deployment_id",
    "model",
    "dialect",
    "service_class",
    "stream",
    "input_tokens",
    "cached_tokens",
    "output_tokens",
    "units",
    "estimated_mu",
    "actual_mu",
    "profile_version",
    "outcome",
    "status",
    "finish_reason",
    "lower_bound",
    "admitted_at",
    "first_byte_at",
    "ended_at",
    "tenant_id",
]
UNSEEN = [
    "revision_id",
    "replica_id",
    "gateway",
    "error",
    "attempts",
    "routed_at",
    "estimated_input_tokens",
    "estimated_output_tokens",
]


def canonical(row: dict[str, Any], names: list[str]) -> str:
    """The text of a row by its definition, from what the database gives back."""

    def plain(value: Any) -> Any:
        if isinstance(value, datetime.datetime):
            return value.astimezone(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%S.%f+00:00")
        if isinstance(value, uuid.UUID):
            return str(value)
        if isinstance(value, dict):
            return {key: float(item) if type(item) in (int, float) else item for key, item in value.items()}
        return [plain(item) for item in value] if isinstance(value, list) else value

    return json.dumps({name: plain(row[name]) for name in names}, sort_keys=True, separators=(",", ":"))


def broken(tenant: str, after: int = 0, last: str = "0" * 64) -> list[int]:
    """The places at which the stored chain of a tenant does not hold."""
    found, expected = [], after
    for row in (
        UsageRecord.objects.filter(tenant_id=tenant, chain_sequence__gt=after).order_by("chain_sequence").values()
    ):
        expected += 1
        unseen = hashlib.sha256(canonical(row, UNSEEN).encode()).hexdigest()
        text = f"{last}\n{expected}\n{canonical(row, SEEN)}\n{unseen}"
        last = hashlib.sha256(text.encode()).hexdigest()
        if (row["chain_sequence"], row["chain_hash"]) != (expected, last):
            found.append(expected)
            last = row["chain_hash"]
    if not found:
        head = UsageChain.objects.get(tenant_id=tenant)
        assert (head.sequence, head.hash) == (expected, last)
    return found


@pytest.mark.django_db
def test_each_tenant_has_a_chain_of_its_own() -> None:
    one, other = Traffic(), Traffic()
    write_batch(batch(one.pair(T + 1), other.pair(T + 2), one.pair(T + 3, usage=Usage(units={"image_token": 2.0}))))
    write_batch(batch(one.pair(T + 2, error="über"), sequence=2))
    for traffic, rows in ((one, 3), (other, 1)):
        assert broken(traffic.tenant) == []
        assert UsageChain.objects.get(tenant_id=traffic.tenant).sequence == rows


@pytest.mark.django_db
@pytest.mark.parametrize(
    ("column", "value"),
    [("actual_mu", 1.2500000000000002), ("output_tokens", 21), ("gateway", "gw-2"), ("units", {"image_token": 1.0})],
)
def test_a_changed_value_breaks_it_where_it_was_changed(column: str, value: Any) -> None:
    traffic = Traffic()
    write_batch(batch(*(traffic.pair(T + second) for second in range(5))))
    row = UsageRecord.objects.get(tenant_id=traffic.tenant, chain_sequence=3)
    with connection.cursor() as cursor:
        cursor.execute(
            f"UPDATE capacity_usagerecord SET {column} = %s WHERE chain_hash = %s",
            [json.dumps(value) if isinstance(value, dict) else value, row.chain_hash],
        )
    assert broken(traffic.tenant) == [3]


@pytest.mark.django_db
def test_a_record_that_the_database_refuses_leaves_no_hole() -> None:
    traffic = Traffic()
    good = [traffic.pair(T + second) for second in range(3)]
    bad = traffic.pair(T + 9, usage=Usage(input_tokens=1, cached_tokens=5))
    assert write_batch(batch(good[0], bad, *good[1:])).quarantined == 1
    assert broken(traffic.tenant) == []
    assert UsageChain.objects.get(tenant_id=traffic.tenant).sequence == 3


@pytest.mark.django_db(transaction=True)
def test_writers_of_different_segments_take_turns() -> None:
    traffic, other = Traffic(), Traffic()

    def write(number: int) -> None:
        for sequence in range(1, 4):
            pairs = [who.pair(T + number + sequence) for who in (traffic, other)]
            ordered = pairs if number % 2 else pairs[::-1]
            write_batch(batch(*ordered, segment=f"gw-{number}", sequence=sequence))

    assert race(*(lambda number=number: write(number) for number in range(4))) == [None] * 4
    assert broken(traffic.tenant) == broken(other.tenant) == []
    assert UsageChain.objects.get(tenant_id=traffic.tenant).sequence == 12


@pytest.mark.django_db
def test_an_anchor_a_day_of_those_that_have_grown() -> None:
    one, idle = Traffic(), Traffic()
    write_batch(batch(one.pair(T), idle.pair(T)))
    assert anchors_take(now=NOON) == 2
    assert anchors_take(now=NOON + datetime.timedelta(hours=1)) == 0
    write_batch(batch(one.pair(T + 10), sequence=2))
    assert anchors_take(now=NOON + datetime.timedelta(hours=2)) == 0
    assert anchors_take(now=NOON + DAY) == 1
    anchors = UsageAnchor.objects.filter(tenant_id=one.tenant).order_by("day")
    assert [(anchor.day.isoformat(), anchor.sequence) for anchor in anchors] == [("2026-11-19", 1), ("2026-11-20", 2)]
    assert anchors[1].hash == UsageRecord.objects.get(tenant_id=one.tenant, chain_sequence=2).chain_hash


@pytest.mark.django_db
def test_retention_deletes_up_to_an_anchor_and_the_rest_can_be_checked_from_there() -> None:
    traffic = Traffic()
    for day in range(4):
        write_batch(batch(traffic.pair(T + 86_400 * day), traffic.pair(T + 86_400 * day + 5), sequence=day + 1))
        anchors_take(now=NOON + datetime.timedelta(days=day, hours=1))
    finalise_minutes(NOON + 5 * DAY)
    # The third day's rows are old in part only: they stay whole.
    assert usage_delete_old(before=NOON + 2 * DAY + datetime.timedelta(seconds=3), actor="retention") == 4
    assert UsageRecord.objects.count() == 4
    after, last = starts_after(tenant_id=uuid.UUID(traffic.tenant), since=None)
    assert after == 4
    assert broken(traffic.tenant, after, last) == []
    assert UsageAnchor.objects.count() == 4


@pytest.mark.django_db
def test_a_row_from_a_clock_that_was_ahead_is_kept_with_those_behind_it() -> None:
    traffic = Traffic()
    write_batch(batch(traffic.pair(T + 90 * 86_400), traffic.pair(T)))
    anchors_take(now=NOON)
    write_batch(batch(traffic.pair(T + 1), sequence=2))
    anchors_take(now=NOON + DAY)
    finalise_minutes(NOON + 5 * DAY)
    assert usage_delete_old(before=NOON + 2 * DAY, actor="retention") == 0
    assert broken(traffic.tenant) == []


@pytest.mark.django_db
def test_a_day_is_found_whole() -> None:
    traffic = Traffic()
    for day in range(4):
        write_batch(batch(traffic.pair(T + 86_400 * day), sequence=day + 1))
        anchors_take(now=NOON + datetime.timedelta(days=day, hours=1))
    tenant = uuid.UUID(traffic.tenant)
    for since, places in ((20, 0), (21, 1), (22, 2), (23, 3)):
        assert starts_after(tenant_id=tenant, since=datetime.date(2026, 11, since))[0] == places
