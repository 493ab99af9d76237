"""What a gateway keeps of keys and models between requests never outlives what was published of them."""

from __future__ import annotations

import uuid
from typing import Any

import httpx
import pytest

from serving.gateway.access import AccessBook
from serving.gateway.auth import Principal
from serving.gateway.errors import ApiError
from serving.gateway.records import (
    DeploymentRecord,
    KeyRecord,
    LimitRecord,
    PoolRecord,
    ProfileRecord,
    TenantRecord,
)
from serving.gateway.services import cost_profile
from serving.gateway.snapshot import Snapshot
from tests.gateway.conftest import Shared
from tests.gateway.harness import PROFILE, key_record

BODY = {"model": "alpha", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 3}


def ask(shared: Shared, key: str, **body: Any) -> httpx.Response:
    headers = {"authorization": f"Bearer mu_{key}_secret"}
    return shared.http.post("/v1/chat/completions", json=BODY | body, headers=headers)


@pytest.fixture
def key(shared: Shared) -> str:
    """A fresh tenant's fresh key that has been used already; both have the same name."""
    name = f"t{uuid.uuid4().hex[:10]}"
    shared.publish(("tenant", {"id": name, "slug": name}), ("key", key_record(name, name)))
    assert ask(shared, name).status_code == 200
    return name


def test_a_used_key_that_is_revoked_fails_at_once(shared: Shared, key: str) -> None:
    shared.publish(("key", key_record(key, key, revoked=True)))
    assert ask(shared, key).json()["error"]["code"] == "invalid_api_key"
    shared.publish(("key", key_record(key, key)))
    assert ask(shared, key).status_code == 200


def test_a_used_key_with_a_new_secret_fails_with_the_old_one(shared: Shared, key: str) -> None:
    shared.publish(("key", key_record(key, key, secret="another")))
    assert ask(shared, key).status_code == 401


def test_another_secret_of_a_used_key_does_not_pass(shared: Shared, key: str) -> None:
    headers = {"authorization": f"Bearer mu_{key}_secreT"}
    assert shared.http.post("/v1/chat/completions", json=BODY, headers=headers).status_code == 401


def test_a_tenant_that_is_deactivated_is_out_at_once(shared: Shared, key: str) -> None:
    shared.publish(("tenant", {"id": key, "slug": key, "active": False}))
    assert ask(shared, key).json()["error"]["code"] == "tenant_inactive"


def test_an_expiry_and_addresses_that_are_set_later_hold(shared: Shared, key: str) -> None:
    shared.publish(("key", key_record(key, key, expires_at=1000.0)))
    assert ask(shared, key).json()["error"]["code"] == "expired_api_key"
    shared.publish(("key", key_record(key, key, allowed_ips=["10.1.0.0/16"])))
    assert ask(shared, key).json()["error"]["code"] == "ip_not_allowed"


def test_a_model_that_moves_to_a_closed_pool_is_gone_at_once(shared: Shared, key: str) -> None:
    deployment = {"id": f"d-{key}", "name": f"m-{key}", "revision": "r1", "runtime": "simulated"}
    shared.publish(("deployment", deployment | {"pool": "open"}), ("replica", shared.engines[0].replica(f"d-{key}")))
    assert ask(shared, key, model=f"m-{key}").status_code == 200
    shared.publish(("deployment", deployment | {"pool": "closed"}))
    assert ask(shared, key, model=f"m-{key}").status_code == 404
    shared.cluster.publish(remove=(("deployment", f"d-{key}"),))


def test_limits_and_allowed_models_that_change_hold_for_the_next_request(shared: Shared, key: str) -> None:
    limits = [{"id": f"l-{key}", "kind": "requests_per_min", "value": 1}]
    shared.publish(("tenant", {"id": key, "slug": key, "limits": limits}))
    assert ask(shared, key).headers["x-ratelimit-limit-requests"] == "1"
    assert ask(shared, key).status_code == 429
    shared.publish(("tenant", {"id": key, "slug": key}), ("key", key_record(key, key, models=["beta"])))
    assert ask(shared, key).json()["error"]["code"] == "model_not_allowed"


class Prices:
    def profile(self, pool: PoolRecord) -> Any:
        return cost_profile(pool.profile)


def view_of(*, limits: tuple[LimitRecord, ...] = ()) -> tuple[Snapshot, Principal]:
    view = Snapshot()
    view.pools["p"] = PoolRecord(id="p", slug="p", profile=ProfileRecord(**PROFILE))  # type: ignore[arg-type]
    deployment = DeploymentRecord(id="d", name="m", pool="p", revision="r", runtime="simulated")
    view.deployments_by_name["m"] = deployment
    key = KeyRecord(id="k", uuid="u", tenant="t", digest="", pepper=1)
    return view, Principal(key, TenantRecord(id="t", slug="t", limits=limits))


def test_a_token_limit_asks_for_tokens_and_the_others_for_one() -> None:
    kinds = ("tokens_per_min", "requests_per_min", "concurrency", "mu_per_min")
    limits = tuple(LimitRecord(id=kind, kind=kind, value=10.0) for kind in kinds)  # type: ignore[arg-type]
    view, principal = view_of(limits=(*limits, LimitRecord(id="x", kind="concurrency", value=1.0, model="x")))
    access = AccessBook(Prices()).find(view, principal, "m")
    asked = {demand.limit.id: demand.amount for demand in access.demands(130, 6.5)}
    assert asked == {"tokens_per_min": 130.0, "requests_per_min": 1.0, "concurrency": 1.0, "mu_per_min.p": 6.5}


def test_mu_of_two_pools_do_not_add_up_and_those_of_one_model_do() -> None:
    every = LimitRecord(id="every", kind="mu_per_min", value=10.0)
    one = LimitRecord(id="one", kind="mu_per_min", value=5.0, model="m")
    view, principal = view_of(limits=(every, one))
    view.pools["q"] = PoolRecord(id="q", slug="q", profile=ProfileRecord(**PROFILE))  # type: ignore[arg-type]
    other = DeploymentRecord(id="e", name="n", pool="q", revision="r", runtime="simulated")
    view.deployments_by_name["n"] = other
    book = AccessBook(Prices())
    asked = {name: [limit for limit, _ in book.find(view, principal, name).metered] for name in ("m", "n")}
    assert {name: [limit.id for limit in limits] for name, limits in asked.items()} == {
        "m": ["every.p", "one"],
        "n": ["every.q"],
    }
    # Another key of the tenant holds to the same objects, also where it was told of its own copy.
    copy = TenantRecord(id="t", slug="t", limits=(LimitRecord(id="every", kind="mu_per_min", value=10.0), one))
    second = Principal(KeyRecord(id="k2", uuid="u2", tenant="t", digest="", pepper=1), copy)
    again = [limit for limit, _ in book.find(view, second, "m").metered]
    assert all(a is b for a, b in zip(again, asked["m"], strict=True))


def test_the_book_is_bounded_and_answers_from_what_it_knows() -> None:
    view, principal = view_of()
    book = AccessBook(Prices(), size=2)
    first = book.find(view, principal, "m")
    assert book.find(view, principal, "m") is first
    for number in range(3):
        other = Principal(KeyRecord(id=f"k{number}", uuid="u", tenant="t", digest="", pepper=1), principal.tenant)
        assert book.find(view, other, "m").principal is other
    assert len(book._known) <= 2
    with pytest.raises(ApiError):
        book.find(view, principal, "no such model")
