"""A request's receipt: what was paid and why, what limits said, and why one was refused."""

from __future__ import annotations

import datetime
import uuid
from typing import Any

import msgspec
import pytest
import redis

from capacity.models import Pool, UsageRecord
from capacity.policy.cost import CostProfile, request_cost
from capacity.services import profile_add
from capacity.usage.lines import Charge, Refusal, Usage, refusals_key
from capacity.usage.writer import write_batch
from tests import factories
from tests.api.callers import TENANTS_OWN, codes, operators_only
from tests.api.conftest import World
from tests.api.test_foundation import problem
from tests.factories import Traffic, batch

AT = datetime.datetime(2026, 11, 20, 12, 3, tzinfo=datetime.UTC)


def stamp(minutes: float) -> float:
    return AT.timestamp() + 60 * minutes


@pytest.fixture
def pool(world: World) -> Pool:
    return factories.pool()


def test_a_receipt_explains_what_was_paid(world: World, pool: Pool) -> None:
    price = CostProfile(
        version=1, base=0.1, alpha=0.01, beta=0.05, gamma=1e-6, epsilon=1e-7, cached_factor=0.1,
        modalities={"image_tile": 0.4}, long_input_tiers=((1000, 2.0),), calibrated=True,
    )  # fmt: skip
    profile_add(pool=pool, hardware_type=factories.hardware(), profile=price, price_per_1000_mu=3.0, actor="t")
    used = Usage(input_tokens=2000, cached_tokens=500, output_tokens=300, units={"image_tile": 2.0, "audio_s": 1.0})
    billed = request_cost(price, input_tokens=2000, cached_tokens=500, output_tokens=300, units={"image_tile": 2.0})
    traffic = Traffic(tenant=str(world.acme.pk), pool=str(pool.pk))
    admit, end = traffic.pair(stamp(0), usage=used, mu=billed, duration_s=3.0, routed_at=stamp(0) - 2.5)
    admit.profile_version = 2
    write_batch(batch((admit, end)))
    receipt = world.by_key("usage").get(f"/tenants/acme/usage/{admit.id}").json()
    cost = receipt["cost"]
    terms = ("base", "prefill", "prefill_attention", "cached", "decode", "decode_attention")
    assert sum(cost[name] for name in terms) + cost["modalities"]["image_tile"] == pytest.approx(receipt["actual_mu"])
    assert cost["prefill"] == pytest.approx(2 * 0.01 * 1500)
    assert cost["cached"] == pytest.approx(2 * 0.01 * 0.1 * 500)
    assert (cost["factor"], cost["unpriced"], cost["price"]["version"]) == (2.0, ["audio_s"], 2)
    assert cost["total"] == pytest.approx(billed)
    assert (cost["money"], cost["currency"]) == (pytest.approx(billed * 3 / 1000), "USD")
    assert receipt["times"] == {
        "routed_ms": pytest.approx(500),
        "first_byte_ms": pytest.approx(1000),
        "duration_ms": pytest.approx(3000),
    }
    assert (receipt["estimated_mu"], receipt["estimated_input_tokens"], receipt["estimated_output_tokens"]) == (
        2.0,
        90,
        30,
    )
    assert [set(attempt) for attempt in receipt["attempts"]] == [{"started_at", "ended_at", "outcome", "output_tokens"}]
    whole = world.by("operator").get(f"/usage/{admit.id}").json()
    assert whole["attempts"][0]["replica"] == end.replica
    assert whole["cost"] == cost


def test_a_receipt_explains_what_rows_cost(world: World, pool: Pool) -> None:
    price = CostProfile(
        version=1, base=0.1, alpha=0.0, beta=0.0, gamma=0.0, epsilon=0.0, cached_factor=0.0, modalities={"row": 0.5}
    )
    profile_add(pool=pool, hardware_type=factories.hardware(), profile=price, actor="t")
    traffic = Traffic(tenant=str(world.acme.pk), pool=str(pool.pk))
    admit, end = traffic.pair(stamp(0), usage=Usage(units={"row": 3.0}), mu=1.6)
    admit.profile_version = 2
    write_batch(batch((admit, end)))
    cost = world.by_key("usage").get(f"/tenants/acme/usage/{admit.id}").json()["cost"]
    assert (cost["base"], cost["modalities"], cost["total"]) == (0.1, {"row": 1.5}, 1.6)


def charge(kind: str, asked: float, left: float, **more: Any) -> Charge:
    return Charge(
        **{"limit": f"{uuid.UUID(int=5)}.pool.2026-11-20", "holder": "tenant", "model": "", "value": 100.0, **more},
        kind=kind,
        amount=asked,
        left=left,
    )


