"""Deployments and their revisions."""

from collections.abc import Mapping
from typing import Any, TypedDict, Unpack

from django.core.exceptions import ValidationError
from django.db import connection, transaction
from django.db.models import F, Max
from django.utils import timezone

from capacity.models import Pool, Reservation
from capacity.policy.removal import may_remove_deployment
from capacity.selectors import HOLDING
from capacity.services.pools import bump
from serving.artifacts import runtime_choice
from serving.models import Deployment, Revision
from serving.options import adapters_of
from tenants.audit import Actor, audit, state_of
from tenants.changes import record_change
from tenants.needed import Reference, StillNeeded


class DeploymentFields(TypedDict, total=False):
    """What ``deployment_update`` can change.

    ``pinned_replicas`` overrules the scale loop and both bounds, also above the maximum: a person wants exactly so
    many. None: the scale loop decides. The name is not among them: replicas serve under the one they were launched
    with, and keys and limits refer to it. Make another deployment instead.
    """

    min_replicas: int
    max_replicas: int
    pinned_replicas: int | None
    cold_start_s: float


@transaction.atomic
def deployment_create(
    *,
    pool: Pool,
    name: str,
    actor: Actor,
    runtime: str | None = None,
    options: Mapping[str, Any] | None = None,
    target_concurrency: int = 16,
    min_replicas: int = 1,
    max_replicas: int = 1,
    pinned_replicas: int | None = None,
    cold_start_s: float = 60.0,
    is_enabled: bool = True,
) -> Deployment:
    """Serve ``pool`` under ``name``, with a first revision. Raises ValidationError by field.

    Without ``runtime``: the one that fits the model's files, see ``revision_create``.
    """
    # Whoever removes the pool waits for its turn, and then sees the deployment.
    if Pool.objects.select_for_update().filter(pk=pool.pk).first() is None:
        raise ValidationError({"pool": f"{pool} has been removed."})
    deployment = Deployment(
        pool=pool,
        name=name.strip(),
        min_replicas=min_replicas,
        max_replicas=max_replicas,
        pinned_replicas=pinned_replicas,
        desired_replicas=min_replicas if pinned_replicas is None else pinned_replicas,
        cold_start_s=cold_start_s,
        is_enabled=is_enabled,
    )
    deployment.full_clean()
    _take_names()
    if owner := _owner_of_adapter(deployment.name):
        raise ValidationError({"name": f"{deployment.name} is an adapter of {owner}. Choose another name."})
    deployment.save(force_insert=True)
    audit(actor=actor, action="deployment.create", target=deployment, after=state_of(deployment))
    bump(pool, is_published=False)
    revision_create(
        deployment=deployment, runtime=runtime, options=options, target_concurrency=target_concurrency, actor=actor
    )
    return deployment


@transaction.atomic
def deployment_update(*, deployment: Deployment, actor: Actor, **fields: Unpack[DeploymentFields]) -> Deployment:
    """Change what is given; the wanted number of replicas moves inside the new bounds. Raises ValidationError."""
    stored = deployment.take_turn()
    before = state_of(stored)
    for name, value in fields.items():
        setattr(stored, name, value)
    stored.desired_replicas = (
        min(max(stored.desired_replicas, stored.min_replicas), stored.max_replicas)
        if stored.pinned_replicas is None
        else stored.pinned_replicas
    )
    stored.full_clean()
    stored.save(update_fields=(*fields, "desired_replicas", "updated_at"))
    after = state_of(stored)
    if before != after:
        audit(actor=actor, action="deployment.update", target=stored, before=before, after=after)
        record_change(kind="deployment", object_id=stored.pk)
        # Whoever is selling of the pool now must see how many replicas there can be.
        bump(stored.pool, is_published=False)
    deployment.refresh_from_db()
    return deployment


def deployment_enable(*, deployment: Deployment, actor: Actor) -> bool:
    """Serve again. Returns False if it was enabled already."""
    return _set_enabled(deployment, True, actor)


