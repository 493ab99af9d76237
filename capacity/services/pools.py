"""Models, pools and their prices."""

import datetime
from collections.abc import Iterable
from pathlib import Path
from typing import TypedDict, Unpack

from django.core.exceptions import ValidationError
from django.db import transaction
from django.db.models import F
from django.utils import timezone
from django.utils.text import slugify

from capacity.models import CostProfile, HardwareType, Model, Pool, Reservation
from capacity.policy import cost
from capacity.policy.profiles import Hardware, default_profile, hardware_from_report, scoring_profile
from capacity.policy.removal import may_remove_model, may_remove_pool
from capacity.selectors import profile_in_force, replicas_left
from tenants.audit import Actor, audit, state_of
from tenants.changes import record_change
from tenants.models import Tenant
from tenants.needed import Reference, StillNeeded


class ModelFields(TypedDict, total=False):
    """What ``model_update`` can change."""

    name: str
    artifact_value: str
    artifact_revision: str
    parameters: int | None
    context_tokens: int | None


class PoolFields(TypedDict, total=False):
    """What ``pool_create`` takes beside the model, and ``pool_update`` can change. Times and units are in the names."""

    name: str
    is_public: bool
    ttft_objective_ms: int
    tpot_objective_ms: int
    tolerable_wait_s: float
    slo_share: float
    oversell_factor: float
    keep_spare: bool
    best_effort: bool
    adopts_calibrations: bool
    adoption_error_limit: float
    credit_tiers: list[list[float]]


@transaction.atomic
def model_create(
    *,
    name: str,
    artifact_kind: str,
    actor: Actor,
    slug: str = "",
    artifact_value: str = "",
    artifact_revision: str = "",
    parameters: int | None = None,
    context_tokens: int | None = None,
) -> Model:
    """A new model; ``artifact_kind`` is ``tiny``, ``path``, ``hub`` or ``none``. Raises ValidationError by field."""
    model = Model(
        name=name,
        slug=slug or slugify(name)[:80],
        artifact_kind=artifact_kind,
        artifact_value=artifact_value,
        artifact_revision=artifact_revision,
        parameters=parameters,
        context_tokens=context_tokens,
    )
    model.full_clean()
    model.save(force_insert=True)
    audit(actor=actor, action="model.create", target=model, after=state_of(model))
    return model


@transaction.atomic
def model_update(*, model: Model, actor: Actor, **fields: Unpack[ModelFields]) -> Model:
    """Change what is given; replicas take a new artifact when they start anew. Raises ValidationError by field."""
    stored = model.take_turn()
    before = state_of(stored)
    for name, value in fields.items():
        setattr(stored, name, value)
    stored.full_clean()
    stored.save(update_fields=(*fields, "updated_at"))
    after = state_of(stored)
    if before != after:
        audit(actor=actor, action="model.update", target=stored, before=before, after=after)
        # Gateways are told of a pool how long its largest prompt may keep an owner waiting.
        for pk in Pool.objects.filter(model=stored).values_list("pk", flat=True):
            record_change(kind="pool", object_id=pk)
    model.refresh_from_db()
    return model


@transaction.atomic
def model_remove(*, model: Model, actor: Actor) -> bool:
    """Take away a model that no pool sells; its slug is free. Returns False if somebody removed it before.

    Raises StillNeeded with the pools that sell it.
    """
    try:
        stored = model.take_turn()
    except Model.DoesNotExist:
        return False
    pools = [Reference("pool", pool.slug) for pool in Pool.objects.filter(model=stored)]
    verdict = may_remove_model(pools=len(pools))
    if not verdict.is_allowed:
        raise StillNeeded(f"{stored} cannot be removed: {verdict.reason}", hint=verdict.hint, references=pools)
    _remove(stored, "model.remove", actor)
    return True


@transaction.atomic
def pool_create(
    *,
    model: Model,
    hardware_type: HardwareType,
    actor: Actor,
    slug: str = "",
    tenants: Iterable[Tenant] = (),
    profile: cost.CostProfile | None = None,
    **fields: Unpack[PoolFields],
) -> Pool:
    """A new pool with its first cost profile: ``profile``, or an uncalibrated default from model size and hardware, for
    a folder that MLflow saved one of rows and KiB.

    ``tenants`` lists who may use it unless it is public. Raises ValidationError by field.
    """
    # Whoever removes the model waits for its turn, and then sees the pool.
    if Model.objects.select_for_update().filter(pk=model.pk).first() is None:
        raise ValidationError({"model": f"{model} has been removed."})
    name = fields.setdefault("name", model.name)
    pool = Pool(model=model, slug=slug or slugify(name)[:80], **fields)
    pool.full_clean()
    pool.save(force_insert=True)
    pool.tenants.set(tenants)
    audit(actor=actor, action="pool.create", target=pool, after={**state_of(pool), "tenants": _listed(pool)})
    first = profile or default_price(model, hardware_type)
    profile_add(pool=pool, hardware_type=hardware_type, profile=first, actor=actor)
    return pool


