"""Deployments made as an operator makes them: over the REST API, of a model and a name; the rest is chosen for them."""

from __future__ import annotations

from typing import Any

import httpx

from tests.e2e.stack import Stack

_TOKEN = """
from tenants.models import User
from tenants.services import access_token_create
operator = User.objects.filter(is_operator=True, is_active=True).first()
print("token:" + access_token_create(user=operator, name="e2e", actor="test")[1])
"""
_TERMS = ("base", "alpha", "beta", "gamma", "epsilon", "cached_factor", "modalities")


def operator_of(stack: Stack) -> httpx.Client:
    """Of the REST API, with an operator's token. Whoever asks for it closes it."""
    token = stack.manage(_TOKEN).rpartition("token:")[2].split()[0]
    headers = {"Authorization": f"Bearer {token}"}
    return httpx.Client(base_url=f"{stack.console_url}/api/v1", headers=headers, timeout=60)


def deploy(stack: Stack, name: str, *, model: dict[str, Any], **deployment: Any) -> dict[str, Any]:
    """Returns the revision's ``runtime``, ``reason`` and ``options``, and the terms of the pool's price."""
    with operator_of(stack) as client:
        hardware = answered(client.get("/hosts"))["results"][0]["hardware_type"]
        made = answered(client.post("/models", json={"name": name, **model}))
        pool = {"name": name, "model": made["slug"], "hardware_type": hardware, "is_public": True}
        slug = answered(client.post("/pools", json=pool))["slug"]
        price = answered(client.get(f"/pools/{slug}/profiles"))["results"][0]
        revision = answered(client.post("/deployments", json={"pool": slug, "name": name, **deployment}))["revision"]
    chosen = {"runtime": revision["runtime"], "reason": revision["runtime_reason"], "options": revision["options"]}
    return chosen | {term: price[term] for term in _TERMS}


def answered(answer: httpx.Response) -> Any:
    """What a request that must succeed is answered."""
    assert answer.is_success, answer.text
    return answer.json()
