"""Scale, every 5 s: what was offered lately becomes the number of replicas wanted, by ``capacity.policy.autoscale``."""

import datetime
import json
import logging
from collections.abc import Sequence
from typing import Any

import redis
from django.db import transaction
from django.db.models import Count, Q

from capacity.models import CostProfile
from capacity.policy import autoscale
from capacity.selectors import profile_in_force
from penstock.loops.isolation import isolated
from penstock.loops.promises import Floor, Promises, tell_short, tell_unserved
from penstock.loops.timetable import TIMETABLE
from serving.gateway.state import deployment_ring, policy_state_read, policy_state_write, ring_read_many
from serving.models import Deployment, Replica
from serving.services import scaling_decision_record

log = logging.getLogger(__name__)

_LOOP = "scale"
_LOOK_BACK_S = 300
"""Ring samples read: the mean request of the last minutes."""
_STALE_S = 10.0
_SAMPLE_EVERY_S = 60.0
_ENOUGH_REQUESTS = 20
_GRACE_PER_COLD_START = 15.0


def scale(client: redis.Redis, *, now: float) -> int:
    """Decide for every enabled deployment; how many of them changed. ``now`` is UNIX seconds."""
    states = Replica.State
    deployments = list(
        Deployment.objects.filter(is_enabled=True)
        .select_related("pool")
        .annotate(
            ready=Count("replicas", filter=Q(replicas__state=states.READY)),
            starting=Count("replicas", filter=Q(replicas__state__in=(states.PENDING, states.STARTING))),
        )
    )
    rings = ring_read_many(client, [deployment_ring(str(d.id)) for d in deployments], _LOOK_BACK_S)
    promises = Promises(deployments, now=now)
    with isolated("the look for what is sold and not served"):
        tell_unserved(deployments, promises, now=datetime.datetime.fromtimestamp(now, datetime.UTC))
    changed = 0
    for deployment in deployments:
        with isolated(f"the scaling of {deployment}"):
            samples = rings[deployment_ring(str(deployment.id))]
            if samples and now - samples[0]["at"] <= _STALE_S:
                changed += _scale_one(client, deployment, samples, promises, now=now)
    return changed


def _scale_one(
    client: redis.Redis, deployment: Any, samples: Sequence[dict[str, Any]], promises: Promises, *, now: float
) -> bool:
    at = datetime.datetime.fromtimestamp(now, datetime.UTC)
    profile = profile_in_force(pool_id=deployment.pool_id, at=at)
    if profile is None:
        return False
    stored = policy_state_read(client, _LOOP, str(deployment.id)) or {}
    state = _state(stored.get("state"))
    seen = observation(deployment, profile, samples, last_at=state.last_at, now=now)
    configured = config(deployment, profile, promises.floor(deployment, profile))
    tell_short(deployment, configured, now=at)
    state, decision = autoscale.decide(configured, state, seen)
    before, after = deployment.desired_replicas, decision.replicas
    recorded_at = float(stored.get("recorded_at", 0.0))
    is_recorded = before != after or now - recorded_at >= _SAMPLE_EVERY_S
    if is_recorded and not _record(deployment, decision, before=before, after=after, now=now):
        return False
    value = {"state": json.loads(state.to_json()), "recorded_at": now if is_recorded else recorded_at}
    policy_state_write(client, _LOOP, str(deployment.id), value)
    return bool(before != after)


def _record(deployment: Deployment, decision: autoscale.Decision, *, before: int, after: int, now: float) -> bool:
    """Swap the wanted number and keep the decision; False when somebody else changed it meanwhile."""
    at = datetime.datetime.fromtimestamp(now, datetime.UTC)
    with transaction.atomic():
        if before != after:
            swapped = Deployment.objects.filter(pk=deployment.pk, desired_replicas=before).update(
                desired_replicas=after, updated_at=at
            )
            if not swapped:
                return False
        scaling_decision_record(
            deployment=deployment, before=before, after=after, reason=decision.reason, inputs=decision.inputs, now=at
        )
    if before != after:
        log.info("%s: %d → %d replicas, %s", deployment, before, after, decision.reason)
    return True


