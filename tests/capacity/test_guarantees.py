"""The guarantee ledger is what an oracle makes of the same journal, whatever comes late, twice or in between."""

from __future__ import annotations

import datetime
import random
import uuid
from collections import defaultdict
from typing import Any

import pytest

from capacity.models import BooksState, CostProfile, GuaranteeDay, GuaranteeMinute, Pool, Reservation
from capacity.usage.books import finalise_minutes
from capacity.usage.guarantees import guarantee_minutes_delete_old, guarantees_judge
from capacity.usage.lines import AdmitLine, EndLine, Usage
from capacity.usage.writer import write_batch
from tenants.models import Tenant
from tests import factories
from tests.factories import Traffic, batch, race

NOON = datetime.datetime(2026, 11, 20, 12, 0, tzinfo=datetime.UTC)
T = NOON.timestamp()
Pair = tuple[AdmitLine, EndLine]


def at(seconds: float) -> datetime.datetime:
    return NOON + datetime.timedelta(seconds=seconds)


def reservation(of: Pool, tenant: Tenant, mu: float, begins_s: float, ends_s: float | None = None) -> Reservation:
    return Reservation.objects.create(
        tenant=tenant,
        pool=of,
        profile=CostProfile.objects.get(pool=of),
        mu_per_min=mu,
        starts_at=at(begins_s),
        ends_at=None if ends_s is None else at(ends_s),
        state=Reservation.State.ACTIVE if ends_s is None else Reservation.State.ENDED,
    )


def traffic(of: Pool, tenant: Tenant) -> Traffic:
    return Traffic(tenant=str(tenant.pk), pool=str(of.pk))


def book(*pairs: Pair, sequence: int = 1, until_s: float, **fields: Any) -> None:
    """Book ``pairs``, close the books as far as they go, and judge."""
    write_batch(batch(*pairs, sequence=sequence, watermark=T + until_s, **fields))
    finalise_minutes(at(until_s + 60))
    guarantees_judge()


def minutes_of(row: Reservation) -> dict[str, tuple[float, float, float, bool]]:
    found = GuaranteeMinute.objects.filter(reservation=row)
    return {
        f"{one.starts_at:%H:%M}": (one.entitled_mu, one.used_mu, round(one.lent_mu, 6), one.is_breach) for one in found
    }


@pytest.mark.django_db
def test_minutes_are_judged_once_they_are_final() -> None:
    pool, tenant, other = factories.pool(), factories.tenant(), factories.tenant()
    mine = reservation(pool, tenant, 60.0, 30.0)
    theirs = reservation(pool, other, 30.0, 0.0, 90.0)
    of, lender = traffic(pool, tenant), traffic(pool, factories.tenant())
    pairs = [
        of.pair(T + 50, service_class="reserved", mu=10.0, duration_s=1.0),
        of.pair(T + 70, service_class="reserved", mu=20.0, outcome="engine_lost", status=502),
        lender.pair(T + 80, mu=28.0),
        lender.pair(T + 130, mu=500.0),
    ]
    book(*pairs, until_s=185)
    assert minutes_of(mine) == {
        "12:00": (30.0, 10.0, 0.0, False),
        "12:01": (60.0, 20.0, pytest.approx(28.0 * 40 / 55, abs=1e-5), True),
        "12:02": (60.0, 0.0, 60.0, False),
    }
    assert minutes_of(theirs) == {
        "12:00": (30.0, 0.0, 0.0, False),
        "12:01": (15.0, 0.0, pytest.approx(28.0 * 15 / 55, abs=1e-5), False),
    }
    day = GuaranteeDay.objects.get(reservation=mine)
    assert (day.day.isoformat(), day.minutes, day.breach_minutes, day.used_mu) == ("2026-11-20", 3, 1, 30.0)
    assert guarantees_judge() == 0


