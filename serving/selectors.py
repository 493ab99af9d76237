"""Reads of this app that several pages share."""

import uuid
from collections.abc import Iterable

from serving.models import Deployment, Revision


def current_revisions(deployments: Iterable[Deployment]) -> dict[uuid.UUID, Revision]:
    """The revision that each deployment runs, by deployment id: one query. One without a revision is absent."""
    rows = Revision.objects.filter(deployment__in=list(deployments), is_current=True)
    return {row.deployment_id: row for row in rows}


def replicas_at_most(deployment: Deployment) -> int:
    """How many replicas the deployment may have: a pin goes before the maximum, as for the scale loop."""
    if not deployment.is_enabled:
        return 0
    return deployment.max_replicas if deployment.pinned_replicas is None else deployment.pinned_replicas