def default_price(model: Model, hardware_type: HardwareType) -> cost.CostProfile:
    """An uncalibrated price for ``model``: by size and hardware, or that of a classic model where MLflow saved it."""
    if model.artifact_kind == Model.Artifact.PATH and _has_mlmodel(model.artifact_value):
        return scoring_profile()
    hardware = hardware_of(hardware_type)
    return default_profile(parameters=model.parameters, context_tokens=model.context_tokens, hardware=hardware)


def _has_mlmodel(folder: str) -> bool:
    """Whether the folder, if this process sees it, is one that MLflow saved."""
    try:
        return (Path(folder) / "MLmodel").is_file()
    except (OSError, ValueError):
        return False


@transaction.atomic
def pool_update(*, pool: Pool, actor: Actor, **fields: Unpack[PoolFields]) -> Pool:
    """Change what is given. Raises ValidationError by field."""
    stored = pool.take_turn()
    before = state_of(stored)
    for name, value in fields.items():
        setattr(stored, name, value)
    stored.full_clean()
    stored.save(update_fields=(*fields, "updated_at"))
    after = state_of(stored)
    if before != after:
        audit(actor=actor, action="pool.update", target=stored, before=before, after=after)
        bump(stored)
    pool.refresh_from_db()
    return pool


@transaction.atomic
def pool_remove(*, pool: Pool, actor: Actor) -> bool:
    """Take away a pool that nothing serves any more and of which nothing is sold; its slug is free, its prices stay.

    Returns False if somebody removed it before. Raises StillNeeded with what stands in the way.
    """
    try:
        stored = pool.take_turn()
    except Pool.DoesNotExist:
        return False
    # Deployments belong to a higher app: here they are known by the name of their relation alone.
    served = Pool.objects.filter(pk=stored.pk, deployments__isnull=False, deployments__removed_at=None)
    names = list(served.order_by("deployments__name").values_list("deployments__name", flat=True))
    open_states = (Reservation.State.REQUESTED, *Reservation.PROMISED)
    sold = stored.reservations.filter(state__in=open_states).select_related("tenant")
    needed = [Reference("deployment", name) for name in names]
    needed += [Reference("reservation", str(one.pk), f"of {one.tenant.slug}, {one.state}") for one in sold]
    # What these still have in hand is priced and settled by their pool.
    left = replicas_left(stored)
    verdict = may_remove_pool(deployments=len(names), reservations=len(sold), holding=len(left))
    needed += [Reference("replica", str(pk), f"of {name}, {state} on {host}") for pk, name, state, host in left]
    if not verdict.is_allowed:
        raise StillNeeded(f"{stored} cannot be removed: {verdict.reason}", hint=verdict.hint, references=needed)
    _remove(stored, "pool.remove", actor)
    record_change(kind="pool", object_id=stored.pk)
    return True


def _remove(stored: Model | Pool, action: str, actor: Actor) -> None:
    before = state_of(stored)
    stored.removed_at = timezone.now()
    stored.save(update_fields=("removed_at", "updated_at"))
    audit(actor=actor, action=action, target=stored, before=before, after={"removed_at": stored.removed_at})


@transaction.atomic
def pool_tenants_set(
    *, pool: Pool, actor: Actor, tenants: Iterable[Tenant] | None = None, is_public: bool | None = None
) -> None:
    """Say who may use the pool: every tenant, or those listed. What is not given stays.

    Raises ValidationError at ``tenants`` where that would lock out somebody whose reservation of it is not over.
    """
    # The list is written as a difference to what is there: of two who set it, the second must see the first's.
    stored = pool.take_turn()
    before = {"is_public": stored.is_public, "tenants": _listed(stored)}
    if is_public is not None:
        stored.is_public = is_public
        stored.save(update_fields=("is_public", "updated_at"))
    if tenants is not None:
        stored.tenants.set(tenants)
    if not stored.is_public:
        sold = Reservation.objects.filter(pool=stored, state__in=Reservation.PROMISED)
        locked = sold.exclude(tenant__in=stored.tenants.all()).order_by("tenant__slug")
        if slugs := list(locked.values_list("tenant__slug", flat=True).distinct()):
            text = f"Reservations of {', '.join(slugs)[:200]} are not over: list them too, or end these first."
            raise ValidationError({"tenants": text})
    after = {"is_public": stored.is_public, "tenants": _listed(stored)}
    if before != after:
        audit(actor=actor, action="pool.set_tenants", target=stored, before=before, after=after)
        bump(stored)
    pool.refresh_from_db()


class KeepPrice:
    """Stands for the price of the version before."""


KEEP_PRICE = KeepPrice()


