"""Keeping the guarantee ledger: final minutes are judged once, in order; those that a late record opens, anew."""

from __future__ import annotations

import datetime
import uuid
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from django.db import transaction
from django.db.models import F, Q, QuerySet, Sum

from capacity.models import (
    BooksState,
    CostProfile,
    GuaranteeDay,
    GuaranteeHour,
    GuaranteeMinute,
    Pool,
    RefusalRollup,
    Reservation,
    ReservationGap,
    UsageRecord,
    UsageRollup,
)
from capacity.models.guarantees import SUMS
from capacity.policy.cost import token_costs
from capacity.policy.guarantee import (
    MINUTE,
    UNTOLD,
    Ended,
    Minute,
    Objectives,
    Promise,
    entitled,
    judge_minute,
    lent,
)
from capacity.policy.profiles import engine_ms_per_mu
from capacity.usage.reads import terms_of

RESERVED = "reserved"
_AT_ONCE = 120
"""Minutes judged in one go: after a standstill the ledger catches up tick by tick."""
_OBJECTIVES = ("ttft_objective_ms", "tpot_objective_ms", "slo_share")
_NONE: Mapping[str, GuaranteeMinute] = {}
_PROMISED = (*Reservation.PROMISED, Reservation.State.ENDED)
"""The times say when. One whose start has passed is promised, whether or not its state has been moved yet."""

Owner = tuple[uuid.UUID, uuid.UUID]
"""Tenant and pool."""


def guarantees_judge() -> int:
    """Judge the minutes that have become final since, and those that a late record has opened. Returns how many.

    Minutes of several ticks at once: whoever moves the ledger's end has them.
    """
    judged = _judge_anew()
    for _ in range(_AT_ONCE):
        step = _judge_next()
        if step is None:
            break
        judged += step
    return judged


def guarantees_open(records: Iterable[UsageRecord]) -> None:
    """Records came for minutes that were final: what was judged of these is to be judged anew."""
    late = [(record.ended_at.replace(second=0, microsecond=0), record.pool_id) for record in records]
    for minute, pool_id in sorted(set(late)):
        GuaranteeMinute.objects.filter(starts_at=minute, reservation__pool_id=pool_id).update(is_stale=True)


def guarantees_open_untold(minutes: Iterable[tuple[datetime.datetime, uuid.UUID]]) -> None:
    """Refusals of ``UNTOLD`` were counted in minutes of pools: what was judged of these is to be judged anew.

    In the transaction of the counts. Whoever judges meanwhile moves the ledger's end: it has them, or has ended before.
    """
    found = sorted(set(minutes))
    if found:
        list(BooksState.objects.select_for_update().filter(pk=1))
    for minute, pool_id in found:
        GuaranteeMinute.objects.filter(starts_at=minute, reservation__pool_id=pool_id).update(is_stale=True)


def guarantee_minutes_delete_old(*, before: datetime.datetime) -> int:
    """Retention: minutes go, days stay. Returns how many."""
    return GuaranteeMinute.objects.filter(starts_at__lt=before, is_stale=False).delete()[0]


@transaction.atomic
def _judge_next() -> int | None:
    """Go one step on: 1 for a minute that was judged, 0 for a time without promises; None where there is none left."""
    books = BooksState.objects.filter(pk=1).first()
    if books is None or books.final_until is None:
        return None
    minute = books.guaranteed_until or min(_first_minute() or books.final_until, books.final_until)
    until = minute + MINUTE
    if until > books.final_until:
        # Before the first promise nothing is left to be judged: who waits for the ledger need not wait for that.
        BooksState.objects.filter(pk=1, guaranteed_until=None).update(guaranteed_until=minute)
        return None
    promised = _promised(minute)
    if not promised:
        # Nothing was promised then: go on where something was.
        until = min(books.final_until, _next_start(minute) or books.final_until)
    moved = BooksState.objects.filter(pk=1, guaranteed_until=books.guaranteed_until).update(guaranteed_until=until)
    if not moved:
        return None
    pools = {str(row.pk): row.pool for row in promised}
    for judged in _judged(minute, promised) if promised else ():
        held_to = {name: getattr(pools[judged.reservation], name) for name in _OBJECTIVES}
        row = GuaranteeMinute(reservation_id=judged.reservation, starts_at=minute, **_columns(judged), **held_to)
        row.save(force_insert=True)
        _add_to_sums(row, 1)
    return int(bool(promised))


