"""Reads of the REST API: which engine holds what of a host."""

from __future__ import annotations

import uuid
from collections.abc import Collection, Iterable
from dataclasses import dataclass

from capacity.models import Accelerator, Host
from capacity.selectors import HOLDING


@dataclass(frozen=True, slots=True)
class Use:
    """A replica that holds a part of a host: the ``accelerators`` of these indices, or none on a CPU.

    ``reason`` says why it is in its state; while its host is drained, also what it waits for.
    """

    id: uuid.UUID
    deployment: str
    state: str
    reason: str
    accelerators: tuple[int, ...]


def uses_by_host(host_ids: Collection[uuid.UUID] | None = None) -> dict[uuid.UUID, list[Use]]:
    """The replicas on these hosts, or on all of them: one query. A host that holds none is absent."""
    hosts = Host.objects.all() if host_ids is None else Host.objects.filter(pk__in=host_ids)
    # Replicas belong to a higher app: here they are known by the name of their relation alone.
    rows = hosts.filter(replicas__state__in=HOLDING).order_by("replicas__created_at")
    found: dict[uuid.UUID, list[Use]] = {}
    for host_id, pk, name, state, reason, indices in rows.values_list(
        "pk",
        "replicas__pk",
        "replicas__deployment__name",
        "replicas__state",
        "replicas__reason",
        "replicas__accelerators",
    ):
        found.setdefault(host_id, []).append(Use(pk, name, state, reason, tuple(indices)))
    return found


def use_of(accelerator: Accelerator, uses: Iterable[Use]) -> Use | None:
    """The one of its host's ``uses`` that holds the accelerator."""
    return next((use for use in uses if accelerator.index in use.accelerators), None)


def accelerators_in_use() -> list[uuid.UUID]:
    """Ids of all accelerators that a replica holds: two queries."""
    taken = {(host_id, index) for host_id, uses in uses_by_host().items() for use in uses for index in use.accelerators}
    rows = Accelerator.objects.filter(host__in={host_id for host_id, _ in taken}).values_list("pk", "host_id", "index")
    return [pk for pk, host_id, index in rows if (host_id, index) in taken]
