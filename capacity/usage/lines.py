"""What a gateway writes of a request, and the batches in which it reaches the database: shapes and their JSON form.

Imports no Django: the gateway, which opens no database, and the writer, which knows no gateway, share this module.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import msgspec

Outcome = Literal[
    "completed",
    "client_closed",  # the client left before the end; tokens so far are billed
    "engine_error",  # the engine reported an error, before or inside the stream
    "engine_lost",  # the connection to the replica broke
    "refused",  # refused after admission: no replica could take it, or the engine found the request wrong
    "timeout",
    "gateway_lost",  # the gateway died; tokens are a lower bound
]


MOST_TOKENS = 2**40
"""Of one request: no engine makes as many, and sums of millions of such still fit into what databases count in."""


class Attempt(msgspec.Struct, kw_only=True, omit_defaults=True):
    """One try at one replica. Only the last is billed."""

    replica: str
    started_at: float
    ended_at: float = 0.0
    outcome: str = ""
    output_tokens: int = 0
    held_ms: float = 0.0
    """For so long the client did not read what was there for it."""


class Usage(msgspec.Struct, kw_only=True, omit_defaults=True):
    """Tokens of one request by kind; ``units`` counts modality units (image tokens, rows, KiB)."""

    input_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    units: dict[str, float] = msgspec.field(default_factory=dict)


class Charge(msgspec.Struct, frozen=True, array_like=True):
    """What one limit, or one reservation, said of the request when it came. Amounts in the unit of ``kind``.

    A list in JSON: each request has several of them.
    """

    limit: str
    """As gateways know it: the limit's id or the reservation's, then the pool and the period where each has one."""
    holder: str
    """``tenant``, ``member``, ``key`` or ``reservation``."""
    kind: str
    model: str
    value: float
    amount: float
    """What the request was estimated to take."""
    left: float | None
    """What was left then, the request taken, as far as the gateway knew; None: nothing."""
    is_charged: bool = True
    """False: it had no room, and the request was served beyond it, or refused."""


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
    charges: tuple[Charge, ...] = ()


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


class Refusal(msgspec.Struct, kw_only=True, omit_defaults=True):
    """A request that was refused, and why. ``at`` is in UNIX seconds; ``reason`` as its header ``x-penstock-reason``
    told it, or else the error's code; ``retry_after_s`` as promised, None: no time was told. ``was_admitted``: limits
    had let it through, and it is in the books."""

    id: str
    at: float
    tenant: str
    key: str
    pool: str
    deployment: str
    model: str
    dialect: str
    status: int
    reason: str
    message: str
    retry_after_s: float | None = None
    client_request_id: str = ""
    stream: bool = False
    profile_version: int = 0
    estimated_mu: float = 0.0
    estimated: Usage = msgspec.field(default_factory=Usage)
    charges: tuple[Charge, ...] = ()
    was_admitted: bool = False


REFUSALS_KEPT = 200
"""Of each tenant, the newest."""
REFUSALS_KEPT_S = 3600


REFUSALS_PREFIX = "penstock:refused:"
"""Before the tenant's id in the name of each list of refusals."""


def refusals_key(tenant: str) -> str:
    """Where the shared state has a tenant's refusals, newest first."""
    return f"{REFUSALS_PREFIX}{tenant}"


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


REFUSAL_COUNTS_S = 7200
"""So long the shared state has the counts of a minute."""


def refusal_counts_key(minute: int) -> str:
    """Where the shared state counts what was refused in a minute (since 1970), by ``refusal_field``."""
    return f"penstock:refusals:{minute}"


class RefusalField(NamedTuple):
    """What refusals are counted by. ``pool`` is empty where it was not clear yet which one is meant."""

    tenant: str
    key: str
    pool: str
    reason: str
    status: int

    def encode(self) -> str:
        return "|".join(map(str, self))

    @classmethod
    def decode(cls, text: str) -> RefusalField:
        """What ``encode`` gave. Raises ValueError for anything else."""
        tenant, key, pool, reason, status = text.split("|")
        return cls(tenant, key, pool, reason, int(status))
