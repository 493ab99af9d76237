"""What a gateway writes of a request, and the batches in which it reaches the database: shapes and their JSON form.

Imports no Django: the gateway, which opens no database, and the writer, which knows no gateway, share this module.
"""

from __future__ import annotations

from typing import Literal

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


class Attempt(msgspec.Struct, kw_only=True, omit_defaults=True):
    """One try at one replica. Only the last is billed."""

    replica: str
    started_at: float
    ended_at: float = 0.0
    outcome: str = ""
    output_tokens: int = 0


class Usage(msgspec.Struct, kw_only=True, omit_defaults=True):
    """Tokens of one request by kind; ``units`` counts modality units (image tokens, rows, KiB)."""

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
