"""Replicas: made pending, then moved from state to state by compare-and-swap."""

import datetime
import uuid
from typing import Any, TypedDict, Unpack, cast

from django.db import transaction
from django.utils import timezone

from capacity.models import Host
from serving.models import Deployment, Replica, Revision
from serving.policy.lifecycle import State, is_allowed
from tenants.audit import Actor, audit, state_of
from tenants.changes import record_change

LOOPS = "loops"
"""Actor of audit entries about what no person asked for."""


class TransitionError(Exception):
    """The life cycle does not allow this step."""


class ReplicaFields(TypedDict, total=False):
    """Columns that may change together with the state."""

    host: Host | None
    accelerators: list[int]
    phase: str
    progress: dict[str, Any]
    address: str
    engine_version: str
    max_model_len: int | None
    pid: int | None
    kill: bool
    attempt: int
    launched_at: datetime.datetime | None
    ready_at: datetime.datetime | None
    supply_mu_per_min: float
    revision: Revision
    calibration_id: uuid.UUID | None


@transaction.atomic
def replica_create(
    *,
    deployment: Deployment,
    revision: Revision,
    reason: str,
    host: Host | None = None,
    accelerators: list[int] | None = None,
    supply_mu_per_min: float = 100.0,
    attempt: int = 0,
    actor: Actor = LOOPS,
    now: datetime.datetime | None = None,
) -> Replica:
    """A new replica in state pending. Raises ValidationError by field."""
    replica = Replica(
        deployment=deployment,
        revision=revision,
        host=host,
        accelerators=accelerators or [],
        state=Replica.State.PENDING,
        state_since=now or timezone.now(),
        reason=reason[:500],
        supply_mu_per_min=supply_mu_per_min,
        attempt=attempt,
    )
    replica.full_clean()
    replica.save(force_insert=True)
    audit(actor=actor, action="replica.create", target=replica, after=state_of(replica))
    record_change(kind="replica", object_id=replica.pk)
    return replica


@transaction.atomic
def replica_transition(
    *,
    replica: Replica,
    to: str,
    reason: str,
    actor: Actor = LOOPS,
    now: datetime.datetime | None = None,
    **fields: Unpack[ReplicaFields],
) -> bool:
    """Move ``replica`` from the state it was read in to ``to``. Returns False if somebody moved it before.

    ``now`` is when the state began. Whatever measured the replica does so no more, unless ``calibration_id`` says so.
    On success ``replica`` carries the new values. Raises TransitionError for a step that
    ``serving.policy.lifecycle`` does not allow, IntegrityError where a constraint of the model forbids the result.
    """
    old, new = Replica.State(replica.state), Replica.State(to)
    if old == new or not is_allowed(cast(State, old.value), cast(State, new.value)):
        raise TransitionError(f"a replica cannot go from {old} to {new}")
    at = now or timezone.now()
    changes: dict[str, Any] = {"calibration_id": None, **fields}
    changes |= {"state": new, "state_since": at, "reason": reason[:500]}
    if not Replica.objects.filter(pk=replica.pk, state=old).update(**changes, updated_at=timezone.now()):
        return False
    for name, value in changes.items():
        setattr(replica, name, value)
    audit(
        actor=actor,
        action=f"replica.{new}",
        target=replica,
        before={"state": old},
        after={"state": new, "reason": reason[:500], **fields},
    )
    record_change(kind="replica", object_id=replica.pk)
    if Replica.State.READY in (old, new):
        # What a deployment is asked for follows what its ready replicas serve.
        record_change(kind="deployment", object_id=replica.deployment_id)
    return True


@transaction.atomic
def replicas_delete_old(*, before: datetime.datetime, actor: Actor = LOOPS) -> int:
    """Forget replicas that ended before ``before``. Usage, decisions and incidents keep their ids. Returns how many."""
    ended = Replica.objects.filter(state__in=(Replica.State.STOPPED, Replica.State.FAILED), state_since__lt=before)
    gone = list(ended)
    for replica in gone:
        record_change(kind="replica", object_id=replica.pk)
        audit(actor=actor, action="replica.delete", target=replica, before={"state": replica.state})
    ended.filter(pk__in=[replica.pk for replica in gone]).delete()
    return len(gone)
