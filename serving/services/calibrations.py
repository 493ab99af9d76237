"""Calibrations: asked for, moved from state to state by compare-and-swap, cancelled, and adopted as a price."""

import datetime
import math
from collections.abc import Mapping
from typing import Any

import msgspec
from django.core.exceptions import ValidationError
from django.db import transaction
from django.utils import timezone

from capacity.models import CostProfile, HardwareType, Host, Pool, ReplicaSupply
from capacity.policy.adoption import Evidence, doubts
from capacity.policy.knee import mix_cost
from capacity.selectors import profile_in_force
from capacity.services import profile_add, replica_supply_set
from capacity.usage.reads import terms_of
from serving.measuring import Unmeasured, knee_of, order_of, price_of, stored_order, supply_in_force, supply_of
from serving.models import Calibration, Deployment, Replica, Revision
from serving.options import spoken
from serving.policy import calibration as policy
from serving.services.replicas import LOOPS, replica_transition
from serving.services.supplies import supplies_refresh
from tenants.audit import Actor, audit
from tenants.models.base import uuid7

NOT_ADOPTED = "not adopted by itself: "
"""How the reason of a fitted calibration begins that waits for a person, though it might have been adopted."""


@transaction.atomic
def calibration_start(
    *,
    deployment: Deployment,
    actor: Actor,
    grid: str = Calibration.Grid.MEDIUM,
    allow_outage: bool = False,
    adopt_when_fitted: bool = False,
    adopt_from: datetime.datetime | None = None,
    now: datetime.datetime | None = None,
) -> Calibration:
    """Ask for a measurement of one of the deployment's replicas; the loops take it out of rotation and give it back.

    ``adopt_when_fitted``: it becomes the price by itself, from ``adopt_from`` (at once). Raises ValidationError by
    field where there is nothing to measure: one is under way, none is ready, or the only one would have to be taken.
    """
    now = now or timezone.now()
    stored = deployment.take_turn()
    if not stored.is_enabled:
        raise ValidationError({"deployment": f"{stored} is stopped: start it, and calibrate once it serves."})
    revision = Revision.objects.select_related("deployment__pool__model").get(deployment=stored, is_current=True)
    if "generate" not in spoken(revision.runtime, revision.options):
        raise ValidationError(
            {"deployment": f"{stored} generates no tokens, and those are what is measured: set its price by hand."}
        )
    if adopt_from is not None and not adopt_when_fitted:
        raise ValidationError({"adopt_from": "Say that it is to be adopted, or leave the date out."})
    # Removed rows of it count as well: whoever starts at once waits for the turn above, and then sees this one.
    if Calibration.objects.filter(deployment_id=stored.pk, state__in=Calibration.UNDER_WAY).exists():
        raise ValidationError(
            {"deployment": f"A calibration of {stored} is under way already: look at it, or cancel it first."}
        )
    choice = policy.choose(candidates_of(stored, revision, {}), allow_outage=allow_outage)
    if choice.replica_id is None:
        at = "allow_outage" if not allow_outage and "only one replica" in choice.reason else "deployment"
        raise ValidationError({at: f"{stored} cannot be calibrated: {choice.reason}."})
    row = Calibration(
        id=uuid7(),
        deployment_id=stored.pk,
        deployment_name=stored.name,
        pool_id=stored.pool_id,
        pool_name=revision.deployment.pool.name,
        revision_id=revision.pk,
        revision_number=revision.number,
        runtime=revision.runtime,
        state_since=now,
        reason="waiting for its turn",
        grid=grid,
        allow_outage=allow_outage,
        adopt_when_fitted=adopt_when_fitted,
        adopt_from=adopt_from,
        requested_by=str(actor)[:200],
        created_at=now,
    )
    try:
        order = order_of(calibration_id=str(row.pk), pool=revision.deployment.pool, revision=revision, grid=grid)
    except (ValueError, KeyError) as error:
        raise ValidationError({"deployment" if grid in Calibration.Grid.values else "grid": str(error)}) from error
    row.order = msgspec.to_builtins(order)
    row.full_clean()
    row.save(force_insert=True)
    after = {"grid": grid, "allow_outage": allow_outage, "shapes": len(order.shapes), "adopt": adopt_when_fitted}
    audit(actor=actor, action="calibration.start", target=row, after=after)
    return row


def candidates_of(
    deployment: Deployment, revision: Revision | None, in_flight_mu: Mapping[str, float]
) -> list[policy.Candidate]:
    """The deployment's ready replicas, as ``serving.policy.calibration.choose`` takes them."""
    rows = deployment.replicas.filter(state=Replica.State.READY).select_related("host")
    return [
        policy.Candidate(
            id=str(row.pk),
            is_ready=True,
            is_current=revision is not None and row.revision_id == revision.pk,
            is_host_active=row.host is not None and row.host.state in (Host.State.ACTIVE, Host.State.CORDONED),
            in_flight_mu=in_flight_mu.get(str(row.pk), 0.0),
            ready_at=row.ready_at.timestamp() if row.ready_at else 0.0,
        )
        for row in rows
    ]


