"""Hosts that fall silent and hosts that return."""

from __future__ import annotations

import datetime
import logging
import uuid
from collections.abc import Collection
from typing import cast

from django.db import transaction

from capacity.models import Host
from serving.models import Incident, Replica
from serving.policy.lifecycle import State, lose
from serving.services import incident_close, incident_open, replica_transition

log = logging.getLogger(__name__)


@transaction.atomic
def host_lose(*, host: Host, silent_s: float, now: datetime.datetime) -> bool:
    """Mark a silent host as lost. Returns False if somebody moved it first."""
    was = host.state
    if not Host.objects.filter(pk=host.pk, state=was).update(state=Host.State.LOST, state_since=now, updated_at=now):
        return False
    host.state = Host.State.LOST
    incident_open(
        kind=Incident.Kind.HOST_LOST,
        summary=f"host {host.name} is lost: its agent has been silent for {silent_s:.0f} s",
        host_id=host.pk,
        evidence={
            "state_before": was,
            "state_before_since": host.state_since.isoformat(),
            "silent_s": round(silent_s, 1),
        },
        now=now,
    )
    log.warning("host %s is lost: its agent has been silent for %.0f s", host.name, silent_s)
    return True


@transaction.atomic
def host_return(*, host: Host, now: datetime.datetime) -> bool:
    """Take a host back whose agent reports again, as it was: cordoned or draining since then, or active.

    Returns False if somebody moved it first.
    """
    incidents = list(Incident.objects.filter(kind=Incident.Kind.HOST_LOST, host_id=host.pk, closed_at=None))
    seen = incidents[0].evidence if incidents else {}
    state, since = Host.State.ACTIVE, now
    if seen.get("state_before") in (Host.State.CORDONED, Host.State.DRAINING):
        state = Host.State(seen["state_before"])
        since = datetime.datetime.fromisoformat(seen.get("state_before_since", now.isoformat()))
    swapped = Host.objects.filter(pk=host.pk, state=Host.State.LOST).update(
        state=state, state_since=since, updated_at=now
    )
    if not swapped:
        return False
    host.state, host.state_since = state, since
    for incident in incidents:
        gone_s = (now - incident.opened_at).total_seconds()
        incident_close(incident=incident, what=f"its agent reports again after {gone_s:.0f} s", now=now)
    log.info("host %s is back", host.name)
    return True


def hosts_lost_in_a_drain() -> set[uuid.UUID]:
    """Ids of lost hosts that were being drained: they still are, whatever runs on without its agent."""
    lost = Host.objects.filter(state=Host.State.LOST).values("pk")
    incidents = Incident.objects.filter(kind=Incident.Kind.HOST_LOST, closed_at=None, host_id__in=lost)
    drained = incidents.filter(evidence__state_before=Host.State.DRAINING.value)
    return {pk for pk in drained.values_list("host_id", flat=True) if pk is not None}


def host_removed_settle(*, host: Host, now: datetime.datetime) -> int:
    """End what a removed host leaves behind: its replicas, and the incident of its loss. Returns how many replicas."""
    moved = replicas_of_lost_fail(host=host, serving=(), now=now)
    for incident in Incident.objects.filter(kind=Incident.Kind.HOST_LOST, host_id=host.pk, closed_at=None):
        incident_close(incident=incident, what="the host was removed", now=max(now, incident.opened_at))
    # A report that was being applied may have brought one back.
    host.accelerators.all().delete()
    return moved


def replicas_of_lost_fail(*, host: Host, serving: Collection[str], now: datetime.datetime) -> int:
    """Fail over what ran on a lost or removed host; how many replicas moved.

    An engine outlives its agent: replicas whose ids are in ``serving`` have shown life lately and stay in rotation.
    """
    moved = 0
    why = f"{host.name} was removed" if host.removed_at else f"the agent of {host.name} does not report"
    for replica in (
        Replica.objects.filter(host=host)
        .exclude(state__in=(Replica.State.STOPPED, Replica.State.FAILED))
        .select_related("deployment")
    ):
        if str(replica.pk) in serving and replica.state in (Replica.State.READY, Replica.State.DRAINING):
            continue
        if replica.state == Replica.State.PENDING:
            moved += Replica.objects.filter(pk=replica.pk, state=Replica.State.PENDING).update(
                host=None, accelerators=[], reason=f"host {host.name} is lost; looking for another", updated_at=now
            )
            continue
        to = lose(cast(State, replica.state), why=why)
        moved += replica_transition(replica=replica, to=to.state, reason=to.reason, now=now)
    return moved
