"""Reconcile, every 2 s: from what is wanted to what runs, level-triggered. Safe to repeat, safe to run twice.

Silent hosts are lost and returning ones taken back; replicas are made, placed, drained and stopped; orders go out;
incidents close when a replacement serves.
"""

import datetime
import logging
import uuid
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import redis
from django.conf import settings
from django.db import transaction
from django.db.models import Q, QuerySet

from capacity.models import Host
from capacity.selectors import profiles_in_force
from penstock.loops.dispatch import farewell, orders_send
from penstock.loops.in_flight import METRICS_FRESH_S, Load, loads_by_replica
from penstock.loops.isolation import isolated
from penstock.loops.placing import Profiles, place_pending, would_fit
from serving.agents.hosts import (
    host_lose,
    host_removed_settle,
    host_return,
    hosts_lost_in_a_drain,
    replicas_of_lost_fail,
)
from serving.gateway.loads import read_beats
from serving.gateway.state import policy_state_read, policy_state_write, replica_ring, ring_read_many
from serving.models import Deployment, Incident, Replica, Revision
from serving.policy import lifecycle
from serving.policy import replicas as policy
from serving.services import incident_close, incident_open, replica_create, replica_transition

log = logging.getLogger(__name__)

_LOOP = "reconcile"
_GAP_S = 6.0
"""Between two ticks: when the loops slept for longer, silent hosts get their time anew."""
_DRAIN_SETTLE_S = 2.0
"""Gateways need a moment to learn that a replica drains; until then an idle one may still get a request."""
_STOP_LIMIT_S = 60.0
_PROOF_S = 20.0
"""A token or answer this recent proves that an engine serves, though its agent is silent."""
_FAILURES_READ = 50
_BROKEN = (Incident.Kind.HANG, Incident.Kind.CRASH, Incident.Kind.START_FAILED)
_WANTS = ("is_enabled", "min_replicas", "max_replicas", "desired_replicas", "pinned_replicas", "retry_attempt")
PATIENCE = policy.Patience()
_LIVE_OR_HELD = Q(state__in=tuple(lifecycle.LIVE)) | Q(calibration_id__isnull=False)
"""What counts towards what is wanted: also what is measured, and then comes back."""


@dataclass(slots=True)
class Tick:
    """One pass. ``moved`` counts replicas that changed state; ``has_gateways``: at least one tells what it does.

    ``profiles``: the prices in force, asked for once. ``lost_in_a_drain``: ids of the hosts that were lost while they
    were being drained.
    """

    client: redis.Redis
    now: float
    profiles: Profiles
    has_gateways: bool = True
    loads: dict[str, Load] = field(default_factory=dict)
    lost_in_a_drain: Collection[uuid.UUID] = ()
    moved: int = 0

    @property
    def at(self) -> datetime.datetime:
        return datetime.datetime.fromtimestamp(self.now, datetime.UTC)


def reconcile(client: redis.Redis, *, now: float) -> int:
    """One pass over hosts, deployments, placements and orders; how many replicas moved. ``now``: UNIX seconds."""
    beats = read_beats(client)
    profiles = profiles_in_force(at=datetime.datetime.fromtimestamp(now, datetime.UTC))
    tick = Tick(client, now, profiles, has_gateways=bool(beats), loads=loads_by_replica(beats))
    _check_hosts(tick)
    tick.lost_in_a_drain = hosts_lost_in_a_drain()
    _settle_removed(tick)
    for deployment in _to_reconcile():
        with isolated(f"the reconciliation of {deployment}"):
            _reconcile_deployment(tick, deployment)
    _end_drains(tick)
    tick.moved += place_pending(profiles=profiles, now=tick.at)
    for host in Host.objects.all():
        with isolated(f"the orders of host {host}"):
            orders_send(host, client=client, now=tick.at)
    _close_incidents(tick)
    return tick.moved


def _to_reconcile() -> QuerySet[Deployment]:
    """What is served, and what was removed while it had replicas: they drain as those of a disabled one."""
    left = Replica.objects.filter(state__in=tuple(lifecycle.LIVE)).values("deployment")
    return Deployment.everything.filter(Q(removed_at=None) | Q(pk__in=left)).select_related("pool__model")


