"""House-keeping: what is due once a minute is done, and leaves the traces it should."""

from __future__ import annotations

import datetime

import pytest
from django.utils import timezone

from penstock.loops.upkeep import upkeep
from tenants.models import SignInAttempt
from tenants.policy.sign_in import WINDOW_S

pytestmark = pytest.mark.django_db


def test_tries_at_a_password_are_forgotten_when_no_limit_looks_at_them() -> None:
    now = timezone.now()
    for age_s in (1.0, WINDOW_S - 60.0, 3 * WINDOW_S):
        SignInAttempt.objects.create(at=now - datetime.timedelta(seconds=age_s), account="a", address="b")
    upkeep()
    assert SignInAttempt.objects.filter(at__lt=now - datetime.timedelta(seconds=2 * WINDOW_S)).count() == 0
    assert SignInAttempt.objects.count() == 2
