"""A member's credential is admitted, limited and metered by a gateway as an API key is."""

from __future__ import annotations

import time
import uuid
from typing import Any

import httpx

from tenants.member_credentials import seal
from tests.gateway.conftest import Shared
from tests.gateway.harness import PEPPER, key_record

BODY = {"model": "alpha", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 3}


def ask(
    shared: Shared, tenant: str, *, member: str = "", ago_s: float = 0, pepper: str = PEPPER, **body: Any
) -> httpx.Response:
    text = seal(tenant=tenant, member=member or str(uuid.uuid4()), peppers={1: pepper}, now=time.time() - ago_s)
    return shared.http.post("/v1/chat/completions", json=BODY | body, headers={"authorization": f"Bearer {text}"})


def test_a_members_request_is_answered_and_booked_on_tenant_and_member(shared: Shared) -> None:
    member = str(uuid.uuid4())
    answer = ask(shared, "acme", member=member)
    assert answer.status_code == 200, answer.text
    assert shared.served(answer.headers["x-penstock-request-id"])
    lines = [
        line
        for path in (shared.cluster.data / "journal").glob("*.jsonl")
        for line in path.read_text().splitlines()
        if answer.headers["x-penstock-request-id"] in line and '"t":"a"' in line
    ]
    assert len(lines) == 1
    assert f'"key":"{member}"' in lines[0]
    assert '"tenant":"acme"' in lines[0]


def test_it_sees_its_own_tenants_models_alone(shared: Shared) -> None:
    assert ask(shared, "acme", model="secret").status_code == 404
    assert ask(shared, "other", model="secret").status_code == 200


def test_it_is_refused_when_expired_forged_or_of_a_tenant_that_is_not_served(shared: Shared) -> None:
    assert ask(shared, "acme", ago_s=3600).status_code == 401
    assert ask(shared, "acme", pepper="another").status_code == 401
    assert ask(shared, "idle").json()["error"]["code"] == "tenant_inactive"
    assert ask(shared, "nobody").json()["error"]["code"] == "tenant_inactive"


def test_the_tenants_limits_hold_for_members_and_keys_together(shared: Shared) -> None:
    name = f"t{uuid.uuid4().hex[:10]}"
    limit = {"id": f"l-{name}", "kind": "requests_per_min", "value": 2}
    shared.publish(("tenant", {"id": name, "slug": name, "limits": [limit]}), ("key", key_record(name, name)))
    assert ask(shared, name, member="ann").status_code == 200
    assert ask(shared, name, member="bob").status_code == 200
    by_key = shared.http.post("/v1/chat/completions", json=BODY, headers={"authorization": f"Bearer mu_{name}_secret"})
    assert by_key.status_code == 429
    assert ask(shared, name, member="ann").status_code == 429


def test_the_text_is_in_no_log(shared: Shared) -> None:
    ask(shared, "acme")
    assert all("psm_" not in gateway.log_path.read_text() for gateway in shared.gateways)