def deployment_disable(*, deployment: Deployment, actor: Actor) -> bool:
    """Stop serving: replicas drain and stop. Returns False if it was disabled already."""
    return _set_enabled(deployment, False, actor)


@transaction.atomic
def deployment_remove(*, deployment: Deployment, actor: Actor, confirm: str = "") -> bool:
    """Take the deployment away: clients find it no more, its name is free, its history stays.

    Keys and limits that name it stay as they are: they speak of whatever has that name, now nothing. Replicas that have
    not ended drain and stop by themselves, if ``confirm`` is its name; else raises StillNeeded, as for the last that
    serves what is sold. Returns False if somebody removed it before.
    """
    try:
        stored = deployment.take_turn()
    except Deployment.DoesNotExist:
        return False
    # Of two that are removed at once, the second must see that the first serves the pool no more; so must a sale.
    stored.pool.take_turn()
    there = list(stored.replicas.filter(state__in=HOLDING).select_related("host").order_by("created_at"))
    sold = _sold_by(stored)
    verdict = may_remove_deployment(holding=len(there), is_confirmed=confirm == stored.name, reservations=len(sold))
    if not verdict.is_allowed:
        named = [Reference("reservation", str(one.pk), f"of {one.tenant.slug}, {one.state}") for one in sold]
        named += [Reference("replica", str(one.pk), f"{one.state} on {one.host or 'no host'}") for one in there]
        raise StillNeeded(f"{stored} cannot be removed: {verdict.reason}", hint=verdict.hint, references=named)
    before = state_of(stored)
    stored.removed_at, stored.is_enabled = timezone.now(), False
    stored.save(update_fields=("removed_at", "is_enabled", "updated_at"))
    after = {**state_of(stored), "reason": verdict.reason}
    audit(actor=actor, action="deployment.remove", target=stored, before=before, after=after)
    record_change(kind="deployment", object_id=stored.pk)
    bump(stored.pool, is_published=False)
    deployment.removed_at, deployment.is_enabled = stored.removed_at, False
    return True


def _sold_by(deployment: Deployment) -> list[Reservation]:
    """The reservations of its pool that are not over, where nothing else serves it."""
    others = Deployment.objects.filter(pool=deployment.pool_id, is_enabled=True).exclude(pk=deployment.pk)
    if others.exists():
        return []
    rows = Reservation.objects.filter(pool=deployment.pool_id, state__in=Reservation.PROMISED)
    return list(rows.select_related("tenant").order_by("starts_at", "pk"))


@transaction.atomic
def deployment_retry(*, deployment: Deployment, actor: Actor) -> Deployment:
    """Start failed replicas again: their agents try anew what failed under a lower attempt."""
    Deployment.objects.filter(pk=deployment.pk).update(retry_attempt=F("retry_attempt") + 1, updated_at=timezone.now())
    deployment.refresh_from_db(fields=("retry_attempt", "updated_at"))
    audit(actor=actor, action="deployment.retry", target=deployment, after={"retry_attempt": deployment.retry_attempt})
    return deployment


@transaction.atomic
def revision_create(
    *,
    deployment: Deployment,
    actor: Actor,
    runtime: str | None = None,
    options: Mapping[str, Any] | None = None,
    target_concurrency: int = 16,
) -> Revision:
    """The deployment's next revision, current from now on; earlier ones stay as they are.

    Without ``runtime``: the one that fits the model's files, with its reason, and the options that it needs for them;
    those that are given go before. A ``runtime`` that is given stands. Raises ValidationError by field.
    """
    if not isinstance(options, Mapping | None):
        raise ValidationError({"options": "Give runtime options as an object."})
    choice = runtime_choice(deployment.pool.model)
    given = dict(options or {})
    if runtime is None and choice.missing and "argv" not in given:
        raise ValidationError({"runtime": f"{choice.reason} {choice.missing}"})
    if runtime in (None, choice.runtime):
        # A command that is given whole is not mixed with the one that would have been chosen.
        given = given if "argv" in given else {**choice.options, **given}
    reason = choice.reason if runtime is None else "Set by hand."
    return _revision_add(deployment, choice.runtime if runtime is None else runtime, given, target_concurrency,
                         reason=reason, actor=actor)  # fmt: skip


