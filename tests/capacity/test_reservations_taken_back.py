"""What is taken back, moved and accepted of reservations a while after it was shown."""

from __future__ import annotations

import datetime

import pytest
from django.core.exceptions import ValidationError
from django.utils import timezone

from capacity.models import Pool, Reservation
from capacity.policy.conversion import Conversion
from capacity.services import (
    pool_update,
    profile_add,
    reservation_approve,
    reservation_cancel,
    reservation_change,
    reservation_convert,
    reservation_renew,
    reservation_restore,
)
from capacity.usage.reads import terms_of
from tests.capacity.test_reservations import DAY, asked, sold

pytestmark = pytest.mark.django_db


def test_a_start_is_not_moved_into_the_past(pool: Pool) -> None:
    now = timezone.now()
    row = sold(pool, starts_at=now + DAY)
    with pytest.raises(ValidationError, match="cannot start in the past"):
        reservation_change(reservation=row, actor="t", starts_at=now - 30 * DAY)
    moved = reservation_change(reservation=row, actor="t", starts_at=now - datetime.timedelta(minutes=1))
    assert (moved.state, moved.starts_at >= now) == ("active", True)


def test_what_never_began_is_restored_from_now_on(pool: Pool) -> None:
    row = sold(pool, starts_at=timezone.now() + DAY)
    reservation_cancel(reservation=row, actor="t")
    Reservation.objects.filter(pk=row.pk).update(starts_at=timezone.now() - DAY)
    before = timezone.now()
    assert reservation_restore(reservation=row, actor="t").starts_at >= before


def test_what_goes_on_under_other_terms_is_not_restored_beside_them(pool: Pool) -> None:
    row = sold(pool, 100)
    new = reservation_change(reservation=row, actor="t", mu_per_min=150)
    with pytest.raises(ValidationError, match="another reservation follows it"):
        reservation_restore(reservation=row, actor="t", ends_at=None)
    assert Reservation.objects.filter(state="active").get() == new


def test_what_had_begun_is_restored_also_where_no_reason_was_given_but_not_without_its_end(pool: Pool) -> None:
    ends_at = timezone.now() + 10 * DAY
    row = sold(pool, 100, ends_at=ends_at)
    reservation_cancel(reservation=row, actor="t")
    with pytest.raises(ValidationError, match="say until when"):
        reservation_restore(reservation=row, actor="t")
    assert reservation_restore(reservation=row, actor="t", ends_at=ends_at).ends_at == ends_at


def test_a_factor_that_was_shown_holds_while_usage_goes_on(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    row = sold(pool, 100)
    price = profile_add(
        pool=pool, hardware_type=pool.profiles.get().hardware_type, profile=terms_of(pool.profiles.get()), actor="t"
    )
    found = Conversion(1.2, "usage", 1000)
    monkeypatch.setattr("capacity.services.reservations.conversion_of", lambda row, at: (price, found))
    with pytest.raises(ValidationError, match="Accept the factor"):
        reservation_convert(reservation=row, actor="t", accepted_factor=1.3)
    converted = reservation_convert(reservation=row, actor="t", accepted_factor=1.19)
    assert converted.mu_per_min == pytest.approx(119.0)


def test_what_is_over_is_not_made_longer_before_its_state_is_moved(pool: Pool) -> None:
    row = sold(pool, ends_at=timezone.now() + DAY)
    over = timezone.now() - datetime.timedelta(seconds=20)
    Reservation.objects.filter(pk=row.pk).update(starts_at=over - DAY, ends_at=over)
    for act in (
        lambda: reservation_change(reservation=row, actor="t", ends_at=timezone.now() + DAY),
        lambda: reservation_renew(reservation=row, actor="t"),
        lambda: reservation_convert(reservation=row, actor="t", accepted_factor=1.0),
    ):
        with pytest.raises(ValidationError, match="Its time is over"):
            act()
    assert reservation_cancel(reservation=row, actor="t").ends_at == over


def test_what_was_sold_keeps_its_credits_and_a_renewal_has_the_pools(pool: Pool) -> None:
    wish = asked(pool)
    row = sold(pool, ends_at=timezone.now() + 30 * DAY)
    before = row.credit_tiers
    pool_update(pool=pool, actor="op@example.org", credit_tiers=[[0.99, 0.5]])
    changed = reservation_change(reservation=row, actor="op@example.org", mu_per_min=90.0)
    assert changed.credit_tiers == before != pool.credit_tiers
    assert reservation_renew(reservation=changed, actor="op@example.org").credit_tiers == [[0.99, 0.5]]
    assert reservation_approve(reservation=wish, actor="op@example.org").credit_tiers == [[0.99, 0.5]]
    with pytest.raises(ValidationError) as caught:
        pool_update(pool=pool, actor="op@example.org", credit_tiers=[[0.9, 0.1], [0.99, 0.5]])
    assert "credit_tiers" in caught.value.message_dict