@transaction.atomic
def calibration_take(*, calibration: Calibration, replica: Replica, reason: str, now: datetime.datetime) -> bool:
    """Take ``replica`` out of rotation for the calibration. False if somebody moved either of them first."""
    host = replica.host
    fields: dict[str, Any] = {"replica_id": replica.pk}
    if host is not None:
        kind = host.hardware_type
        fields |= {"host_name": host.name, "hardware_type_id": kind.pk, "hardware_name": kind.name}
    if not _move(calibration, Calibration.State.DRAINING, reason, actor=LOOPS, now=now, **fields):
        return False
    taken = replica_transition(
        replica=replica,
        to=Replica.State.DRAINING,
        reason="out of rotation to be measured by a calibration",
        calibration_id=calibration.pk,
        now=now,
    )
    if not taken:
        transaction.set_rollback(True)
    return taken


@transaction.atomic
def calibration_measure(*, calibration: Calibration, reason: str, now: datetime.datetime) -> bool:
    """Let the agent measure: the next orders of its host say so. False if somebody moved it first."""
    return _move(calibration, Calibration.State.MEASURING, reason, actor=LOOPS, now=now, measuring_at=now)


@transaction.atomic
def calibration_fitted(
    *, calibration: Calibration, fit: Mapping[str, Any], knee: Mapping[str, Any], reason: str, now: datetime.datetime
) -> bool:
    """Keep what was fitted. False if somebody moved it first."""
    fields = {"fit": dict(fit), "knee": dict(knee), "ended_at": now}
    return _move(calibration, Calibration.State.FITTED, reason, actor=LOOPS, now=now, **fields)


@transaction.atomic
def calibration_fail(
    *, calibration: Calibration, reason: str, now: datetime.datetime, fit: Mapping[str, Any] | None = None
) -> bool:
    """Give it up; what was measured stays to be looked at. False if somebody moved it first."""
    fields = {"fit": dict(fit or {}), "ended_at": now}
    return _move(calibration, Calibration.State.FAILED, reason, actor=LOOPS, now=now, **fields)


@transaction.atomic
def calibration_cancel(*, calibration: Calibration, actor: Actor, now: datetime.datetime | None = None) -> bool:
    """Stop measuring: the loops give the replica back. False if it was over before."""
    now = now or timezone.now()
    calibration.refresh_from_db()
    while calibration.state in Calibration.UNDER_WAY:
        if _move(calibration, Calibration.State.CANCELLED, f"cancelled by {actor}", actor=actor, now=now, ended_at=now):
            return True
        calibration.refresh_from_db()
    return False


@transaction.atomic
def replica_give_back(*, replica: Replica, reason: str, now: datetime.datetime) -> bool:
    """Put a replica that was measured into rotation again. False if somebody moved it first."""
    return replica_transition(replica=replica, to=Replica.State.READY, reason=reason, now=now)


@transaction.atomic
def calibration_adopt(
    *,
    calibration: Calibration,
    actor: Actor,
    effective_from: datetime.datetime | None = None,
    now: datetime.datetime | None = None,
) -> Calibration:
    """Make it the pool's next price, in force from ``effective_from`` (at once).

    On hardware that is not the pool's reference no price changes: from now on it says what replicas there supply, in
    the reference's MU/min. Raises ValidationError where it is not fitted, or its pool is gone.
    """
    now = now or timezone.now()
    stored = calibration.take_turn()
    if stored.state != Calibration.State.FITTED:
        raise ValidationError(
            {"calibration": f"It is {stored.get_state_display().lower()}: only a fitted one is adopted."}
        )
    pool = Pool.objects.filter(pk=stored.pool_id).first()
    hardware = HardwareType.objects.filter(pk=stored.hardware_type_id).first() if stored.hardware_type_id else None
    if pool is None or hardware is None:
        raise ValidationError({"calibration": f"The pool {stored.pool_name} or its hardware was removed."})
    current = profile_in_force(pool_id=pool.pk, at=now)
    try:
        if is_reference(stored, current):
            fields = _adopt_price(stored, pool, hardware, current, actor=actor, effective_from=effective_from)
        else:
            if effective_from is not None:
                raise ValidationError({"effective_from": "What replicas supply counts at once: leave the date out."})
            fields = _adopt_supply(stored, pool, hardware, current, actor=actor, now=now)
    except Unmeasured as error:
        raise ValidationError({"calibration": str(error)}) from error
    fields |= {"adopted_at": now, "adopted_by": str(actor)[:200]}
    reason = f"adopted by {actor}"
    if not _move(stored, Calibration.State.ADOPTED, reason, actor=actor, now=now, **fields):
        raise ValidationError({"calibration": "Somebody adopted it at the same moment."})
    supplies_refresh(now=now, pool_id=pool.pk)
    calibration.refresh_from_db()
    return calibration


def is_reference(calibration: Calibration, current: CostProfile | None) -> bool:
    """Whether it was measured on the hardware that the pool's price is for; a pool without a price takes any."""
    return current is None or current.hardware_type_id == calibration.hardware_type_id