@transaction.atomic
def _judge_anew() -> int:
    final_until = BooksState.objects.filter(pk=1).values_list("final_until", flat=True).first()
    if final_until is None:
        return 0
    stale = GuaranteeMinute.objects.filter(is_stale=True, starts_at__lte=final_until - MINUTE)
    minutes = sorted(set(stale.values_list("starts_at", flat=True)[:_AT_ONCE]))
    for minute in minutes:
        rows = {str(row.reservation_id): row for row in _held(GuaranteeMinute.objects.filter(starts_at=minute))}
        for judged in _judged(minute, _promised(minute), rows):
            row = rows.get(judged.reservation)
            if row is None or not row.is_stale:
                continue
            _add_to_sums(row, -1)
            for name, value in _columns(judged).items():
                setattr(row, name, value)
            row.is_stale = False
            row.save()
            _add_to_sums(row, 1)
        # Of a reservation that promised nothing then there is nothing to say any more.
        GuaranteeMinute.objects.filter(starts_at=minute, is_stale=True).update(is_stale=False)
    return len(minutes)


def _held(rows: QuerySet[GuaranteeMinute]) -> QuerySet[GuaranteeMinute]:
    return rows.select_for_update().order_by("pk")


def _first_minute() -> datetime.datetime | None:
    first = Reservation.objects.filter(state__in=_PROMISED).order_by("starts_at").first()
    return first.starts_at.replace(second=0, microsecond=0) if first else None


def _next_start(minute: datetime.datetime) -> datetime.datetime | None:
    """The first minute after in which something begins to be promised, or is promised again."""
    later = Reservation.objects.filter(state__in=_PROMISED, starts_at__gte=minute).order_by("starts_at")
    again = ReservationGap.objects.filter(reservation__state__in=_PROMISED, until__gte=minute + MINUTE)
    moments = [
        later.values_list("starts_at", flat=True).first(),
        again.order_by("until").values_list("until", flat=True).first(),
    ]
    found = min((moment for moment in moments if moment is not None), default=None)
    return found.replace(second=0, microsecond=0) if found else None


def _promised(minute: datetime.datetime) -> list[Reservation]:
    """The reservations that promise something in the minute."""
    live = Q(ends_at=None) | Q(ends_at__gt=minute)
    rows = Reservation.objects.filter(live, state__in=_PROMISED, starts_at__lt=minute + MINUTE)
    found = rows.select_related("pool").prefetch_related("gaps").order_by("starts_at", "pk")
    return [row for row in found if entitled(_promise(row), minute) > 0.0]


def _judged(
    minute: datetime.datetime, promised: Sequence[Reservation], before: Mapping[str, GuaranteeMinute] = _NONE
) -> list[Minute]:
    """``before``: what the minute was judged to be, by reservation; it is held to the same objectives again."""
    owners: dict[Owner, list[Reservation]] = defaultdict(list)
    for row in promised:
        owners[(row.tenant_id, row.pool_id)].append(row)
    ended, untold = _ended(minute, owners), _untold(minute, owners)
    others = _best_effort(minute, {pool for _, pool in owners})
    taken = _taken(minute, owners, ended, others)
    found: list[Minute] = []
    for owner, rows in owners.items():
        found += judge_minute(
            minute=minute,
            promises=[_promise(row) for row in rows],
            requests=ended.get(owner, ()),
            objectives=_objectives(rows[0].pool, [before[str(row.pk)] for row in rows if str(row.pk) in before]),
            lent_mu=taken[owner],
            untold=untold.get(owner, 0),
        )
    return found


def _taken(
    minute: datetime.datetime,
    owners: dict[Owner, list[Reservation]],
    ended: dict[Owner, list[Ended]],
    others: dict[uuid.UUID, float],
) -> dict[Owner, float]:
    """What best effort took of each owner's unused MU."""
    taken: dict[Owner, float] = {}
    for pool in {pool for _, pool in owners}:
        of_pool = [owner for owner in owners if owner[1] == pool]
        unused = []
        for owner in of_pool:
            right = sum(entitled(_promise(row), minute) for row in owners[owner])
            unused.append(max(0.0, right - sum(request.mu for request in ended.get(owner, ()))))
        taken.update(zip(of_pool, lent(unused, others.get(pool, 0.0)), strict=True))
    return taken


