"""The records a gateway lives on: what the control plane publishes to it, and what it writes to its journal.

Data and their JSON form only. ``docs/protocols.md`` explains how they travel.
"""

from __future__ import annotations

import hashlib
from typing import Any, Literal

import msgspec

# Defined below this app: the usage writer in `capacity` reads them too.
from capacity.usage.lines import AdmitLine as AdmitLine
from capacity.usage.lines import Attempt as Attempt
from capacity.usage.lines import Charge as Charge
from capacity.usage.lines import EndLine as EndLine
from capacity.usage.lines import Outcome as Outcome
from capacity.usage.lines import Refusal as Refusal
from capacity.usage.lines import Usage as Usage
from capacity.usage.lines import UsageBatch as UsageBatch
from serving.policy import budgets
from worker.options import INVOCATIONS_PATH

LimitKind = Literal[
    "requests_per_min",
    "tokens_per_min",
    "mu_per_min",
    "concurrency",
    "mu_per_day",
    "mu_per_month",
    "money_per_day",
    "money_per_month",
]

LimitHolder = Literal["tenant", "member", "key", "reservation"]


LATER_KINDS: frozenset[LimitKind] = frozenset(
    {"mu_per_min", "mu_per_day", "mu_per_month", "money_per_day", "money_per_month"}
)
"""Kinds that a gateway of the version before does not know. Of a record that names one among its ``limits`` it would
read nothing, and refuse the tenant or the key: they are told apart, where it passes them over."""


