"""The cost profile that is in force, as the loops need it."""

import datetime
import uuid

from capacity.models import CostProfile


def current_profile(pool_id: uuid.UUID, *, at: datetime.datetime) -> CostProfile | None:
    """The pool's profile in force at ``at``; None when it has no price yet."""
    return (
        CostProfile.objects.filter(pool=pool_id, effective_from__lte=at)
        .select_related("hardware_type")
        .order_by("-effective_from", "-version")
        .first()
    )
