"""Plain limits of tenants, keys and members."""

from django.db import transaction

from tenants.audit import Actor, audit, state_of
from tenants.changes import record_change
from tenants.models import ApiKey, Limit, Membership, Tenant


@transaction.atomic
def limit_set(
    *,
    tenant: Tenant,
    kind: str,
    value: int,
    set_by: str,
    actor: Actor,
    api_key: ApiKey | None = None,
    member: Membership | None = None,
    model: str = "",
) -> Limit:
    """Set the limit of this kind (requests, tokens or MU/min, or requests at once), whether or not there is one.

    It is the tenant's, or ``api_key``'s, or ``member``'s.

    ``set_by``: whose it is, ``operator`` or ``tenant``; the other's stays beside it, and the smaller holds. That
    ``actor`` may set it is for the caller to check (``limit_refusal``). Raises ValidationError by field.
    """
    # Nobody can wait for a limit that does not exist yet: two who set the same one take turns on the tenant.
    tenant.take_turn()
    named = {"tenant": tenant, "api_key": api_key, "member": member, "kind": kind, "model": model, "set_by": set_by}
    limit = Limit.objects.filter(**named).first()
    before = state_of(limit) if limit else None
    limit = limit or Limit(**named)
    limit.value = value
    limit.full_clean()
    after = state_of(limit)
    if before == after:
        return limit
    limit.save()
    audit(actor=actor, action="limit.set", target=limit, tenant_id=tenant.pk, before=before, after=after)
    _record(limit)
    return limit


@transaction.atomic
def limit_remove(*, limit: Limit, actor: Actor) -> bool:
    """Remove the limit: what it held back is free, as far as none beside it holds. False if it was removed before."""
    limit.tenant.take_turn()
    stored = Limit.objects.filter(pk=limit.pk).first()
    if stored is None:
        return False
    audit(actor=actor, action="limit.remove", target=stored, tenant_id=stored.tenant_id, before=state_of(stored))
    _record(stored)
    Limit.objects.filter(pk=stored.pk).delete()
    return True


def _record(limit: Limit) -> None:
    if limit.api_key_id is not None:
        record_change(kind="key", object_id=limit.api_key_id)
        return
    record_change(kind="tenant", object_id=limit.tenant_id)
    if limit.member is not None:
        record_keys_of(limit.member)


def record_keys_of(member: Membership) -> None:
    """Gateways are to be told anew of the keys that ``member`` made: what holds for the member is said with them."""
    keys = ApiKey.objects.filter(tenant=member.tenant_id, created_by=member.user_id, revoked_at=None)
    for pk in keys.values_list("pk", flat=True):
        record_change(kind="key", object_id=pk)