def config(deployment: Deployment, profile: CostProfile, floor: Floor) -> autoscale.Config:
    """The policy's configuration for a deployment.

    The grace period of 15 min was fitted at a cold start of 60 s; it follows the cold start, since a replica that is
    back in a second may be let go sooner.
    """
    cold_start_s = max(0.1, deployment.cold_start_s)
    return autoscale.Config(
        cold_start_s=cold_start_s,
        tolerable_wait_s=deployment.pool.tolerable_wait_s,
        slo_share=deployment.pool.slo_share,
        min_replicas=deployment.min_replicas,
        max_replicas=deployment.max_replicas,
        pinned_replicas=deployment.pinned_replicas,
        profile_version=profile.version,
        provisioned_replicas=floor.replicas,
        provisioned_for=floor.reason,
        tick_s=TIMETABLE[_LOOP].every_s,
        grace_s=min(900.0, max(60.0, _GRACE_PER_COLD_START * cold_start_s)),
    )


def observation(
    deployment: Any, profile: CostProfile, samples: Sequence[dict[str, Any]], *, last_at: float | None, now: float
) -> autoscale.Observation:
    """What the ring buffer (newest sample first) says about the time since ``last_at`` (UNIX seconds).

    Samples from before the profile count in another unit: they are left out.
    Replicas that are wanted and not there yet, e.g. between a crash and the next launch, count as starting: a gap is
    no reason to want fewer.
    """
    since = now - TIMETABLE[_LOOP].every_s if last_at is None else max(last_at, now - _LOOK_BACK_S)
    priced = [sample for sample in samples if sample["at"] > profile.effective_from.timestamp()]
    recent = [sample for sample in priced if sample["at"] > since]
    covered_s = max(1.0, now - since)
    wanted = min(deployment.desired_replicas, deployment.max_replicas)
    return autoscale.Observation(
        now=now,
        replica_mu_per_min=supply(deployment, profile, priced),
        ready=deployment.ready,
        starting=max(deployment.starting, wanted - deployment.ready),
        queue_mu=max(0.0, samples[0]["queue_mu"]),
        offered_mu_per_min=60.0 * sum(sample["offered_mu"] for sample in recent) / covered_s,
        requests=int(sum(sample["offered_requests"] for sample in recent)),
    )


def supply(deployment: Deployment, profile: CostProfile, samples: Sequence[dict[str, Any]]) -> float:
    """MU/min of one replica: its knee, or what its slots let through at the residence time seen lately.

    Residence is Little's law over the look-back: requests in flight on average / departures per second. Who hangs up
    was in flight, too, so every departure counts.
    """
    revision = deployment.revisions.filter(is_current=True).first()
    departed = sum(sample.get("departed", 0.0) for sample in samples)
    offered = sum(sample["offered_requests"] for sample in samples)
    mean_mu = mean_residence_s = None
    if departed >= _ENOUGH_REQUESTS and offered >= _ENOUGH_REQUESTS:
        mean_mu = sum(sample["offered_mu"] for sample in samples) / offered
        # One sample a second: the sum of in-flight samples is request-seconds.
        mean_residence_s = sum(sample["in_flight"] for sample in samples) / departed
    return autoscale.replica_supply(
        knee_mu_per_min=profile.replica_mu_per_min,
        target_concurrency=revision.target_concurrency if revision else 1,
        mean_request_mu=mean_mu,
        mean_residence_s=mean_residence_s,
    )


def _state(stored: Any) -> autoscale.State:
    try:
        return autoscale.State() if stored is None else autoscale.State.from_json(json.dumps(stored))
    except (ValueError, TypeError):
        return autoscale.State()  # Of another version: the policy learns anew.
