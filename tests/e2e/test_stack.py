"""The whole house from outside: roles apart, a streamed answer, its usage row, and the limits."""

from __future__ import annotations

import asyncio
import json
import stat
import uuid
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import openai
import pytest

from penstock.testing import CANARY
from tests.e2e.stack import Stack, wait_for

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(600), pytest.mark.together("stack")]


def test_every_role_is_its_own_process(stack: Stack) -> None:
    groups = {
        "state": stack.role("valkey-server"),
        "gateway": stack.gateway_processes(),
        "web": stack.role("penstock.asgi"),
        "loops": stack.role("celery", "penstock"),
        "agent": stack.role("-m worker", "agent.json"),
    }
    assert {name: bool(found) for name, found in groups.items()} == dict.fromkeys(groups, True)
    assert len(groups["gateway"]) == 2
    pids = [{process.pid for process in found} for found in groups.values()]
    assert len(set().union(*pids)) == sum(len(part) for part in pids)


def test_quickstart_file_is_private_and_complete(stack: Stack) -> None:
    path = stack.data / "quickstart.json"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    quickstart = stack.quickstart()
    assert quickstart["base_url"] == stack.base_url
    assert quickstart["console_url"].startswith(stack.console_url)
    assert len(quickstart["tenants"]) == 2
    assert all(tenant["api_key"].startswith("mu_") for tenant in quickstart["tenants"])
    assert {model["name"] for model in quickstart["models"]} >= {"demo-sim", "demo-tiny"}


def test_openai_client_streams_and_its_usage_row_has_the_same_tokens(stack: Stack) -> None:
    mark = f"e2e-{uuid.uuid4().hex}"
    with (
        openai.OpenAI(base_url=stack.base_url, api_key=stack.key(), max_retries=0) as client,
        client.chat.completions.create(
            model="demo-sim",
            messages=[{"role": "user", "content": f"Count to ten. {CANARY}"}],
            max_tokens=12,
            stream=True,
            stream_options={"include_usage": True},
            extra_headers={"X-Request-Id": mark},
        ) as events,
    ):
        seen = [event.usage for event in events]
    usage = seen[-1]
    assert usage is not None
    assert all(part is None for part in seen[:-1])
    row = wait_for("its usage row", lambda: stack.usage("client_request_id = ?", mark), seconds=20)[0]
    assert (row["input_tokens"], row["output_tokens"]) == (usage.prompt_tokens, usage.completion_tokens)
    assert row["actual_mu"] > 0
    assert row["outcome"] == "completed"
    assert json.loads(row["attempts"])[0]["replica"]


def hex_id(value: object) -> str:
    return str(value).replace("-", "")


def set_limit(stack: Stack, *, slug: str, kind: str, value: int | None) -> None:
    """Set or remove a tenant's limit through the services, as an operator would."""
    stack.manage(
        f"""
from tenants.models import Tenant, Limit
from tenants import services
tenant = Tenant.objects.get(slug={slug!r})
value = {value!r}
if value is None:
    for limit in Limit.objects.filter(tenant=tenant, kind={kind!r}, api_key=None):
        services.limit_remove(limit=limit, actor="test")
else:
    services.limit_set(tenant=tenant, kind={kind!r}, value=value, set_by="operator", actor="test")
"""
    )


def new_tenant_with_limit(stack: Stack, kind: str, value: int) -> str:
    """A fresh tenant with one key and one limit; returns the key, once the gateways know it."""
    slug = f"limited-{uuid.uuid4().hex[:8]}"
    printed = stack.manage(
        f"""
from tenants import services
tenant = services.tenant_create(name={slug!r}, slug={slug!r}, actor="test")
services.limit_set(tenant=tenant, kind={kind!r}, value={value}, set_by="operator", actor="test")
key, secret = services.api_key_create(tenant=tenant, name="test", actor="test")
print("KEY", secret)
"""
    )
    key = printed.split("KEY ")[1].split()[0]
    wait_for(
        "the new key at the gateways",
        lambda: httpx.get(f"{stack.base_url}/models", headers={"Authorization": f"Bearer {key}"}).status_code == 200,
        seconds=10,
    )
    return key


def thirty_tokens(stack: Stack, key: str, *, stream: bool) -> int:
    """One request whose estimate is 30 tokens: the prompt is counted by the engine, the rest is max_tokens."""
    body: dict[str, Any] = {"model": "demo-sim", "prompt": f"ten tokens {CANARY}", "ignore_eos": True, "stream": stream}
    headers = {"Authorization": f"Bearer {key}"}
    counted = httpx.post(
        f"{stack.base_url}/tokenize", json={"model": "demo-sim", "prompt": body["prompt"]}, headers=headers
    ).json()["count"]
    body["max_tokens"] = 30 - counted
    answer = httpx.post(f"{stack.base_url}/completions", json=body, headers=headers, timeout=60)
    return answer.status_code


@pytest.mark.parametrize("shape", ["20 concurrent", "10 sequential", "10 streaming"])
def test_hundred_tokens_a_minute_admit_three_requests_of_thirty(stack: Stack, shape: str) -> None:
    key = new_tenant_with_limit(stack, "tokens_per_min", 100)
    if shape == "20 concurrent":
        with ThreadPoolExecutor(20) as pool:
            codes = list(pool.map(lambda _: thirty_tokens(stack, key, stream=False), range(20)))
    else:
        codes = [thirty_tokens(stack, key, stream=shape == "10 streaming") for _ in range(10)]
    assert codes.count(200) == 3, codes
    assert set(codes) == {200, 429}


def test_concurrency_limit_holds_over_two_gateways(stack: Stack) -> None:
    key = new_tenant_with_limit(stack, "concurrency", 4)
    body = {"model": "demo-sim", "prompt": "hold", "max_tokens": 60, "ignore_eos": True}

    async def burst() -> list[int]:
        async with httpx.AsyncClient(headers={"Authorization": f"Bearer {key}"}, timeout=60) as client:
            asks = [client.post(f"{stack.base_url}/completions", json=body) for _ in range(16)]
            return [answer.status_code for answer in await asyncio.gather(*asks)]

    codes = asyncio.run(burst())
    assert codes.count(200) == 4, codes
    # All given back: the next four are admitted again.
    wait_for("the slots to be free", lambda: asyncio.run(burst()).count(200) == 4, seconds=10)


def test_revoked_key_is_refused_within_two_seconds(stack: Stack) -> None:
    key = new_tenant_with_limit(stack, "requests_per_min", 1000)
    stack.manage(
        f"""
from tenants.models import ApiKey
from tenants import services
services.api_key_revoke(key=ApiKey.objects.get(public_id={key.split("_")[1]!r}), actor="test")
"""
    )
    wait_for(
        "the refusal",
        lambda: httpx.get(f"{stack.base_url}/models", headers={"Authorization": f"Bearer {key}"}).status_code == 401,
        seconds=2,
    )


def test_console_and_admin_answer(stack: Stack) -> None:
    assert httpx.get(stack.console_url, follow_redirects=True).status_code == 200
    assert httpx.get(f"{stack.console_url}/admin/", follow_redirects=True).status_code == 200