def _revision_add(
    deployment: Deployment,
    runtime: str,
    options: dict[str, Any],
    target_concurrency: int,
    *,
    reason: str,
    actor: Actor,
) -> Revision:
    # Touching the deployment makes two who create at once take turns, so the numbers differ and one is current.
    deployment.take_turn()
    newest = Revision.objects.filter(deployment=deployment).aggregate(newest=Max("number"))["newest"] or 0
    Revision.objects.filter(deployment=deployment, is_current=True).update(is_current=False, updated_at=timezone.now())
    revision = Revision(
        deployment=deployment,
        number=newest + 1,
        runtime=runtime,
        runtime_reason=reason[:500],
        options=options,
        target_concurrency=target_concurrency,
    )
    revision.full_clean()
    _require_own_names(revision)
    revision.save()
    audit(actor=actor, action="revision.create", target=revision, after=state_of(revision))
    record_change(kind="deployment", object_id=deployment.pk)
    return revision


def _take_names() -> None:
    """Whoever gives out a name that clients send as model takes a turn until the transaction ends.

    SQLite has one writer anyway.
    """
    if connection.vendor == "postgresql":
        with connection.cursor() as cursor:
            cursor.execute("select pg_advisory_xact_lock(hashtext('serving.names'))")


def _owner_of_adapter(name: str) -> str:
    """Name of the deployment that serves an adapter of this name; empty where none does."""
    current = Revision.objects.filter(is_current=True, deployment__removed_at=None, options__has_key="adapters")
    current = current.select_related("deployment")
    return next((r.deployment.name for r in current if name in adapters_of(r.runtime, r.options)), "")


def _require_own_names(revision: Revision) -> None:
    """Clients find an adapter by its name alone. Raises ValidationError for one that means something else already."""
    names = set(adapters_of(revision.runtime, revision.options))
    if not names:
        return
    _take_names()
    taken = set(Deployment.objects.filter(name__in=names).values_list("name", flat=True))
    others = Revision.objects.filter(is_current=True, deployment__removed_at=None)
    others = others.exclude(deployment=revision.deployment_id)
    for other in others.filter(options__has_key="adapters"):
        taken |= names & set(adapters_of(other.runtime, other.options))
    if taken:
        text = f"adapters: {', '.join(sorted(taken))} means something else already. Choose another name."
        raise ValidationError({"options": text})


@transaction.atomic
def revision_restore(*, revision: Revision, actor: Actor) -> Revision:
    """A new revision with the contents of an earlier one. Raises ValidationError for the current one."""
    revision.deployment.take_turn()
    revision.refresh_from_db(fields=("is_current",))
    if revision.is_current:
        raise ValidationError(f"Revision {revision.number} is the current one: there is nothing to restore.")
    return _revision_add(
        revision.deployment,
        revision.runtime,
        revision.options,
        revision.target_concurrency,
        reason=f"As revision {revision.number}. {revision.runtime_reason}".strip(),
        actor=actor,
    )


@transaction.atomic
def _set_enabled(deployment: Deployment, is_enabled: bool, actor: Actor) -> bool:
    swapped = Deployment.objects.filter(pk=deployment.pk, is_enabled=not is_enabled).update(
        is_enabled=is_enabled, updated_at=timezone.now()
    )
    deployment.is_enabled = is_enabled
    if swapped:
        audit(actor=actor, action="deployment.enable" if is_enabled else "deployment.disable", target=deployment)
        record_change(kind="deployment", object_id=deployment.pk)
        bump(deployment.pool, is_published=False)
    return bool(swapped)
