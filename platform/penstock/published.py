"""Snapshot records from the models: what a gateway is told of each object, in as few queries as there are tables."""

from __future__ import annotations

import datetime
import uuid
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from operator import attrgetter
from typing import Any, TypedDict, TypeVar, get_args

from django.db.models import QuerySet

from capacity.models import CostProfile, Pool, Reservation
from capacity.selectors import claw_back_s, profiles_in_force
from serving.gateway.records import (
    LATER_KINDS,
    DeploymentRecord,
    KeyRecord,
    LimitHolder,
    LimitKind,
    LimitRecord,
    PoolRecord,
    ProfileRecord,
    ReplicaRecord,
    ReservationRecord,
    TenantRecord,
    encode,
)
from serving.models import Deployment, Replica, Revision
from serving.options import adapters_of, invocations_path, spoken
from tenants.models import ApiKey, Limit, Tenant
from tenants.policy.limits import holdings

_Name = TypeVar("_Name", bound=str)

_CHUNK = 500
PUBLISHED_STATES = (Replica.State.READY, Replica.State.DRAINING)

_KINDS: dict[str, LimitKind] = {kind: kind for kind in get_args(LimitKind)}

Published = tuple[uuid.UUID, str, bytes]
"""The object's key, its id in the snapshot, and its record."""


def records(kind: str, ids: Collection[uuid.UUID] | None, *, now: datetime.datetime) -> Iterator[Published]:
    """The records of the objects of ``kind`` with these keys (None: all) that gateways must know of."""
    if ids is None:
        yield from _BUILDERS[kind](None, now)
        return
    wanted = list(ids)
    for start in range(0, len(wanted), _CHUNK):
        yield from _BUILDERS[kind](wanted[start : start + _CHUNK], now)


def _tenants(ids: Iterable[uuid.UUID] | None, _: datetime.datetime) -> Iterator[Published]:
    tenants = Tenant.objects.all() if ids is None else Tenant.objects.filter(pk__in=ids)
    limits = _limits("tenant_id", _of_tenants(ids).filter(api_key=None, member=None))
    members: dict[uuid.UUID, dict[str, tuple[LimitRecord, ...]]] = defaultdict(dict)
    for (tenant_id, user_id), found in _limits(_MEMBER, _of_tenants(ids).exclude(member=None)).items():
        members[tenant_id][str(user_id)] = found
    for tenant in tenants.iterator(_CHUNK):
        record = TenantRecord(
            id=str(tenant.pk),
            slug=tenant.slug,
            active=tenant.is_active,
            best_effort=tenant.best_effort,
            **_told_apart(limits.get(tenant.pk, ())),
            members=members.get(tenant.pk, {}),
        )
        yield tenant.pk, record.id, encode(record)


def _of_tenants(ids: Iterable[uuid.UUID] | None) -> QuerySet[Limit]:
    return Limit.objects.all() if ids is None else Limit.objects.filter(tenant__in=ids)


def _keys(ids: Iterable[uuid.UUID] | None, _: datetime.datetime) -> Iterator[Published]:
    keys = ApiKey.objects.all() if ids is None else ApiKey.objects.filter(pk__in=ids)
    own = Limit.objects.exclude(api_key=None) if ids is None else Limit.objects.filter(api_key__in=ids)
    limits = _limits("api_key_id", own)
    of_makers = Limit.objects.exclude(member=None)
    rows: Iterable[ApiKey] = keys.iterator(_CHUNK)
    if ids is not None:
        rows = list(rows)
        of_makers = of_makers.filter(tenant__in={key.tenant_id for key in rows})
    members = _limits(_MEMBER, of_makers)
    for key in rows:
        record = KeyRecord(
            id=key.public_id,
            uuid=str(key.pk),
            tenant=str(key.tenant_id),
            digest=key.digest,
            pepper=key.pepper,
            scopes=tuple(key.scopes),
            models=tuple(key.models_allowed),
            allowed_ips=tuple(key.allowed_ips),
            expires_at=key.expires_at.timestamp() if key.expires_at else None,
            revoked=key.revoked_at is not None,
            **_told_apart((*limits.get(key.pk, ()), *members.get((key.tenant_id, key.created_by_id), ()))),
        )
        yield key.pk, record.id, encode(record)


