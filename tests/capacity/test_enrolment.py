"""Tokens with which hosts enrol themselves: once for each use, and never past their end."""

from __future__ import annotations

import datetime
from typing import Any

import pytest
from django.core.exceptions import ValidationError
from django.db import IntegrityError, transaction
from django.utils import timezone

from capacity.models import EnrolmentToken, HardwareType, Host
from capacity.services import (
    enrolment_token_create,
    enrolment_token_find,
    enrolment_token_redeem,
    enrolment_token_revoke,
)
from tenants.crypto import decrypt
from tenants.models import AuditEntry
from tests import factories

pytestmark = pytest.mark.django_db


def made(**fields: Any) -> tuple[EnrolmentToken, str]:
    return enrolment_token_create(**{"name": "rack 1", "actor": "t", **fields})


def test_a_tokens_text_is_not_kept() -> None:
    token, text = made()
    assert text.startswith(f"pse_{token.public_id}_")
    secret = text.split("_")[2]
    kept = str(list(EnrolmentToken.objects.values())) + str(list(AuditEntry.objects.values()))
    assert secret not in kept
    assert token.digest not in str(list(AuditEntry.objects.values()))
    assert enrolment_token_find(text) == token
    for other in (text[:-1] + "!", "pse_x_y", text.replace("pse_", "mu_"), "", f"pse_{token.public_id}_"):
        assert enrolment_token_find(other) is None


def test_the_first_hosts_come_in_and_no_more() -> None:
    token, _ = made(uses=2, hardware_type=factories.hardware(), labels={"zone": "a"})
    host, secret = enrolment_token_redeem(token=token, name="h1")
    assert decrypt(Host.objects.get(name="h1").secret) == secret
    assert (host.labels, host.hardware_type) == ({"zone": "a"}, factories.hardware())
    enrolment_token_redeem(token=token, name="h2", hardware="what the token says goes first")
    with pytest.raises(ValidationError, match="used up"):
        enrolment_token_redeem(token=token, name="h3")
    token.refresh_from_db()
    assert (token.uses_left, token.is_usable, Host.objects.count()) == (0, False, 2)
    entries = AuditEntry.objects.filter(action="enrolment_token.redeem").order_by("at")
    assert [(entry.before["uses_left"], entry.after["uses_left"]) for entry in entries] == [(2, 1), (1, 0)]
    assert {entry.actor for entry in AuditEntry.objects.filter(action="host.enrol")} == {f"enrolment token {token}"}


def test_a_host_that_is_refused_takes_no_use() -> None:
    token, _ = made()
    factories.host(name="taken")
    for fields in ({"name": "taken", "hardware": "NVIDIA L4"}, {"name": "a b", "hardware": "L4"}, {"name": "new"}):
        with pytest.raises(ValidationError) as error:
            enrolment_token_redeem(token=token, **fields)
        assert list(error.value.message_dict) == ["hardware" if fields["name"] == "new" else "name"]
    token.refresh_from_db()
    assert token.uses_left == 1
    assert not HardwareType.objects.filter(slug="nvidia-l4").exists()


def test_reported_hardware_is_made_once() -> None:
    token, _ = made(uses=3)
    first, _ = enrolment_token_redeem(token=token, name="h1", hardware="NVIDIA L4", memory_bytes=24 << 30)
    second, _ = enrolment_token_redeem(token=token, name="h2", hardware="NVIDIA L4", memory_bytes=24 << 30)
    assert first.hardware_type == second.hardware_type
    assert first.hardware_type.memory_bytes == 24 << 30
    third, _ = enrolment_token_redeem(token=token, name="h3", hardware="EPYC 9654", is_cpu=True)
    assert (third.hardware_type.slug, third.hardware_type.is_cpu) == ("cpu", True)


def test_a_revoked_and_an_expired_token_let_nobody_in() -> None:
    revoked, _ = made()
    assert enrolment_token_revoke(token=revoked, actor="t")
    assert not enrolment_token_revoke(token=revoked, actor="t")
    expired, _ = made()
    now = timezone.now()
    EnrolmentToken.objects.filter(pk=expired.pk).update(
        created_at=now - datetime.timedelta(days=2), expires_at=now - datetime.timedelta(seconds=1)
    )
    for token in (revoked, expired):
        with pytest.raises(ValidationError, match="revoked or expired"):
            enrolment_token_redeem(token=token, name="h", hardware="L4")
    assert AuditEntry.objects.filter(action="enrolment_token.revoke").count() == 1


@pytest.mark.parametrize(
    ("fields", "at"),
    [
        ({"name": " "}, "name"),
        ({"uses": 0}, "uses"),
        ({"expires_at": timezone.now() - datetime.timedelta(days=1)}, "expires_at"),
        ({"labels": {"zone": 1}}, "labels"),
    ],
)
def test_a_bad_token_is_refused_at_its_field(fields: dict[str, Any], at: str) -> None:
    with pytest.raises(ValidationError) as error:
        made(**fields)
    assert list(error.value.message_dict) == [at]


def test_the_database_refuses_a_use_too_many() -> None:
    token, _ = made()
    with pytest.raises(IntegrityError), transaction.atomic():
        EnrolmentToken.objects.filter(pk=token.pk).update(uses_left=-1)


@pytest.mark.django_db(transaction=True)
def test_of_hosts_that_come_at_once_one_takes_the_last_use() -> None:
    token, _ = made(hardware_type=factories.hardware())
    outcomes = factories.race(*(lambda n=n: enrolment_token_redeem(token=token, name=f"h{n}") for n in range(4)))  # type: ignore[misc]
    assert sum(isinstance(outcome, tuple) for outcome in outcomes) == 1, outcomes
    assert sum(isinstance(outcome, ValidationError) for outcome in outcomes) == 3, outcomes
    assert Host.objects.count() == 1
