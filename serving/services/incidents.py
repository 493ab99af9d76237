"""Incidents: opened once per replica and kind, extended while open, closed once."""

import datetime
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

from django.db import transaction
from django.utils import timezone

from serving.models import Deployment, Incident, Replica
from tenants.audit import Actor, audit

LOOPS = "loops"


@transaction.atomic
def incident_open(
    *,
    kind: str,
    summary: str,
    actor: Actor = LOOPS,
    replica: Replica | None = None,
    host_id: uuid.UUID | None = None,
    deployment: Deployment | None = None,
    evidence: Mapping[str, Any] | None = None,
    timeline: Sequence[Mapping[str, Any]] = (),
    now: datetime.datetime | None = None,
) -> Incident:
    """Open an incident, or return the open one of this kind for the replica, with what is new added to it.

    ``timeline`` holds entries ``{at, what}`` with UNIX seconds; without it, it begins with ``summary``.
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
        "timeline": [dict(entry) for entry in timeline] or [_entry(at, summary)],
    }
    if replica is None:
        incident, is_new = Incident.objects.create(kind=kind, **fields), True
    else:
        # The unique constraint on open incidents decides between two who open at once.
        incident, is_new = Incident.objects.get_or_create(
            kind=kind, replica_id=replica.pk, closed_at=None, defaults=fields
        )
    if is_new:
        audit(actor=actor, action="incident.open", target=incident, after={"kind": kind, "summary": summary})
    else:
        _extend(incident, dict(evidence or {}), [dict(entry) for entry in timeline])
    return incident


@transaction.atomic
def incident_evidence_add(
    *, incident: Incident, evidence: Mapping[str, Any], what: str = "", now: datetime.datetime | None = None
) -> Incident:
    """Add evidence, and ``what`` happened to the timeline. Evidence of the same name is replaced."""
    _extend(incident, dict(evidence), [_entry(now or timezone.now(), what)] if what else [])
    return incident


@transaction.atomic
def incident_close(
    *, incident: Incident, what: str, actor: Actor = LOOPS, now: datetime.datetime | None = None
) -> bool:
    """Close the incident with a last line of its timeline. Returns False if it was closed before."""
    at = now or timezone.now()
    if not Incident.objects.filter(pk=incident.pk, closed_at=None).update(closed_at=at):
        return False
    incident.closed_at = at
    _extend(incident, {}, [_entry(at, what)])
    audit(actor=actor, action="incident.close", target=incident, after={"closed_at": at, "what": what})
    return True


def _entry(at: datetime.datetime, what: str) -> dict[str, Any]:
    return {"at": at.timestamp(), "what": what}


def _extend(incident: Incident, evidence: dict[str, Any], timeline: list[dict[str, Any]]) -> None:
    """The first update locks the row, so that of two writers each sees what the other added."""
    Incident.objects.filter(pk=incident.pk).update(summary=incident.summary)
    stored = Incident.objects.get(pk=incident.pk)
    incident.evidence = {**stored.evidence, **evidence}
    incident.timeline = [*stored.timeline, *(entry for entry in timeline if entry not in stored.timeline)]
    Incident.objects.filter(pk=incident.pk).update(evidence=incident.evidence, timeline=incident.timeline)
