"""Placement: pending replicas find a host by ``capacity.policy.placement``, or say why none fits."""

import datetime
import logging
import uuid
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from django.db import transaction
from django.db.models import QuerySet

from capacity.models import CostProfile, Host, Model
from capacity.policy.placement import AcceleratorView, HostView, Need, Placement, place
from penstock.loops.isolation import is_news, isolated
from serving.models import Replica, Revision
from serving.options import placement_errors

log = logging.getLogger(__name__)

Profiles = Mapping[uuid.UUID, CostProfile]
"""The cost profiles in force, by pool id; a pool without a price is absent."""

OCCUPYING = (
    Replica.State.PENDING,
    Replica.State.STARTING,
    Replica.State.READY,
    Replica.State.DRAINING,
    Replica.State.STOPPING,
)
_LOADING = (Replica.State.PENDING, Replica.State.STARTING)
_BYTES_PER_PARAMETER = 2.0
_ROOM = 1.2
"""Of the weights' size: activations and what the engine keeps beside them."""
CPU_ENGINE_BYTES = 1 << 30
"""vLLM itself on a CPU, whatever it serves: about 0.95 GB were measured."""
MLFLOW_BYTES = 400 << 20
"""MLflow's scoring server with a small model: 0.26 GB were measured."""
CPU_KV_BYTES, CPU_TINY_KV_BYTES = 1 << 30, 64 << 20
"""The KV cache that the agent gives a CPU engine without ``kv_cache_bytes``, and the built-in tiny model's."""


def place_pending(*, profiles: Profiles, now: datetime.datetime) -> int:
    """Give each unplaced replica a host; how many found one."""
    waiting = list(
        Replica.objects.filter(state=Replica.State.PENDING, host=None)
        .select_related("deployment__pool__model", "revision")
        .order_by("created_at")
    )
    placed = 0
    for replica in waiting:
        is_decided = False
        with isolated(f"the placement of {replica}"):
            placed += place_one(replica, profiles=profiles, now=now)
            is_decided = True
        if not is_decided:
            reason = "its placement fails: the log of the role loops says why"
            _unplaced(replica).exclude(reason=reason).update(reason=reason, updated_at=now)
    return placed


def place_one(replica: Replica, *, profiles: Profiles, now: datetime.datetime) -> bool:
    """Give the replica a host, or the reason why it waits; whether it has found one."""
    placement = _place(replica, profiles, now=now)
    if placement.host_id is not None:
        return _take(replica, uuid.UUID(placement.host_id), profiles, now=now)
    reason = placement.reason[:500]
    if replica.reason != reason:
        _unplaced(replica).update(reason=reason, updated_at=now)
        log.warning("%s cannot be placed: %s", replica, reason)
    return False


def would_fit(replica: Replica, *, profiles: Profiles, now: datetime.datetime, without: Replica | None = None) -> bool:
    """Whether ``replica`` would find room now, or on the host of ``without`` if that were gone."""
    host_id = without.host_id if without else None
    return _place(replica, profiles, now=now, host_id=host_id, without=without).host_id is not None


def without_room(
    leaving: Iterable[Replica], *, host: Host, profiles: Profiles, now: datetime.datetime
) -> list[Replica]:
    """Those of ``leaving`` whose replacements would find no room on hosts other than ``host``.

    They are placed one after another, as the loop does: what one would be given, the next does not find.
    """
    hosts = list(Host.objects.exclude(pk=host.pk).prefetch_related("accelerators"))
    occupants = _occupants(Replica.objects.exclude(host=host))
    homeless = []
    for replica in leaving:
        views = [_host_view(one, occupants.get(one.pk, []), replica, profiles, freed_bytes=0, now=now) for one in hosts]
        placement = _placement(replica, profiles, views)
        if placement.host_id is None:
            homeless.append(replica)
            continue
        replacement = Replica(
            deployment=replica.deployment,
            revision=replica.revision,
            state=Replica.State.PENDING,
            accelerators=list(placement.accelerators),
        )
        occupants.setdefault(uuid.UUID(placement.host_id), []).append(replacement)
    return homeless


@transaction.atomic
def _take(replica: Replica, host_id: uuid.UUID, profiles: Profiles, *, now: datetime.datetime) -> bool:
    """Give the replica its host; False if that has no room any more, or the replica has found one.

    Two passes may overlap and see the same room: the second waits here, and looks again at what the first has left.
    """
    Host(pk=host_id).take_turn()
    placement = _place(replica, profiles, now=now, host_id=host_id)
    if placement.host_id is None:
        return False
    swapped = _unplaced(replica).update(
        host=host_id, accelerators=list(placement.accelerators), reason=placement.reason[:500], updated_at=now
    )
    return bool(swapped)


def _unplaced(replica: Replica) -> QuerySet[Replica]:
    return Replica.objects.filter(pk=replica.pk, state=Replica.State.PENDING, host=None)


def _place(
    replica: Replica,
    profiles: Profiles,
    *,
    now: datetime.datetime,
    host_id: uuid.UUID | None = None,
    without: Replica | None = None,
) -> Placement:
    """The decision for a replica over all hosts, or over one; ``without`` one of their replicas."""
    return _placement(replica, profiles, _host_views(replica, profiles, now=now, host_id=host_id, without=without))


def _placement(replica: Replica, profiles: Profiles, views: Sequence[HostView]) -> Placement:
    if errors := placement_errors(replica.revision.options):
        # A revision from before they were checked: nobody else must wait for it.
        return Placement(None, (), f"make a revision with other options. {' '.join(errors)}", {})
    return place(need_of(replica, profiles.get(replica.deployment.pool_id)), views)


