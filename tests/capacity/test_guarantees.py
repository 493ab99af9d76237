"""The guarantee ledger is what an oracle makes of the same journal, whatever comes late, twice or in between."""

from __future__ import annotations

import datetime
import random
import uuid
from collections import defaultdict
from dataclasses import asdict
from importlib import import_module
from typing import Any

import pytest
from django.apps import apps

from capacity.models import (
    BooksState,
    CostProfile,
    GuaranteeDay,
    GuaranteeHour,
    GuaranteeMinute,
    Pool,
    Reservation,
    ReservationGap,
)
from capacity.usage.books import finalise_minutes
from capacity.usage.guarantees import guarantee_minutes_delete_old, guarantees_judge
from capacity.usage.lines import AdmitLine, EndLine, Usage
from capacity.usage.refusals import Kind, refusal_minutes_delete_old, refusals_write
from capacity.usage.writer import write_batch
from tenants.models import Tenant
from tests import factories
from tests.factories import Traffic, batch, race
from tests.faults.definition import Rule, Seen, Sold, ledger

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
    hour = GuaranteeHour.objects.get(reservation=mine)
    assert hour.starts_at == at(0)
    for sums in (day, hour):
        assert (sums.minutes, sums.breach_minutes, sums.used_mu, sums.throttled, sums.requests) == (2, 1, 3.0, 1, 2)


@pytest.mark.django_db
def test_what_is_judged_anew_is_held_to_the_objectives_of_its_time() -> None:
    """Else a record that comes late would give credits for objectives that nobody had been promised, or take them."""
    pool, tenant, other = factories.pool(), factories.tenant(), factories.tenant()
    mine, theirs = (reservation(pool, one, 60.0, 0.0) for one in (tenant, other))

    def asked(by: Tenant, ended_s: float, duration_s: float) -> Pair:
        return traffic(pool, by).pair(T + ended_s, service_class="reserved", mu=1.0, duration_s=duration_s)

    book(asked(tenant, 5, 0.2), asked(other, 5, 4.5), until_s=65)
    assert (minutes_of(mine)["12:00"][3], minutes_of(theirs)["12:00"][3]) == (False, True)
    Pool.objects.filter(pk=pool.pk).update(ttft_objective_ms=9000, tpot_objective_ms=9000)
    book(asked(tenant, 6, 4.5), segment="late", until_s=65, closed=True)
    assert (minutes_of(mine)["12:00"], minutes_of(theirs)["12:00"][3]) == ((60.0, 2.0, 0.0, True), True)
    # What is judged for the first time is held to those of now.
    book(asked(tenant, 65, 4.5), sequence=2, until_s=125)
    assert not minutes_of(mine)["12:01"][3]


