"""The change log of the snapshot: services say what changed, the publisher (registered by a higher layer) tells it."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from typing import Literal

from django.db import transaction

from tenants.models import Change

Kind = Literal["tenant", "key", "pool", "deployment", "replica", "reservation"]

on_commit_hooks: list[Callable[[], None]] = []
"""Called after a commit that recorded changes, once per recorded change; they must not raise."""


def record_change(*, kind: Kind, object_id: uuid.UUID | str) -> None:
    """Say that the record of ``object_id`` must be published anew. Call it in the transaction of the change.

    A limit is a change of its key, or of its tenant. A deleted object is recorded just the same.
    """
    Change.objects.create(kind=kind, object_id=object_id)
    for hook in on_commit_hooks:
        transaction.on_commit(hook, robust=True)
