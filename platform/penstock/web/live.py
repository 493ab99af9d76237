"""Live numbers from the shared state. When it does not answer, pages render without them and say so."""

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, cast

import msgspec
import redis
from django.conf import settings

from serving.gateway.loads import GatewayBeat, read_beats
from serving.gateway.state import deployment_ring, replica_ring

WINDOW_S = 30
"""Offered MU/min *now* is what was offered in this time, in seconds."""
STALE_S = 10.0
"""The observe loop writes each second; a newest sample older than this means that it has stopped."""


class DeploymentSample(msgspec.Struct, frozen=True, kw_only=True):
    """One second of a deployment, as the observe loop writes it (``docs/protocols.md``, *Shared state*)."""

    at: float
    offered_mu: float = 0.0
    offered_requests: float = 0.0
    queue_mu: float = 0.0
    in_flight: float = 0.0
    in_flight_mu: float = 0.0
    refused: float = 0.0
    ready: float = 0.0
    capacity_mu_per_min: float = 0.0


class EngineSample(msgspec.Struct, frozen=True, kw_only=True):
    """One second of an engine's metrics, by the names of ``worker.spec.METRICS``."""

    at: float = 0.0
    running: float | None = None
    waiting: float | None = None
    kv_usage: float | None = None


@dataclass(frozen=True)
class Now:
    """One deployment now. Rates are over the last ``WINDOW_S`` seconds of samples."""

    at: float
    offered_mu_per_min: float
    requests_per_s: float
    refused_per_s: float
    in_flight: float
    queue_mu: float
    capacity_mu_per_min: float


@dataclass(frozen=True)
class Live:
    """What the shared state told. ``problem`` is empty when it answered.

    ``in_flight``: requests at each replica, by the gateways' own beats; only those that have any are named.
    """

    problem: str = ""
    has_gateways: bool = False
    in_flight: dict[str, int] = field(default_factory=dict)
    deployments: dict[str, Now] = field(default_factory=dict)
    engines: dict[str, EngineSample] = field(default_factory=dict)

    def feed_age_s(self, now: float) -> float | None:
        """Age of the newest sample in seconds, None when there is none."""
        newest = max((sample.at for sample in self.deployments.values()), default=None)
        return None if newest is None else max(0.0, now - newest)


@lru_cache(maxsize=4)
def _client(url: str) -> redis.Redis:
    return redis.Redis.from_url(url, socket_timeout=0.5, socket_connect_timeout=0.25)


def state_client() -> redis.Redis:
    """The shared state, with time-outs short enough for a page."""
    return _client(settings.REDIS_URL)


def is_state_reachable() -> bool:
    try:
        return bool(state_client().ping())
    except (redis.RedisError, OSError):
        return False


def decode_samples(rows: Iterable[bytes]) -> list[DeploymentSample]:
    """Ring entries as samples, newest first; entries of another shape are left out."""
    decoded = []
    for row in rows:
        try:
            decoded.append(msgspec.json.decode(row, type=DeploymentSample))
        except msgspec.DecodeError:
            continue
    return decoded


def summarise(samples: Sequence[DeploymentSample]) -> Now | None:
    """The newest ``WINDOW_S`` seconds of a ring (newest first) as rates. None without a sample."""
    if not samples:
        return None
    newest = samples[0]
    window = [sample for sample in samples if newest.at - sample.at <= WINDOW_S]
    # A sample counts what came since the one before it: the oldest only says when the window begins.
    counted, covered_s = (window[:-1], newest.at - window[-1].at) if len(window) > 1 else (window, 1.0)
    return Now(
        at=newest.at,
        offered_mu_per_min=sum(sample.offered_mu for sample in counted) / covered_s * 60.0,
        requests_per_s=sum(sample.offered_requests for sample in counted) / covered_s,
        refused_per_s=sum(sample.refused for sample in counted) / covered_s,
        in_flight=newest.in_flight,
        queue_mu=newest.queue_mu,
        capacity_mu_per_min=newest.capacity_mu_per_min,
    )


def read_live(deployment_ids: Sequence[str], replica_ids: Sequence[str]) -> Live:
    """Rings of the given deployments and replicas, and the gateways' beats. Never raises for a state that is down."""
    started = time.monotonic()
    try:
        pipe = state_client().pipeline(transaction=False)
        for identifier in deployment_ids:
            pipe.lrange(deployment_ring(identifier), 0, WINDOW_S)
        for identifier in replica_ids:
            pipe.lrange(replica_ring(identifier), 0, 0)
        answers = cast(list[list[bytes]], pipe.execute())
        beats = read_beats(state_client())
    except (redis.RedisError, OSError) as error:
        waited_ms = (time.monotonic() - started) * 1000
        return Live(problem=f"{type(error).__name__} after {waited_ms:.0f} ms")
    deployments = {
        identifier: now
        for identifier, rows in zip(deployment_ids, answers, strict=False)
        if (now := summarise(decode_samples(rows))) is not None
    }
    engines: dict[str, EngineSample] = {}
    for identifier, rows in zip(replica_ids, answers[len(deployment_ids) :], strict=True):
        if rows and (sample := _engine_sample(rows[0])) is not None:
            engines[identifier] = sample
    return Live(
        has_gateways=bool(beats), in_flight=requests_by_replica(beats), deployments=deployments, engines=engines
    )


def requests_by_replica(beats: Iterable[GatewayBeat]) -> dict[str, int]:
    """Requests in flight at each replica, over all living gateways."""
    sums: dict[str, int] = {}
    for beat in beats:
        for replica_id, load in beat.replicas.items():
            sums[replica_id] = sums.get(replica_id, 0) + load.n
    return sums


def _engine_sample(row: bytes) -> EngineSample | None:
    try:
        return msgspec.json.decode(row, type=EngineSample)
    except msgspec.DecodeError:
        return None


def read_ring(deployment_id: str, count: int) -> list[DeploymentSample]:
    """The newest ``count`` samples of a deployment, newest first; none when the state is down."""
    try:
        rows: Any = state_client().lrange(deployment_ring(deployment_id), 0, count - 1)
    except (redis.RedisError, OSError):
        return []
    return decode_samples(cast(list[bytes], rows))
