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
) -> tuple[ApiKey, str]:
    """A new key and its text, which is not kept: show it once. Raises ValidationError by field."""
    text = key_make()
    number, pepper = current_pepper(settings.PENSTOCK_KEY_PEPPERS)
    key = ApiKey(
        tenant=tenant,
        name=name.strip(),
        created_by=actor if isinstance(actor, User) else None,
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
    before = state_of(ApiKey.objects.get(pk=key.pk))
    if name is not None:
        key.name = name.strip()
    for field, value in (("scopes", scopes), ("models_allowed", models_allowed), ("allowed_ips", allowed_ips)):
        if value is not None:
            setattr(key, field, list(value))
    key.full_clean()
    key.save(update_fields=("name", "scopes", "models_allowed", "allowed_ips", "updated_at"))
    after = state_of(key)
    if before != after:
        audit(actor=actor, action="api_key.update", target=key, tenant_id=key.tenant_id, before=before, after=after)
        record_change(kind="key", object_id=key.pk)
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
    """A new key with the scopes, networks and limits of ``key``, which expires after ``overlap``.

    With no overlap ``key`` is revoked. Raises ValidationError if ``key`` is revoked, expired or being rotated already.
    """
    now = timezone.now()
    if overlap < datetime.timedelta(0):
        raise ValidationError({"overlap": "The overlap cannot be negative."})
    fresh = ApiKey.objects.filter(Q(expires_at=None) | Q(expires_at__gt=now), pk=key.pk, revoked_at=None)
    ends = min(key.expires_at, now + overlap) if key.expires_at else now + overlap
    change = {"expires_at": ends} if overlap else {"revoked_at": now}
    # The stored expiry is a part of the swap: of two rotations at once, one finds it moved and fails.
    if not fresh.filter(expires_at=key.expires_at).update(**change, updated_at=now):
        raise ValidationError("The key is revoked, expired or has just been rotated: reload it.")
    new, text = api_key_create(
        tenant=key.tenant,
        name=key.name,
        actor=actor,
        scopes=key.scopes,
        models_allowed=key.models_allowed,
        allowed_ips=key.allowed_ips,
        expires_at=key.expires_at,
    )
    for limit in key.limits.all():
        Limit.objects.create(
            tenant_id=limit.tenant_id, api_key=new, kind=limit.kind, model=limit.model, value=limit.value
        )
    for field, value in change.items():
        setattr(key, field, value)
    audit(
        actor=actor,
        action="api_key.rotate",
        target=key,
        tenant_id=key.tenant_id,
        after={**change, "replaced_by": new.pk},
    )
    record_change(kind="key", object_id=key.pk)
    return new, text


def api_keys_mark_used(*, used: Mapping[uuid.UUID, datetime.datetime]) -> int:
    """Move ``last_used_at`` forward for keys not marked in the last minute. Returns how many moved. No audit entry."""
    known = dict(ApiKey.objects.filter(pk__in=used).values_list("pk", "last_used_at"))
    moved = 0
    for pk, last in sorted(known.items()):
        at = used[pk]
        if last is None or at - last >= LAST_USED_STEP:
            moved += ApiKey.objects.filter(pk=pk, last_used_at=last).update(last_used_at=at)
    return moved
