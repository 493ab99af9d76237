"""What limits and reservations say of a request goes into its journal line, and of a refused one to the state."""

from __future__ import annotations

import json
import time
from typing import Any

import httpx
import pytest
import redis

from tests.gateway.conftest import Shared
from tests.gateway.test_limits import Customer
from tests.gateway.test_service_classes import COST, Market


def charges(shared: Shared, answer: httpx.Response) -> dict[str, list[Any]]:
    admitted, _ = shared.books(answer)
    return {charge[2]: charge for charge in admitted["charges"]}


def refused(shared: Shared, answer: httpx.Response, tenant: str) -> dict[str, Any]:
    assert answer.status_code == 429, answer.text
    client = redis.from_url(shared.cluster.state_url)
    until = time.monotonic() + 5
    while time.monotonic() < until:
        for entry in map(json.loads, client.lrange(f"penstock:refused:{tenant}", 0, -1)):
            if entry["id"] == answer.headers["x-penstock-request-id"]:
                assert 0 < client.ttl(f"penstock:refused:{tenant}") <= 3600
                return entry  # type: ignore[no-any-return]
        time.sleep(0.05)
    raise AssertionError("the refusal was not told")


def test_a_request_keeps_what_its_limits_said(shared: Shared) -> None:
    limits = [
        {"id": "l1", "kind": "tokens_per_min", "value": 100},
        {"id": "l2", "kind": "requests_per_min", "value": 10, "model": "alpha"},
    ]
    of_key = [{"id": "l3", "kind": "concurrency", "value": 2, "holder": "key"}]
    customer = Customer(shared, limits, key_limits=of_key)
    answer = customer.ask()
    name = customer.name
    about, later = pytest.approx(30, abs=3), pytest.approx(70, abs=4)
    assert charges(shared, answer) == {
        "tokens_per_min": [f"{name}-l1", "tenant", "tokens_per_min", "", 100.0, about, later, True],
        "requests_per_min": [
            *(f"{name}-l2", "tenant", "requests_per_min", "alpha", 10.0, 1.0),
            pytest.approx(9, abs=0.2),
            True,
        ],
        "concurrency": [f"{name}-l3", "key", "concurrency", "", 2.0, 1.0, 1.0, True],
    }
    left = float(answer.headers["x-ratelimit-remaining-tokens"])
    assert left == int(charges(shared, answer)["tokens_per_min"][6]), "the receipt says what the header said"


def test_a_refused_request_can_be_asked_why(shared: Shared) -> None:
    customer = Customer(shared, [{"id": "l1", "kind": "tokens_per_min", "value": 100}])
    answers = [customer.ask() for _ in range(4)]
    told = refused(shared, answers[3], customer.name)
    assert told["reason"] == answers[3].headers["x-penstock-reason"] == "tokens_per_min"
    assert told["retry_after_s"] == pytest.approx(int(answers[3].headers["retry-after-ms"]) / 1000, abs=0.002)
    assert told["message"] == answers[3].json()["error"]["message"]
    (charge,) = told["charges"]
    assert charge[:5] == [f"{customer.name}-l1", "tenant", "tokens_per_min", "", 100.0]
    assert 0 <= charge[6] < charge[5]
    assert charge[7] is False
    assert "prompt" not in json.dumps(told)
    assert "abcd" not in json.dumps(told)


def test_a_request_beyond_its_reservation_says_that_there_was_no_room(shared: Shared) -> None:
    market = Market(shared)
    name = market.sell(0.6, COST)
    inside, beyond = market.ask(), market.ask()
    charge = charges(shared, inside)["mu_per_min"]
    assert charge[:6] == [name, "reservation", "mu_per_min", "", COST, pytest.approx(COST, abs=0.2)]
    assert inside.headers["x-penstock-class"] == "reserved"
    (passed,) = shared.books(beyond)[0]["charges"]
    assert passed[:4] == [name, "reservation", "mu_per_min", ""]
    assert passed[6:] == [pytest.approx(0.0, abs=0.1), False]


def test_nothing_lent_names_the_reservation_that_is_used_up(shared: Shared) -> None:
    market = Market(shared)
    market.tenant("own", best_effort=False)
    name = market.sell(0.6, COST)
    market.ask()
    told = refused(shared, market.ask(), f"own{market.name}")
    assert told["reason"] == "reservation"
    assert told["retry_after_s"] > 1
    assert [charge[:2] for charge in told["charges"]] == [[name, "reservation"]]


def test_refusals_are_counted_by_tenant_key_pool_and_reason(shared: Shared) -> None:
    customer = Customer(shared, [{"id": "l1", "kind": "tokens_per_min", "value": 100}])
    for number in range(7):
        customer.ask(number % 2)
    customer.ask(model="nobody's")
    customer.ask(max_tokens="many")
    url = f"{shared.gateways[0].url}/v1/completions"
    httpx.post(url, json={}, headers={"authorization": "Bearer mu_nobody_secret"}, timeout=20)
    client = redis.from_url(shared.cluster.state_url)
    expected = {"tokens_per_min|429": 4, "model_not_found|404": 1, "invalid_type|400": 1}
    until, found = time.monotonic() + 5, {}
    while found != expected and time.monotonic() < until:
        time.sleep(0.05)
        found, pools = {}, {}
        # The minute may have changed meanwhile.
        for key in client.scan_iter("penstock:refusals:*"):
            assert 0 < client.ttl(key) <= 7200
            for field, count in client.hgetall(key).items():
                tenant, _, pool, reason, status = field.decode().split("|")
                assert tenant, "who is not known is nobody's"
                if tenant == customer.name:
                    found[f"{reason}|{status}"] = found.get(f"{reason}|{status}", 0) + int(count)
                    pools[reason] = pool
    assert found == expected
    # What names no model that there is, is of no pool.
    assert (bool(pools["tokens_per_min"]), pools["model_not_found"]) == (True, "")