def _check_hosts(tick: Tick) -> None:
    """Lose silent hosts, take back those that report. The clock of their silence stands still while no loop runs."""
    stored = policy_state_read(tick.client, _LOOP, "clock") or {}
    is_gap = not 0.0 <= tick.now - float(stored.get("at", 0.0)) <= _GAP_S
    since = tick.now if is_gap else float(stored.get("since", tick.now))
    policy_state_write(tick.client, _LOOP, "clock", {"at": tick.now, "since": since})
    for host in Host.objects.exclude(last_report_at=None):
        with isolated(f"the check of host {host}"):
            _check_host(tick, host, since=since)


def _check_host(tick: Tick, host: Host, *, since: float) -> None:
    reported = host.last_report_at.timestamp() if host.last_report_at else 0.0
    if tick.now - reported <= settings.PENSTOCK_HOST_LOST_S:
        if host.state == Host.State.LOST:
            host_return(host=host, now=tick.at)
        return
    if tick.now - since <= settings.PENSTOCK_HOST_LOST_S:
        return
    if host.state != Host.State.LOST:
        host_lose(host=host, silent_s=tick.now - reported, now=tick.at)
    if host.state == Host.State.LOST:
        tick.moved += replicas_of_lost_fail(host=host, serving=_proven(tick, host), now=tick.at)


def _settle_removed(tick: Tick) -> None:
    """Hosts that were removed and not yet told: what they held is failed over, their agents are to stop everything."""
    for host in Host.everything.exclude(removed_at=None).exclude(secret=b""):
        with isolated(f"the end of host {host}"):
            tick.moved += host_removed_settle(host=host, now=tick.at)
            farewell(host, client=tick.client, now=tick.at)


def _proven(tick: Tick, host: Host) -> Collection[str]:
    """Replicas of a silent host that showed life lately, to a gateway or to a probe."""
    proven = set()
    serving = Replica.objects.filter(host=host, state__in=(Replica.State.READY, Replica.State.DRAINING))
    for replica_id in map(str, serving.values_list("pk", flat=True)):
        memory = policy_state_read(tick.client, "probe", replica_id) or {}
        signs = [memory.get("progressed_at"), tick.loads.get(replica_id, Load()).alive_at]
        if any(sign and tick.now - sign <= _PROOF_S for sign in signs):
            proven.add(replica_id)
    return proven


def _reconcile_deployment(tick: Tick, deployment: Deployment) -> None:
    revision = deployment.revisions.filter(is_current=True).first()
    if revision is None:
        return
    rows = {
        str(replica.pk): replica
        for replica in deployment.replicas.filter(_LIVE_OR_HELD).select_related(
            "deployment__pool__model", "revision", "host"
        )
    }
    alive = [_alive(tick, replica, revision) for replica in rows.values()]
    alive, leaving = _room_made(tick, deployment, alive, rows)
    plan = policy.plan(
        policy.Want(
            enabled=deployment.is_enabled,
            minimum=deployment.min_replicas,
            maximum=deployment.max_replicas,
            desired=deployment.desired_replicas,
            pinned=deployment.pinned_replicas,
        ),
        alive,
        failures(deployment, revision),
        now=tick.now,
        last_stable_at=_last_stable_at(rows.values(), tick.now),
        leaving=leaving,
        patience=PATIENCE,
    )
    for removal in plan.remove:
        tick.moved += _remove(rows[removal.id], removal, now=tick.at)
    if plan.create:
        tick.moved += _create(tick, deployment, revision, plan)
    if plan.gave_up:
        _open_crash_loop(deployment, plan, now=tick.at)
    _explain(tick, deployment, plan)
    _explain_evicted(rows.values(), plan, now=tick.at)


def _alive(tick: Tick, replica: Replica, revision: Revision) -> policy.Alive:
    is_held = replica.calibration_id is not None
    state: Any = Replica.State.READY if is_held else replica.state
    is_drained = replica.host is not None and replica.host.state == Host.State.DRAINING
    return policy.Alive(
        id=str(replica.pk),
        state=state,
        is_current=replica.revision_id == revision.pk,
        placed=replica.host_id is not None,
        created_at=replica.created_at.timestamp(),
        in_flight_mu=tick.loads.get(str(replica.pk), Load()).mu,
        evicted=is_drained or replica.host_id in tick.lost_in_a_drain,
        held=is_held,
    )


