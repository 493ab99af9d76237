"""Reservations that are changed, cancelled, renewed and converted: what each step asks of the ledger, and what stays on
record."""

from __future__ import annotations

from decimal import Decimal

import pytest
from django.core.exceptions import ValidationError
from django.utils import timezone

from capacity.models import Pool, Reservation
from capacity.policy.cost import CostProfile
from capacity.services import (
    CannotSell,
    pool_update,
    profile_add,
    reservation_cancel,
    reservation_change,
    reservation_convert,
    reservation_renew,
    reservation_restore,
)
from capacity.usage.reads import terms_of
from serving.services import deployment_update
from tests.capacity.test_reservations import DAY, sold

pytestmark = pytest.mark.django_db


# ----- changed and cancelled
def test_cancelled_before_it_starts_it_was_never_promised_and_can_be_restored(pool: Pool) -> None:
    row = sold(pool, 300, starts_at=timezone.now() + DAY)
    cancelled = reservation_cancel(reservation=row, actor="t", reason="They moved")
    assert (cancelled.state, cancelled.reason) == ("cancelled", "They moved")
    other = sold(pool, 200)
    with pytest.raises(CannotSell):
        reservation_restore(reservation=row, actor="t")
    reservation_cancel(reservation=other, actor="t")
    assert reservation_restore(reservation=row, actor="t").state == "draft"


def test_cancelled_while_it_runs_it_ends_now_and_can_be_restored_to_its_end(pool: Pool) -> None:
    ends_at = timezone.now() + DAY
    row = sold(pool, 300, ends_at=ends_at)
    version = Pool.objects.get(pk=pool.pk).version
    ended = reservation_cancel(reservation=row, actor="t", reason="They moved")
    assert (ended.state, ended.reason) == ("ended", "They moved")
    assert ended.ends_at <= timezone.now()
    assert Pool.objects.get(pk=pool.pk).version == version + 1
    restored = reservation_restore(reservation=row, actor="t", ends_at=ends_at)
    assert (restored.state, restored.ends_at, restored.reason) == ("active", ends_at, "")
    gap = restored.gaps.get()
    assert gap.since == ended.ends_at < gap.until
    assert restored.spans() == [(row.starts_at, gap.since), (gap.until, ends_at)]


def test_what_ended_by_its_time_is_not_restored(pool: Pool) -> None:
    row = sold(pool)
    Reservation.objects.filter(pk=row.pk).update(state="ended", ends_at=timezone.now())
    with pytest.raises(ValidationError, match="its time was over"):
        reservation_restore(reservation=row, actor="t", ends_at=timezone.now() + DAY)
    with pytest.raises(ValidationError, match="ended: it cannot be cancelled"):
        reservation_cancel(reservation=row, actor="t")


def test_growth_is_asked_of_the_ledger_and_less_never(pool: Pool) -> None:
    now = timezone.now()
    row = sold(pool, 200, starts_at=now + DAY)
    sold(pool, 50, starts_at=now + DAY)
    with pytest.raises(CannotSell):
        reservation_change(reservation=row, actor="t", mu_per_min=251)
    changed = reservation_change(reservation=row, actor="t", mu_per_min=250)
    assert (changed.pk, changed.mu_per_min, changed.state) == (row.pk, 250.0, "draft")
    deployment_update(deployment=pool.deployments.get(), max_replicas=1, actor="t")
    less = reservation_change(reservation=row, actor="t", mu_per_min=240, ends_at=now + 9 * DAY)
    assert (less.mu_per_min, less.verdict) == (240.0, "fits")
    with pytest.raises(CannotSell):
        reservation_change(reservation=row, actor="t", ends_at=now + 10 * DAY)


def test_other_terms_of_what_runs_begin_now_and_the_old_ones_stay_on_record(pool: Pool) -> None:
    ends_at = timezone.now() + 5 * DAY
    row = sold(pool, 100, ends_at=ends_at, price=Decimal(2), currency="EUR", note="n")
    new = reservation_change(reservation=row, actor="t", mu_per_min=150)
    row.refresh_from_db()
    assert (row.state, row.mu_per_min, row.ends_at) == ("ended", 100.0, new.starts_at)
    assert (new.renews, new.state, new.mu_per_min, new.ends_at) == (row, "active", 150.0, ends_at)
    assert (new.price, new.currency, new.note, new.tenant) == (Decimal(2), "EUR", "n", row.tenant)
    assert row.reason == "Its terms changed: 150 MU/min from then on."
    prolonged = reservation_change(reservation=new, actor="t", ends_at=None, note="other")
    assert (prolonged.pk, prolonged.ends_at, prolonged.note) == (new.pk, None, "other")
    with pytest.raises(ValidationError, match="It has begun"):
        reservation_change(reservation=new, actor="t", starts_at=timezone.now() + DAY)


