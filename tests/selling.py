"""Something to sell: hosts that report, and deployments of the simulated engine that need what a test says."""

from __future__ import annotations

import datetime
from typing import Any

from django.utils import timezone

from capacity.models import Accelerator, Host, Pool
from serving.models import Deployment
from tests import factories

GIB = 1 << 30


def host(name: str, *, accelerators: int = 0, memory_gib: int = 64) -> Host:
    """A host with so many accelerators of 80 GiB, which is heard of for as long as a test takes."""
    row = factories.host(name=name)
    for index in range(accelerators):
        Accelerator.objects.create(host=row, index=index, uuid=f"{name}-{index}", name="H100", memory_bytes=80 * GIB)
    report(row, memory_gib=memory_gib, ago_s=-600.0)
    return row


def report(row: Host, *, memory_gib: int = 64, ago_s: float = 0.0) -> None:
    """Say that the host reported ``ago_s`` seconds ago."""
    at = timezone.now() - datetime.timedelta(seconds=ago_s)
    facts = {"cores": 8, "memory_available_bytes": memory_gib * GIB}
    Host.objects.filter(pk=row.pk).update(last_report_at=at, report=facts)


def pool(name: str = "Chat", **fields: Any) -> Pool:
    return factories.pool(model=factories.model(name=name, context_tokens=4096), **fields)


def serve(of: Pool, *, most: int = 4, accelerators: int = 0, **fields: Any) -> Deployment:
    """A deployment of the pool: a replica supplies 100 MU/min and needs so many accelerators."""
    options = {"accelerators": accelerators} if accelerators else {}
    return factories.deployment(pool=of, max_replicas=most, options=options, **{"min_replicas": 0, **fields})
