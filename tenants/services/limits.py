"""Plain limits of tenants and keys."""

from django.db import transaction

from tenants.audit import Actor, audit, state_of
from tenants.changes import record_change
from tenants.models import ApiKey, Limit, Tenant


@transaction.atomic
def limit_set(
    *, tenant: Tenant, kind: str, value: int, actor: Actor, api_key: ApiKey | None = None, model: str = ""
) -> Limit:
    """Set the limit of this kind (requests/min, tokens/min or requests at once), whether or not there is one.

    Raises ValidationError by field.
    """
    limit = Limit.objects.filter(tenant=tenant, api_key=api_key, kind=kind, model=model).first()
    before = state_of(limit) if limit else None
    limit = limit or Limit(tenant=tenant, api_key=api_key, kind=kind, model=model)
    limit.value = value
    limit.full_clean()
    limit.save()
    audit(actor=actor, action="limit.set", target=limit, tenant_id=tenant.pk, before=before, after=state_of(limit))
    _record(limit)
    return limit


@transaction.atomic
def limit_remove(*, limit: Limit, actor: Actor) -> None:
    """Remove the limit: what it held back is free."""
    audit(actor=actor, action="limit.remove", target=limit, tenant_id=limit.tenant_id, before=state_of(limit))
    _record(limit)
    limit.delete()


def _record(limit: Limit) -> None:
    if limit.api_key_id is None:
        record_change(kind="tenant", object_id=limit.tenant_id)
    else:
        record_change(kind="key", object_id=limit.api_key_id)
