"""What each replica supplies follows its pool's price in force, and what was measured on its host's hardware."""

import datetime
import math
import uuid

from django.db import transaction

from capacity.models import ReplicaSupply
from capacity.selectors import HOLDING, profiles_in_force
from serving.measuring import supply_in_force
from serving.models import Replica
from tenants.changes import record_change


def supplies_refresh(*, now: datetime.datetime, pool_id: uuid.UUID | None = None) -> int:
    """Bring the supply of all replicas, or of a pool's, up to date. Safe to repeat. Returns how many changed."""
    profiles = profiles_in_force(at=now)
    measured = {(row.pool_id, row.hardware_type_id): row for row in ReplicaSupply.objects.all()}
    rows = Replica.objects.filter(state__in=HOLDING, host__isnull=False).select_related("deployment", "host")
    if pool_id is not None:
        rows = rows.filter(deployment__pool=pool_id)
    changed = 0
    for replica in rows:
        profile = profiles.get(replica.deployment.pool_id)
        if profile is None or replica.host is None:
            continue
        supply = measured.get((profile.pool_id, replica.host.hardware_type_id))
        is_own = replica.host.hardware_type_id == profile.hardware_type_id
        wanted = supply_in_force(profile, None if is_own else supply)
        if math.isclose(wanted, replica.supply_mu_per_min, rel_tol=1e-9):
            continue
        changed += _set(replica, wanted, now=now)
    return changed


@transaction.atomic
def _set(replica: Replica, wanted: float, *, now: datetime.datetime) -> bool:
    rows = Replica.objects.filter(pk=replica.pk, supply_mu_per_min=replica.supply_mu_per_min)
    if not rows.update(supply_mu_per_min=wanted, updated_at=now):
        return False
    record_change(kind="replica", object_id=replica.pk)
    return True