def test_a_burst_that_nobody_set_follows_the_rate(pool: Pool) -> None:
    pool_update(pool=pool, keep_spare=False, actor="t")
    row = sold(pool, 60, starts_at=timezone.now() + DAY)
    largest = row.burst_mu
    assert largest > 10  # the largest request
    same = reservation_change(reservation=row, actor="t", mu_per_min=120)
    assert same.burst_mu == max(20, largest)
    own = reservation_change(reservation=row, actor="t", burst_mu=77)
    assert own.burst_mu == 77
    assert reservation_change(reservation=row, actor="t", mu_per_min=180).burst_mu == 77


def test_another_price_of_one_that_runs_holds_from_now_on(pool: Pool) -> None:
    row = sold(pool, 300, price=Decimal("1.5"), currency="EUR")
    new = reservation_change(reservation=row, actor="t", price=Decimal(2))
    row.refresh_from_db()
    assert (row.state, row.price, row.ends_at) == ("ended", Decimal("1.5"), new.starts_at)
    assert (new.renews, new.state, new.price, new.mu_per_min, new.verdict) == (row, "active", Decimal(2), 300, "fits")
    assert row.reason == "Its terms changed: 300 MU/min at 2.00 EUR from then on."
    assert reservation_change(reservation=new, actor="t", price=Decimal("2.000"), note="n").pk == new.pk


def test_an_overcommitment_stays_marked_until_all_of_it_fits(pool: Pool) -> None:
    row = sold(pool, 500, starts_at=timezone.now() + DAY, override_reason="Monday")
    noted = reservation_change(reservation=row, actor="t", note="n")
    assert (noted.verdict, noted.override_reason) == ("short", "Monday")
    assert reservation_change(reservation=row, actor="t", mu_per_min=400).verdict == "short"
    fits = reservation_change(reservation=row, actor="t", mu_per_min=300)
    assert (fits.verdict, fits.override_reason) == ("fits", "")


# ----- renewed and converted
def reprice(pool: Pool, factor: float) -> None:
    """A new version in which every request costs ``factor`` times as many MU."""
    current = pool.profiles.order_by("-version")[0]
    terms = terms_of(current)
    scaled = {name: getattr(terms, name) * factor for name in ("base", "alpha", "beta", "gamma", "epsilon")}
    new = CostProfile(version=1, cached_factor=terms.cached_factor, **scaled)
    profile_add(pool=pool, hardware_type=current.hardware_type, profile=new, actor="t")


def test_a_renewal_follows_on_in_the_version_in_force_and_once(pool: Pool) -> None:
    ends_at = timezone.now() + DAY
    row = sold(pool, 100, ends_at=ends_at)
    new = reservation_renew(reservation=row, actor="t", ends_at=ends_at + 30 * DAY)
    assert (new.starts_at, new.renews, new.state, new.mu_per_min) == (ends_at, row, "draft", 100.0)
    with pytest.raises(ValidationError, match="renewed already"):
        reservation_renew(reservation=row, actor="t", ends_at=ends_at + 30 * DAY)
    reservation_cancel(reservation=new, actor="t")
    assert reservation_renew(reservation=row, actor="t").ends_at is None


def test_a_new_version_is_pinned_only_with_its_factor_accepted(pool: Pool) -> None:
    old = pool.profiles.get()
    row = sold(pool, 50, ends_at=timezone.now() + DAY)
    reprice(pool, 2.0)
    row.refresh_from_db()
    assert row.profile == old
    for call in (
        lambda: reservation_renew(reservation=row, actor="t"),
        lambda: reservation_renew(reservation=row, actor="t", accepted_factor=1.0),
        lambda: reservation_convert(reservation=row, actor="t", accepted_factor=1.5),
    ):
        with pytest.raises(ValidationError, match="Accept the factor 2"):
            call()
    converted = reservation_convert(reservation=row, actor="t", accepted_factor=2.0)
    assert (converted.profile.version, converted.mu_per_min, converted.renews) == (2, pytest.approx(100.0), row)
    assert converted.burst_mu == pytest.approx(2 * row.burst_mu)
    with pytest.raises(ValidationError, match="already"):
        reservation_convert(reservation=converted, actor="t", accepted_factor=1.0)


def test_what_was_sold_in_an_older_version_counts_by_its_work(pool: Pool) -> None:
    """100 MU/min of a unit that was worth twice as much are 200 of today's."""
    sold(pool, 100)
    reprice(pool, 2.0)
    with pytest.raises(CannotSell) as refused:
        sold(pool, 150)
    assert refused.value.answer.pieces[0].sold == pytest.approx(200.0)
    assert sold(pool, 100).verdict == "fits"