def _best_effort(minute: datetime.datetime, pools: set[uuid.UUID]) -> dict[uuid.UUID, float]:
    rows = UsageRollup.objects.filter(period="minute", starts_at=minute, pool_id__in=pools).order_by()
    rows = rows.exclude(service_class=RESERVED)
    return dict(rows.values_list("pool_id").annotate(Sum("mu")))


def _untold(minute: datetime.datetime, owners: Iterable[Owner]) -> dict[Owner, int]:
    """How many requests of each owner were refused since nobody could tell what they are entitled to."""
    rows = RefusalRollup.objects.filter(
        period="minute", starts_at=minute, reason__in=UNTOLD, pool_id__in={pool for _, pool in owners}
    )
    sums = rows.order_by().values_list("tenant_id", "pool_id").annotate(Sum("requests"))
    return {(tenant, pool): count for tenant, pool, count in sums if pool is not None}


def _ended(minute: datetime.datetime, owners: Iterable[Owner]) -> dict[Owner, list[Ended]]:
    wanted = set(owners)
    rows = UsageRecord.objects.filter(
        ended_at__gte=minute,
        ended_at__lt=minute + MINUTE,
        service_class=RESERVED,
        pool_id__in={pool for _, pool in wanted},
    )
    prices: dict[tuple[uuid.UUID, int], CostProfile | None] = {}
    found: dict[Owner, list[Ended]] = defaultdict(list)
    for record in rows.iterator(chunk_size=2000):
        owner = (record.tenant_id, record.pool_id)
        if owner not in wanted:
            continue
        version = (record.pool_id, record.profile_version)
        if version not in prices:
            prices[version] = CostProfile.objects.filter(pool_id=version[0], version=version[1]).first()
        found[owner].append(_request(record, prices[version]))
    return found


def _request(record: UsageRecord, price: CostProfile | None) -> Ended:
    def ms(at: datetime.datetime | None) -> float | None:
        return None if at is None else max(0.0, (at - record.admitted_at).total_seconds() * 1000)

    prefill_ms = 0.0
    if price is not None:
        work = token_costs(
            terms_of(price), input_tokens=record.input_tokens, cached_tokens=record.cached_tokens
        ).prefill
        prefill_ms = work * engine_ms_per_mu(price.replica_mu_per_min)
    return Ended(
        asked_mu=record.estimated_mu,
        mu=record.actual_mu,
        outcome=record.outcome,
        status=record.status,
        is_stream=record.stream,
        first_byte_ms=ms(record.first_byte_at),
        duration_ms=ms(record.ended_at) or 0.0,
        output_tokens=record.output_tokens,
        prefill_ms=prefill_ms,
        held_ms=float(record.attempts[-1].get("held_ms", 0.0)) if record.attempts else 0.0,
    )


def _promise(row: Reservation) -> Promise:
    gaps = tuple((gap.since, gap.until) for gap in row.gaps.all())
    return Promise(str(row.pk), row.mu_per_min, row.starts_at, row.ends_at, gaps)


def _objectives(pool: Pool, before: Iterable[GuaranteeMinute]) -> Objectives:
    held_to: Any = next((row for row in before if row.slo_share is not None), pool)
    ttft_ms, tpot_ms, tolerated_share = (getattr(held_to, name) for name in _OBJECTIVES)
    return Objectives(float(ttft_ms), float(tpot_ms), tolerated_share)


def _columns(judged: Minute) -> dict[str, Any]:
    columns = asdict(judged)
    del columns["reservation"]
    return {**columns, "reason": judged.reason[:400]}


def _add_to_sums(row: GuaranteeMinute, times: int) -> None:
    """Add the minute to its day and hour, or with -1 take it out of them."""
    day = row.starts_at.astimezone(datetime.UTC).date()
    hour = row.starts_at.replace(minute=0)
    GuaranteeDay.objects.bulk_create([GuaranteeDay(reservation_id=row.reservation_id, day=day)], ignore_conflicts=True)
    GuaranteeHour.objects.bulk_create(
        [GuaranteeHour(reservation_id=row.reservation_id, starts_at=hour)], ignore_conflicts=True
    )
    changes: dict[str, Any] = {name: F(name) + times * getattr(row, name) for name in SUMS}
    changes["minutes"] = F("minutes") + times * (row.entitled_mu > 0.0)
    changes["breach_minutes"] = F("breach_minutes") + times * row.is_breach
    GuaranteeDay.objects.filter(reservation_id=row.reservation_id, day=day).update(**changes)
    GuaranteeHour.objects.filter(reservation_id=row.reservation_id, starts_at=hour).update(**changes)
