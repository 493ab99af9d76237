"""Accelerators across pools: how many of each kind there are, how many replicas hold, and how many are sold."""

from __future__ import annotations

import datetime
import uuid
from collections import defaultdict
from dataclasses import dataclass

from capacity.models import Accelerator, HardwareType, Host
from capacity.promises import terms_sold
from capacity.selectors import HOLDING, profiles_in_force
from penstock.loops.placing import need_of
from serving.models import Replica, Revision
from serving.options import placement_errors
from serving.selectors import replicas_at_most


@dataclass(frozen=True, slots=True)
class Kind:
    """Accelerators of one hardware type. ``have``: healthy ones of hosts that are not lost; ``used``: those that
    replicas hold; ``sold``: as many as supply what is sold on the pools' own hardware, without a spare, in parts.
    """

    hardware: HardwareType
    have: int
    used: int
    sold: float

    @property
    def free(self) -> int:
        return max(0, self.have - self.used)


def count_accelerators(*, now: datetime.datetime) -> list[Kind]:
    """Every hardware type of which there is an accelerator, or one is sold, by name: a fixed number of queries."""
    there = Accelerator.objects.filter(host__removed_at=None).exclude(host__state=Host.State.LOST)
    have: dict[uuid.UUID, int] = defaultdict(int)
    known: dict[tuple[uuid.UUID, int], uuid.UUID] = {}
    for host_id, index, is_healthy, hardware_id in there.values_list(
        "host_id", "index", "is_healthy", "host__hardware_type_id"
    ):
        have[hardware_id] += is_healthy
        known[host_id, index] = hardware_id
    held = Replica.objects.filter(state__in=HOLDING, host__isnull=False).values_list("host_id", "accelerators")
    taken = {(host_id, index) for host_id, indexes in held for index in indexes}
    used: dict[uuid.UUID, int] = defaultdict(int)
    for place in taken & known.keys():
        used[known[place]] += 1
    sold = _sold(now=now)
    kinds = HardwareType.objects.filter(pk__in={*have, *sold}).order_by("name")
    return [Kind(row, have[row.pk], used[row.pk], sold.get(row.pk, 0.0)) for row in kinds]


def _sold(*, now: datetime.datetime) -> dict[uuid.UUID, float]:
    """Accelerators that supply what is sold now, by the hardware type of each pool's price.

    A pool's deployments share what is sold of it by how many replicas they may have, as for the scale loop.
    """
    profiles, sold = profiles_in_force(at=now), terms_sold(at=now)
    current = Revision.objects.filter(
        is_current=True, deployment__removed_at=None, deployment__is_enabled=True, deployment__pool__in=sold
    ).select_related("deployment__pool__model")
    serving: dict[uuid.UUID, list[Revision]] = defaultdict(list)
    for revision in current:
        if revision.deployment.pool_id in profiles and not placement_errors(revision.options):
            serving[revision.deployment.pool_id].append(revision)
    found: dict[uuid.UUID, float] = defaultdict(float)
    for pool_id, revisions in serving.items():
        profile = profiles[pool_id]
        replicas = sum(term.at(now.timestamp()) for term in sold[pool_id]) / profile.replica_mu_per_min
        most = sum(replicas_at_most(one.deployment) for one in revisions)
        for one in revisions:
            need = need_of(Replica(deployment=one.deployment, revision=one), profile)
            if need.accelerators and replicas:
                share = replicas_at_most(one.deployment) / most if most else 1.0 / len(revisions)
                found[profile.hardware_type_id] += replicas * share * need.accelerators
    return dict(found)
