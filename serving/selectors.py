"""Reads of this app with joins: what there is now of each deployment."""

import datetime
import uuid
from dataclasses import dataclass

from django.db.models import Count, Prefetch, Q, QuerySet, Sum
from django.db.models.functions import Coalesce

from capacity.selectors import profiles_in_force, sold_mu_per_min, used_mu_per_min
from serving.models import Deployment, ProviderCredential, Replica, Revision
from tenants.crypto import decrypt


@dataclass(frozen=True, slots=True)
class DeploymentCapacity:
    """Replicas and MU/min of one deployment. MU of different pools are different goods: never add them up.

    ``have``: ready replicas; ``could_have``: at the maximum of replicas; ``used``: mean of the last complete minutes.
    """

    deployment: Deployment
    ready: int
    starting: int
    failed: int
    have_mu_per_min: float
    could_have_mu_per_min: float
    used_mu_per_min: float


@dataclass(frozen=True, slots=True)
class PoolCapacity:
    """The same of one pool, and what of it is sold."""

    pool_id: uuid.UUID
    have_mu_per_min: float
    could_have_mu_per_min: float
    sold_mu_per_min: float
    used_mu_per_min: float


def deployments_with_current() -> QuerySet[Deployment]:
    """Deployments with pool and model joined and the current revision prefetched into ``current_revisions``."""
    current = Prefetch("revisions", Revision.objects.filter(is_current=True), to_attr="current_revisions")
    return Deployment.objects.select_related("pool__model").prefetch_related(current)


def capacity_by_deployment(*, now: datetime.datetime, minutes: int = 1) -> list[DeploymentCapacity]:
    """Every deployment's capacity in a fixed number of queries."""
    state = Replica.State
    rows = deployments_with_current().annotate(
        ready=Count("replicas", filter=Q(replicas__state=state.READY)),
        starting=Count("replicas", filter=Q(replicas__state__in=(state.PENDING, state.STARTING))),
        failed=Count("replicas", filter=Q(replicas__state=state.FAILED)),
        have=Coalesce(Sum("replicas__supply_mu_per_min", filter=Q(replicas__state=state.READY)), 0.0),
    )
    profiles = profiles_in_force(at=now)
    used = used_mu_per_min(now=now, minutes=minutes)
    return [
        DeploymentCapacity(
            deployment=row,
            ready=row.ready,
            starting=row.starting,
            failed=row.failed,
            have_mu_per_min=row.have,
            could_have_mu_per_min=_could_have(row, profiles[row.pool_id].replica_mu_per_min)
            if row.pool_id in profiles
            else row.have,
            used_mu_per_min=used.get(row.pk, 0.0),
        )
        for row in rows
    ]


def capacity_by_pool(*, now: datetime.datetime, minutes: int = 1) -> list[PoolCapacity]:
    """Every pool that has a deployment."""
    sold = sold_mu_per_min(at=now)
    pools: dict[uuid.UUID, list[DeploymentCapacity]] = {}
    for row in capacity_by_deployment(now=now, minutes=minutes):
        pools.setdefault(row.deployment.pool_id, []).append(row)
    return [
        PoolCapacity(
            pool_id=pool_id,
            have_mu_per_min=sum(row.have_mu_per_min for row in rows),
            could_have_mu_per_min=sum(row.could_have_mu_per_min for row in rows),
            sold_mu_per_min=sold.get(pool_id, 0.0),
            used_mu_per_min=sum(row.used_mu_per_min for row in rows),
        )
        for pool_id, rows in pools.items()
    ]


def provider_secret(credential: ProviderCredential) -> str:
    """The credential's secret, for the machinery that calls the provider; never for a page. Raises DecryptionError."""
    return decrypt(credential.secret).decode()


def _could_have(deployment: Deployment, replica_mu_per_min: float) -> float:
    if not deployment.is_enabled:
        return 0.0
    replicas = deployment.pinned_replicas if deployment.pinned_replicas is not None else deployment.max_replicas
    return replicas * replica_mu_per_min
