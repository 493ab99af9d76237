"""What is in flight at each replica, as gateways tell it."""

from collections.abc import Sequence
from dataclasses import dataclass

from serving.gateway.loads import GatewayBeat

METRICS_FRESH_S = 10.0
"""What an engine said of itself longer ago says nothing about now."""


@dataclass(slots=True)
class Load:
    """What gateways have in flight at one replica, and when it last showed life (UNIX seconds)."""

    requests: int = 0
    mu: float = 0.0
    alive_at: float = 0.0


def loads_by_replica(beats: Sequence[GatewayBeat]) -> dict[str, Load]:
    """Sum of all gateways' work at each replica."""
    loads: dict[str, Load] = {}
    for beat in beats:
        for replica_id, seen in beat.replicas.items():
            load = loads.setdefault(replica_id, Load())
            load.requests += seen.n
            load.mu += seen.w + seen.d
            load.alive_at = max(load.alive_at, seen.last_token_at, seen.last_success_at)
    return loads