def _adopt_price(
    row: Calibration,
    pool: Pool,
    hardware: HardwareType,
    current: CostProfile | None,
    *,
    actor: Actor,
    effective_from: datetime.datetime | None,
) -> dict[str, Any]:
    error = row.fit.get("mean_error", 0.0)
    made = profile_add(
        pool=pool,
        hardware_type=hardware,
        profile=price_of(row, version=1, previous=current),
        actor=actor,
        effective_from=effective_from,
        notes=f"Measured by calibration {row.pk} on {row.host_name}, {row.runtime} {row.engine_version}: mean error "
        f"{error:.1%}.",
    )
    return {"adopted_version": made.version, "effective_from": made.effective_from}


def _adopt_supply(
    row: Calibration,
    pool: Pool,
    hardware: HardwareType,
    current: CostProfile | None,
    *,
    actor: Actor,
    now: datetime.datetime,
) -> dict[str, Any]:
    assert current is not None  # noqa: S101 (for the type checker: without a price any hardware is the reference)
    replica_supply_set(
        pool=pool,
        hardware_type=hardware,
        requests_per_min=60.0 * knee_of(row).rate_per_s,
        mix=[msgspec.to_builtins(shape) for shape in stored_order(row).mix],
        calibration_id=row.pk,
        actor=actor,
        now=now,
    )
    return {"adopted_supply": supply_of(row, current), "effective_from": now}


def doubts_of(calibration: Calibration, pool: Pool, *, now: datetime.datetime) -> tuple[str, ...]:
    """Why a person must look at a fitted calibration before it is adopted; none where it may adopt itself, because it
    was asked for when it was begun (then only a knee that was not found stands in the way), or because the pool allows
    it and ``capacity.policy.adoption`` sees no doubt. Raises Unmeasured."""
    evidence = _evidence(calibration, now=now)
    if calibration.adopt_when_fitted:
        return doubts(evidence, error_limit=math.inf)[:1] if evidence.is_lower_bound else ()
    return doubts(evidence, error_limit=pool.adoption_error_limit)


def _evidence(row: Calibration, *, now: datetime.datetime) -> Evidence:
    fit, knee = row.fit, knee_of(row)
    change, changes = _change(row, now=now)
    host = Host.everything.filter(name=row.host_name).order_by("-created_at").first()
    return Evidence(
        mean_error=fit.get("mean_error", 1.0),
        max_error=fit.get("max_error", 1.0),
        r2=fit.get("r2", 0.0),
        warnings=[(one["code"], one["text"]) for one in fit.get("warnings", ())],
        # Of a lower bound the knee speaks itself, too.
        notes=() if knee.is_lower_bound else knee.warnings,
        is_lower_bound=knee.is_lower_bound,
        mix_ms=knee.mix_ms,
        knee_per_s=knee.rate_per_s,
        saturation_per_s=knee.saturation_per_s,
        cores=int(host.report.get("cores") or 1) if host and row.method == "engine_cpu" else None,
        change=change,
        changes=changes,
    )


def _change(row: Calibration, *, now: datetime.datetime) -> tuple[float | None, str]:
    """What it changes of what was measured before, as a factor, and what that is; None where nothing was measured."""
    current = profile_in_force(pool_id=row.pool_id, at=now)
    if current is None:
        return None, ""
    mix = stored_order(row).mix
    if is_reference(row, current):
        what, before = "the requests that were offered would cost", mix_cost(terms_of(current), mix)
        after, is_measured = mix_cost(price_of(row, version=1, previous=current), mix), current.calibrated
    else:
        supply = ReplicaSupply.objects.filter(pool=row.pool_id, hardware_type=row.hardware_type_id).first()
        what, before = "a replica would supply", supply_in_force(current, supply)
        after, is_measured = supply_of(row, current), supply is not None
    if not is_measured:
        return None, ""
    return after / before if before > 0.0 else math.inf, what


def _move(row: Calibration, to: str, reason: str, *, actor: Actor, now: datetime.datetime, **fields: Any) -> bool:
    """Swap the state it was read in; False if somebody moved it before."""
    old = row.state
    changes = {**fields, "state": to, "state_since": now, "reason": reason[:500]}
    if not Calibration.objects.filter(pk=row.pk, state=old).update(**changes, updated_at=now):
        return False
    for name, value in changes.items():
        setattr(row, name, value)
    after = {"state": to, "reason": reason[:500]}
    after |= {name: value for name, value in fields.items() if name not in ("fit", "knee")}
    audit(actor=actor, action=f"calibration.{to}", target=row, before={"state": old}, after=after)
    return True


def calibrations_delete_old(*, before: datetime.datetime) -> int:
    """Forget those that came to nothing before ``before``. What was fitted stays. Returns how many."""
    states = (Calibration.State.FAILED, Calibration.State.CANCELLED)
    return Calibration.objects.filter(state__in=states, state_since__lt=before).delete()[0]
