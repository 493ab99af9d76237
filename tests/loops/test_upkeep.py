"""House-keeping: what is due once a minute is done, and leaves the traces it should."""

from __future__ import annotations

import datetime
from typing import Any

import pytest
from django.db import OperationalError
from django.utils import timezone

from capacity.models import Reservation, Watermark
from penstock.loops.upkeep import upkeep
from tenants.models import AuditEntry, IdempotentAnswer, SignInAttempt
from tenants.policy.sign_in import WINDOW_S
from tests import factories

pytestmark = pytest.mark.django_db


def test_tries_at_a_password_are_forgotten_when_no_limit_looks_at_them() -> None:
    now = timezone.now()
    for age_s in (1.0, WINDOW_S - 60.0, 3 * WINDOW_S):
        SignInAttempt.objects.create(at=now - datetime.timedelta(seconds=age_s), account="a", address="b")
    upkeep()
    assert SignInAttempt.objects.filter(at__lt=now - datetime.timedelta(seconds=2 * WINDOW_S)).count() == 0
    assert SignInAttempt.objects.count() == 2


def test_a_reservation_whose_time_is_over_ends_with_an_entry() -> None:
    pool, now = factories.pool(), timezone.now()
    reservation = Reservation.objects.create(
        tenant=factories.tenant(),
        pool=pool,
        profile=pool.profiles.get(),
        mu_per_min=5.0,
        state="active",
        starts_at=now - datetime.timedelta(days=2),
        ends_at=now - datetime.timedelta(days=1),
    )
    upkeep()
    reservation.refresh_from_db()
    assert reservation.state == "ended"
    assert AuditEntry.objects.get(action="reservation.end").actor == "upkeep"


def test_a_reservation_whose_time_has_come_starts_and_one_whose_time_has_gone_does_both() -> None:
    pool, now = factories.pool(), timezone.now()
    day = datetime.timedelta(days=1)
    rows = [
        Reservation.objects.create(
            tenant=factories.tenant(),
            pool=pool,
            profile=pool.profiles.get(),
            mu_per_min=5.0,
            state="draft",
            starts_at=starts,
            ends_at=ends,
        )
        for starts, ends in ((now - day, now + day), (now + day, None), (now - 2 * day, now - day))
    ]
    upkeep()
    assert [Reservation.objects.get(pk=row.pk).state for row in rows] == ["active", "draft", "ended"]


def test_closed_segments_are_known_for_longer_than_their_records(settings: Any) -> None:
    settings.PENSTOCK_USAGE_DAYS = 30
    now = timezone.now()
    for segment, days, is_closed in (("recent", 100, True), ("ancient", 130, True), ("open", 500, False)):
        at = now - datetime.timedelta(days=days)
        Watermark.objects.create(segment=segment, gateway="g", at=at, is_closed=is_closed, updated_at=at)
    upkeep()
    assert set(Watermark.objects.values_list("segment", flat=True)) == {"recent", "open"}


def test_answers_to_creations_are_forgotten_after_a_day() -> None:
    now = timezone.now()
    for key, hours in (("old", 25), ("fresh", 23)):
        made = IdempotentAnswer.objects.create(caller="user:x", key=key, fingerprint="f")
        IdempotentAnswer.objects.filter(pk=made.pk).update(created_at=now - datetime.timedelta(hours=hours))
    upkeep()
    assert list(IdempotentAnswer.objects.values_list("key", flat=True)) == ["fresh"]


def test_a_part_that_fails_keeps_no_other_from_being_done(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def locked(**kwargs: object) -> None:
        raise OperationalError("database is locked")

    now = timezone.now()
    tenant, pool = factories.tenant(), factories.pool()
    over = Reservation.objects.create(
        tenant=tenant,
        pool=pool,
        profile=pool.profiles.get(),
        mu_per_min=1.0,
        state=Reservation.State.ACTIVE,
        starts_at=now - datetime.timedelta(days=2),
        ends_at=now - datetime.timedelta(days=1),
    )
    SignInAttempt.objects.create(at=now - datetime.timedelta(days=1), account="a", address="b")
    monkeypatch.setattr("penstock.loops.upkeep.replicas_delete_old", locked)
    upkeep()
    over.refresh_from_db()
    assert over.state == Reservation.State.ENDED
    assert not SignInAttempt.objects.exists()
    assert "forgetting replicas failed (OperationalError: database is locked" in caplog.text
