"""What the guarantee pages show, of all reservations or of one tenant's: a month, and one reservation day by day."""

from __future__ import annotations

import datetime
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from django.db.models import QuerySet
from django.http import QueryDict
from django.utils import timezone

from capacity.models import GuaranteeDay, GuaranteeMinute, Reservation
from capacity.usage.attainment import Month, following, in_month, month_of, months
from penstock.web.moments import read_moment

_DAY_MINUTES = 24 * 60
_SHOWN = 50


@dataclass(frozen=True, slots=True)
class MonthChoice:
    """The month that is shown; ``before`` and ``after`` name its neighbours, empty beyond this month."""

    month: datetime.date
    before: str
    after: str

    @property
    def name(self) -> str:
        return f"{self.month:%Y-%m}"


@dataclass(frozen=True, slots=True)
class DayRow:
    """``runs``: breach minutes that follow one another, as (first minute of the day, how many)."""

    day: GuaranteeDay
    runs: list[tuple[int, int]]

    @property
    def used_share(self) -> float | None:
        return self.day.used_mu / self.day.entitled_mu if self.day.entitled_mu else None


def choose_month(given: QueryDict) -> MonthChoice:
    """The month of ``?month=2026-11``; without one, or with one that is none, this month (UTC)."""
    this = timezone.now().astimezone(datetime.UTC).date().replace(day=1)
    try:
        chosen = min(month_of(given.get("month", "")), this)
    except ValueError:
        chosen = this
    chosen = max(chosen, datetime.date(1970, 2, 1))
    before = (chosen - datetime.timedelta(days=1)).replace(day=1)
    return MonthChoice(chosen, f"{before:%Y-%m}", "" if chosen == this else f"{following(chosen):%Y-%m}")


def month_context(rows: QuerySet[Reservation], given: QueryDict) -> dict[str, Any]:
    """The reservations of ``rows`` that promised something in the month, the worst first."""
    choice = choose_month(given)
    found = months(in_month(rows, choice.month), choice.month)
    found.sort(key=lambda one: (one.attainment, -one.sums["entitled_mu"]))
    return {
        "choice": choice,
        "rows": found,
        "is_never": not GuaranteeDay.objects.filter(reservation__in=rows).exists(),
        "headline": _headline(found),
    }


def reservation_context(row: Reservation, given: QueryDict) -> dict[str, Any]:
    """One reservation in the month: sums, its days with their breaches, and its breach minutes in pages."""
    choice = choose_month(given)
    until = following(choice.month)
    days = GuaranteeDay.objects.filter(reservation=row, day__gte=choice.month, day__lt=until).order_by("-day")
    breaches = _breaches(row, choice.month, until)
    before = read_moment(given.get("before", ""))
    shown = list((breaches.filter(starts_at__lt=before) if before else breaches)[: _SHOWN + 1])
    (month,) = months([row], choice.month)
    runs = _runs(breaches.values_list("starts_at", flat=True).order_by("starts_at"))
    return {
        "choice": choice,
        "row": row,
        "month": month,
        "days": [DayRow(day, runs.get(day.day, [])) for day in days],
        "breaches": shown[:_SHOWN],
        "older": shown[_SHOWN - 1].starts_at.isoformat() if len(shown) > _SHOWN else "",
        "is_paged": before is not None,
        "wide": _DAY_MINUTES,
    }


def _breaches(row: Reservation, since: datetime.date, until: datetime.date) -> QuerySet[GuaranteeMinute]:
    begins, ends = (datetime.datetime.combine(day, datetime.time(), datetime.UTC) for day in (since, until))
    rows = GuaranteeMinute.objects.filter(reservation=row, is_breach=True, starts_at__gte=begins, starts_at__lt=ends)
    return rows.order_by("-starts_at")


def _runs(moments: Any) -> dict[datetime.date, list[tuple[int, int]]]:
    found: dict[datetime.date, list[tuple[int, int]]] = defaultdict(list)
    for at in moments:
        minute = at.hour * 60 + at.minute
        runs = found[at.date()]
        if runs and sum(runs[-1]) == minute:
            runs[-1] = (runs[-1][0], runs[-1][1] + 1)
        else:
            runs.append((minute, 1))
    return found


def _headline(found: Sequence[Month]) -> str:
    broken = [one for one in found if one.breach_minutes]
    if not found:
        return "Nothing was promised in this month, or no minute of it is final yet."
    if not broken:
        return f"Every minute of {_count(len(found))} was kept."
    minutes = sum(one.breach_minutes for one in broken)
    return f"{_count(len(broken))} of {len(found)} had breach minutes, {minutes} in all."


def _count(number: int) -> str:
    return "1 reservation" if number == 1 else f"{number} reservations"
