"""What there is to sell of a pool, from the models: hosts, what serves it and others, and what of all is promised."""

from __future__ import annotations

import datetime
import uuid
from collections import defaultdict
from collections.abc import Mapping, Sequence

from capacity.models import CostProfile, HardwareType, Host, Pool, ReplicaSupply
from capacity.policy.placement import HostView, Need, place
from capacity.policy.stock import DeploymentStock, HostStock, PoolStock, Stock, Term
from capacity.promises import terms_sold
from capacity.selectors import profiles_in_force
from penstock.loops.placing import OCCUPYING, held_bytes, need_of
from serving.measuring import supply_in_force
from serving.models import Replica, Revision
from serving.options import placement_errors

_STAYING = (Replica.State.PENDING, Replica.State.STARTING, Replica.State.READY)
"""States of replicas that hold what they have; others give it back."""
_LOADING = (Replica.State.PENDING, Replica.State.STARTING)

Profiles = Mapping[uuid.UUID, CostProfile]


def stock_of(pool: Pool, *, now: datetime.datetime) -> Stock:
    """All that the ledger's answer about ``pool`` is made of: a fixed number of queries."""
    profiles = profiles_in_force(at=now)
    hosts = list(Host.objects.select_related("hardware_type").prefetch_related("accelerators").order_by("name"))
    there = list(
        Replica.objects.filter(state__in=OCCUPYING, host__isnull=False).select_related(
            "deployment__pool__model", "revision", "host__hardware_type"
        )
    )
    views = {
        host.pk: _view(host, [one for one in there if one.host_id == host.pk], profiles, now=now) for host in hosts
    }
    serving = _serving(hosts, there, profiles)
    own = serving.get(pool.pk, ())
    rivals = {pk: stocks for pk, stocks in serving.items() if pk != pool.pk and any(_wants(one.need) for one in stocks)}
    if not any(_wants(one.need) for one in own):
        rivals = {}
    pools = {row.pk: row for row in Pool.objects.filter(pk__in=rivals).order_by("pk")}
    sold = terms_sold(at=now, pool_ids=[pool.pk, *rivals])
    return Stock(
        pool=_pool(pool, own, sold.get(pool.pk, ())),
        hosts=tuple(views[host.pk] for host in hosts),
        others=tuple(_pool(row, rivals[pk], sold.get(pk, ())) for pk, row in pools.items()),
        notes=_notes(pool, [host for host in hosts if _is_of_use(host, own)], profiles),
    )


def _pool(row: Pool, serving: Sequence[DeploymentStock], sold: Sequence[Term]) -> PoolStock:
    return PoolStock(
        id=str(row.pk),
        name=row.name,
        oversell_factor=row.oversell_factor,
        keep_spare=row.keep_spare,
        deployments=tuple(serving),
        sold=tuple(sold),
    )


def _wants(need: Need) -> bool:
    """Whether a replica takes something of its host that others could have."""
    return need.accelerators > 0 or need.memory_bytes > 0


def _view(host: Host, there: Sequence[Replica], profiles: Profiles, *, now: datetime.datetime) -> HostStock:
    staying = [one for one in there if one.state in _STAYING]
    taken = {index: one.deployment.name for one in staying for index in one.accelerators}
    held: dict[str, int] = defaultdict(int)
    for accelerator in host.accelerators.all():
        if accelerator.index in taken:
            held[taken[accelerator.index]] += 1
    loading = sum(held_bytes(one, profiles) for one in staying if one.state in _LOADING)
    return HostStock(
        id=str(host.pk),
        name=host.name,
        hardware=host.hardware_type.slug,
        why_not=_why_not(host, now=now),
        free=tuple(one.memory_bytes for one in host.accelerators.all() if one.is_healthy and one.index not in taken),
        held=dict(held),
        memory_bytes=max(0, int(host.report.get("memory_available_bytes", 0)) - loading),
        labels=host.labels,
    )


def _why_not(host: Host, *, now: datetime.datetime) -> str:
    """Why placement puts nothing on the host now, in its words."""
    age_s = None if host.last_report_at is None else (now - host.last_report_at).total_seconds()
    view = HostView(
        id="",
        name=host.name,
        state=host.state,
        report_age_s=age_s,
        cores=1.0,
        memory_available_bytes=0,
    )
    return place(Need(), [view]).rejected.get(host.name, "")


def _serving(
    hosts: Sequence[Host], there: Sequence[Replica], profiles: Profiles
) -> dict[uuid.UUID, tuple[DeploymentStock, ...]]:
    """What serves each pool: enabled deployments, by their current revision."""
    # What runs on a cordoned host goes on; on one that is drained or lost, it does not.
    kept = {host.pk for host in hosts if host.state in (Host.State.ACTIVE, Host.State.CORDONED)}
    on: dict[uuid.UUID, list[str]] = defaultdict(list)
    for replica in there:
        if replica.state in _STAYING and replica.host_id in kept:
            on[replica.deployment_id].append(str(replica.host_id))
    kinds = list(HardwareType.objects.filter(pk__in={host.hardware_type_id for host in hosts}))
    measured = {(row.pool_id, row.hardware_type_id): row for row in ReplicaSupply.objects.all()}
    found: dict[uuid.UUID, list[DeploymentStock]] = defaultdict(list)
    current = Revision.objects.filter(
        is_current=True, deployment__is_enabled=True, deployment__removed_at=None
    ).select_related("deployment__pool__model")
    for revision in current.order_by("deployment__name"):
        deployment = revision.deployment
        profile = profiles.get(deployment.pool_id)
        if profile is None:
            continue
        supply = {
            kind.slug: supply_in_force(
                profile, None if kind.pk == profile.hardware_type_id else measured.get((profile.pool_id, kind.pk))
            )
            for kind in kinds
        }
        least, most = deployment.min_replicas, deployment.max_replicas
        if deployment.pinned_replicas is not None:
            least = most = deployment.pinned_replicas
        running = on.get(deployment.pk, [])
        if placement_errors(revision.options):
            # Placement refuses such a revision: what runs goes on, and nothing is added.
            need, most = Need(), min(most, len(running))
        else:
            need = need_of(Replica(deployment=deployment, revision=revision), profile)
        found[deployment.pool_id].append(
            DeploymentStock(
                id=str(deployment.pk),
                name=deployment.name,
                need=need,
                supply=supply,
                min_replicas=min(least, most),
                max_replicas=most,
                on=tuple(running),
            )
        )
    return {pool_id: tuple(stocks) for pool_id, stocks in found.items()}


def _is_of_use(host: Host, serving: Sequence[DeploymentStock]) -> bool:
    """Whether the host is of the kind that a replica needs: with accelerators, or any where none is needed."""
    return any(not one.need.accelerators or host.accelerators.all() for one in serving)


def _notes(pool: Pool, hosts: Sequence[Host], profiles: Profiles) -> tuple[str, ...]:
    """What the answer rests on that nobody has measured."""
    profile = profiles.get(pool.pk)
    if profile is None:
        return ()
    notes = [] if profile.calibrated else ["the price (a default from model size and hardware)"]
    known = set(ReplicaSupply.objects.filter(pool=pool).values_list("hardware_type_id", flat=True))
    known.add(profile.hardware_type_id)
    strange = sorted({host.hardware_type.name for host in hosts if host.hardware_type_id not in known})
    if strange:
        notes.append(f"supply on {', '.join(strange)} (taken to be that on {profile.hardware_type.name})")
    return tuple(notes)
