"""Orders: the full desired state of one host, sealed with its secret; a new generation only when they changed."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import msgspec
from django.utils import timezone

from capacity.models import Host
from serving.models import Calibration, Replica
from serving.options import PLACEMENT_OPTIONS
from worker.spec import CalibrationOrder, HostOrders, Intent, ReplicaOrder, seal

_INTENTS: dict[str, Intent] = {
    Replica.State.PENDING: "run",
    Replica.State.STARTING: "run",
    Replica.State.READY: "run",
    Replica.State.DRAINING: "drain",
    Replica.State.STOPPING: "stop",
}
"""Replicas in other states are absent from the orders: the agent forgets what has ended and stops what it finds."""


@dataclass(frozen=True, slots=True)
class SealedOrders:
    """``envelope`` as ``worker.spec.seal`` made it; ``changed``: it is a new generation."""

    host_id: str
    generation: int
    envelope: dict[str, Any]
    changed: bool


def replica_orders(host: Host, *, drain_limit_s: float) -> tuple[ReplicaOrder, ...]:
    """What ``host`` is to run now, in a stable order."""
    rows = (
        Replica.objects.filter(host=host, state__in=list(_INTENTS))
        .select_related("deployment__pool__model", "revision")
        .order_by("id")
    )
    marked = {row.pk: row.calibration_id for row in rows if row.calibration_id}
    found = Calibration.objects.filter(pk__in=list(marked.values()), state=Calibration.State.MEASURING)
    orders = {row.pk: row.order for row in found} if marked else {}
    return tuple(
        _replica_order(
            row,
            drain_limit_s=drain_limit_s,
            calibration=orders.get(row.calibration_id) if row.calibration_id else None,
        )
        for row in rows
    )


def _replica_order(replica: Replica, *, drain_limit_s: float, calibration: dict[str, Any] | None) -> ReplicaOrder:
    model = replica.deployment.pool.model
    return ReplicaOrder(
        replica_id=str(replica.id),
        deployment_id=str(replica.deployment_id),
        deployment_name=replica.deployment.name,
        runtime=replica.revision.runtime,
        served_name=replica.deployment.name,
        # What drains to be measured goes on running: its agent must not refuse what it is about to ask the engine.
        intent="run" if replica.calibration_id else _INTENTS[replica.state],
        artifact={
            "kind": model.artifact_kind,
            "value": model.artifact_value,
            "revision": model.artifact_revision,
        },
        options={name: value for name, value in replica.revision.options.items() if name not in PLACEMENT_OPTIONS},
        target_concurrency=replica.revision.target_concurrency,
        accelerators=tuple(replica.accelerators),
        kill=replica.kill,
        evidence=replica.kill,
        drain_s=drain_limit_s,
        attempt=replica.attempt,
        calibration=msgspec.convert(calibration, CalibrationOrder) if calibration else None,
    )


def orders_digest(orders: tuple[ReplicaOrder, ...]) -> str:
    """Hex SHA-256 of the orders: equal orders need no new generation."""
    return hashlib.sha256(msgspec.json.encode(orders, order="deterministic")).hexdigest()


def host_orders_refresh(*, host_id: str, secret: bytes, drain_limit_s: float) -> SealedOrders | None:
    """Build and seal the orders of a host; the generation rises only when they changed.

    Returns None when another process moved the generation meanwhile: the next tick finds its result.
    """
    host = Host.everything.get(pk=host_id)
    orders = replica_orders(host, drain_limit_s=drain_limit_s)
    digest, generation = orders_digest(orders), host.generation
    changed = digest != host.orders_digest
    if changed:
        generation += 1
        swapped = Host.everything.filter(pk=host.pk, generation=host.generation).update(
            generation=generation, orders_digest=digest, updated_at=timezone.now()
        )
        if not swapped:
            return None
    message = HostOrders(host_id=str(host.id), generation=generation, replicas=orders)
    return SealedOrders(
        host_id=str(host.id), generation=generation, envelope=seal(message, secret=secret), changed=changed
    )
