"""Chaining of usage records: each is hashed with the one before it of the same tenant, when it is booked.

``capacity.policy.chain`` says how. Once a day each chain's end is kept as an anchor. Retention deletes from the front
of a chain up to an anchor, so that what is left can be checked from there.
"""

from __future__ import annotations

import datetime
import uuid
from collections.abc import Iterable, Sequence
from typing import Any

from django.db import transaction
from django.db.models import F, OuterRef, Q, QuerySet, Subquery

from capacity.models import UsageAnchor, UsageChain, UsageRecord
from capacity.policy.chain import GENESIS, link, seal
from capacity.usage.reads import COLUMNS

SEALED = (
    "revision_id",
    "replica_id",
    "gateway",
    "error",
    "attempts",
    "routed_at",
    "estimated_input_tokens",
    "estimated_output_tokens",
)
"""Columns whose digest alone a tenant is shown."""


def hashed_fields(record: UsageRecord) -> dict[str, Any]:
    """The tenant and the columns that a tenant sees."""
    return {"tenant_id": record.tenant_id, **{name: getattr(record, name) for name in COLUMNS}}


def sealed(record: UsageRecord) -> str:
    """The digest of the columns that it does not see."""
    return seal({name: getattr(record, name) for name in SEALED})


class Heads:
    """The ends of the chains of some tenants, held until the transaction is over."""

    def __init__(self, tenants: Iterable[uuid.UUID]) -> None:
        wanted = sorted(set(tenants))
        UsageChain.objects.bulk_create([UsageChain(tenant_id=tenant) for tenant in wanted], ignore_conflicts=True)
        # In one order everywhere: no two writers wait for each other.
        held = UsageChain.objects.select_for_update().filter(tenant_id__in=wanted).order_by("tenant_id")
        self._heads = {head.tenant_id: (head.sequence, head.hash) for head in held}
        self._moved: set[uuid.UUID] = set()

    def append(self, records: Sequence[UsageRecord]) -> None:
        """Give each of ``records`` its place and its hash, in this order."""
        for record in records:
            sequence, previous = self._heads[record.tenant_id]
            record.chain_sequence = sequence + 1
            record.chain_hash = link(previous, sequence + 1, hashed_fields(record), sealed(record))
            self._heads[record.tenant_id] = (record.chain_sequence, record.chain_hash)
            self._moved.add(record.tenant_id)

    def kept(self) -> dict[uuid.UUID, tuple[int, str]]:
        """The ends as they are now, to be given to ``back_to`` where what was appended could not be stored."""
        return dict(self._heads)

    def back_to(self, kept: dict[uuid.UUID, tuple[int, str]]) -> None:
        self._heads = dict(kept)

    def store(self) -> None:
        for tenant in sorted(self._moved):
            sequence, last = self._heads[tenant]
            UsageChain.objects.filter(tenant_id=tenant).update(sequence=sequence, hash=last)


def anchors_take(*, now: datetime.datetime) -> int:
    """Keep where each chain stands, once a day (UTC), of those that have grown since. Returns how many were taken.

    An anchor speaks of the day before ``now``; it may hold a few rows that were booked after midnight.
    """
    day = now.astimezone(datetime.UTC).date() - datetime.timedelta(days=1)
    newest = UsageAnchor.objects.filter(tenant_id=OuterRef("tenant_id")).order_by("-sequence")
    # Anchors of several roles that look at the same moment are one: the day is unique.
    grown = (
        UsageChain.objects.filter(sequence__gt=0)
        .annotate(anchored=Subquery(newest.values("sequence")[:1]), last_day=Subquery(newest.values("day")[:1]))
        .filter(Q(last_day=None) | Q(last_day__lt=day, sequence__gt=F("anchored")))
    )
    taken = [
        UsageAnchor(tenant_id=head.tenant_id, day=day, at=now, sequence=head.sequence, hash=head.hash) for head in grown
    ]
    UsageAnchor.objects.bulk_create(taken, ignore_conflicts=True)
    return len(taken)


@transaction.atomic
def chained_delete_old(*, before: datetime.datetime) -> int:
    """Delete the rows that ended before, from the front of each chain up to an anchor. Returns how many."""
    gone = 0
    held: set[uuid.UUID] = set()
    for anchor in UsageAnchor.objects.filter(is_deleted=False, at__lte=before).order_by("at", "tenant_id"):
        rows = UsageRecord.objects.filter(tenant_id=anchor.tenant_id, chain_sequence__lte=anchor.sequence)
        # A row from a clock that was ahead holds those behind it: they go when it does.
        if anchor.tenant_id in held or rows.filter(ended_at__gte=before).exists():
            held.add(anchor.tenant_id)
            continue
        gone += QuerySet(UsageRecord).filter(pk__in=rows.values("pk")).delete()[0]
        UsageAnchor.objects.filter(pk=anchor.pk).update(is_deleted=True)
    return gone


def starts_after(*, tenant_id: uuid.UUID, since: datetime.date | None) -> tuple[int, str]:
    """The place and hash behind which the chain is still there, and holds every row that ended on ``since`` or later.

    (0, ``GENESIS``) for all of it. The anchor of two days before is taken: that of the day before may hold rows of
    ``since`` already.
    """
    anchors = UsageAnchor.objects.filter(tenant_id=tenant_id)
    kept = Q(is_deleted=True)
    if since is not None:
        kept |= Q(day__lte=since - datetime.timedelta(days=2))
    newest = anchors.filter(kept).order_by("-sequence").first()
    return (newest.sequence, newest.hash) if newest else (0, GENESIS)
