"""What the control plane and a host agent say to each other: orders down, reports up.

With ``worker.options`` all that the control plane imports of ``worker``. It holds data, their encoding and the HMAC
envelope; it imports no Django, no Celery and opens nothing. ``docs/protocols.md`` (*Orders and reports*) explains the
exchange.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Sequence
from typing import Any, Literal, TypeVar

import msgspec

PROTOCOL = 1
"""Version of this exchange. Either side may be one version behind the other: what a version adds has defaults, and the
other one ignores it."""

Intent = Literal["run", "drain", "stop"]
"""What the control plane wants of a replica. ``stop`` is the only thing that ever ends an engine on purpose."""

ReplicaPhase = Literal["environment", "weights", "starting", "warming", "ready", "draining", "stopped", "failed"]
"""What the agent sees of a replica, in the order it lives through them."""


class Shape(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The shape of one request, in tokens; ``cached_tokens`` of its input are to be found in the prefix cache."""

    input_tokens: int
    cached_tokens: int = 0
    output_tokens: int = 1


STEP_TOKENS = 32_768
"""Of prompts, a few times what engines take into one step (vLLM: 8,192 on large accelerators, 2,048 elsewhere)."""
LEAST_PROMPTS = 4


def saturating_slots(shape: Shape, *, slots: int, kv_tokens: int | None = None) -> int:
    """How many requests of a shape keep an engine saturated that runs ``slots`` at once: no more than its cache of
    ``kv_tokens`` holds.

    One that makes a single token is gone when its prompt has been read, and ``STEP_TOKENS`` of them fill every step:
    more would only wait, and a batch take as many times longer.
    """
    if kv_tokens is not None:
        slots = min(slots, kv_tokens // (shape.input_tokens + shape.output_tokens))
    if shape.output_tokens == 1:
        computed = max(1, shape.input_tokens - shape.cached_tokens)
        slots = min(slots, max(LEAST_PROMPTS, -(-STEP_TOKENS // computed)))
    return max(1, slots)


class CalibrationOrder(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What to measure on a replica that is out of rotation: the cost of each shape, then the curve up to the knee.

    A new ``calibration_id`` begins anew; an order without a calibration stops the measurement.
    """

    calibration_id: str
    shapes: tuple[Shape, ...]
    """The cost grid, in the order in which it is measured."""
    repeats: int = 3
    mix: tuple[Shape, ...] = ()
    """The requests that are offered while the knee is looked for, in equal parts; none: no knee is looked for."""
    ttft_objective_ms: float = 1000.0
    tpot_objective_ms: float = 50.0
    attained_share: float = 0.95
    """Share of the requests of a level that must keep both objectives."""
    window_s: float = 20.0
    """Measured seconds per level."""
    max_concurrency: int = 16
    """Target concurrency of the replica, in requests."""
    batch_s: float = 4.0
    """Aimed length of one measured batch of a shape; a batch holds as many requests as take so long."""
    max_levels: int = 14
    """The search for the knee ends after so many levels."""


class ReplicaOrder(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The desired state of one replica on one host.

    ``artifact`` names what is served: ``{"kind": "tiny"|"path"|"hub"|"none", "value": str, "revision": str}``.
    ``options`` are runtime options that the revision fixes (context length, dtype, simulated cost profile ...).
    ``target_concurrency`` is in requests; the runtime adds the probe's reserved slot and its slack itself.
    """

    replica_id: str
    deployment_id: str
    deployment_name: str
    runtime: str
    served_name: str
    intent: Intent
    artifact: dict[str, str]
    options: dict[str, Any]
    target_concurrency: int
    accelerators: tuple[int, ...] = ()
    kill: bool = False
    """With intent ``stop``: SIGKILL the process group at once, the engine is known to hang."""
    evidence: bool = False
    """With intent ``stop``: keep log tail, metrics and process states before the signal, and report them."""
    drain_s: float = 30.0
    attempt: int = 0
    """Raised by the control plane (a person pressed retry): a failed replica of a lower attempt is tried again."""
    calibration: CalibrationOrder | None = None


class HostOrders(msgspec.Struct, frozen=True, kw_only=True):
    """The full desired state of one host. The agent keeps the highest ``generation`` it has verified."""

    host_id: str
    generation: int
    replicas: tuple[ReplicaOrder, ...]


class Address(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Where an engine listens. ``ingress`` is the agent's TLS front for other hosts (token per replica)."""

    host: str
    port: int
    ingress: str = ""


class Progress(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Progress of long work: ``share`` in 0..1, or None when only the step is known."""

    step: str
    share: float | None = None
    detail: str = ""


class CostPoint(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What requests of one shape cost the engine."""

    shape: Shape
    engine_ms: tuple[float, ...]
    """Engine milliseconds per request, one value per repeat."""
    input_tokens: float = 0.0
    """Mean per request, as the engine counted them; 0: it did not tell."""
    cached_tokens: float = 0.0
    """Mean per request, as the engine counted them."""
    output_tokens: float = 0.0
    """Mean per request, as the engine counted them."""


class LevelPoint(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One level of open-loop load. Tokens are totals of the requests that were completed in the window."""

    rate_per_s: float
    """Offered requests per second."""
    completed: int
    seconds: float
    """Length of the window."""
    input_tokens: int
    cached_tokens: int
    output_tokens: int
    ttft_ms: dict[str, float]
    """By ``p50``, ``p95``, ``p99``; empty when no request came to its first token."""
    tpot_ms: dict[str, float]
    """By ``p50``, ``p95``, ``p99``; empty when no request had two tokens."""
    attained: float
    """Share in 0..1 of the requests due in the window that kept both objectives; a failed one did not."""
    requests: int = 0
    """Requests due in the window."""


def knee_bracket(levels: Sequence[LevelPoint], attained_share: float) -> tuple[LevelPoint | None, LevelPoint | None]:
    """Return the levels between which the knee lies: the last that kept the objectives, and the first that did not.

    None where there is no such level. Of a rate that was offered twice the better level counts: what else is at work on
    a host only ever makes an engine slower. A level that kept them above one that did not is taken for luck: both the
    search and the judgement of its curve stay below the first broken level.
    """
    best: dict[float, LevelPoint] = {}
    for level in levels:
        known = best.get(level.rate_per_s)
        if known is None or level.attained > known.attained:
            best[level.rate_per_s] = level
    kept = None
    for _, level in sorted(best.items()):
        if level.attained < attained_share:
            return kept, level
        kept = level
    return kept, None


class CalibrationReport(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How far the measurement of a calibration has come, and all that it has found so far."""

    calibration_id: str
    state: Literal["waiting", "measuring", "done", "failed"]
    """``waiting``: the replica is not ready, or still serves somebody else."""
    reason: str = ""
    """For ``waiting`` and ``failed``: why, and what a person can do."""
    method: Literal["", "engine_cpu", "saturated"] = ""
    """``engine_cpu``: CPU time of the engine's processes; ``saturated``: elapsed time of a saturated engine."""
    share: float = 0.0
    """Progress in 0..1."""
    step: str = ""
    detail: str = ""
    points: tuple[CostPoint, ...] = ()
    levels: tuple[LevelPoint, ...] = ()
    saturation_per_s: float = 0.0
    """Requests of the mix that the engine completes per second when it never runs out of them; 0: not measured yet."""
    engine_version: str = ""


class ReplicaReport(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What the agent sees of one replica now. ``metrics`` uses the names of ``METRICS``."""

    replica_id: str
    phase: ReplicaPhase
    reason: str = ""
    """For ``failed`` and ``stopped``: why, and what a person can do, without any secret."""
    pid: int | None = None
    pid_started: float | None = None
    address: Address | None = None
    engine_version: str = ""
    max_model_len: int | None = None
    kv_tokens: int | None = None
    """KV-cache capacity in tokens, where the engine tells it."""
    progress: Progress | None = None
    metrics: dict[str, float] = msgspec.field(default_factory=dict)
    metrics_at: float | None = None
    launched_at: float | None = None
    ready_at: float | None = None
    exit_code: int | None = None
    log_tail: str = ""
    evidence: dict[str, Any] = msgspec.field(default_factory=dict)
    attempt: int = 0
    adopted: bool = False
    """The engine was found running by a restarted agent and taken over."""
    calibration: CalibrationReport | None = None


class AcceleratorReport(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One accelerator of the host; an empty list means that no driver was found."""

    index: int
    name: str
    uuid: str
    memory_bytes: int
    memory_used_bytes: int = 0
    utilisation: float = 0.0


class EnvironmentReport(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One isolated engine environment on the host."""

    name: str
    state: Literal["missing", "building", "ready", "failed"]
    detail: str = ""
    progress: Progress | None = None


class LogPiece(msgspec.Struct, frozen=True, kw_only=True):
    """The end of an engine's log. ``end``: its length in bytes when it was read; it falls when the log is rotated."""

    data: bytes
    end: int


class HostReport(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """An agent's full report, sent each second and at once on a change."""

    host_id: str
    boot_id: str
    """New for each start of the agent process."""
    sequence: int
    generation: int
    """Highest order generation applied."""
    agent_version: str
    agent_pid: int
    hostname: str
    cores: int
    memory_bytes: int
    memory_available_bytes: int
    load_1m: float
    cpu_model: str = ""
    accelerators: tuple[AcceleratorReport, ...] = ()
    environments: tuple[EnvironmentReport, ...] = ()
    replicas: tuple[ReplicaReport, ...] = ()
    logs: dict[str, LogPiece] = msgspec.field(default_factory=dict)
    """Of replicas whose logs somebody reads right now, by id."""
    sent_at: float = 0.0


METRICS = (
    "running",  # requests in the running batch
    "waiting",  # requests queued in the engine
    "kv_usage",  # 0..1
    "preemptions_total",
    "prompt_tokens_total",
    "cached_tokens_total",
    "generation_tokens_total",
    "ttft_seconds_sum",
    "ttft_seconds_count",
    "itl_seconds_sum",
    "itl_seconds_count",
    "requests_total",
    "process_start_seconds",
)
"""Penstock's names for engine metrics; every runtime maps its engine's own names to these."""


class Envelope(msgspec.Struct, frozen=True, kw_only=True):
    """A signed message. ``mac`` is HMAC-SHA256 over ``protocol.kind.host_id.payload`` with the host's own secret, where
    ``protocol`` is the sender's version."""

    protocol: int
    kind: Literal["orders", "report"]
    host_id: str
    payload: str
    mac: str


class EnvelopeError(ValueError):
    """The message is not what its sender claims: wrong signature, host, kind or protocol; or it is not a message."""


def _mac(secret: bytes, protocol: int, kind: str, host_id: str, payload: str) -> str:
    text = f"{protocol}.{kind}.{host_id}.{payload}"
    # JSON can carry half a surrogate pair, and whoever reaches the broker can send it: it must not match, not raise.
    return hmac.new(secret, text.encode("utf-8", "surrogatepass"), hashlib.sha256).hexdigest()


def seal(message: HostOrders | HostReport, *, secret: bytes) -> dict[str, Any]:
    """Return ``message`` as a signed, JSON-serialisable envelope."""
    kind: Literal["orders", "report"] = "orders" if isinstance(message, HostOrders) else "report"
    payload = msgspec.json.encode(message).decode()
    return {
        "protocol": PROTOCOL,
        "kind": kind,
        "host_id": message.host_id,
        "payload": payload,
        "mac": _mac(secret, PROTOCOL, kind, message.host_id, payload),
    }


def open_orders(envelope: object, *, host_id: str, secret: bytes) -> HostOrders:
    """Verify and decode orders for ``host_id``. Raises EnvelopeError, whatever ``envelope`` is."""
    return _open(envelope, "orders", HostOrders, host_id=host_id, secret=secret)


def open_report(envelope: object, *, host_id: str, secret: bytes) -> HostReport:
    """Verify and decode a report of ``host_id``. Raises EnvelopeError, whatever ``envelope`` is."""
    return _open(envelope, "report", HostReport, host_id=host_id, secret=secret)


def envelope_host(envelope: object) -> str:
    """The host an envelope claims to speak for, before any verification. Raises EnvelopeError."""
    return _envelope(envelope).host_id


def _envelope(raw: object) -> Envelope:
    try:
        return msgspec.convert(raw, Envelope)
    except (msgspec.ValidationError, UnicodeError) as error:
        raise EnvelopeError(f"malformed envelope: {_plain(error)}") from error


def _plain(foreign: object) -> str:
    """Foreign text as it may go into a log: cut, on one line."""
    return str(foreign)[:200].encode("unicode_escape").decode()


_Message = TypeVar("_Message", HostOrders, HostReport)


def _open(raw: object, kind: str, shape: type[_Message], *, host_id: str, secret: bytes) -> _Message:
    envelope = _envelope(raw)
    if abs(envelope.protocol - PROTOCOL) > 1:
        older = "sender" if envelope.protocol < PROTOCOL else "receiver"
        raise EnvelopeError(f"protocol {envelope.protocol} does not go with {PROTOCOL}: update the {older}")
    if envelope.kind != kind or envelope.host_id != host_id:
        raise EnvelopeError(f"{envelope.kind} for host {_plain(envelope.host_id)}, expected {kind} for {host_id}")
    expected = _mac(secret, envelope.protocol, kind, host_id, envelope.payload)
    if not hmac.compare_digest(envelope.mac.encode("utf-8", "surrogatepass"), expected.encode()):
        raise EnvelopeError("signature does not match")
    try:
        message = msgspec.json.decode(envelope.payload, type=shape)
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        raise EnvelopeError(f"malformed {kind}: {_plain(error)}") from error
    if message.host_id != host_id:
        raise EnvelopeError(f"{kind} of host {_plain(message.host_id)} inside an envelope of {host_id}")
    return message
