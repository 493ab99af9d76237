"""Reads that several pages and the REST API share."""

from __future__ import annotations

from collections.abc import Iterable

from tenants.models import Limit
from tenants.policy.limits import holdings


def limits_held(limits: Iterable[Limit]) -> list[Limit]:
    """``limits``, each knowing what stands beside it (``Limit.holding``): one query for all of them."""
    found = list(limits)
    stored = Limit.objects.filter(
        tenant__in={limit.tenant_id for limit in found},
        kind__in={limit.kind for limit in found},
        model__in={limit.model for limit in found},
    )
    of = {one.pk: held for held in holdings(stored) for one in (held.operators, held.tenants) if one is not None}
    for limit in found:
        if limit.pk in of:
            limit.holding = of[limit.pk]
    return found