def limit_record(lasting: Limit, in_force: Limit) -> LimitRecord:
    """What gateways are told of the operator's limit and the tenant's own (``Holding``)."""
    holder: LimitHolder = "key" if lasting.api_key_id else "member" if lasting.member_id else "tenant"
    return LimitRecord(
        id=str(lasting.pk),
        kind=_KINDS[lasting.kind],
        value=float(in_force.value),
        model=lasting.model,
        holder=holder,
    )


class _Limits(TypedDict):
    """Where a record has them."""

    limits: tuple[LimitRecord, ...]
    more_limits: tuple[LimitRecord, ...]


def _told_apart(limits: Iterable[LimitRecord]) -> _Limits:
    every = tuple(limits)
    return {
        "limits": tuple(one for one in every if one.kind not in LATER_KINDS),
        "more_limits": tuple(one for one in every if one.kind in LATER_KINDS),
    }


_MEMBER = ("tenant_id", "member__user_id")


def _limits(owner: str | tuple[str, ...], rows: QuerySet[Limit]) -> dict[Any, tuple[LimitRecord, ...]]:
    """What gateways are told of the limits ``rows``, by whose they are: the columns ``owner``."""
    found: dict[Any, list[LimitRecord]] = defaultdict(list)
    whose = attrgetter(*([owner] if isinstance(owner, str) else [name.replace("__", ".") for name in owner]))
    # Gateways are told of one limit where the operator and the tenant have set one: of the smaller one.
    for held in holdings(rows.select_related("member").order_by("pk").iterator(_CHUNK)):
        found[whose(held.lasting)].append(limit_record(held.lasting, held.in_force))
    return {key: tuple(limits) for key, limits in found.items()}


def _pools(ids: Iterable[uuid.UUID] | None, now: datetime.datetime) -> Iterator[Published]:
    pools = Pool.objects.all() if ids is None else Pool.objects.filter(pk__in=ids)
    profiles = profiles_in_force(at=now)
    for pool in pools.select_related("model").prefetch_related("tenants"):
        profile = profiles.get(pool.pk)
        # Without a price nothing of the pool can be admitted: it is not published.
        if profile is None:
            continue
        record = PoolRecord(
            id=str(pool.pk),
            slug=pool.slug,
            profile=_profile(profile),
            tenants=None if pool.is_public else tuple(sorted(str(tenant.pk) for tenant in pool.tenants.all())),
            best_effort=pool.best_effort,
            best_effort_wait_s=pool.tolerable_wait_s,
            ttft_objective_ms=float(pool.ttft_objective_ms),
            claw_back_s=claw_back_s(profile, context_tokens=pool.model.context_tokens),
        )
        yield pool.pk, record.id, encode(record)


def _profile(profile: CostProfile) -> ProfileRecord:
    return ProfileRecord(
        version=profile.version,
        base=profile.base,
        alpha=profile.alpha,
        beta=profile.beta,
        gamma=profile.gamma,
        epsilon=profile.epsilon,
        cached_factor=profile.cached_factor,
        modalities=dict(sorted(profile.modalities.items())),
        long_input_tiers=tuple((int(start), float(factor)) for start, factor in profile.long_input_tiers),
        calibrated=profile.calibrated,
        price_per_1000_mu=profile.price_per_1000_mu or 0.0,
    )


def _deployments(ids: Iterable[uuid.UUID] | None, now: datetime.datetime) -> Iterator[Published]:
    """Those that are stopped, too: what owners of reservations ask of them is refused, and counts in the ledger."""
    revisions = Revision.objects.filter(is_current=True, deployment__removed_at=None).select_related("deployment")
    if ids is not None:
        revisions = revisions.filter(deployment__in=ids)
    profiles = profiles_in_force(at=now)
    contexts = _contexts(ids)
    ready = _ready_revisions(ids)
    for revision in revisions.order_by("deployment_id"):
        deployment = revision.deployment
        profile = profiles.get(deployment.pool_id)
        # While a revision takes over, replicas of both answer: only what all of them can is asked of them.
        serving = [(one.runtime, one.options) for one in ready.get(deployment.pk, [revision])]
        record = DeploymentRecord(
            id=str(deployment.pk),
            name=deployment.name,
            pool=str(deployment.pool_id),
            revision=str(revision.pk),
            runtime=revision.runtime,
            label="simulated" if revision.runtime == Revision.Runtime.SIMULATED else "",
            max_model_len=contexts.get(deployment.pk),
            created=int(deployment.created_at.timestamp()),
            replica_mu_per_min=profile.replica_mu_per_min if profile else 100.0,
            speaks=_common([spoken(*one) for one in serving]),
            invocations_path=invocations_path(*serving[0]),
            adapters=_common([adapters_of(*one) for one in serving]),
            is_stopped=not deployment.is_enabled,
        )
        yield deployment.pk, record.id, encode(record)


