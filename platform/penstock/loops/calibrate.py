"""Calibrate, every 2 s: take a replica out of rotation, have it measured, fit, and give it back whatever happens.

``serving.policy.calibration`` decides. Everything is in the database, so that any loops process takes up any tick.
"""

import datetime
import logging
from collections.abc import Mapping
from typing import Any

import msgspec
import redis
from django.core.exceptions import ValidationError

from capacity.models import Host, Pool
from capacity.policy.grid import estimated_s
from penstock.loops.in_flight import METRICS_FRESH_S, Load, loads_by_replica
from penstock.loops.isolation import isolated
from serving.gateway.loads import read_beats
from serving.gateway.state import replica_ring, ring_read_many
from serving.measuring import Unmeasured, measured, stored_order
from serving.models import Calibration, Deployment, Replica, Revision
from serving.policy import calibration as policy
from serving.services import (
    calibration_adopt,
    calibration_fail,
    calibration_fitted,
    calibration_measure,
    calibration_take,
    replica_give_back,
)
from serving.services.calibrations import NOT_ADOPTED, candidates_of, doubts_of

log = logging.getLogger(__name__)

ACTOR = "calibrate loop"
LIMITS = policy.Limits()
_OF_ESTIMATE = 4.0
"""A measurement may take so many times as long as its order is estimated to take, and half an hour at least."""
_LEAST_LIMIT_S = 1800.0
_MEASURED = "measured"
_ADOPTED_WITHIN = datetime.timedelta(minutes=10)
"""Of its fit a calibration is adopted by itself, where it may be; later it is a person's."""


def calibrate(client: redis.Redis, *, now: float) -> int:
    """One pass over what is under way and what must be given back; how many moved. ``now``: UNIX seconds."""
    at = datetime.datetime.fromtimestamp(now, datetime.UTC)
    moved = 0
    under_way = list(Calibration.objects.filter(state__in=Calibration.UNDER_WAY).order_by("created_at"))
    if under_way:
        beats = read_beats(client)
        loads, has_gateways = loads_by_replica(beats), bool(beats)
        for row in under_way:
            with isolated(f"the {row}"):
                moved += _step(client, row, loads if has_gateways else None, at=at)
    # Also what was fitted while somebody else held the database, or by a process that ended right after.
    fitted = Calibration.objects.filter(
        state=Calibration.State.FITTED, ended_at__gt=at - _ADOPTED_WITHIN, reason__startswith=_MEASURED
    )
    for row in fitted.order_by("ended_at"):
        with isolated(f"the adoption of the {row}"):
            _adopt_itself(row, at=at)
    for replica in Replica.objects.filter(calibration_id__isnull=False).select_related("deployment"):
        with isolated(f"the end of the calibration of {replica}"):
            moved += _give_back(replica, at=at)
    return moved


def _step(client: redis.Redis, row: Calibration, loads: Mapping[str, Load] | None, *, at: datetime.datetime) -> bool:
    """Carry out what is decided for one calibration. ``loads`` None: no gateway tells."""
    seen = facts(client, row, loads, at=at)
    step = policy.decide(seen, _limits(row))
    if step.act == "take" and seen.choice and seen.choice.replica_id:
        replica = Replica.objects.select_related("deployment", "host__hardware_type").get(pk=seen.choice.replica_id)
        return calibration_take(calibration=row, replica=replica, reason=step.reason, now=at)
    if step.act == "measure":
        return calibration_measure(calibration=row, reason=step.reason, now=at)
    if step.act == "fit":
        return _fit(row, at=at)
    if step.act == "fail":
        log.warning("%s failed: %s", row, step.reason)
        return calibration_fail(calibration=row, reason=step.reason, now=at)
    if row.reason != step.reason[:500]:
        rows = Calibration.objects.filter(pk=row.pk, state=row.state)
        rows.update(reason=step.reason[:500], updated_at=at)
    return False


def facts(
    client: redis.Redis, row: Calibration, loads: Mapping[str, Load] | None, *, at: datetime.datetime
) -> policy.Facts:
    """What is known of a calibration under way."""
    deployment = Deployment.objects.filter(pk=row.deployment_id).first()
    revision = Revision.objects.filter(deployment=row.deployment_id, is_current=True).first()
    choice = None
    if row.state == Calibration.State.QUEUED and deployment is not None:
        in_flight = {key: load.mu for key, load in (loads or {}).items()}
        choice = policy.choose(candidates_of(deployment, revision, in_flight), allow_outage=row.allow_outage)
    told_at = row.reported_at or row.state_since
    waiting_since = row.progress.get("since") if row.progress.get("state") == "waiting" else None
    state: Any = row.state
    return policy.Facts(
        state=state,
        age_s=(at - row.state_since).total_seconds(),
        is_served=deployment is not None and deployment.is_enabled,
        held=_held(client, row, revision, loads, at=at),
        choice=choice,
        told=row.progress.get("state", ""),
        told_reason=row.progress.get("reason", ""),
        told_age_s=(at - told_at).total_seconds(),
        waiting_s=max(0.0, at.timestamp() - waiting_since) if waiting_since else 0.0,
        others_ready=Replica.objects.filter(deployment=row.deployment_id, state=Replica.State.READY).count(),
        allow_outage=row.allow_outage,
    )


