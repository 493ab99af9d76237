"""Scaling decisions: written by the scale loop, kept until retention."""

import datetime
from collections.abc import Mapping
from typing import Any

from django.db.models import QuerySet
from django.utils import timezone

from serving.models import Deployment, ScalingDecision


def scaling_decision_record(
    *,
    deployment: Deployment,
    before: int,
    after: int,
    reason: str,
    inputs: Mapping[str, Any],
    now: datetime.datetime | None = None,
) -> ScalingDecision:
    """Keep a decision, in the transaction that swapped ``desired_replicas`` from ``before`` to ``after``.

    Equal numbers are a sample of an unchanged wish.
    """
    return ScalingDecision.objects.create(
        at=now or timezone.now(),
        deployment_id=deployment.pk,
        deployment_name=deployment.name,
        before=before,
        after=after,
        reason=reason[:300],
        inputs=dict(inputs),
    )


def decisions_delete_old(*, before: datetime.datetime) -> int:
    """Retention: the only way that scaling decisions go. Returns how many."""
    return QuerySet(ScalingDecision).filter(at__lt=before).delete()[0]
