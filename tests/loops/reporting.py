"""Reports of a host as tests make them."""

from __future__ import annotations

from typing import Any

from serving.agents.reports import report_apply
from serving.models import Replica
from serving.services import replica_create
from tests.loops.conftest import World
from worker.spec import Address, HostReport, ReplicaReport


def place(world: World, state: str = "pending", **fields: Any) -> Replica:
    """A replica on the first host, without the loop."""
    revision = world.deployment.revisions.get()
    replica = replica_create(deployment=world.deployment, revision=revision, reason="a test", host=world.host())
    Replica.objects.filter(pk=replica.pk).update(state=state, state_since=world.at, **fields)
    replica.refresh_from_db()
    return replica


def report(world: World, *seen: ReplicaReport, sequence: int = 1, **fields: Any) -> HostReport:
    blank = world.agent.report(world.now)
    return HostReport(
        **{name: getattr(blank, name) for name in blank.__struct_fields__}
        | {"replicas": seen, "sequence": sequence, **fields}
    )


def ready(replica: Replica, **fields: Any) -> ReplicaReport:
    base: dict[str, Any] = {"address": Address(host="127.0.0.1", port=9000), "launched_at": 100.0, "ready_at": 104.0}
    return ReplicaReport(replica_id=str(replica.pk), phase="ready", **base | fields)


def apply(world: World, message: HostReport) -> Any:
    return report_apply(message, client=world.client, now=world.at)