@pytest.mark.django_db
def test_what_was_refused_since_nobody_could_tell_what_it_was_entitled_to_breaks_the_promise() -> None:
    pool, tenant, other = factories.pool(), factories.tenant(), factories.tenant()
    mine, theirs = reservation(pool, tenant, 60.0, 0.0), reservation(pool, other, 60.0, 0.0)

    def refuse(minute: int, reason: str, count: int, of: Pool | None = pool) -> None:
        kind = Kind(tenant.pk, uuid.UUID(int=count), of.pk if of else None, reason, 503)
        refusals_write({(at(60 * minute), kind): count})

    refuse(0, "limits_unavailable", 3)
    refuse(0, "requests_per_min", 7)
    refuse(0, "limits_unavailable", 9, factories.pool(name="another"))
    own = traffic(pool, tenant)
    seen = [Seen(str(tenant.pk), str(pool.pk), True, 503, False, T + 1, None, T + 2, 0, 0.0, 0.0) for _ in range(3)]
    seen.append(Seen(str(tenant.pk), str(pool.pk), True, 200, True, T + 4, T + 4.2, T + 5, 1, 2.0, 2.0))
    book(own.pair(T + 5, service_class="reserved", mu=2.0, duration_s=1.0, first_byte_at=T + 4.2), until_s=185)
    sold = [Sold(str(row.pk), str(row.tenant_id), str(pool.pk), 60.0, T) for row in (mine, theirs)]
    rules = {str(pool.pk): Rule(float(pool.ttft_objective_ms), float(pool.tpot_objective_ms), pool.slo_share)}
    for (pk, minute), expected in ledger(seen, sold, rules, [int(T)]).items():
        row = GuaranteeMinute.objects.get(reservation_id=pk, starts_at=at(minute - T))
        assert {name: getattr(row, name) for name in asdict(expected)} == asdict(expected)
    told = GuaranteeMinute.objects.get(reservation=mine, starts_at=at(0))
    assert (told.requests, told.throttled, told.is_breach) == (4, 3, True)
    assert told.reason.startswith("3 throttled of 4 requests")
    # What gateways tell only when the state is back opens the minute again.
    refuse(1, "journal_unavailable", 2)
    assert guarantees_judge() == 1
    assert {minute for minute, (*_, breach) in minutes_of(mine).items() if breach} == {"12:00", "12:01"}
    assert not GuaranteeMinute.objects.filter(reservation=theirs, is_breach=True).exists()
    assert GuaranteeDay.objects.get(reservation=mine).breach_minutes == 2
    # And stays as long as a late record may have the minute judged anew.
    assert refusal_minutes_delete_old(before=at(86_400), untold_before=at(0)) == 1
    book(own.pair(T + 6, service_class="reserved", mu=1.0, duration_s=1.0), segment="late", until_s=185, closed=True)
    assert {minute for minute, (*_, breach) in minutes_of(mine).items() if breach} == {"12:00", "12:01"}


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
@pytest.mark.parametrize("is_judged_before", [True, False])
def test_while_it_was_cancelled_nothing_was_promised(is_judged_before: bool) -> None:
    """Minutes are the same whether they were judged before it was restored or after, and when one is judged anew."""
    pool, tenant = factories.pool(), factories.tenant()
    mine = reservation(pool, tenant, 60.0, 0.0, 90.0)
    of = traffic(pool, tenant)
    if is_judged_before:
        book(until_s=245)
    ReservationGap.objects.create(reservation=mine, since=at(90), until=at(270))
    Reservation.objects.filter(pk=mine.pk).update(state=Reservation.State.ACTIVE, ends_at=None)
    sequence = 2 if is_judged_before else 1
    book(of.pair(T + 280, service_class="reserved", mu=5.0, duration_s=1.0), sequence=sequence, until_s=365)
    book(of.pair(T + 70, service_class="reserved", mu=2.0, duration_s=1.0), segment="late", until_s=365, closed=True)
    assert minutes_of(mine) == {
        "12:00": (60.0, 0.0, 0.0, False),
        "12:01": (30.0, 2.0, 0.0, False),
        "12:04": (30.0, 5.0, 0.0, False),
        "12:05": (60.0, 0.0, 0.0, False),
    }
    assert GuaranteeDay.objects.get(reservation=mine).minutes == 4


@pytest.mark.django_db
def test_a_long_gap_is_passed_over() -> None:
    mine = reservation(factories.pool(), factories.tenant(), 60.0, 0.0, None)
    ReservationGap.objects.create(reservation=mine, since=at(30), until=at(86_400 * 30 + 15))
    book(until_s=86_400 * 30 + 125)
    assert GuaranteeDay.objects.filter(reservation=mine).count() == 2
    assert [one.entitled_mu for one in GuaranteeMinute.objects.order_by("starts_at")] == [30.0, 45.0, 60.0]


@pytest.mark.django_db
def test_retention_takes_minutes_and_leaves_days() -> None:
    pool, tenant = factories.pool(), factories.tenant()
    mine = reservation(pool, tenant, 10.0, 0.0)
    book(until_s=605)
    assert guarantee_minutes_delete_old(before=at(300)) == 5
    assert GuaranteeDay.objects.get(reservation=mine).minutes == 10
    assert GuaranteeHour.objects.get(reservation=mine).minutes == 10
    assert guarantees_judge() == 0


@pytest.mark.django_db
def test_hours_of_an_older_ledger_are_made_of_its_minutes() -> None:
    pool, tenant = factories.pool(), factories.tenant()
    reservation(pool, tenant, 60.0, 0.0)
    reservation(pool, factories.tenant(), 30.0, 1800.0)
    of = traffic(pool, tenant)
    pairs = [of.pair(T + 400 * number, service_class="reserved", mu=3.0, status=429) for number in range(1, 20)]
    book(*pairs, until_s=2.5 * 3600)
    while guarantees_judge():
        pass
    kept = list(GuaranteeHour.objects.order_by("reservation", "starts_at").values())
    assert len(kept) == 6
    GuaranteeHour.objects.all().delete()
    import_module("capacity.migrations.0014_guarantee_hours").fill_hours(apps, None)
    made = list(GuaranteeHour.objects.order_by("reservation", "starts_at").values())
    for row in (*kept, *made):
        del row["id"]
        row |= {name: pytest.approx(value, abs=1e-6) for name, value in row.items() if isinstance(value, float)}
    assert made == kept


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
