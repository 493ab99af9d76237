"""Scaling decisions and incidents."""

import datetime
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

from django.db import transaction
from django.db.models import QuerySet
from django.utils import timezone

from serving.models import Deployment, Incident, Replica, ScalingDecision
from tenants.audit import Actor, audit


@transaction.atomic
def scaling_decision_record(
    *,
    deployment: Deployment,
    before: int,
    after: int,
    reason: str,
    inputs: Mapping[str, Any],
    now: datetime.datetime | None = None,
) -> ScalingDecision | None:
    """Want ``after`` replicas instead of ``before``, and say why. Equal numbers are a sample of an unchanged wish.

    Returns None, and writes nothing, if another loops process changed the wish first.
    """
    at = now or timezone.now()
    if before != after:
        swapped = Deployment.objects.filter(pk=deployment.pk, desired_replicas=before).update(
            desired_replicas=after, updated_at=at
        )
        if not swapped:
            return None
        deployment.desired_replicas = after
    return ScalingDecision.objects.create(
        at=at,
        deployment_id=deployment.pk,
        deployment_name=deployment.name,
        before=before,
        after=after,
        reason=reason[:300],
        inputs=dict(inputs),
    )


@transaction.atomic
def incident_open(
    *,
    kind: str,
    summary: str,
    actor: Actor,
    replica: Replica | None = None,
    host_id: uuid.UUID | None = None,
    deployment: Deployment | None = None,
    evidence: Mapping[str, Any] | None = None,
    timeline: Sequence[Mapping[str, Any]] = (),
    now: datetime.datetime | None = None,
) -> tuple[Incident, bool]:
    """Open an incident, or return the open one of this kind for the replica; the flag says whether it is new.

    Of ``evidence`` and ``timeline`` (entries ``{at, what}``) an open incident takes what it does not have yet.
    """
    at = now or timezone.now()
    about = deployment or (replica.deployment if replica else None)
    fields = {
        "deployment_id": about.pk if about else None,
        "deployment_name": about.name if about else "",
        "host_id": host_id or (replica.host_id if replica else None),
        "opened_at": at,
        "summary": summary[:300],
        "evidence": dict(evidence or {}),
        "timeline": [dict(entry) for entry in timeline] or [{"at": at.timestamp(), "what": summary}],
    }
    if replica is None:
        incident, is_new = Incident.objects.create(kind=kind, **fields), True
    else:
        incident, is_new = Incident.objects.get_or_create(
            kind=kind, replica_id=replica.pk, closed_at=None, defaults=fields
        )
    if is_new:
        audit(actor=actor, action="incident.open", target=incident, after={"kind": kind, "summary": summary})
    else:
        _extend(incident, dict(evidence or {}), [dict(entry) for entry in timeline])
    return incident, is_new


@transaction.atomic
def incident_note(*, incident: Incident, what: str, now: datetime.datetime | None = None, **evidence: Any) -> None:
    """Add a line to the timeline, and what was found out."""
    _extend(incident, evidence, [{"at": (now or timezone.now()).timestamp(), "what": what}])


@transaction.atomic
def incident_close(*, incident: Incident, what: str, actor: Actor, now: datetime.datetime | None = None) -> bool:
    """Close the incident with a last line of its timeline. Returns False if it was closed before."""
    at = now or timezone.now()
    if not Incident.objects.filter(pk=incident.pk, closed_at=None).update(closed_at=at):
        return False
    incident.closed_at = at
    _extend(incident, {}, [{"at": at.timestamp(), "what": what}])
    audit(actor=actor, action="incident.close", target=incident, after={"closed_at": at, "what": what})
    return True


def decisions_delete_old(*, before: datetime.datetime) -> int:
    """Retention: the only way that scaling decisions go. Returns how many."""
    return QuerySet(ScalingDecision).filter(at__lt=before).delete()[0]


def _extend(incident: Incident, evidence: dict[str, Any], timeline: list[dict[str, Any]]) -> None:
    """Read and write under the row's lock: the touch makes two writers take turns."""
    Incident.objects.filter(pk=incident.pk).update(summary=incident.summary)
    stored = Incident.objects.get(pk=incident.pk)
    incident.evidence = {**stored.evidence, **evidence}
    incident.timeline = [*stored.timeline, *(entry for entry in timeline if entry not in stored.timeline)]
    Incident.objects.filter(pk=incident.pk).update(evidence=incident.evidence, timeline=incident.timeline)
