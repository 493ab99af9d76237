"""Single flight of a tick among any number of loops processes: a row, swapped forward (no lock, no leader)."""

import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta

from django.utils import timezone

from tenants.models import Lease

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_SHARE_OF_PERIOD = 0.8
"""Of the period a finished tick still keeps the lease: a second clock's message for the same tick finds it taken."""


@contextmanager
def lease(name: str, *, every_s: float, limit_s: float) -> Iterator[bool]:
    """Hold the lease ``name`` while the block runs; yields False (do nothing) when somebody else has it.

    It is taken for ``limit_s`` seconds and cut back to most of ``every_s`` after its start when the block ends. A
    holder that dies delays the next tick by at most ``limit_s``; one that overruns may find company, which is why
    every write of the loops is compare-and-swap all the same.
    """
    started = timezone.now()
    holder = acquire(name, now=started, limit_s=limit_s)
    if holder is None:
        yield False
        return
    try:
        yield True
    finally:
        until = started + timedelta(seconds=every_s * _SHARE_OF_PERIOD)
        Lease.objects.filter(name=name, holder=holder).update(until=until)


def acquire(name: str, *, now: datetime, limit_s: float) -> uuid.UUID | None:
    """Take the lease until ``now`` + ``limit_s`` seconds; the holder's token, or None when it is taken."""
    holder, until = uuid.uuid4(), now + timedelta(seconds=limit_s)
    free = Lease.objects.filter(name=name, until__lte=now)
    if free.update(holder=holder, until=until):
        return holder
    if Lease.objects.filter(name=name).exists():
        return None
    Lease.objects.bulk_create([Lease(name=name, holder=holder, until=_EPOCH)], ignore_conflicts=True)
    return holder if free.update(holder=holder, until=until) else None
