"""Drift, each minute: do engines still take as long as the adopted calibration of their deployment predicts?

``capacity.policy.drift`` decides, over what agents told in the last minute. An alarm is an incident of the deployment.
"""

import datetime
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import redis
from django.db.models import Exists, OuterRef, QuerySet

from capacity.models import CostProfile
from capacity.policy import drift as policy
from penstock.loops.isolation import isolated
from serving.gateway.state import policy_state_read, policy_state_write, replica_ring, ring_read_many
from serving.measuring import Unmeasured, curve_of
from serving.models import Calibration, Deployment, Incident, Replica
from serving.services import incident_close, incident_open

log = logging.getLogger(__name__)

LOOP = "drift"
_MINUTE_S = 60.0
_SAMPLES = 130
"""Newest samples of a replica that are read: agents report once a second, and at once on a change."""
_LEAST_S = 45.0
_FRESH_S = 15.0
_COUNTERS = {
    "requests": "requests_total",
    "input_tokens": "prompt_tokens_total",
    "cached_tokens": "cached_tokens_total",
    "output_tokens": "generation_tokens_total",
    "ttft_s": "ttft_seconds_sum",
    "ttft_count": "ttft_seconds_count",
    "itl_s": "itl_seconds_sum",
    "itl_count": "itl_seconds_count",
}


@dataclass(frozen=True, slots=True)
class Standing:
    """What the loop last said of a deployment. ``at``: UNIX seconds."""

    calibration: str
    at: float
    alarm: bool
    reason: str
    scales: Mapping[str, float]
    minutes: int


def drift(client: redis.Redis, *, now: float) -> int:
    """One minute of all deployments that were calibrated; how many alarms were raised or ended. UNIX seconds."""
    changed = 0
    adopted = in_force()
    _end_of_others(adopted, now=now)
    for deployment in Deployment.objects.filter(pk__in=list(adopted), is_enabled=True):
        with isolated(f"the drift of {deployment}"):
            changed += _look(client, deployment, adopted[deployment.pk], now=now)
    return changed


def in_force() -> dict[Any, Calibration]:
    """The calibration that was adopted last of each deployment, by the deployment's id."""
    return {row.deployment_id: row for row in adopted_of().order_by("adopted_at")}


def adopted_of() -> QuerySet[Calibration]:
    """Calibrations that were adopted, but for those whose price was withdrawn before it came into force."""
    prices = CostProfile.objects.filter(pool=OuterRef("pool_id"), version=OuterRef("adopted_version"))
    adopted = Calibration.objects.filter(state=Calibration.State.ADOPTED)
    return adopted.exclude(Exists(prices.exclude(withdrawn_at=None)))


def standing_of(client: redis.Redis, calibration: Calibration) -> Standing | None:
    """What the loop last said of a calibration; None where it has said nothing, or speaks of a newer one by now."""
    stored = policy_state_read(client, LOOP, str(calibration.deployment_id)) or {}
    try:
        standing = msgspec.convert(stored.get("standing"), Standing)
    except msgspec.ValidationError:
        return None
    return standing if standing.calibration == str(calibration.pk) else None


def _look(client: redis.Redis, deployment: Deployment, row: Calibration, *, now: float) -> bool:
    try:
        curve = curve_of(row)
    except (Unmeasured, msgspec.ValidationError, ValueError):
        return False
    minute = minute_of(client, deployment, row, now=now)
    stored = policy_state_read(client, LOOP, str(deployment.pk)) or {}
    memory = policy.Memory.of(stored.get("memory"), calibration=str(row.pk))
    incident = _open(deployment)
    if incident is not None and not memory.channels:
        # The state came back empty: an alarm stands until there is evidence against it.
        memory = policy.Memory(memory.calibration, alarm=True)
    memory, verdict = policy.observe(memory, curve, minute)
    value = {
        "memory": memory.as_json(),
        "standing": msgspec.to_builtins(
            Standing(str(row.pk), now, verdict.alarm, verdict.reason, dict(verdict.scales), verdict.minutes)
        ),
    }
    policy_state_write(client, LOOP, str(deployment.pk), value)
    return _tell(deployment, row, verdict, incident, now=now)


