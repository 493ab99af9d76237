"""Audit entries: who did what to which object, with what it was before and after, and never a secret."""

import datetime
import decimal
import enum
import uuid
from collections.abc import Mapping
from contextvars import ContextVar
from typing import Any

from django.db import models

from tenants.models import AuditEntry, User

Actor = User | str
"""Who acts: a user, or the name of the machinery (``"scale loop"``)."""

request_id_var: ContextVar[str] = ContextVar("audit_request_id", default="")
"""Id of the HTTP request being served; the web's middleware sets it."""

_UNTOLD = frozenset(
    {"password", "secret", "digest", "pepper", "created_at", "updated_at", "last_used_at", "last_login"}
)


def audit(
    *,
    actor: Actor,
    action: str,
    target: models.Model,
    tenant_id: uuid.UUID | None = None,
    before: Mapping[str, Any] | None = None,
    after: Mapping[str, Any] | None = None,
) -> AuditEntry:
    """Write an entry. Call it inside the transaction of the act it speaks of.

    ``action`` is ``noun.verb``. Of ``before`` and ``after`` only what differs is kept when both are given.
    """
    old, new = _plain(before or {}), _plain(after or {})
    if before is not None and after is not None:
        changed = {name for name in {*old, *new} if old.get(name) != new.get(name)}
        old, new = ({name: values[name] for name in values if name in changed} for values in (old, new))
    is_person = isinstance(actor, User)
    return AuditEntry.objects.create(
        actor_id=actor.pk if isinstance(actor, User) else None,
        actor=(actor.email if isinstance(actor, User) else actor)[:200] if is_person or actor else "penstock",
        tenant_id=tenant_id,
        action=action,
        object_type=target._meta.label_lower,
        object_id=str(target.pk),
        object_name=str(target)[:200],
        before=old,
        after=new,
        request_id=request_id_var.get()[:64],
    )


def state_of(row: models.Model) -> dict[str, Any]:
    """The row's own columns as plain values, without secrets: what ``audit`` takes as before and after."""
    return _plain(
        {field.name: field.value_from_object(row) for field in row._meta.concrete_fields if field.name not in _UNTOLD}
    )


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: _plain_value(value) for name, value in values.items() if name not in _UNTOLD}


def _plain_value(value: Any) -> Any:
    if isinstance(value, uuid.UUID | decimal.Decimal):
        return str(value)
    if isinstance(value, datetime.datetime | datetime.date):
        return value.isoformat()
    if isinstance(value, bytes | memoryview):
        return "(hidden)"
    if isinstance(value, enum.Enum):
        return value.value
    if isinstance(value, models.Model):
        return str(value.pk)
    if isinstance(value, Mapping):
        return {str(key): _plain_value(item) for key, item in value.items() if key not in _UNTOLD}
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain_value(item) for item in value]
    return value
