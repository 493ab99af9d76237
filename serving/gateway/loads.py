"""Who is doing how much: requests in flight and MU per replica, own and of the other gateways."""

from __future__ import annotations

import msgspec
import redis

from serving.gateway.state import State


class ReplicaBeat(msgspec.Struct, kw_only=True, omit_defaults=True):
    """One gateway's requests at one replica. ``w``: prefill MU pending; ``d``: decode MU in flight. UNIX seconds."""

    n: int = 0
    w: float = 0.0
    d: float = 0.0
    last_token_at: float = 0.0
    last_success_at: float = 0.0
    last_error_at: float = 0.0
    oldest_in_flight_at: float = 0.0


class DeploymentBeat(msgspec.Struct, kw_only=True, omit_defaults=True):
    """One gateway's counts of a deployment since its start; ``queue_mu`` is what waits now."""

    offered_mu: float = 0.0
    offered_requests: int = 0
    refused: int = 0
    completed: int = 0
    queue_mu: float = 0.0


class GatewayBeat(msgspec.Struct, kw_only=True, omit_defaults=True):
    gateway: str
    pid: int
    sequence: int
    at: float
    started_at: float
    snapshot_version: int = 0
    snapshot_age_s: float = 0.0
    replicas: dict[str, ReplicaBeat] = msgspec.field(default_factory=dict)
    deployments: dict[str, DeploymentBeat] = msgspec.field(default_factory=dict)


class ReplicaLoad:
    """Own live numbers plus the other gateways' newest beats: ``n`` requests, ``w`` and ``d`` in MU."""

    n: int
    w: float
    d: float


class Ticket:
    """One dispatched request at one replica. Every method may be called in any order and any number of times."""

    def first_token(self) -> None:
        """The prefill is over: its MU leave ``w``."""

    def token(self) -> None:
        """Something came from the engine just now."""

    def finished(self, ok: bool) -> None:
        """The request has left the replica; ``ok``: it completed there without an engine error."""


class Loads:
    def __init__(self, state: State, gateway_id: str) -> None:
        raise NotImplementedError

    async def start(self) -> None:
        """Begin the exchange, every 100 ms, one round trip."""

    async def stop(self) -> None: ...

    def replica(self, replica_id: str) -> ReplicaLoad:
        """The merged load; the same live object for each call with the same id while the replica is in use."""
        raise NotImplementedError

    def dispatched(self, replica_id: str, w_mu: float, d_mu: float) -> Ticket:
        raise NotImplementedError

    def offered(self, deployment_id: str, mu: float) -> None: ...

    def refused(self, deployment_id: str) -> None: ...

    def completed(self, deployment_id: str) -> None: ...

    def queued(self, deployment_id: str, mu: float) -> None:
        """``mu`` joins the queue (positive) or leaves it (negative)."""

    def gateways(self) -> int:
        """Live gateways as of the last exchange, this one included."""
        raise NotImplementedError


def read_beats(client: redis.Redis) -> list[GatewayBeat]:
    """The beats of all live gateways, for the loops."""
    raise NotImplementedError