@pytest.mark.django_db
def test_a_record_that_comes_late_is_judged_into_its_minute() -> None:
    pool, tenant = factories.pool(), factories.tenant()
    mine = reservation(pool, tenant, 60.0, 0.0)
    of = traffic(pool, tenant)
    book(of.pair(T + 5, service_class="reserved", mu=1.0, duration_s=1.0), until_s=125)
    assert not GuaranteeMinute.objects.filter(is_breach=True).exists()
    late = of.pair(T + 6, service_class="reserved", mu=2.0, outcome="refused", status=429)
    book(late, segment="found again", until_s=125, closed=True)
    assert minutes_of(mine)["12:00"] == (60.0, 3.0, 0.0, True)
    day = GuaranteeDay.objects.get(reservation=mine)
    assert (day.minutes, day.breach_minutes, day.used_mu, day.throttled, day.requests) == (2, 1, 3.0, 1, 2)


@pytest.mark.django_db
def test_time_without_a_promise_is_passed_over_and_a_standstill_is_caught_up() -> None:
    pool, tenant = factories.pool(), factories.tenant()
    reservation(pool, tenant, 10.0, 0.0, 120.0)
    later = reservation(pool, tenant, 10.0, 86_400 * 40, None)
    book(until_s=86_400 * 40 + 3 * 3600 + 5)
    while guarantees_judge():
        pass
    assert GuaranteeMinute.objects.filter(reservation=later).count() == 180
    assert GuaranteeMinute.objects.count() == 182
    assert BooksState.objects.get().guaranteed_until == at(86_400 * 40 + 3 * 3600)


@pytest.mark.django_db
def test_a_promise_counts_from_its_start_though_its_state_was_moved_late() -> None:
    pool, tenant = factories.pool(), factories.tenant()
    mine = reservation(pool, tenant, 10.0, 60.0)
    Reservation.objects.filter(pk=mine.pk).update(state=Reservation.State.DRAFT)
    book(until_s=185)
    assert sorted(minutes_of(mine)) == ["12:01", "12:02"]


@pytest.mark.django_db
def test_retention_takes_minutes_and_leaves_days() -> None:
    pool, tenant = factories.pool(), factories.tenant()
    mine = reservation(pool, tenant, 10.0, 0.0)
    book(until_s=605)
    assert guarantee_minutes_delete_old(before=at(300)) == 5
    assert GuaranteeDay.objects.get(reservation=mine).minutes == 10
    assert guarantees_judge() == 0


@pytest.mark.django_db(transaction=True)
def test_several_who_judge_at_once_judge_each_minute_once() -> None:
    pool, tenant = factories.pool(), factories.tenant()
    mine = reservation(pool, tenant, 10.0, 0.0)
    write_batch(batch(traffic(pool, tenant).pair(T + 5, service_class="reserved"), watermark=T + 605))
    finalise_minutes(at(700))
    outcomes = race(*([guarantees_judge] * 4))
    assert all(isinstance(outcome, int) for outcome in outcomes)
    while guarantees_judge():
        pass
    day = GuaranteeDay.objects.get(reservation=mine)
    assert (GuaranteeMinute.objects.count(), day.minutes, day.requests) == (10, 10, 1)


# ------------------------------------------------------------------------------------------------ the oracle
def oracle(pairs: list[Pair], promises: list[Reservation], minutes: int) -> dict[tuple[str, int], dict[str, Any]]:
    """What each minute of each reservation was, read off the journal's pairs by the definition."""
    found: dict[tuple[str, int], dict[str, Any]] = {}
    for number in range(minutes):
        ended = [pair for pair in pairs if number * 60 <= pair[1].at - T < (number + 1) * 60]
        rights: dict[Any, float] = {}
        for promise in promises:
            begins = (promise.starts_at - NOON).total_seconds()
            ends = (promise.ends_at - NOON).total_seconds() if promise.ends_at else 1e9
            held = max(0.0, min(ends, number * 60 + 60) - max(begins, number * 60))
            if held:
                rights[promise] = promise.mu_per_min * held / 60
        owners: dict[tuple[uuid.UUID, uuid.UUID], float] = defaultdict(float)
        for promise, right in rights.items():
            owners[(promise.tenant_id, promise.pool_id)] += right
        own = {
            owner: [
                p
                for p in ended
                if (p[0].tenant, p[0].pool) == tuple(map(str, owner)) and p[0].service_class == "reserved"
            ]
            for owner in owners
        }
        idle = {owner: max(0.0, owners[owner] - sum(end.actual_mu for _, end in own[owner])) for owner in owners}
        for promise, right in rights.items():
            owner = (promise.tenant_id, promise.pool_id)
            part = right / owners[owner]
            pool_idle = sum(mu for key, mu in idle.items() if key[1] == promise.pool_id)
            best_effort = sum(
                end.actual_mu
                for admit, end in ended
                if admit.pool == str(promise.pool_id) and admit.service_class != "reserved"
            )
            borrowed = min(pool_idle, best_effort) * idle[owner] / pool_idle if pool_idle else 0.0
            failed = [end for _, end in own[owner] if end.outcome in ("engine_lost", "timeout")]
            refused = [end for _, end in own[owner] if end.outcome == "refused" and end.status in (429, 503)]
            slow = [
                end for admit, end in own[owner] if end.outcome == "completed" and end.first_byte_at - admit.at > 1.0
            ]
            judged = len(failed) + len(refused) + sum(1 for _, end in own[owner] if end.outcome == "completed")
            found[(str(promise.pk), number)] = {
                "entitled_mu": right,
                "used_mu": sum(end.actual_mu for _, end in own[owner]) * part,
                "lent_mu": borrowed * part,
                "requests": judged,
                "throttled": len(refused),
                "unserved": len(failed),
                "slow": len(slow),
                "is_breach": judged > 0 and (len(failed) + len(refused) > 0.01 * judged or len(slow) > 0.01 * judged),
            }
    return found


