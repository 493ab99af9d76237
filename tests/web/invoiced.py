"""Invoices of the seeded platform: the last month with a note, and what this month comes to so far."""

from __future__ import annotations

from datetime import date, datetime, timedelta

from django.db.models import F, QuerySet

from capacity.models import BilledDay, BooksState, CostProfile, GuaranteeDay, Invoice, Pool
from capacity.services import invoice_issue
from capacity.usage.billing import begins, month_in
from tenants.models import AuditEntry, Tenant

_PRICES = {2: 1.9, 3: 2.15}
_COUNTS = ("requests", "input_tokens", "output_tokens", "mu_whole", "mu_nano")


def invoiced(now: datetime, tenant: Tenant, pools: tuple[Pool, Pool]) -> None:
    """Two versions of the price, usage within and beyond a reservation, a credit, and a record that came late."""
    this = month_in(now)
    last = month_in(begins(this) - timedelta(days=1))
    for version, price in _PRICES.items():
        _priced(pools[0], version, price, now)
    row = tenant.reservations.get(state="active")
    days = [last + timedelta(days=number) for number in range((this - last).days)]
    GuaranteeDay.objects.bulk_create(
        [GuaranteeDay(reservation=row, day=day, minutes=1440, breach_minutes=7 * (day.day == 9)) for day in days],
        ignore_conflicts=True,
    )
    used = []
    for day in (*days, *(this + timedelta(days=number) for number in range(now.day))):
        version = 1 if day >= this else 3 if day >= last + timedelta(days=17) else 2
        used.append(_used(tenant, pools[0], day, version, "best_effort", 812))
        used.append(_used(tenant, pools[0], day, version, "reserved", 64_021))
        used.append(_used(tenant, pools[1], day, 1, "best_effort", 305))
    BilledDay.objects.bulk_create(used)
    books = BooksState.objects.create(final_until=now, guaranteed_until=now)
    invoice_issue(tenant=tenant, month=last, actor="upkeep", now=now)
    late = _used(tenant, pools[0], days[4], 2, "best_effort", 11)
    BilledDay.objects.filter(
        **{name: getattr(late, name) for name in ("tenant_id", "pool_id", "model", "day", "service_class")}
    ).update(**{name: F(name) + getattr(late, name) for name in _COUNTS})
    invoice_issue(tenant=tenant, month=last, actor="upkeep", now=now)
    # Other pages are of an installation that has closed no books yet, and whose pools have one price each; their log
    # begins with what they do themselves.
    books.delete()
    QuerySet(AuditEntry).filter(action__startswith="invoice.").delete()
    QuerySet(CostProfile).filter(pool=pools[0], version__in=_PRICES).delete()
    assert Invoice.objects.count() == 2


def _priced(pool: Pool, version: int, price: float, now: datetime) -> None:
    """A version that is not in force any more."""
    earlier = CostProfile.objects.get(pool=pool, version=1)
    terms = {name: getattr(earlier, name) for name in ("hardware_type", "alpha", "beta", "gamma", "calibrated")}
    begun = earlier.effective_from - timedelta(days=100 - version)
    CostProfile.objects.create(pool=pool, version=version, price_per_1000_mu=price, effective_from=begun, **terms)


def _used(tenant: Tenant, pool: Pool, day: date, version: int, service_class: str, mu: int) -> BilledDay:
    return BilledDay(
        tenant_id=tenant.pk,
        pool_id=pool.pk,
        model=pool.slug,
        day=day,
        profile_version=version,
        service_class=service_class,
        requests=mu * 3,
        input_tokens=mu * 700,
        output_tokens=mu * 190,
        mu_whole=mu,
        mu_nano=104_250_000,
    )
