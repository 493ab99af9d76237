"""Shared by all apps' models: time-ordered identifiers and explicit times."""

import uuid

import uuid_utils.compat
from django.db import models
from django.utils import timezone


def uuid7() -> uuid.UUID:
    """A new UUIDv7: random, and ordered by the time it was made (RFC 9562)."""
    return uuid_utils.compat.uuid7()


class Identified(models.Model):
    """A row with a UUIDv7 key and the times of its making and last change.

    ``updated_at`` is set by ``save()``; ``QuerySet.update()`` does not move it: set it explicitly there.
    """

    id = models.UUIDField(primary_key=True, default=uuid7, editable=False)
    created_at = models.DateTimeField(default=timezone.now, editable=False)
    updated_at = models.DateTimeField(auto_now=True, editable=False)

    class Meta:
        abstract = True
