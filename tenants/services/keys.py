"""API keys. The text of a key leaves here once, when it is made."""

import datetime
import uuid
from collections.abc import Mapping, Sequence

from django.conf import settings
from django.core.exceptions import ValidationError
from django.db import transaction
from django.db.models import Q
from django.utils import timezone

from tenants.audit import Actor, audit, state_of
from tenants.changes import record_change
from tenants.keys import current_pepper, key_digest, key_make
from tenants.models import ApiKey, Limit, Tenant, User

LAST_USED_STEP = datetime.timedelta(minutes=1)
"""``last_used_at`` moves in steps of at least this: it is for people, and each move is a write."""


@transaction.atomic
def api_key_create(
    *,
    tenant: Tenant,
    name: str,
    actor: Actor,
    scopes: Sequence[str] = ("inference",),
    models_allowed: Sequence[str] = (),
    allowed_ips: Sequence[str] = (),
    expires_at: datetime.datetime | None = None,
    made_by: User | None = None,
) -> tuple[ApiKey, str]:
    """A new key and its text, which is not kept: show it once. ``made_by``: whose key it is, if not ``actor``'s.

    Raises ValidationError by field.
    """
    text = key_make()
    number, pepper = current_pepper(settings.PENSTOCK_KEY_PEPPERS)
    key = ApiKey(
        tenant=tenant,
        name=name.strip(),
        created_by=made_by or (actor if isinstance(actor, User) else None),
        public_id=text.public_id,
        digest=key_digest(text.secret, pepper),
        pepper=number,
        scopes=list(scopes),
        models_allowed=list(models_allowed),
        allowed_ips=list(allowed_ips),
        expires_at=expires_at,
    )
    key.full_clean()
    key.save(force_insert=True)
    audit(actor=actor, action="api_key.create", target=key, tenant_id=tenant.pk, after=state_of(key))
    record_change(kind="key", object_id=key.pk)
    return key, str(text)


@transaction.atomic
def api_key_update(
    *,
    key: ApiKey,
    actor: Actor,
    name: str | None = None,
    scopes: Sequence[str] | None = None,
    models_allowed: Sequence[str] | None = None,
    allowed_ips: Sequence[str] | None = None,
) -> ApiKey:
    """Change what is given; the secret stays. Raises ValidationError by field."""
    lists = {"scopes": scopes, "models_allowed": models_allowed, "allowed_ips": allowed_ips}
    given: dict[str, object] = {field: list(value) for field, value in lists.items() if value is not None}
    if name is not None:
        given["name"] = name.strip()
    stored = key.take_turn()
    before = state_of(stored)
    for field, value in given.items():
        setattr(stored, field, value)
    stored.full_clean()
    stored.save(update_fields=(*given, "updated_at"))
    after = state_of(stored)
    if before != after:
        audit(
            actor=actor, action="api_key.update", target=stored, tenant_id=stored.tenant_id, before=before, after=after
        )
        record_change(kind="key", object_id=stored.pk)
    key.refresh_from_db()
    return key


@transaction.atomic
def api_key_revoke(*, key: ApiKey, actor: Actor, now: datetime.datetime | None = None) -> bool:
    """Refuse the key from now on. Returns False if somebody revoked it before. It cannot be undone."""
    at = now or timezone.now()
    if not ApiKey.objects.filter(pk=key.pk, revoked_at=None).update(revoked_at=at, updated_at=at):
        return False
    key.revoked_at = at
    audit(actor=actor, action="api_key.revoke", target=key, tenant_id=key.tenant_id, after={"revoked_at": at})
    record_change(kind="key", object_id=key.pk)
    return True


@transaction.atomic
def api_key_rotate(
    *, key: ApiKey, actor: Actor, overlap: datetime.timedelta = datetime.timedelta(days=1)
) -> tuple[ApiKey, str]:
    """A new key with the maker, scopes, networks and limits of ``key``, which expires after ``overlap``.

    With no overlap ``key`` is revoked. Raises ValidationError if ``key`` is revoked, expired or rotated already.
    """
    now = timezone.now()
    if overlap < datetime.timedelta(0):
        raise ValidationError({"overlap": "The overlap cannot be negative."})
    fresh = ApiKey.objects.filter(
        Q(expires_at=None) | Q(expires_at__gt=now), pk=key.pk, revoked_at=None, rotated_at=None
    )
    if not fresh.update(rotated_at=now, updated_at=now):
        raise ValidationError(
            f"{key} is revoked, expired or rotated already: rotate the key that replaced it, or make a new one."
        )
    # Read after the swap: the new key gets what holds now, not what held when the caller looked.
    stored = ApiKey.objects.select_related("tenant", "created_by").get(pk=key.pk)
    new, text = api_key_create(
        tenant=stored.tenant,
        name=stored.name,
        actor=actor,
        scopes=stored.scopes,
        models_allowed=stored.models_allowed,
        allowed_ips=stored.allowed_ips,
        expires_at=stored.expires_at,
        # Whoever rotates it: what the maker is held to holds for the new one, too.
        made_by=stored.created_by,
    )
    for limit in stored.limits.all():
        Limit.objects.create(
            tenant_id=limit.tenant_id,
            api_key=new,
            kind=limit.kind,
            model=limit.model,
            value=limit.value,
            set_by=limit.set_by,
        )
    ends = min(stored.expires_at, now + overlap) if stored.expires_at else now + overlap
    change = {"expires_at": ends} if overlap else {"revoked_at": now}
    ApiKey.objects.filter(pk=stored.pk).update(**change)
    audit(
        actor=actor,
        action="api_key.rotate",
        target=stored,
        tenant_id=stored.tenant_id,
        after={**change, "replaced_by": new.pk},
    )
    record_change(kind="key", object_id=stored.pk)
    key.refresh_from_db()
    return new, text


def api_key_used(*, key: ApiKey) -> None:
    """Move ``last_used_at`` to now, unless it was moved in the last minute. No audit entry."""
    now = timezone.now()
    if key.last_used_at is None or now - key.last_used_at >= LAST_USED_STEP:
        ApiKey.objects.filter(pk=key.pk, last_used_at=key.last_used_at).update(last_used_at=now)


def api_keys_mark_used(*, used: Mapping[uuid.UUID, datetime.datetime]) -> int:
    """Move ``last_used_at`` forward for keys not marked in the last minute. Returns how many moved. No audit entry."""
    known = dict(ApiKey.objects.filter(pk__in=used).values_list("pk", "last_used_at"))
    moved = 0
    for pk, last in sorted(known.items()):
        at = used[pk]
        if last is None or at - last >= LAST_USED_STEP:
            moved += ApiKey.objects.filter(pk=pk, last_used_at=last).update(last_used_at=at)
    return moved
