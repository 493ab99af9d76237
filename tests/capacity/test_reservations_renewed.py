"""What runs can be changed also when it has been renewed already: the renewal then follows what holds from now on."""

from __future__ import annotations

import datetime
from decimal import Decimal

import pytest
from django.core.exceptions import ValidationError
from django.utils import timezone

from capacity.models import Pool, Reservation
from capacity.services import reservation_change, reservation_renew, reservation_restore
from tests.capacity.test_reservations import DAY, sold

pytestmark = pytest.mark.django_db


def test_terms_change_of_what_has_been_renewed(pool: Pool) -> None:
    ends_at = timezone.now() + 30 * DAY
    first = sold(pool, 50.0, price=Decimal(10), currency="EUR", ends_at=ends_at)
    Reservation.objects.filter(pk=first.pk).update(starts_at=first.starts_at - DAY)
    renewed = reservation_renew(reservation=first, actor="op@example.org", ends_at=ends_at + 30 * DAY)
    now_on = reservation_change(reservation=first, actor="op@example.org", price=Decimal(12))
    first.refresh_from_db()
    renewed.refresh_from_db()
    assert (first.state, first.price, first.ends_at) == ("ended", Decimal(10), now_on.starts_at)
    assert (now_on.renews, now_on.price, now_on.ends_at) == (first, Decimal(12), ends_at)
    assert (renewed.renews, renewed.starts_at, renewed.price) == (now_on, ends_at, Decimal(10))
    with pytest.raises(ValidationError, match="renewed already"):
        reservation_renew(reservation=now_on, actor="op@example.org")
    with pytest.raises(ValidationError, match="another reservation follows it"):
        reservation_restore(reservation=first, actor="op@example.org", ends_at=None)
    assert now_on.starts_at - first.starts_at > datetime.timedelta(hours=23)