def _tell(
    deployment: Deployment, row: Calibration, verdict: policy.Verdict, incident: Incident | None, *, now: float
) -> bool:
    at = datetime.datetime.fromtimestamp(now, datetime.UTC)
    if verdict.alarm and incident is None:
        incident_open(
            kind=Incident.Kind.COST_DRIFT,
            summary=f"{deployment}: {verdict.reason}",
            deployment=deployment,
            evidence={"calibration": str(row.pk), "scales": dict(verdict.scales), "minutes": verdict.minutes},
            now=at,
        )
        log.warning("%s drifts from its calibration: %s", deployment, verdict.reason)
        return True
    if incident is not None and not verdict.alarm:
        return incident_close(incident=incident, what=verdict.reason, now=max(at, incident.opened_at))
    return False


def _open(deployment: Deployment) -> Incident | None:
    rows = Incident.objects.filter(kind=Incident.Kind.COST_DRIFT, deployment_id=deployment.pk, closed_at=None)
    return rows.order_by("-opened_at").first()


def _end_of_others(adopted: Mapping[Any, Calibration], *, now: float) -> None:
    """End alarms about a calibration that is not the last that counts any more, or whose deployment is not served."""
    at = datetime.datetime.fromtimestamp(now, datetime.UTC)
    served = set(Deployment.objects.filter(is_enabled=True).values_list("pk", flat=True))
    for incident in Incident.objects.filter(kind=Incident.Kind.COST_DRIFT, closed_at=None):
        row = adopted.get(incident.deployment_id)
        if incident.deployment_id not in served:
            what = "the deployment is not served any more"
        elif row is None or str(row.pk) != incident.evidence.get("calibration"):
            what = "another calibration counts now"
        else:
            continue
        incident_close(incident=incident, what=what, now=max(at, incident.opened_at))


def minute_of(client: redis.Redis, deployment: Deployment, row: Calibration, *, now: float) -> policy.Minute:
    """What the deployment's ready replicas on the calibrated hardware did in the last minute, by their agents."""
    replicas = Replica.objects.filter(
        deployment=deployment, state=Replica.State.READY, host__hardware_type=row.hardware_type_id
    )
    keys = [replica_ring(str(pk)) for pk in replicas.values_list("pk", flat=True)]
    rings = ring_read_many(client, keys, _SAMPLES) if keys else {}
    found = [one for samples in rings.values() if (one := _difference(samples, now=now)) is not None]
    if not found:
        return policy.Minute(0, 0.0, 0, 0, 0, 0, 0, 0, 0, 0)
    sums = {name: math.fsum(one[name] for one in found) for name in _COUNTERS}
    seconds = math.fsum(one["seconds"] for one in found) / len(found)
    return policy.Minute(replicas=len(found), seconds=seconds, **sums)


def _difference(samples: Sequence[Mapping[str, Any]], *, now: float) -> dict[str, float] | None:
    """How far one replica's counters rose in the last minute (newest sample first).

    None where it tells too little, or was started anew meanwhile.
    """
    if not samples or now - samples[0]["at"] > _FRESH_S:
        return None
    newest = samples[0]
    older = next((one for one in samples if newest["at"] - one["at"] >= _MINUTE_S), samples[-1])
    seconds = newest["at"] - older["at"]
    if seconds < _LEAST_S or newest.get("process_start_seconds") != older.get("process_start_seconds"):
        return None
    rises = {name: newest.get(key, 0.0) - older.get(key, 0.0) for name, key in _COUNTERS.items()}
    if min(rises.values()) < 0:
        return None
    return {**rises, "seconds": seconds}
