"""Measured supplies: what replicas of a pool supply on hardware that is not the pool's reference."""

import datetime
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

from django.db import transaction
from django.utils import timezone

from capacity.models import HardwareType, Pool, ReplicaSupply
from capacity.services.pools import bump
from tenants.audit import Actor, audit, state_of


@transaction.atomic
def replica_supply_set(
    *,
    pool: Pool,
    hardware_type: HardwareType,
    requests_per_min: float,
    mix: Sequence[Mapping[str, Any]],
    actor: Actor,
    calibration_id: uuid.UUID | None = None,
    now: datetime.datetime | None = None,
) -> ReplicaSupply:
    """Keep the knee of a replica of ``pool`` on ``hardware_type``, in requests/min of ``mix``; an earlier one goes.

    Raises ValidationError by field.
    """
    # The bump comes first: two who set it at once take turns on the pool's row, and whoever sells sees the new supply.
    bump(pool)
    row = ReplicaSupply.objects.filter(pool=pool, hardware_type=hardware_type).first()
    before = state_of(row) if row else None
    row = row or ReplicaSupply(pool=pool, hardware_type=hardware_type)
    row.requests_per_min = requests_per_min
    row.mix = [dict(shape) for shape in mix]
    row.calibration_id = calibration_id
    row.adopted_at = now or timezone.now()
    row.full_clean()
    row.save()
    audit(actor=actor, action="replica_supply.set", target=row, before=before, after=state_of(row))
    return row
