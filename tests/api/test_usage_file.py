"""A tenant checks its usage by itself: the file it downloads holds; what is changed in it or in the books shows."""

from __future__ import annotations

import datetime
import json
import random
from typing import Any

import pytest
from django.db import connection
from django.utils import timezone

from capacity.models import CostProfile, Pool, UsageAnchor, UsageRecord
from capacity.policy.verification import Verification
from capacity.usage.books import finalise_minutes, usage_delete_old
from capacity.usage.chain import anchors_take
from capacity.usage.lines import Usage
from capacity.usage.writer import write_batch
from tests import factories
from tests.api.callers import TENANTS_OWN, codes
from tests.api.conftest import World
from tests.factories import Traffic, batch

FIRST_DAY = datetime.datetime(2026, 11, 20, 12, 0, tzinfo=datetime.UTC)
DAYS = 4


def by_hand(price: CostProfile, usage: Usage) -> float:
    """The price of a request by the formula of the documentation."""
    fresh = usage.input_tokens - usage.cached_tokens
    squares = usage.input_tokens**2 - usage.cached_tokens**2
    mean_context = usage.input_tokens + usage.output_tokens / 2
    tokens = price.alpha * fresh + price.epsilon * squares + price.alpha * price.cached_factor * usage.cached_tokens
    tokens += price.beta * usage.output_tokens + price.gamma * usage.output_tokens * mean_context
    return price.base + tokens + sum(price.modalities[name] * count for name, count in usage.units.items())


@pytest.fixture
def mine(world: World) -> Traffic:
    """Some requests a day of acme, for some days, with anchors, all but the last day final."""
    pool: Pool = factories.pool()
    price = CostProfile.objects.get(pool=pool)
    traffic = Traffic(tenant=str(world.acme.pk), key=str(world.keys["inference"][0].pk), pool=str(pool.pk))
    rng = random.Random(4)
    for day in range(DAYS):
        pairs = []
        for minute in range(6):
            usage = Usage(input_tokens=rng.randrange(1, 4000), output_tokens=rng.randrange(900))
            usage.cached_tokens = rng.randrange(usage.input_tokens)
            usage.units = {"image_token": 1.0 * rng.randrange(1, usage.input_tokens + 1)} if minute % 2 else {}
            ended = FIRST_DAY + datetime.timedelta(days=day, minutes=minute)
            fields: dict[str, Any] = {"usage": usage, "mu": by_hand(price, usage), "service_class": "reserved"}
            pairs.append(traffic.pair(ended.timestamp(), **fields | ({"service_class": "best_effort"} if day else {})))
        pairs.append(traffic.pair(pairs[-1][1].at + 1, outcome="refused", mu=0.0, usage=Usage()))
        foreign = Traffic(tenant=str(world.other.pk), pool=str(pool.pk))
        write_batch(batch(*pairs, foreign.pair(pairs[0][1].at), sequence=day + 1))
        anchors_take(now=FIRST_DAY + datetime.timedelta(days=day + 1))
    write_batch(batch(segment="gw-1.1", sequence=DAYS + 1, watermark=timezone.now().timestamp(), closed=True))
    finalise_minutes(FIRST_DAY + datetime.timedelta(days=DAYS + 2))
    return traffic


def lines_of(world: World, query: str = "") -> list[dict[str, Any]]:
    answer = world.by("viewer").get(f"/tenants/acme/usage/file{query}")
    assert answer.status_code == 200, answer.content
    return [json.loads(line) for line in answer.getvalue().splitlines()]


def checked(lines: list[dict[str, Any]], known: dict[int, str] | None = None) -> Verification:
    found = Verification(known=known or {})
    for line in lines:
        found.feed(line)
    found.finish()
    return found


def found_in(lines: list[dict[str, Any]]) -> set[str]:
    return {f"{finding.what} {finding.where}" for finding in checked(lines).findings}


@pytest.mark.parametrize("path", ["file", "anchors"])
def test_members_and_operators_read_it_and_nobody_else(world: World, mine: Traffic, path: str) -> None:
    assert codes(world, "get", f"/tenants/acme/usage/{path}") == TENANTS_OWN


def test_the_file_holds_and_is_of_one_tenant(world: World, mine: Traffic) -> None:
    lines = lines_of(world)
    found = checked(lines)
    assert found.findings == []
    assert (found.records, found.anchors_checked, found.days_checked) == (7 * DAYS, DAYS, DAYS + 1)
    own = set(map(str, UsageRecord.objects.filter(tenant_id=world.acme.pk).values_list("pk", flat=True)))
    assert {line["id"] for line in lines if line["kind"] == "record"} == own
    assert {"gateway", "replica_id", "error", "attempts"}.isdisjoint(next(x for x in lines if x["kind"] == "record"))
    total = sum(row.actual_mu for row in UsageRecord.objects.filter(tenant_id=world.acme.pk))
    assert sum(sums.exact_mu for sums in found.billed.values()) == pytest.approx(total, rel=1e-12)
    assert {key[2] for key in found.billed} == {"reserved", "best_effort"}


