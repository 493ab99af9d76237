"""``GET /v1/models``: what a key may use, as OpenAI's API lists it, or as Anthropic's for whoever says its version."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import msgspec

from serving.gateway.access import is_visible
from serving.gateway.auth import Principal
from serving.gateway.records import DeploymentRecord
from serving.gateway.snapshot import Snapshot


def models_of(view: Snapshot, principal: Principal) -> Iterator[tuple[DeploymentRecord, str]]:
    """Deployments that the key may use, by name, each followed by its adapters."""
    allowed = principal.key.models
    for deployment in sorted(view.deployments.values(), key=lambda d: d.name):
        pool = view.pools.get(deployment.pool)
        if deployment.is_stopped or pool is None or not is_visible(pool, principal):
            continue
        for name in (deployment.name, *deployment.adapters):
            if view.deployments_by_name.get(name) is deployment and (not allowed or name in allowed):
                yield deployment, name


def as_openai(deployment: DeploymentRecord, name: str) -> dict[str, Any]:
    """``name``: the deployment's own, or that of an adapter on it."""
    return {
        "id": name,
        "object": "model",
        "created": deployment.created,
        "owned_by": "penstock",
        "root": deployment.name,
        "parent": None if name == deployment.name else deployment.name,
        "max_model_len": deployment.max_model_len,
        "label": deployment.label,
    }


def as_anthropic(deployment: DeploymentRecord, name: str) -> dict[str, Any]:
    created = datetime.fromtimestamp(deployment.created, UTC).isoformat().replace("+00:00", "Z")
    shown = f"{name} ({deployment.label})" if deployment.label else name
    return {"type": "model", "id": name, "display_name": shown, "created_at": created}


def listed(models: Iterator[tuple[DeploymentRecord, str]], *, is_anthropic: bool) -> bytes:
    """The whole list as one page."""
    if not is_anthropic:
        return msgspec.json.encode({"object": "list", "data": [as_openai(*model) for model in models]})
    data = [as_anthropic(*model) for model in models]
    ends = {"first_id": data[0]["id"] if data else None, "last_id": data[-1]["id"] if data else None}
    return msgspec.json.encode({"data": data, "has_more": False, **ends})