class LimitRecord(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One plain limit. ``value`` is in requests/min, tokens/min, MU/min, requests, MU or money, by ``kind``.

    MU of two pools do not add up: a limit in MU that names no model holds for each pool by itself (``held_as``). A
    budget holds for one day or month at a time (UTC).
    """

    id: str
    kind: LimitKind
    value: float
    model: str = ""
    """Served model name this limit speaks of; empty means every model."""
    holder: LimitHolder = "tenant"
    """Whose it is."""
    window_s: float = 60.0
    """In how much time ``value`` drains: a minute, unless it is what a reservation's bucket holds."""

    @property
    def window_ms(self) -> float:
        return self.window_s * 1000

    ends_at: float = 0.0
    """Of a budget's one period: when it is over, in UNIX seconds."""

    @property
    def is_budget(self) -> bool:
        return self.kind.endswith(("_per_day", "_per_month"))

    def held_as(self, *, pool: str, now: float) -> LimitRecord:
        """What stands for it in requests of ``pool`` at ``now`` (UNIX seconds): itself, unless each pool or each day or
        month has one of its own."""
        name, ends_at = self.id, 0.0
        if self.kind.startswith("mu_") and not self.model:
            name += f".{pool}"
        if self.is_budget:
            period = budgets.period_of(self.kind, now)
            name, ends_at = f"{name}.{period.name}", period.ends_at
        return self if name == self.id else msgspec.structs.replace(self, id=name, ends_at=ends_at)


class TenantRecord(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    id: str
    slug: str
    active: bool = True
    best_effort: bool = True
    """Whether it may use pools beyond what it has reserved of them."""
    limits: tuple[LimitRecord, ...] = ()
    more_limits: tuple[LimitRecord, ...] = ()
    """Those of ``LATER_KINDS``."""
    members: dict[str, tuple[LimitRecord, ...]] = msgspec.field(default_factory=dict)
    """Limits of single members, by user id: they hold for their playground. Those of their keys stand at the keys."""


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
    """Its own, and those of the member who made it."""
    more_limits: tuple[LimitRecord, ...] = ()
    """The same of ``LATER_KINDS``."""


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
    price_per_1000_mu: float = 0.0
    """Money for what no reservation pays for, in the installation's currency."""


class PoolRecord(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    id: str
    slug: str
    profile: ProfileRecord
    tenants: tuple[str, ...] | None = None
    """Tenant ids that may use the pool; None means every tenant."""
    best_effort: bool = True
    """Whether what exceeds reservations, or nobody has reserved, is lent."""
    best_effort_wait_s: float = 5.0
    """How long a best-effort request may wait for room."""
    ttft_objective_ms: float = 1000.0
    claw_back_s: float = 2.4
    """Within this an owner has what it has reserved, however much of it was lent."""


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
    speaks: tuple[str, ...] = ("generate",)
    """What clients can ask of it, in the words of ``worker.options.Speak``: a dialect goes to deployments that speak
    ``generate`` (completions, chat, messages, responses), ``embed`` (embeddings), ``score`` (score, rerank),
    ``invocations`` (MLflow's scoring protocol) or ``http`` (any body, at ``/invocations``)."""
    invocations_path: str = INVOCATIONS_PATH
    """Where its engines answer what clients ask at ``/invocations``."""
    adapters: tuple[str, ...] = ()
    """LoRA adapters that its engines serve beside the model; clients send an adapter's name as ``model``."""
    is_stopped: bool = False
    """Its operator has stopped it: whoever asks for it is refused by its class, so that owners' minutes count."""


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


class ReservationRecord(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """MU that a tenant has bought of a pool, published from the sale until it is over: the times say when it holds.

    ``mu_per_min`` and ``burst_mu`` count in the MU of ``profile``, the version of the pool's price that was bought: a
    request is charged to the reservation by it, whatever the pool's record says by then.
    """

    id: str
    tenant: str
    pool: str
    mu_per_min: float
    burst_mu: float
    """What the bucket holds: max(10 s of the rate, the largest admissible request), unless agreed otherwise."""
    starts_at: float
    """UNIX seconds, as ``ends_at``; None: without an end."""
    profile: ProfileRecord
    ends_at: float | None = None


RECORD_TYPES: dict[str, type[msgspec.Struct]] = {
    "tenant": TenantRecord,
    "key": KeyRecord,
    "pool": PoolRecord,
    "deployment": DeploymentRecord,
    "replica": ReplicaRecord,
    "reservation": ReservationRecord,
}
"""Kinds of snapshot record, by the name they travel under."""


class ProgressLine(msgspec.Struct, kw_only=True, omit_defaults=True, tag_field="t", tag="p"):
    """Tokens so far, at most once a second per stream."""

    id: str
    at: float
    replica: str
    usage: Usage


JournalLine = AdmitLine | ProgressLine | EndLine


def encode(record: msgspec.Struct) -> bytes:
    return msgspec.json.encode(record)


def shape() -> str:
    """A name for what snapshot records can say: another version, which says more, has another."""
    told = msgspec.json.schema_components(RECORD_TYPES.values())
    return hashlib.blake2b(msgspec.json.encode(told, order="deterministic"), digest_size=8).hexdigest()


def decode_record(kind: str, data: bytes) -> tuple[Any, int]:
    """One snapshot record, and how many of its limits are left out because this version does not know what they are.

    A gateway that a newer publisher tells of another kind of limit goes on with the rest. Raises KeyError for an
    unknown kind of record, msgspec.DecodeError for a bad shape.
    """
    try:
        return msgspec.json.decode(data, type=RECORD_TYPES[kind]), 0
    except msgspec.ValidationError:
        told = msgspec.json.decode(data)
        if not isinstance(told, dict):
            raise
        left_out = 0
        for (of, name), limits in _limits_in(told):
            of[name] = [limit for limit in limits if _is_known(limit)]
            left_out += len(limits) - len(of[name])
        return msgspec.convert(told, RECORD_TYPES[kind]), left_out


def _limits_in(told: dict[str, Any]) -> list[tuple[tuple[dict[str, Any], str], list[Any]]]:
    """Each list of limits in a record, with where it stands."""
    members = told.get("members")
    places = [(told, "limits"), (told, "more_limits")]
    places += [(members, member) for member in members] if isinstance(members, dict) else []
    return [((of, name), of[name]) for of, name in places if isinstance(of.get(name), list)]


def _is_known(limit: Any) -> bool:
    try:
        msgspec.convert(limit, LimitRecord)
    except msgspec.ValidationError:
        return False
    return True