@transaction.atomic
def profile_add(
    *,
    pool: Pool,
    hardware_type: HardwareType,
    profile: cost.CostProfile,
    actor: Actor,
    effective_from: datetime.datetime | None = None,
    replica_mu_per_min: float = 100.0,
    price_per_1000_mu: float | KeepPrice | None = KEEP_PRICE,
    notes: str = "",
) -> CostProfile:
    """The pool's next profile version, in force from ``effective_from`` (now). Earlier versions stay as they are.

    ``price_per_1000_mu``: money, in the installation's currency; None: it costs nothing; not given: as the version
    before, so that a new calibration alone changes no price.

    ``profile.version`` is ignored: versions count up. Raises ValidationError by field, also for an ``effective_from``
    before that of the version in force: such a price would never count.
    """
    # The bump comes first: two who add at once take turns on the pool's row, so the versions differ.
    bump(pool)
    now = timezone.now()
    current = profile_in_force(pool_id=pool.pk, at=now)
    if effective_from is not None and current is not None and effective_from < current.effective_from:
        since = current.effective_from.isoformat(timespec="seconds")
        raise ValidationError(
            {"effective_from": f"Version {current.version} is in force since {since}: give a moment after that."}
        )
    versions = CostProfile.objects.filter(pool=pool).order_by("version")
    newest = versions.last()
    if isinstance(price_per_1000_mu, KeepPrice):
        before = versions.filter(withdrawn_at=None).last()
        price_per_1000_mu = before.price_per_1000_mu if before else None
    row = CostProfile(
        pool=pool,
        version=newest.version + 1 if newest else 1,
        hardware_type=hardware_type,
        effective_from=effective_from or now,
        calibrated=profile.calibrated,
        base=profile.base,
        alpha=profile.alpha,
        beta=profile.beta,
        gamma=profile.gamma,
        epsilon=profile.epsilon,
        cached_factor=profile.cached_factor,
        modalities=dict(profile.modalities),
        long_input_tiers=[list(tier) for tier in profile.long_input_tiers],
        replica_mu_per_min=replica_mu_per_min,
        price_per_1000_mu=price_per_1000_mu,
        notes=notes,
    )
    row.full_clean()
    row.save()
    audit(actor=actor, action="cost_profile.add", target=row, after=state_of(row))
    return row


@transaction.atomic
def profile_withdraw(*, profile: CostProfile, actor: Actor) -> CostProfile:
    """Take back a version that is not in force yet: it will not be. Its number stays used.

    Raises ValidationError for one that has been in force, or is withdrawn already.
    """
    return _withdrawn_set(profile, is_withdrawn=True, actor=actor)


@transaction.atomic
def profile_restore(*, profile: CostProfile, actor: Actor) -> CostProfile:
    """Undo ``profile_withdraw``. Raises ValidationError once its moment has passed, or if it is not withdrawn."""
    return _withdrawn_set(profile, is_withdrawn=False, actor=actor)


def _withdrawn_set(profile: CostProfile, *, is_withdrawn: bool, actor: Actor) -> CostProfile:
    # The bump comes first, as in ``profile_add``: what is decided below is decided on the row as it stands.
    bump(profile.pool)
    profile.refresh_from_db()
    now = timezone.now()
    since = profile.effective_from.isoformat(timespec="seconds")
    if (profile.withdrawn_at is not None) is is_withdrawn:
        done = "is withdrawn already" if is_withdrawn else "is not withdrawn"
        raise ValidationError(f"Version {profile.version} {done}.", code="withdrawn")
    if profile.effective_from <= now and is_withdrawn:
        text = f"Version {profile.version} is in force since {since}: requests were charged by it. Add a new version."
        raise ValidationError(text, code="in_force")
    if profile.effective_from <= now:
        text = f"Version {profile.version} was for {since}, which has passed. Add a new version."
        raise ValidationError(text, code="in_force")
    profile.withdrawn_at = now if is_withdrawn else None
    profile.save(update_fields=("withdrawn_at", "updated_at"))
    before, after = {"withdrawn": not is_withdrawn}, {"withdrawn": is_withdrawn}
    verb = "withdraw" if is_withdrawn else "restore"
    audit(actor=actor, action=f"cost_profile.{verb}", target=profile, before=before, after=after)
    return profile


def hardware_of(hardware_type: HardwareType) -> Hardware:
    """What the default profile is derived from. A CPU counts with one core: ratios, not supply, depend on it."""
    return hardware_from_report(
        hardware_type.name,
        memory_bytes=hardware_type.memory_bytes,
        cores=1 if hardware_type.is_cpu else None,
    )


def _listed(pool: Pool) -> list[str]:
    return sorted(str(pk) for pk in pool.tenants.values_list("pk", flat=True))


def bump(pool: Pool, *, is_published: bool = True) -> None:
    """Raise the pool's version: whoever decided on the old one finds out.

    Publishes the pool, unless nothing that gateways are told of it has changed.
    """
    Pool.objects.filter(pk=pool.pk).update(version=F("version") + 1, updated_at=timezone.now())
    pool.refresh_from_db(fields=("version", "updated_at"))
    if is_published:
        record_change(kind="pool", object_id=pool.pk)