def _room_made(
    tick: Tick, deployment: Deployment, alive: list[policy.Alive], rows: Mapping[str, Replica]
) -> tuple[list[policy.Alive], int]:
    """``alive`` with who could make room for a newer one that found no host, and how many are leaving already."""
    waiting = policy.looking_for_room(alive, now=tick.now, patience=PATIENCE)
    if not waiting or all(each.is_current for each in alive):
        return alive, 0
    newer = rows[waiting[0].id]
    if would_fit(newer, profiles=tick.profiles, now=tick.at):
        return alive, 0  # Room has been made: it is placed later in this pass.

    def makes_room(older: policy.Alive) -> bool:
        return would_fit(newer, without=rows[older.id], profiles=tick.profiles, now=tick.at)

    marked = [each if each.is_current else replace(each, makes_room=makes_room(each)) for each in alive]
    leaving = deployment.replicas.filter(state__in=(Replica.State.DRAINING, Replica.State.STOPPING))
    return marked, leaving.filter(calibration_id=None).count()


def failures(deployment: Deployment, revision: Revision) -> Iterator[policy.Failure]:
    """What broke under the current revision since the last retry. A lost host is not the replica's failure.

    Lazy: a deployment that has what it wants asks nothing.
    """
    attempts = {
        replica.pk: replica
        for replica in Replica.objects.filter(
            deployment=deployment, revision=revision, attempt__gte=deployment.retry_attempt
        ).only("pk", "ready_at")
    }
    incidents = Incident.objects.filter(deployment_id=deployment.pk, kind__in=_BROKEN, replica_id__isnull=False)
    for incident in incidents.order_by("-opened_at")[:_FAILURES_READ]:
        replica = attempts.get(incident.replica_id) if incident.replica_id else None
        if replica is not None:
            served_s = (incident.opened_at - replica.ready_at).total_seconds() if replica.ready_at else 0.0
            yield policy.Failure(incident.opened_at.timestamp(), incident.summary, max(0.0, served_s))


def _last_stable_at(replicas: Collection[Replica], now: float) -> float | None:
    """When a replica that still serves had served for long enough to count as proof that launches work."""
    stable = [
        replica.ready_at.timestamp() + PATIENCE.stable_s
        for replica in replicas
        if replica.state == Replica.State.READY and replica.ready_at is not None
    ]
    return max((at for at in stable if at <= now), default=None)


def _remove(replica: Replica, removal: policy.Removal, *, now: datetime.datetime) -> bool:
    if removal.drain:
        to = Replica.State.DRAINING
    else:
        to = Replica.State.STOPPED if replica.host_id is None else Replica.State.STOPPING
    return replica_transition(replica=replica, to=to, reason=removal.reason, now=now)


@transaction.atomic
def _create(tick: Tick, deployment: Deployment, revision: Revision, plan: policy.Plan) -> int:
    """Make what the plan misses; how many.

    Two passes may overlap and miss the same replicas: the second waits here, and counts what the first has made.
    """
    try:
        stored = deployment.take_turn()
    except Deployment.DoesNotExist:
        return 0  # It was removed meanwhile.
    if any(getattr(stored, name) != getattr(deployment, name) for name in _WANTS):
        return 0  # Somebody wants something else by now: the next pass plans anew.
    there = deployment.replicas.filter(_LIVE_OR_HELD, revision=revision)
    there = there.exclude(host__state=Host.State.DRAINING).exclude(host__in=tick.lost_in_a_drain)
    profile = tick.profiles.get(deployment.pool_id)
    missing = max(0, min(plan.create, plan.target - there.count()))
    for _ in range(missing):
        replica_create(
            deployment=deployment,
            revision=revision,
            reason=plan.reason,
            supply_mu_per_min=profile.replica_mu_per_min if profile else 100.0,
            attempt=deployment.retry_attempt,
            now=tick.at,
        )
    return missing


def _open_crash_loop(deployment: Deployment, plan: policy.Plan, *, now: datetime.datetime) -> None:
    is_open = Incident.objects.filter(
        deployment_id=deployment.pk, kind=Incident.Kind.START_FAILED, replica_id=None, closed_at=None
    ).exists()
    if not is_open:
        incident_open(
            kind=Incident.Kind.START_FAILED,
            summary=f"{deployment}: {plan.reason}",
            deployment=deployment,
            now=now,
        )
        log.error("%s: %s", deployment, plan.reason)


