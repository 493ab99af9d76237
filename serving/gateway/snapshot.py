"""What a gateway knows of tenants, keys, pools, deployments and replicas, and how it keeps up with the publisher."""

from __future__ import annotations

from pathlib import Path

from serving.gateway.records import (
    DeploymentRecord,
    KeyRecord,
    PoolRecord,
    ReplicaRecord,
    TenantRecord,
)
from serving.gateway.state import State


class Snapshot:
    """The records by id, and two indexes. Mutable: the store applies deltas in place, between two awaits."""

    version: int
    digest: int
    published_at: float
    tenants: dict[str, TenantRecord]
    keys: dict[str, KeyRecord]
    pools: dict[str, PoolRecord]
    deployments: dict[str, DeploymentRecord]
    replicas: dict[str, ReplicaRecord]
    deployments_by_name: dict[str, DeploymentRecord]
    replicas_by_deployment: dict[str, tuple[ReplicaRecord, ...]]


class SnapshotStore:
    """Follows the published snapshot and keeps a checksummed copy of it on disk."""

    view: Snapshot

    def __init__(self, state: State, path: Path) -> None:
        raise NotImplementedError

    async def start(self) -> None:
        """Load from the state, else from the file, else empty; then follow in the background."""
        raise NotImplementedError

    async def stop(self) -> None:
        raise NotImplementedError

    async def find_key(self, public_id: str) -> KeyRecord | None:
        """The key's record, asking the state once when it is not in the view (negative answers are kept 1 s)."""
        raise NotImplementedError

    def age_s(self) -> float:
        """Seconds since this view was last known to be current; ``inf`` when it never was."""
        raise NotImplementedError