def _held(
    client: redis.Redis,
    row: Calibration,
    revision: Revision | None,
    loads: Mapping[str, Load] | None,
    *,
    at: datetime.datetime,
) -> policy.Held | None:
    if row.replica_id is None:
        return None
    replica = Replica.objects.filter(pk=row.replica_id).select_related("host").first()
    if replica is None:
        return None
    ring = replica_ring(str(replica.pk))
    metrics = ring_read_many(client, [ring], 1)[ring]
    is_fresh = bool(metrics) and abs(at.timestamp() - metrics[0]["at"]) <= METRICS_FRESH_S
    return policy.Held(
        is_marked=replica.calibration_id == row.pk,
        is_current=revision is not None and replica.revision_id == revision.pk,
        is_host_there=replica.host is not None and replica.host.state in (Host.State.ACTIVE, Host.State.CORDONED),
        state=replica.state,
        in_flight=None if loads is None else loads.get(str(replica.pk), Load()).requests,
        in_engine=metrics[0].get("running", 0.0) + metrics[0].get("waiting", 0.0) if is_fresh else None,
    )


def _limits(row: Calibration) -> policy.Limits:
    try:
        estimate = estimated_s(stored_order(row))
    except (msgspec.ValidationError, ValueError):
        return LIMITS
    wanted = max(_LEAST_LIMIT_S, _OF_ESTIMATE * estimate)
    names = ("queued_s", "settle_s", "drain_s", "silent_s", "waiting_s")
    return policy.Limits(**{name: getattr(LIMITS, name) for name in names}, measuring_s=wanted)


def _fit(row: Calibration, *, at: datetime.datetime) -> bool:
    try:
        found = measured(row)
    except (Unmeasured, msgspec.ValidationError, ValueError) as error:
        log.warning("%s gives no price: %s", row, error)
        fit = error.fit if isinstance(error, Unmeasured) else {}
        return calibration_fail(calibration=row, reason=f"it gives no price: {error}", fit=fit, now=at)
    except Exception as error:
        # An agent may tell numbers that nobody has thought of: its replica must come back all the same.
        log.exception("%s cannot be fitted", row)
        reason = f"what was told of it cannot be fitted ({type(error).__name__}): the loops' log says more"
        return calibration_fail(calibration=row, reason=reason, now=at)
    mean_error = found.fit["mean_error"]
    reason = f"{_MEASURED}: the fit misses by {mean_error:.1%} on average"
    if not calibration_fitted(calibration=row, fit=found.fit, knee=found.knee, reason=reason, now=at):
        return False
    log.info("%s is fitted: mean error %.1f %%", row, 100 * mean_error)
    return True


def _adopt_itself(row: Calibration, *, at: datetime.datetime) -> None:
    """Adopt without a person where that was asked for or is allowed; what stands in the way is told."""
    pool = Pool.objects.filter(pk=row.pool_id).first()
    if pool is None or not (row.adopt_when_fitted or pool.adopts_calibrations):
        return
    found = doubts_of(row, pool, now=at)
    try:
        if found:
            raise ValidationError(f"{'; '.join(found)}. Look at it, and adopt it if it is right")
        calibration_adopt(calibration=row, actor=ACTOR, effective_from=row.adopt_from, now=at)
    except ValidationError as error:
        text = f"{NOT_ADOPTED}{' '.join(error.messages)}"
        log.warning("%s is %s", row, text)
        Calibration.objects.filter(pk=row.pk, state=Calibration.State.FITTED).update(reason=text[:500], updated_at=at)
        return
    why = f"{row.requested_by} asked for it" if row.adopt_when_fitted else "the pool allows it"
    log.info("%s is adopted: %s", row, why)


def _give_back(replica: Replica, *, at: datetime.datetime) -> bool:
    """Put a replica into rotation again whose calibration is over; one that is held stays out."""
    row = Calibration.objects.filter(pk=replica.calibration_id).first() if replica.calibration_id else None
    state: Any = row.state if row else None
    if policy.is_held(state, is_its_replica=row is not None and row.replica_id == replica.pk):
        return False
    why = f"its calibration is over ({row.get_state_display().lower()})" if row else "its calibration is gone"
    return replica_give_back(replica=replica, reason=f"the engine answers; {why}", now=at)
