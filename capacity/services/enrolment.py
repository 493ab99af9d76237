"""Tokens with which hosts enrol themselves. The text of a token leaves here once, when it is made."""

import datetime
from collections.abc import Mapping

from django.conf import settings
from django.core.exceptions import ValidationError
from django.db import transaction
from django.db.models import F
from django.utils import timezone

from capacity.models import EnrolmentToken, HardwareType, Host
from capacity.services.hosts import hardware_type_get_or_create, host_enrol
from tenants.audit import Actor, audit, state_of
from tenants.keys import ENROLMENT_PREFIX, current_pepper, key_digest, key_make, key_matches, key_parse
from tenants.models import User

VALID_FOR = datetime.timedelta(days=1)
"""How long a token lives where nothing else is said."""


@transaction.atomic
def enrolment_token_create(
    *,
    name: str,
    actor: Actor,
    hardware_type: HardwareType | None = None,
    labels: Mapping[str, str] | None = None,
    uses: int = 1,
    expires_at: datetime.datetime | None = None,
) -> tuple[EnrolmentToken, str]:
    """A token for ``uses`` hosts, and its text, which is not kept: show it once. Raises ValidationError by field."""
    if uses < 1:
        raise ValidationError({"uses": "Let at least one host enrol with it."})
    text = key_make(ENROLMENT_PREFIX)
    number, pepper = current_pepper(settings.PENSTOCK_KEY_PEPPERS)
    token = EnrolmentToken(
        name=name.strip(),
        created_by=actor if isinstance(actor, User) else None,
        public_id=text.public_id,
        digest=key_digest(text.secret, pepper),
        pepper=number,
        hardware_type=hardware_type,
        labels=dict(labels or {}),
        uses_left=uses,
        expires_at=expires_at or timezone.now() + VALID_FOR,
    )
    token.full_clean()
    token.save(force_insert=True)
    audit(actor=actor, action="enrolment_token.create", target=token, after=state_of(token))
    return token, str(text)


@transaction.atomic
def enrolment_token_revoke(*, token: EnrolmentToken, actor: Actor) -> bool:
    """Let no other host in with it; those that are in stay. Returns False if somebody revoked it before."""
    now = timezone.now()
    if not EnrolmentToken.objects.filter(pk=token.pk, revoked_at=None).update(revoked_at=now, updated_at=now):
        return False
    token.revoked_at = now
    audit(actor=actor, action="enrolment_token.revoke", target=token, after={"revoked_at": now})
    return True


def enrolment_token_find(text: str) -> EnrolmentToken | None:
    """The token of this text, whether it can still be used or not."""
    parts = key_parse(text, prefixes=(ENROLMENT_PREFIX,))
    token = EnrolmentToken.objects.filter(public_id=parts.public_id).first() if parts else None
    if parts is None or token is None:
        return None
    return token if key_matches(parts.secret, token.digest, token.pepper, settings.PENSTOCK_KEY_PEPPERS) else None


@transaction.atomic
def enrolment_token_redeem(
    *, token: EnrolmentToken, name: str, hardware: str = "", is_cpu: bool = False, memory_bytes: int = 0
) -> tuple[Host, bytes]:
    """A host enrols itself: the new host and the secret its agent signs with.

    ``hardware`` names one of its accelerators, or its processor where it ``is_cpu``; ``memory_bytes`` are of one
    accelerator. Only a token for hosts of any hardware asks for them. Raises ValidationError by field; a host that is
    refused takes no use of the token.
    """
    now = timezone.now()
    usable = EnrolmentToken.objects.filter(pk=token.pk, revoked_at=None, expires_at__gt=now, uses_left__gt=0)
    if not usable.update(uses_left=F("uses_left") - 1, updated_at=now):
        raise ValidationError("The enrolment token is used up, revoked or expired: ask an operator for another.")
    token.refresh_from_db()
    actor = f"enrolment token {token}"
    if token.hardware_type is None and not hardware.strip():
        raise ValidationError({"hardware": "Name an accelerator of this host, or its processor where it has none."})
    kind = token.hardware_type or hardware_type_get_or_create(
        name=hardware.strip(),
        # One type for all processors, as for the machine that Penstock is installed on.
        slug="cpu" if is_cpu else "",
        is_cpu=is_cpu,
        memory_bytes=memory_bytes,
        actor=actor,
    )
    host, secret = host_enrol(name=name, hardware_type=kind, labels=token.labels, actor=actor)
    audit(
        actor=actor,
        action="enrolment_token.redeem",
        target=token,
        before={"uses_left": token.uses_left + 1},
        after={"uses_left": token.uses_left, "host": host.pk},
    )
    return host, secret
