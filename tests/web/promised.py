"""The guarantee ledger of the seeded platform: days that were kept, and an evening on which a host was lost."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from capacity.models import GuaranteeDay, GuaranteeMinute, Reservation

_LOST = (19 * 60 + 12, 9)
"""Minutes of a day in which replicas were missing: the first, and how many."""
_DAY = 24 * 60


def breach_minutes(row: Reservation, now: datetime) -> list[datetime]:
    """Those of the evening three days ago."""
    evening = (now - timedelta(days=3)).astimezone(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    first, count = _LOST
    return [evening + timedelta(minutes=first + number) for number in range(count)]


def judged(now: datetime, rows: list[Reservation]) -> None:
    """Every day of each reservation up to ``now``, and the breach minutes of an evening three days ago."""
    days: list[GuaranteeDay] = []
    minutes: list[GuaranteeMinute] = []
    evening = (now - timedelta(days=3)).astimezone(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    for row in rows:
        broken = breach_minutes(row, now)
        minutes += [_breach(row, at, number) for number, at in enumerate(broken)]
        at = row.starts_at
        while at < now:
            day = at.astimezone(UTC).date()
            ends = min(now, datetime(day.year, day.month, day.day, tzinfo=UTC) + timedelta(days=1))
            length = int((ends - at).total_seconds() // 60)
            days.append(_day(row, day, length, broken if day == evening.date() else []))
            at = ends
    GuaranteeMinute.objects.bulk_create(minutes)
    GuaranteeDay.objects.bulk_create([day for day in days if day.minutes])


def _breach(row: Reservation, at: datetime, number: int) -> GuaranteeMinute:
    requests, throttled, slow = 140, 6 + number % 4, 31 - 2 * number
    return GuaranteeMinute(
        reservation=row,
        starts_at=at,
        entitled_mu=row.mu_per_min,
        used_mu=0.55 * row.mu_per_min,
        throttled_mu=0.06 * row.mu_per_min,
        slow_mu=0.2 * row.mu_per_min,
        requests=requests,
        throttled=throttled,
        slow=slow,
        is_breach=True,
        reason=f"{throttled} throttled of {requests} requests (tolerated: 0.01); {slow} of {requests} requests slower "
        "than 800 ms to the first token or 45 ms per token (tolerated: 0.01)",
    )


def _day(row: Reservation, day: object, length: int, broken: list[datetime]) -> GuaranteeDay:
    share = length / _DAY
    return GuaranteeDay(
        reservation=row,
        day=day,
        minutes=length,
        breach_minutes=len(broken),
        entitled_mu=row.mu_per_min * length,
        used_mu=0.52 * row.mu_per_min * length,
        lent_mu=0.21 * row.mu_per_min * length,
        throttled_mu=0.06 * row.mu_per_min * len(broken),
        slow_mu=0.2 * row.mu_per_min * len(broken) + 3.1 * share,
        requests=int(118_000 * share),
        throttled=7 * len(broken),
        slow=23 * len(broken) + int(12 * share),
    )
