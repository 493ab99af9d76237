"""One-time sign-in links."""

import datetime
import hashlib
import secrets

from django.db import transaction
from django.utils import timezone

from tenants.audit import Actor, audit
from tenants.models import SignInLink, User


def link_digest(token: str) -> str:
    """Hex SHA-256 of the token of a one-time link. No pepper: the token is random, and 256 bits of it."""
    return hashlib.sha256(token.encode()).hexdigest()


class SignInLinkError(Exception):
    """The link is unknown, used, expired, or its user may not sign in. The message is for people."""


@transaction.atomic
def sign_in_link_create(
    *, user: User, actor: Actor, valid_for: datetime.timedelta = datetime.timedelta(hours=1)
) -> str:
    """A token that signs ``user`` in once. Only its digest is kept. Raises ValidationError for a past ``valid_for``."""
    token = secrets.token_urlsafe(32)
    now = timezone.now()
    link = SignInLink(user=user, digest=link_digest(token), created_at=now, expires_at=now + valid_for)
    link.full_clean()
    link.save(force_insert=True)
    audit(
        actor=actor, action="sign_in_link.create", target=link, after={"user": user.pk, "expires_at": link.expires_at}
    )
    return token


@transaction.atomic
def sign_in_link_redeem(token: str, *, now: datetime.datetime | None = None) -> User:
    """The user the token stands for, once: of many who try at the same time, one succeeds. Raises SignInLinkError."""
    at = now or timezone.now()
    # No join in the swap: PostgreSQL checks a joined condition once, before it waits for the row, and all would win.
    swapped = SignInLink.objects.filter(digest=link_digest(token), used_at=None, expires_at__gt=at).update(
        used_at=at, updated_at=at
    )
    if not swapped:
        raise SignInLinkError("This sign-in link has been used or has expired. Ask for a new one.")
    link = SignInLink.objects.select_related("user").get(digest=link_digest(token))
    if not link.user.is_active:
        raise SignInLinkError("This account may not sign in any more. Ask an operator.")
    audit(actor=link.user, action="sign_in_link.redeem", target=link)
    return link.user