def _explain(tick: Tick, deployment: Deployment, plan: policy.Plan) -> None:
    """Say for pages and people what this deployment waits for."""
    value = {
        "at": tick.now,
        "target": plan.target,
        "reason": plan.reason,
        "wait_until": plan.wait_until,
        "gave_up": plan.gave_up,
    }
    policy_state_write(tick.client, _LOOP, str(deployment.pk), value)


def _explain_evicted(replicas: Collection[Replica], plan: policy.Plan, *, now: datetime.datetime) -> None:
    """Say of each replica on a host that is being drained why it serves on; of one whose drain was taken back nothing.

    A reason is no change of state: nobody but people reads it.
    """
    for replica in replicas:
        reason = plan.kept.get(str(replica.pk), "")
        if not reason and (replica.state != Replica.State.READY or not replica.reason.startswith(policy.EVICTED)):
            continue
        if replica.reason != (reason := reason[:500] or "the engine answers"):
            Replica.objects.filter(pk=replica.pk, state=replica.state).update(reason=reason, updated_at=now)


def _end_drains(tick: Tick) -> None:
    # What drains to be measured is seen to by its calibration.
    leaving = Replica.objects.filter(state=Replica.State.DRAINING, calibration_id=None)
    draining = list(leaving.select_related("deployment"))
    rings = ring_read_many(tick.client, [replica_ring(str(replica.pk)) for replica in draining], 1) if draining else {}
    for replica in draining:
        with isolated(f"the drain of {replica}"):
            _end_drain(tick, replica, rings[replica_ring(str(replica.pk))])
    # An engine that does not stop when asked is not asked again.
    late = tick.at - datetime.timedelta(seconds=_STOP_LIMIT_S)
    Replica.objects.filter(state=Replica.State.STOPPING, kill=False, state_since__lt=late).update(
        kill=True, updated_at=tick.at
    )


def _end_drain(tick: Tick, replica: Replica, metrics: Sequence[Mapping[str, Any]]) -> None:
    age_s = tick.now - replica.state_since.timestamp()
    if age_s < _DRAIN_SETTLE_S:
        return
    is_fresh = bool(metrics) and abs(tick.now - metrics[0]["at"]) <= METRICS_FRESH_S
    after = lifecycle.next_state(
        "draining",
        "draining",
        "drain",
        in_flight=tick.loads.get(str(replica.pk), Load()).requests if tick.has_gateways else None,
        in_engine=metrics[0].get("running", 0.0) + metrics[0].get("waiting", 0.0) if is_fresh else None,
        state_age_s=age_s,
        drain_s=settings.PENSTOCK_DRAIN_LIMIT_S,
    )
    if after.is_change:
        tick.moved += replica_transition(replica=replica, to=after.state, reason=after.reason, now=tick.at)


def _close_incidents(tick: Tick) -> None:
    """Close what has recovered: a replacement became ready, or as many replicas serve as are wanted."""
    incidents = list(Incident.objects.filter(kind__in=_BROKEN, closed_at=None, deployment_id__isnull=False))
    deployments = Deployment.objects.in_bulk([i.deployment_id for i in incidents if i.deployment_id])
    for incident in incidents:
        with isolated(f"the end of the incident {incident}"):
            _close_incident(tick, incident, deployments.get(incident.deployment_id) if incident.deployment_id else None)


def _close_incident(tick: Tick, incident: Incident, deployment: Deployment | None) -> None:
    # A report may have opened it while this pass was under way.
    now = max(tick.at, incident.opened_at)
    if deployment is None or not deployment.is_enabled:
        incident_close(incident=incident, what="the deployment is not served any more", now=now)
        return
    ready = list(deployment.replicas.filter(state=Replica.State.READY, ready_at__isnull=False))
    newer = [r.ready_at for r in ready if r.ready_at and r.ready_at > incident.opened_at]
    stored = policy_state_read(tick.client, _LOOP, str(deployment.pk)) or {}
    if newer:
        at = min(newer)
        took_s = (at - incident.opened_at).total_seconds()
        incident_close(incident=incident, what=f"serving again after {took_s:.1f} s", now=at)
    elif len(ready) >= int(stored.get("target", 1)):
        incident_close(incident=incident, what="as many replicas serve as are wanted", now=now)