@pytest.mark.django_db
@pytest.mark.parametrize("seed", range(6))
def test_the_ledger_is_what_the_oracle_says(seed: int) -> None:
    rng = random.Random(seed)
    pools = [factories.pool() for _ in range(2)]
    tenants = [factories.tenant() for _ in range(3)]
    promises = []
    for _ in range(5):
        begins = rng.randrange(0, 300)
        ends = rng.choice([None, begins + rng.randrange(1, 400)])
        promises.append(reservation(rng.choice(pools), rng.choice(tenants), rng.randrange(5, 90), begins, ends))
    pairs: list[Pair] = []
    for _ in range(150):
        kind = rng.choice(["fine"] * 12 + ["slow", "lost", "refused", "mistaken"])
        outcome, status = {"lost": ("engine_lost", 502), "refused": ("refused", 429), "mistaken": ("refused", 400)}.get(
            kind, ("completed", 200)
        )
        ended = T + rng.randrange(10_000, 599_999) / 1000
        duration = 3.0 if kind == "slow" else 0.5
        pairs.append(
            traffic(rng.choice(pools), rng.choice(tenants)).pair(
                ended,
                outcome=outcome,
                status=status,
                service_class=rng.choice(["reserved", "best_effort"]),
                mu=rng.randrange(0, 400) / 16,
                usage=Usage(input_tokens=3, output_tokens=2000),
                duration_s=duration,
                first_byte_at=ended - 0.25,
            )
        )
    pairs.sort(key=lambda pair: pair[1].at)
    late = [pair for pair in pairs if rng.random() < 0.1]
    timely = [pair for pair in pairs if pair not in late]
    ticks = [*sorted(rng.randrange(30, 600) for _ in range(4)), 605]
    for sequence, until in enumerate(ticks, 1):
        part, timely = [p for p in timely if p[1].at < T + until], [p for p in timely if p[1].at >= T + until]
        book(*part, *part[:2], sequence=sequence, until_s=until)
    write_batch(batch(*late, segment="late", closed=True, watermark=T + 605))
    assert finalise_minutes(at(700)).final_until == at(600)
    while guarantees_judge():
        pass
    expected = oracle(pairs, promises, 10)
    rows = {
        (str(row.reservation_id), int((row.starts_at - NOON).total_seconds() // 60)): row
        for row in GuaranteeMinute.objects.all()
    }
    assert rows.keys() == expected.keys()
    for key, wanted in expected.items():
        told = {name: getattr(rows[key], name) for name in wanted}
        assert told == pytest.approx(wanted, abs=1e-9), key
    for promise in promises:
        own = [wanted for key, wanted in expected.items() if key[0] == str(promise.pk)]
        day = GuaranteeDay.objects.get(reservation=promise)
        assert (day.minutes, day.breach_minutes) == (len(own), sum(one["is_breach"] for one in own))
        assert day.lent_mu == pytest.approx(sum(one["lent_mu"] for one in own), abs=1e-6)