def need_of(replica: Replica, profile: CostProfile | None, options: Mapping[str, Any] | None = None) -> Need:
    """What a replica needs of a host.

    Revision options may say it: ``accelerators`` (number), ``memory_bytes``, ``host_labels``. Otherwise a simulated
    engine needs next to nothing, and MLflow the memory of its server; of the others a pool priced on a CPU needs no
    accelerator, any other as many as its tensor and pipeline parallelism make. Memory follows the model's size at 2
    bytes per parameter, on a CPU with vLLM and its KV cache beside it. ``options``: others than those of the revision.
    """
    options = replica.revision.options if options is None else options
    labels = options.get("host_labels", {})
    runtime = replica.revision.runtime
    if runtime in (Revision.Runtime.SIMULATED, Revision.Runtime.MLFLOW):
        own = MLFLOW_BYTES if runtime == Revision.Runtime.MLFLOW else 0
        return Need(
            accelerators=int(options.get("accelerators", 0)),
            memory_bytes=int(options.get("memory_bytes", own)),
            labels=labels,
        )
    parallel = int(options.get("tensor_parallel_size", 1)) * int(options.get("pipeline_parallel_size", 1))
    on_cpu = profile is None or profile.hardware_type.is_cpu
    accelerators = int(options.get("accelerators", 0 if on_cpu else parallel))
    weights = weights_bytes(replica.deployment.pool.model.parameters)
    beside = CPU_ENGINE_BYTES + _cpu_kv_bytes(replica, options) if runtime == Revision.Runtime.VLLM else 0
    on_host = 0.0 if accelerators else weights + beside
    return Need(
        accelerators=accelerators,
        memory_bytes=int(options.get("memory_bytes", on_host)),
        accelerator_memory_bytes=int(weights / accelerators) if accelerators else 0,
        labels=labels,
    )


def weights_bytes(parameters: int | None) -> float:
    """Memory for a model of so many parameters, with room for what an engine keeps beside them; 0 where unknown."""
    return (parameters or 0) * _BYTES_PER_PARAMETER * _ROOM


def _cpu_kv_bytes(replica: Replica, options: Mapping[str, Any]) -> int:
    is_tiny = replica.deployment.pool.model.artifact_kind == Model.Artifact.TINY
    return int(options.get("kv_cache_bytes") or (CPU_TINY_KV_BYTES if is_tiny else CPU_KV_BYTES))


def _host_views(
    replica: Replica,
    profiles: Profiles,
    *,
    now: datetime.datetime,
    host_id: uuid.UUID | None,
    without: Replica | None,
) -> list[HostView]:
    """The hosts, or one of them, as the placement of ``replica`` sees them; as if ``without`` had left."""
    there = Replica.objects.all()
    hosts = Host.objects.prefetch_related("accelerators")
    if host_id is not None:
        there, hosts = there.filter(host=host_id), hosts.filter(pk=host_id)
    if without is not None:
        there = there.exclude(pk=without.pk)
    occupants = _occupants(there)
    # What an engine that serves holds is missing from what its host reports as available.
    freed = held_bytes(without, profiles) if without and without.state == Replica.State.READY else 0
    return [
        _host_view(host, occupants.get(host.pk, []), replica, profiles, freed_bytes=freed, now=now) for host in hosts
    ]


def _occupants(rows: QuerySet[Replica]) -> dict[object, list[Replica]]:
    """Which of ``rows`` hold a part of a host, by its id."""
    occupants: dict[object, list[Replica]] = {}
    there = rows.filter(host__isnull=False, state__in=OCCUPYING)
    for other in there.select_related("deployment__pool__model", "revision"):
        occupants.setdefault(other.host_id, []).append(other)
    return occupants


def held_bytes(placed: Replica, profiles: Profiles) -> int:
    """The memory that a placed replica needs of its host."""
    profile, stored = profiles.get(placed.deployment.pool_id), placed.revision.options
    options = stored if isinstance(stored, dict) else {}
    errors = placement_errors(options) if options is stored else ["options: give values by name."]
    if errors:
        # A revision from before they were checked: nobody else must wait for it, nor sit down on what it was given.
        options = {name: value for name, value in options.items() if not placement_errors({name: value})}
        options["accelerators"] = len(placed.accelerators)
        if is_news(f"{placed} has options that cannot be read"):
            log.warning(
                "%s %s on its host with options that cannot be read, and counts as what it was given; make a revision "
                "with other options. %s",
                placed,
                "starts" if placed.state in _LOADING else "serves",
                " ".join(errors),
            )
    return need_of(placed, profile, options).memory_bytes


def _host_view(
    host: Host,
    there: Sequence[Replica],
    replica: Replica,
    profiles: Profiles,
    *,
    freed_bytes: int,
    now: datetime.datetime,
) -> HostView:
    taken = {index for other in there for index in other.accelerators}
    loading = [other for other in there if other.state in _LOADING]
    committed = sum(held_bytes(other, profiles) for other in loading)
    age_s = None if host.last_report_at is None else (now - host.last_report_at).total_seconds()
    return HostView(
        id=str(host.pk),
        name=host.name,
        state=host.state,
        report_age_s=age_s,
        cores=float(host.report.get("cores", 1)),
        memory_available_bytes=int(host.report.get("memory_available_bytes", 0)) + freed_bytes,
        memory_committed_bytes=committed,
        accelerators=tuple(
            AcceleratorView(
                index=accelerator.index,
                memory_bytes=accelerator.memory_bytes,
                is_healthy=accelerator.is_healthy,
                taken=accelerator.index in taken,
            )
            for accelerator in host.accelerators.all()
        ),
        replicas=len(there),
        peers=sum(other.deployment_id == replica.deployment_id for other in there),
        starting=len(loading),
        labels=host.labels,
    )