def test_any_value_that_is_changed_is_found(world: World, mine: Traffic) -> None:
    lines = lines_of(world)
    at = next(i for i, line in enumerate(lines) if line.get("sequence") == 9 and line["kind"] == "record")
    for name, value in lines[at].items():
        if name == "kind":
            continue
        changed = [dict(line) for line in lines]
        if isinstance(value, bool):
            changed[at][name] = not value
        elif isinstance(value, int | float):
            changed[at][name] = value + 1
        elif isinstance(value, dict):
            changed[at][name] = {**value, "image_token": 7.0}
        elif name.endswith("_at") and value:
            changed[at][name] = value.replace("2026-11-2", "2026-12-2")
        elif name.endswith("_at"):
            changed[at][name] = "2026-11-20T12:00:00Z"
        else:
            changed[at][name] = ("0" if value[:1] != "0" else "1") + value[1:]
        assert found_in(changed), f"{name} was changed, and nothing was found"


def test_a_row_that_is_left_out_moved_or_doubled_is_found(world: World, mine: Traffic) -> None:
    lines = lines_of(world)
    first = next(i for i, line in enumerate(lines) if line["kind"] == "record")
    gone = lines[: first + 3] + lines[first + 4 :]
    moved = [*lines[: first + 3], lines[first + 4], lines[first + 3], *lines[first + 5 :]]
    doubled = lines[: first + 4] + lines[first + 3 :]
    for changed in (gone, moved, doubled):
        assert any(what.startswith("chain") for what in found_in(changed))
    assert found_in(lines[:-1]) == {"file end"}
    assert any(what.startswith("anchor") for what in found_in([*lines[:-5], lines[-1]]))


def test_a_price_or_a_sum_that_is_changed_is_found(world: World, mine: Traffic) -> None:
    for kind, name, what in (("price", "beta", "price"), ("rollup", "mu", "sum"), ("rollup", "requests", "sum")):
        changed = [dict(line) for line in lines_of(world)]
        next(line for line in changed if line["kind"] == kind)[name] += 1
        assert {finding.split()[0] for finding in found_in(changed)} == {what}


def test_a_history_that_is_written_anew_is_found_by_who_kept_an_anchor(world: World, mine: Traffic) -> None:
    kept = {
        row["sequence"]: row["hash"] for row in world.by("viewer").get("/tenants/acme/usage/anchors").json()["results"]
    }
    assert sorted(kept) == [7, 14, 21, 28]
    lines = lines_of(world)
    assert checked(lines, kept).findings == []
    forged = checked(lines, {**kept, 14: "f" * 64})
    assert [(finding.what, finding.where) for finding in forged.findings] == [("anchor", "14")]


def test_a_byte_flipped_in_the_database_is_found(world: World, mine: Traffic) -> None:
    row = UsageRecord.objects.get(tenant_id=world.acme.pk, chain_sequence=16)
    with connection.cursor() as cursor:
        cursor.execute("UPDATE capacity_usagerecord SET gateway = 'gw-0' WHERE chain_hash = %s", [row.chain_hash])
    assert found_in(lines_of(world)) == {"chain 16"}


def test_what_retention_has_left_holds_from_its_anchor_on(world: World, mine: Traffic) -> None:
    assert usage_delete_old(before=FIRST_DAY + datetime.timedelta(days=2), actor="retention") > 0
    lines = lines_of(world)
    assert lines[0]["after_sequence"] == 14
    found = checked(lines)
    assert (found.findings, found.records, found.days_checked) == ([], 14, 1)
    assert UsageAnchor.objects.filter(tenant_id=world.acme.pk).count() == DAYS


def test_a_file_from_a_day_on_is_whole_from_that_day(world: World, mine: Traffic) -> None:
    lines = lines_of(world, "?since=2026-11-22")
    found = checked(lines)
    assert (found.findings, found.days_checked) == ([], 2)
    assert {line["ended_at"][:10] for line in lines if line["kind"] == "record"} >= {"2026-11-22", "2026-11-23"}
    for since in ("soon", "0001-01-01"):
        assert world.by("viewer").get(f"/tenants/acme/usage/file?since={since}").status_code == 400


def test_records_from_before_the_chain_are_left_out_and_their_day_is_not_compared(world: World, mine: Traffic) -> None:
    with connection.cursor() as cursor:
        cursor.execute(
            "UPDATE capacity_usagerecord SET chain_sequence = NULL, chain_hash = '' WHERE chain_sequence <= 7"
        )
        cursor.execute("UPDATE capacity_usageanchor SET is_deleted = %s WHERE sequence = 7", [True])
    found = checked(lines_of(world))
    assert (found.findings, found.records, found.days_checked) == ([], 21, DAYS - 2)


def test_a_day_that_a_late_record_has_opened_is_not_compared_until_it_is_final_again(
    world: World, mine: Traffic
) -> None:
    late = mine.pair(FIRST_DAY.timestamp() + 9, mu=0.0, usage=Usage(), outcome="refused", service_class="best_effort")
    write_batch(batch(late, segment="found again", closed=True))
    found = checked(lines_of(world))
    assert (found.findings, found.records, found.days_checked) == ([], 7 * DAYS + 1, DAYS - 1)
    finalise_minutes(FIRST_DAY + datetime.timedelta(days=DAYS + 2))
    assert checked(lines_of(world)).days_checked == DAYS + 1


def test_what_is_no_usage_file_is_said_to_be_none() -> None:
    for line in ({}, {"kind": "record"}, {"kind": "header", "format": 9}, {"kind": "poem"}):
        with pytest.raises(ValueError, match=r"file|line|format"):
            Verification().feed(line)
    with pytest.raises(ValueError, match="empty"):
        Verification().finish()