def _ready_revisions(ids: Iterable[uuid.UUID] | None) -> dict[uuid.UUID, list[Revision]]:
    """The revisions of each deployment's ready replicas, the oldest first."""
    rows = Revision.objects.filter(replicas__state=Replica.State.READY).order_by("number").distinct()
    if ids is not None:
        rows = rows.filter(deployment__in=ids)
    found: dict[uuid.UUID, list[Revision]] = {}
    for revision in rows:
        found.setdefault(revision.deployment_id, []).append(revision)
    return found


def _common(groups: Sequence[tuple[_Name, ...]]) -> tuple[_Name, ...]:
    """What is in all of ``groups``, in the order of the first."""
    return tuple(one for one in groups[0] if all(one in group for group in groups))


def _contexts(ids: Iterable[uuid.UUID] | None) -> dict[uuid.UUID, int]:
    """The least context length among a deployment's ready replicas, in tokens."""
    rows = Replica.objects.filter(state=Replica.State.READY, max_model_len__isnull=False)
    if ids is not None:
        rows = rows.filter(deployment__in=ids)
    found: dict[uuid.UUID, int] = {}
    for deployment, length in rows.order_by().values_list("deployment_id", "max_model_len"):
        found[deployment] = min(length or 0, found.get(deployment, length or 0))
    return found


def _replicas(ids: Iterable[uuid.UUID] | None, _: datetime.datetime) -> Iterator[Published]:
    rows = Replica.objects.filter(state__in=PUBLISHED_STATES).exclude(address="").select_related("revision")
    if ids is not None:
        rows = rows.filter(pk__in=ids)
    for replica in rows.order_by("pk"):
        record = ReplicaRecord(
            id=str(replica.pk),
            deployment=str(replica.deployment_id),
            revision=str(replica.revision_id),
            host=str(replica.host_id or ""),
            address=replica.address,
            state="ready" if replica.state == Replica.State.READY else "draining",
            target_concurrency=replica.revision.target_concurrency,
            supply_mu_per_min=replica.supply_mu_per_min,
        )
        yield replica.pk, record.id, encode(record)


def _reservations(ids: Iterable[uuid.UUID] | None, _: datetime.datetime) -> Iterator[Published]:
    """What is sold, from the sale until it is over: gateways begin and end it on time, whoever is down then."""
    rows = Reservation.objects.filter(state__in=Reservation.PROMISED).select_related("profile")
    if ids is not None:
        rows = rows.filter(pk__in=ids)
    for reservation in rows.order_by("pk").iterator(_CHUNK):
        record = ReservationRecord(
            id=str(reservation.pk),
            tenant=str(reservation.tenant_id),
            pool=str(reservation.pool_id),
            mu_per_min=reservation.mu_per_min,
            burst_mu=reservation.burst_mu,
            starts_at=reservation.starts_at.timestamp(),
            ends_at=reservation.ends_at.timestamp() if reservation.ends_at else None,
            profile=_profile(reservation.profile),
        )
        yield reservation.pk, record.id, encode(record)


_BUILDERS: dict[str, Callable[[Iterable[uuid.UUID] | None, datetime.datetime], Iterator[Published]]] = {
    "tenant": _tenants,
    "key": _keys,
    "pool": _pools,
    "deployment": _deployments,
    "replica": _replicas,
    "reservation": _reservations,
}


def with_dependants(changed: Mapping[str, set[uuid.UUID]]) -> dict[str, set[uuid.UUID]]:
    """``changed`` and the objects whose records say something of them.

    A deployment's record has the context length of its replicas and the supply of its pool's profile.
    """
    wanted = {kind: set(ids) for kind, ids in changed.items() if ids}
    deployments: set[uuid.UUID] = set()
    for kind, field in (("replica", "replicas__in"), ("pool", "pool__in")):
        ids = list(wanted.get(kind, ()))
        for start in range(0, len(ids), _CHUNK):
            part = Deployment.objects.filter(**{field: ids[start : start + _CHUNK]})
            deployments.update(part.order_by().values_list("pk", flat=True))
    if deployments:
        wanted.setdefault("deployment", set()).update(deployments)
    return wanted
