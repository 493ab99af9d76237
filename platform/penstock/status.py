"""What ``penstock up`` asks the web role while it runs: the state of each deployment, and whether usage has landed.

One endpoint, ``/-/status``, opened by the token that ``up`` made for this run; without the token it does not exist.
"""

import hmac
import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any
from urllib.parse import parse_qs
from uuid import UUID

import redis
from asgiref.sync import sync_to_async
from django.db import close_old_connections
from django.db.models import OuterRef, Prefetch, Subquery
from django.utils import timezone

from capacity.models import UsageRecord
from penstock.loops.shared import client
from serving.gateway.state import policy_state_read
from serving.models import Deployment, Replica, Revision
from serving.policy import lifecycle

PATH = "/-/status"
TOKEN_VARIABLE = "PENSTOCK_STATUS_TOKEN"  # noqa: S105  (the name of a variable)
_STARTED_AT = timezone.now()
_PHASES = ("environment", "weights", "starting", "warming")


@dataclass(frozen=True)
class ReplicaView:
    """What is known of one replica; ``progress`` as ``worker.spec.Progress`` in a dict.

    ``is_current``: its host has reported since this process started, or it has none. What is known from before may
    have ended with the last stop.
    """

    state: str
    phase: str
    reason: str
    progress: dict[str, Any]
    is_current: bool = True


@dataclass(frozen=True)
class DeploymentState:
    """One deployment for people. ``state``: disabled, pending, environment, weights, starting, warming, ready, failed.

    ``share`` is the progress of the present step, 0 to 1, or None.
    """

    name: str
    engine: str
    label: str
    state: str
    step: str = ""
    detail: str = ""
    share: float | None = None


@dataclass(frozen=True)
class Trouble:
    """The last failed launch of a deployment that runs nothing. ``gave_up``: none follows until somebody retries."""

    reason: str
    gave_up: bool


@dataclass(frozen=True)
class Summary:
    """How far a deployment is. ``step``: part of the state in words; ``detail``: a reason, or what moves in a step."""

    state: str
    step: str = ""
    detail: str = ""
    share: float | None = None


def summarise(replicas: Sequence[ReplicaView], trouble: Trouble | None = None) -> Summary:
    """The best that any of a deployment's living replicas has reached. Only where none lives, ``trouble`` counts."""
    ready = [replica for replica in replicas if replica.state == Replica.State.READY]
    if any(replica.is_current for replica in ready):
        return Summary("ready")
    under_way = [r for r in replicas if r.state == Replica.State.STARTING and _is_under_way(r)]
    if under_way:
        best = max(under_way, key=lambda replica: _PHASES.index(replica.phase))
        step, share = str(best.progress.get("step") or ""), best.progress.get("share")
        return Summary(
            best.phase,
            step if step != best.phase else "",
            str(best.progress.get("detail") or ""),
            float(share) if isinstance(share, int | float) else None,
        )
    if ready:
        return Summary("pending", detail="its host has not reported yet")
    waiting = [replica for replica in replicas if replica.state == Replica.State.PENDING]
    if waiting:
        return Summary("pending", detail=waiting[-1].reason)
    if trouble is None or any(replica.state == Replica.State.STARTING for replica in replicas):
        return Summary("pending")
    if trouble.gave_up:
        return Summary("failed", detail=trouble.reason)
    return Summary("pending", detail=f"a launch failed and is tried again: {trouble.reason}")


def _is_under_way(replica: ReplicaView) -> bool:
    """An agent that has only just been told begins with the environment, also for engines that need none."""
    return replica.phase in _PHASES and (replica.phase != _PHASES[0] or bool(replica.progress))


def deployment_states() -> list[DeploymentState]:
    """Every deployment by name, with the state of its living replicas, in a fixed number of queries."""
    living = Replica.objects.filter(state__in=tuple(lifecycle.LIVE)).select_related("host").order_by("created_at")
    failed = Replica.objects.filter(deployment=OuterRef("pk"), state=Replica.State.FAILED).order_by("-state_since")
    rows = (
        Deployment.objects.prefetch_related(
            Prefetch("replicas", living), Prefetch("revisions", Revision.objects.filter(is_current=True))
        )
        .annotate(last_failure=Subquery(failed.values("reason")[:1]))
        .order_by("name")
    )
    return [_state_of(deployment, deployment.last_failure) for deployment in rows]


def _state_of(deployment: Deployment, last_failure: str | None) -> DeploymentState:
    current = next(iter(deployment.revisions.all()), None)
    engine = current.runtime if current else ""
    label = "simulated" if engine == Revision.Runtime.SIMULATED else ""
    if not deployment.is_enabled:
        return DeploymentState(deployment.name, engine, label, "disabled")
    living = deployment.replicas.all()
    views = [ReplicaView(r.state, r.phase, r.reason, r.progress or {}, _is_current(r)) for r in living]
    found = summarise(views, None if views or last_failure is None else _trouble(deployment, last_failure))
    return DeploymentState(deployment.name, engine, label, found.state, found.step, found.detail, found.share)


def _trouble(deployment: Deployment, last_failure: str) -> Trouble:
    """What reconcile makes of a failure: one of weeks ago is nothing that keeps it from launching now."""
    try:
        plan = policy_state_read(client(), "reconcile", str(deployment.pk)) or {}
    except redis.RedisError:
        plan = {}
    # What it thought before this start is not what it thinks now.
    if plan.get("gave_up") and plan.get("at", 0.0) >= _STARTED_AT.timestamp():
        return Trouble(str(plan.get("reason") or last_failure), gave_up=True)
    return Trouble(last_failure, gave_up=False)


def _is_current(replica: Replica) -> bool:
    heard_at = replica.host.last_report_at if replica.host else None
    return replica.host is None or (heard_at is not None and heard_at >= _STARTED_AT)


def usage_of(ids: Sequence[str]) -> list[dict[str, Any]]:
    """The usage records with these request ids that are in the database. Raises ValueError for a bad id."""
    fields = ("id", "model", "outcome", "input_tokens", "output_tokens", "cached_tokens", "estimated_mu", "actual_mu")
    rows = UsageRecord.objects.filter(pk__in=[UUID(each) for each in ids]).values(*fields, "lower_bound")
    return [{**row, "id": str(row["id"])} for row in rows]


@sync_to_async
def _answer(ids: list[str]) -> dict[str, Any]:
    close_old_connections()
    return {"models": [asdict(state) for state in deployment_states()], "usage": usage_of(ids) if ids else []}


async def application(scope: dict[str, Any], receive: Any, send: Any) -> None:
    """The endpoint as an ASGI application of its own: no session, no middleware, no allowed host is asked."""
    expected = os.environ.get(TOKEN_VARIABLE, "")
    given = dict(scope["headers"]).get(b"authorization", b"").removeprefix(b"Bearer ")
    status, body = 404, b'{"detail": "not found"}'
    if expected and hmac.compare_digest(given, expected.encode()):
        ids = parse_qs(scope.get("query_string", b"").decode("latin-1")).get("usage", [])
        try:
            status, body = 200, json.dumps(await _answer(ids)).encode()
        except ValueError:
            status, body = 400, b'{"detail": "usage takes request ids"}'
    headers = [(b"content-type", b"application/json"), (b"cache-control", b"no-store")]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
