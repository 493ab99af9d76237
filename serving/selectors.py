"""Reads of this app that several pages share."""

import uuid
from collections.abc import Iterable

from serving.models import Deployment, Revision
from tenants.models import ApiKey, Limit


def current_revisions(deployments: Iterable[Deployment]) -> dict[uuid.UUID, Revision]:
    """The revision that each deployment runs, by deployment id: one query. One without a revision is absent."""
    rows = Revision.objects.filter(deployment__in=list(deployments), is_current=True)
    return {row.deployment_id: row for row in rows}


def named_by(name: str) -> tuple[int, int]:
    """How many keys that are not revoked, and how many limits, name what clients send as model."""
    held = ApiKey.objects.filter(revoked_at=None).exclude(models_allowed=[]).values_list("models_allowed", flat=True)
    return sum(name in allowed for allowed in held.iterator()), Limit.objects.filter(model=name).count()


def replicas_at_most(deployment: Deployment) -> int:
    """How many replicas the deployment may have: a pin goes before the maximum, as for the scale loop."""
    if not deployment.is_enabled:
        return 0
    return deployment.max_replicas if deployment.pinned_replicas is None else deployment.pinned_replicas
