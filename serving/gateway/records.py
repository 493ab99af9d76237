"""The records a gateway lives on: what the control plane publishes to it, and what it writes to its journal.

Data and their JSON form only. ``docs/protocols.md`` explains how they travel.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec

LimitKind = Literal["requests_per_min", "tokens_per_min", "concurrency"]


class LimitRecord(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One plain limit. ``value`` is in requests/min, tokens/min or requests, by ``kind``."""

    id: str
    kind: LimitKind
    value: float
    model: str = ""
    """Served model name this limit speaks of; empty means every model."""


class TenantRecord(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    id: str
    slug: str
    active: bool = True
    limits: tuple[LimitRecord, ...] = ()


class KeyRecord(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """An API key; ``id`` is its public part, the lookup key. ``digest`` is hex HMAC-SHA256(pepper, secret)."""

    id: str
    uuid: str
    tenant: str
    digest: str
    pepper: int
    scopes: tuple[str, ...] = ("inference",)
    models: tuple[str, ...] = ()
    """Served model names the key may use; empty means all that its tenant may."""
    allowed_ips: tuple[str, ...] = ()
    expires_at: float | None = None
    revoked: bool = False
    limits: tuple[LimitRecord, ...] = ()


class ProfileRecord(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A cost profile version, as ``capacity.policy.cost.CostProfile`` takes it."""

    version: int
    base: float
    alpha: float
    beta: float
    gamma: float
    epsilon: float
    cached_factor: float
    modalities: dict[str, float] = msgspec.field(default_factory=dict)
    long_input_tiers: tuple[tuple[int, float], ...] = ()
    calibrated: bool = False


class PoolRecord(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    id: str
    slug: str
    profile: ProfileRecord
    tenants: tuple[str, ...] | None = None
    """Tenant ids that may use the pool; None means every tenant."""


class DeploymentRecord(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A served model. ``name`` is what clients send as ``model``."""

    id: str
    name: str
    pool: str
    revision: str
    runtime: str
    label: str = ""
    """Shown to people, e.g. ``simulated``."""
    max_model_len: int | None = None
    created: int = 0
    replica_mu_per_min: float = 100.0


class ReplicaRecord(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A replica a gateway may send requests to. Only replicas in rotation or draining are published."""

    id: str
    deployment: str
    revision: str
    host: str
    address: str
    """``http://127.0.0.1:PORT``"""
    state: Literal["ready", "draining"]
    target_concurrency: int
    supply_mu_per_min: float = 100.0
    token: str = ""


RECORD_TYPES: dict[str, type[msgspec.Struct]] = {
    "tenant": TenantRecord,
    "key": KeyRecord,
    "pool": PoolRecord,
    "deployment": DeploymentRecord,
    "replica": ReplicaRecord,
}
"""Kinds of snapshot record, by the name they travel under."""

Outcome = Literal[
    "completed",
    "client_closed",  # the client left before the end; tokens so far are billed
    "engine_error",  # the engine reported an error, before or inside the stream
    "engine_lost",  # the connection to the replica broke
    "refused",  # refused after admission: no replica could take it
    "timeout",
    "gateway_lost",  # the gateway died; tokens are a lower bound
]


class Attempt(msgspec.Struct, kw_only=True, omit_defaults=True):
    """One try at one replica. Only the last is billed."""

    replica: str
    started_at: float
    ended_at: float = 0.0
    outcome: str = ""
    output_tokens: int = 0


class Usage(msgspec.Struct, kw_only=True, omit_defaults=True):
    """Tokens of one request by kind; ``units`` counts modality units (image tiles, audio seconds, rows)."""

    input_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    units: dict[str, float] = msgspec.field(default_factory=dict)


class AdmitLine(msgspec.Struct, kw_only=True, omit_defaults=True, tag_field="t", tag="a"):
    """Written before the first upstream byte. ``id`` is a server-made UUIDv7. Times are UNIX seconds."""

    id: str
    at: float
    tenant: str
    key: str
    pool: str
    deployment: str
    revision: str
    model: str
    dialect: str
    profile_version: int
    estimated_mu: float
    estimated: Usage
    service_class: str = "best_effort"
    client_request_id: str = ""
    stream: bool = False


class ProgressLine(msgspec.Struct, kw_only=True, omit_defaults=True, tag_field="t", tag="p"):
    """Tokens so far, at most once a second per stream."""

    id: str
    at: float
    replica: str
    usage: Usage


class EndLine(msgspec.Struct, kw_only=True, omit_defaults=True, tag_field="t", tag="e"):
    id: str
    at: float
    outcome: Outcome
    status: int
    usage: Usage
    actual_mu: float
    lower_bound: bool = False
    """The token counts are a lower bound: the engine's own count was not seen."""
    replica: str = ""
    attempts: tuple[Attempt, ...] = ()
    routed_at: float = 0.0
    first_byte_at: float = 0.0
    finish_reason: str = ""
    error: str = ""


JournalLine = AdmitLine | ProgressLine | EndLine


class UsageBatch(msgspec.Struct, kw_only=True, omit_defaults=True):
    """Closed requests on their way to the database: pairs of admit and end lines of one journal segment.

    ``watermark``: every request of this segment that ended before this time is in this or an earlier batch.
    ``closed``: the segment is finished; its watermark holds no minute back any more.
    """

    gateway: str
    segment: str
    sequence: int
    watermark: float
    closed: bool = False
    pairs: tuple[tuple[AdmitLine, EndLine], ...] = ()


def encode(record: msgspec.Struct) -> bytes:
    return msgspec.json.encode(record)


def decode_record(kind: str, data: bytes) -> Any:
    """Decode one snapshot record. Raises KeyError for an unknown kind, msgspec.ValidationError for a bad shape."""
    return msgspec.json.decode(data, type=RECORD_TYPES[kind])
