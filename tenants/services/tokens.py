"""Access tokens of people. The text of a token leaves here once, when it is made."""

import datetime

from django.conf import settings
from django.db import transaction
from django.utils import timezone

from tenants.audit import Actor, audit, state_of
from tenants.keys import TOKEN_PREFIX, current_pepper, key_digest, key_make
from tenants.models import AccessToken, User


@transaction.atomic
def access_token_create(
    *, user: User, name: str, actor: Actor, expires_at: datetime.datetime | None = None
) -> tuple[AccessToken, str]:
    """A new token and its text, which is not kept: show it once. Raises ValidationError by field."""
    text = key_make(TOKEN_PREFIX)
    number, pepper = current_pepper(settings.PENSTOCK_KEY_PEPPERS)
    token = AccessToken(
        user=user,
        name=name.strip(),
        public_id=text.public_id,
        digest=key_digest(text.secret, pepper),
        pepper=number,
        expires_at=expires_at,
    )
    token.full_clean()
    token.save(force_insert=True)
    audit(actor=actor, action="access_token.create", target=token, after=state_of(token))
    return token, str(text)


@transaction.atomic
def access_token_revoke(*, token: AccessToken, actor: Actor) -> bool:
    """Refuse the token from now on. Returns False if somebody revoked it before. It cannot be undone."""
    now = timezone.now()
    if not AccessToken.objects.filter(pk=token.pk, revoked_at=None).update(revoked_at=now, updated_at=now):
        return False
    token.revoked_at = now
    audit(actor=actor, action="access_token.revoke", target=token, after={"revoked_at": now})
    return True


@transaction.atomic
def access_tokens_revoke(*, user: User, actor: Actor) -> int:
    """Refuse all tokens of the user from now on. Returns how many were not revoked before."""
    living = AccessToken.objects.filter(user=user, revoked_at=None)
    return sum(access_token_revoke(token=token, actor=actor) for token in living)


def access_token_used(*, token: AccessToken) -> None:
    """Move ``last_used_at``, at most once a minute: it is for people, and each move is a write. No audit entry."""
    now = timezone.now()
    if token.last_used_at is None or now - token.last_used_at >= datetime.timedelta(minutes=1):
        AccessToken.objects.filter(pk=token.pk, last_used_at=token.last_used_at).update(last_used_at=now)
