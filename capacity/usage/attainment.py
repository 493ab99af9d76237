"""What the guarantee ledger says of a month: attainment and credit by reservation."""

from __future__ import annotations

import calendar
import datetime
import math
from collections.abc import Iterable
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from django.db.models import Exists, OuterRef, QuerySet, Sum

from capacity.models import GuaranteeDay, Reservation
from capacity.models.guarantees import SUMS
from capacity.policy.guarantee import attainment, credit
from capacity.policy.money import minor_unit


@dataclass(frozen=True, slots=True)
class Month:
    """A reservation in a month (UTC). ``sums``: MU and requests by column; ``exact_credit`` in its currency, None
    where it has no price.
    """

    reservation: Reservation
    month: datetime.date
    minutes: int
    breach_minutes: int
    sums: dict[str, float]
    attainment: float
    credit_share: float
    exact_credit: Decimal | None

    @property
    def credit_amount(self) -> Decimal | None:
        """The credit in whole parts of its currency, as it is paid."""
        if self.exact_credit is None:
            return None
        return self.exact_credit.quantize(minor_unit(self.reservation.currency))

    @property
    def used_share(self) -> float | None:
        return self.sums["used_mu"] / self.sums["entitled_mu"] if self.sums["entitled_mu"] else None

    @property
    def missed_mu(self) -> float:
        """MU that were promised and not served as promised."""
        return self.sums["throttled_mu"] + self.sums["slow_mu"] + self.sums["unserved_mu"]

    @property
    def kept_percent(self) -> str:
        """Attainment with as many digits as it needs not to round a breach away: cut, never rounded up."""
        return f"{math.floor(self.attainment * 100_000) / 1000:g}"


def month_of(text: str) -> datetime.date:
    """The first day of the month written as ``2026-11``. Raises ValueError."""
    return datetime.datetime.strptime(text, "%Y-%m").date()


def following(month: datetime.date) -> datetime.date:
    """The first day of the month after."""
    return (month.replace(day=28) + datetime.timedelta(days=4)).replace(day=1)


def in_month(rows: QuerySet[Reservation], month: datetime.date) -> QuerySet[Reservation]:
    """Those of ``rows`` that promised something in the month, as far as the ledger has judged it."""
    # Asked of each reservation by itself: there is no need to read the days of all others.
    own = GuaranteeDay.objects.filter(reservation=OuterRef("pk"), day__gte=month, day__lt=following(month))
    return rows.filter(Exists(own.filter(minutes__gt=0))).select_related("tenant", "pool")


def months(rows: Iterable[Reservation], month: datetime.date) -> list[Month]:
    """What the month was for each of ``rows``, in their order."""
    wanted = list(rows)
    found = sums_by_reservation([row.pk for row in wanted], since=month, until=following(month))
    return [_month(row, month, found.get(row.pk, {})) for row in wanted]


def sums_by_reservation(pks: Iterable[Any], *, since: datetime.date, until: datetime.date) -> dict[Any, dict[str, Any]]:
    """Sums of the days from ``since`` until before ``until``, by reservation."""
    days: Any = GuaranteeDay.objects.filter(reservation__in=list(pks), day__gte=since, day__lt=until).order_by()
    summed = days.values("reservation").annotate(**{name: Sum(name) for name in (*SUMS, "minutes", "breach_minutes")})
    return {row.pop("reservation"): row for row in summed}


def _month(row: Reservation, month: datetime.date, sums: dict[str, Any]) -> Month:
    minutes, breaches = int(sums.get("minutes", 0)), int(sums.get("breach_minutes", 0))
    attained = attainment(minutes=minutes, breaches=breaches)
    share = credit(attained, row.credit_tiers)
    amount = None
    if row.price is not None:
        whole = calendar.monthrange(month.year, month.month)[1] * 24 * 60
        billed = row.price * Decimal(row.mu_per_min) * Decimal(minutes) / Decimal(whole)
        amount = billed * Decimal(share)
    return Month(
        reservation=row,
        month=month,
        minutes=minutes,
        breach_minutes=breaches,
        sums={name: sums.get(name, 0) for name in SUMS},
        attainment=attained,
        credit_share=share,
        exact_credit=amount,
    )