def test_a_receipt_tells_what_each_limit_was_charged_and_settled(world: World, pool: Pool) -> None:
    profile_add(
        pool=pool, hardware_type=factories.hardware(), profile=CostProfile(version=1, base=0, alpha=0.01, beta=0.05,
        gamma=0, epsilon=0, cached_factor=0.1), price_per_1000_mu=3.0, actor="t",
    )  # fmt: skip
    traffic = Traffic(tenant=str(world.acme.pk), pool=str(pool.pk))
    admit, end = traffic.pair(stamp(0), mu=1.25)
    lost, gone = traffic.pair(stamp(1), mu=0.5, outcome="gateway_lost", status=499)
    admit.profile_version = lost.profile_version = 2
    admit.charges = lost.charges = (
        charge("tokens_per_min", 150.0, 850.0),
        charge("requests_per_min", 1.0, 9.0, holder="key", model="demo-sim"),
        charge("money_per_day", 0.006, 4.5, holder="member"),
        charge("mu_per_min", 2.0, 0.5, holder="reservation", limit=str(uuid.UUID(int=6)), is_charged=False),
        charge("mu_per_min", 9.0, 0.0, holder="allowance", limit=f"{uuid.UUID(int=6)}.allowance", is_charged=False),
    )
    write_batch(batch((admit, end), (lost, gone)))
    told = world.by_key("usage").get(f"/tenants/acme/usage/{admit.id}").json()
    assert told["refusal"] is None
    rows = [(row["kind"], row["asked"], row["charged"], row["settled"], row["remaining"]) for row in told["limits"]]
    assert rows == [
        ("tokens_per_min", 150.0, 150.0, 120.0, 850.0),
        ("requests_per_min", 1.0, 1.0, 1.0, 9.0),
        ("money_per_day", 0.006, 0.006, pytest.approx(1.25 * 3 / 1000), 4.5),
        ("mu_per_min", 2.0, 0.0, 0.0, 0.5),
        ("mu_per_min", 9.0, 0.0, 0.0, 0.0),
    ]
    assert [row["id"] for row in told["limits"]] == [str(uuid.UUID(int=5))] * 3 + [str(uuid.UUID(int=6))] * 2
    assert [row["holder"] for row in told["limits"]] == ["tenant", "key", "member", "reservation", "allowance"]
    # Of a lost gateway the estimate stands, but in budgets, which go by the books.
    settled = [row["settled"] for row in world.by("viewer").get(f"/tenants/acme/usage/{lost.id}").json()["limits"]]
    assert settled == [150.0, 1.0, pytest.approx(0.5 * 3 / 1000), 0.0, 0.0]


def test_a_refused_request_has_a_receipt_that_says_why(world: World, pool: Pool, state_url: str, settings: Any) -> None:
    settings.REDIS_URL = state_url
    refusal = Refusal(
        id=str(uuid.uuid4()),
        at=stamp(0),
        tenant=str(world.acme.pk),
        key=str(world.keys["inference"][0].pk),
        pool=str(pool.pk),
        deployment=str(uuid.uuid4()),
        model="demo-sim",
        dialect="chat",
        status=429,
        reason="tokens_per_min",
        message="Rate limit of 100 tokens per minute reached.",
        retry_after_s=17.5,
        charges=(charge("tokens_per_min", 30.0, 12.0, is_charged=False),),
    )
    with redis.Redis.from_url(state_url) as client:
        client.lpush(refusals_key(str(world.acme.pk)), b"{}", msgspec.json.encode(refusal))
    assert codes(world, "get", f"/tenants/acme/usage/{refusal.id}") == TENANTS_OWN
    told = world.by("viewer").get(f"/tenants/acme/usage/{refusal.id}").json()
    assert told["refusal"] == {
        "reason": "tokens_per_min",
        "was_admitted": False,
        "message": "Rate limit of 100 tokens per minute reached.",
        "retry_after_s": 17.5,
    }
    assert (told["outcome"], told["status"], told["actual_mu"], told["cost"]) == ("refused", 429, 0.0, None)
    assert [(row["charged"], row["remaining"]) for row in told["limits"]] == [(0.0, 12.0)]
    problem(world.by("outsider").get(f"/tenants/other/usage/{refusal.id}"), 404, "not_found")
    # Operators need not know whose it was, and see what they see of any request.
    assert codes(world, "get", f"/usage/{refusal.id}") == operators_only(200)
    found = world.by("operator").get(f"/usage/{refusal.id}").json()
    assert (found["tenant_id"], found["refusal"], found["limits"]) == (refusal.tenant, told["refusal"], told["limits"])
    problem(world.by("operator").get(f"/usage/{uuid.uuid4()}"), 404, "not_found")
    # A list that says it is another tenant's is not believed.
    with redis.Redis.from_url(state_url) as client:
        client.delete(refusals_key(str(world.acme.pk)))
        client.lpush(refusals_key(str(world.other.pk)), msgspec.json.encode(refusal))
    problem(world.by("operator").get(f"/usage/{refusal.id}"), 404, "not_found")
    assert not UsageRecord.objects.exists()


def test_one_that_no_replica_took_says_so(world: World, pool: Pool) -> None:
    traffic = Traffic(tenant=str(world.acme.pk), pool=str(pool.pk))
    pair = traffic.pair(stamp(0), usage=Usage(), mu=0.0, outcome="refused", status=429, error="capacity_exceeded")
    write_batch(batch(pair))
    told = world.by("viewer").get(f"/tenants/acme/usage/{pair[0].id}").json()
    assert (told["refusal"]["reason"], told["refusal"]["was_admitted"]) == ("capacity_exceeded", True)
    assert told["limits"] == []


def test_what_was_not_billed_and_what_has_no_pool_has_no_terms(world: World, pool: Pool) -> None:
    traffic = Traffic(tenant=str(world.acme.pk), pool=str(pool.pk))
    free = traffic.pair(stamp(0), usage=Usage(), mu=0.0, outcome="refused", status=503)
    gone = Traffic(tenant=str(world.acme.pk)).pair(stamp(0))
    write_batch(batch(free, gone))
    for admit, _ in (free, gone):
        assert world.by("viewer").get(f"/tenants/acme/usage/{admit.id}").json()["cost"] is None


# ------------------------------------------------------------------------------------------------ roll-ups
