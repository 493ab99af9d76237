"""Logs of engines while somebody reads them: asked of the agents, brought by their reports, kept for half a minute."""

from __future__ import annotations

import json
import time
import uuid
from typing import cast

import msgspec
import redis
from django.core.exceptions import ValidationError

from capacity.models import Host
from serving.models import Replica
from worker.spec import HostReport, LogPiece

FOLLOW_S = 10
"""An agent sends a log for so long after somebody asked last."""
KEPT_S = 30
_ASKED = "penstock:policy:follow:{}"
_decode = msgspec.msgpack.Decoder(LogPiece).decode


def _kept_key(replica_id: str) -> str:
    return f"penstock:policy:log:{replica_id}"


def log_ask(replica: Replica, *, client: redis.Redis) -> None:
    """Have the host's agent send the replica's log for the next ``FOLLOW_S`` seconds; it looks every two."""
    host_id, now = str(replica.host_id), time.time()
    asked = _ASKED.format(host_id)
    client.zadd(asked, {str(replica.pk): now})
    client.zremrangebyscore(asked, "-inf", now - FOLLOW_S)
    client.expire(asked, FOLLOW_S)
    names = [one.decode() for one in cast(list[bytes], client.zrevrange(asked, 0, -1))]
    client.set(f"agent:follow:{host_id}", json.dumps(names), ex=FOLLOW_S)


def log_kept(replica: Replica, *, client: redis.Redis) -> LogPiece | None:
    """What the agent sent last; None where it sent nothing within ``KEPT_S`` seconds."""
    kept = client.get(_kept_key(str(replica.pk)))
    return _decode(kept) if isinstance(kept, bytes) else None


def logs_keep(report: HostReport, host: Host, *, client: redis.Redis) -> int:
    """Keep the logs that a verified report brought; how many were of replicas of other hosts, which are passed over."""
    if not report.logs:
        return 0
    try:
        own = set(
            Replica.objects.filter(pk__in=[uuid.UUID(one) for one in report.logs], host=host).values_list(
                "pk", flat=True
            )
        )
    except (ValueError, ValidationError):
        return len(report.logs)
    for pk in own:
        client.set(_kept_key(str(pk)), msgspec.msgpack.encode(report.logs[str(pk)]), ex=KEPT_S)
    return len(report.logs) - len(own)
