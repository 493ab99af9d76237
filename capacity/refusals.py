"""Requests that were refused: the gateways' word on them, which is kept for a while."""

from __future__ import annotations

import uuid
from typing import Protocol

from capacity.models import UsageRecord
from capacity.usage.lines import Refusal
from capacity.usage.rows import refused_record


class Source(Protocol):
    def __call__(self, tenant_id: uuid.UUID | None, request_id: uuid.UUID) -> Refusal | None: ...


sources: list[Source] = []
"""A higher app, which knows the shared state, puts its own here when it starts; the last one is asked."""


def refused(tenant_id: uuid.UUID | None, request_id: uuid.UUID | str) -> tuple[UsageRecord, Refusal] | None:
    """A refused request of the tenant, as one that was admitted would be booked, and why it was refused. None where
    nothing is known of it, or not any more. Without ``tenant_id``: of any tenant, for operators alone."""
    try:
        wanted = uuid.UUID(str(request_id))
        refusal = sources[-1](tenant_id, wanted) if sources else None
        return None if refusal is None else (refused_record(refusal), refusal)
    except ValueError:
        return None


def word_on(record: UsageRecord) -> Refusal | None:
    """What the gateway said of a request that was admitted, and found no room; None where that is not known any more,
    or where there was room."""
    if not sources or record.outcome != "refused" or not record.error.startswith("capacity_"):
        return None
    return sources[-1](record.tenant_id, record.pk)
