"""Reserved and best effort over the wire: who is charged what, and what is said when nothing is lent."""

from __future__ import annotations

import time
import uuid
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from tests.gateway.conftest import Shared
from tests.gateway.harness import PROFILE, key_record

SENT = {"prompt": "abcd" * 10, "max_tokens": 20}
"""10 tokens in, 20 out: 0.5 + 0.1 + 4 = 4.6 MU by the profile of the tests."""
COST = 4.6


class Market:
    """A pool and a model of one test, a tenant who owns a part of it, and one who owns none."""

    def __init__(self, shared: Shared) -> None:
        self.shared = shared
        self.name = f"s{uuid.uuid4().hex[:10]}"
        self.reservations = 0
        self.pool()
        deployment = {"id": f"d-{self.name}", "name": self.name, "pool": self.name}
        shared.publish(
            ("deployment", deployment | {"revision": "r1", "runtime": "simulated"}),
            *(("replica", engine.replica(f"d-{self.name}")) for engine in shared.engines),
            *(("key", key_record(f"{who}{self.name}", f"{who}{self.name}")) for who in ("own", "else")),
        )
        self.tenant("own")
        self.tenant("else")

    def pool(self, **more: Any) -> None:
        self.shared.publish(("pool", {"id": self.name, "slug": self.name, "profile": PROFILE, **more}))

    def tenant(self, who: str, **more: Any) -> None:
        self.shared.publish(("tenant", {"id": f"{who}{self.name}", "slug": f"{who}{self.name}", **more}))

    def sell(self, mu_per_min: float, burst_mu: float, *, who: str = "own", **more: Any) -> str:
        self.reservations += 1
        name = f"r{self.reservations}-{self.name}"
        record = {"id": name, "tenant": f"{who}{self.name}", "pool": self.name, "profile": PROFILE}
        record |= {"mu_per_min": mu_per_min, "burst_mu": burst_mu, "starts_at": 1000.0}
        self.shared.publish(("reservation", record | more))
        return name

    def ask(self, who: str = "own", *, at: int = 0, **more: Any) -> httpx.Response:
        url = self.shared.gateways[at].url
        headers = {"authorization": f"Bearer mu_{who}{self.name}_secret"}
        return httpx.post(
            f"{url}/v1/completions", json={**SENT, "model": self.name, **more}, headers=headers, timeout=20
        )


@pytest.fixture
def market(shared: Shared) -> Market:
    return Market(shared)


def class_of(answer: httpx.Response) -> str:
    assert answer.status_code == 200, answer.text
    return answer.headers["x-penstock-class"]


def test_inside_the_reservation_it_is_reserved_and_beyond_it_best_effort(market: Market, shared: Shared) -> None:
    market.sell(60.0, 3 * COST)
    answers = [market.ask() for _ in range(5)]
    assert [class_of(answer) for answer in answers] == ["reserved"] * 3 + ["best_effort"] * 2
    for answer, priority in zip(answers, (0, 0, 0, 10, 10), strict=True):
        admitted, end = shared.books(answer)
        assert admitted.get("service_class", "best_effort") == answer.headers["x-penstock-class"]
        assert end["outcome"] == "completed"
        assert shared.served(answer.headers["x-penstock-request-id"])["body"]["priority"] == priority  # type: ignore[index]


def test_metrics_tell_the_classes_apart(market: Market, shared: Shared) -> None:
    market.sell(0.6, COST)
    for _ in range(3):
        class_of(market.ask())
    url = f"{shared.gateways[0].url}/metrics"
    text = httpx.get(url, headers={"authorization": "Bearer scrape"}).text
    told = dict(line.rsplit(" ", 1) for line in text.splitlines() if f'model="{market.name}"' in line)
    for word, count in (("reserved", 1), ("best_effort", 2)):
        labels = f'{{class="{word}",model="{market.name}"}}'
        assert float(told[f"penstock_gateway_class_admitted_total{labels}"]) == count
        assert float(told[f"penstock_gateway_class_mu_total{labels}"]) == pytest.approx(count * COST, abs=0.1)
        assert float(told[f"penstock_gateway_class_wait_seconds_count{labels}"]) == count


def test_nobody_uses_what_another_has_reserved(market: Market) -> None:
    market.sell(6000.0, 1000.0)
    assert class_of(market.ask("else")) == "best_effort"
    assert class_of(market.ask("own")) == "reserved"


@pytest.mark.parametrize("gateways", [1, 2])
def test_a_reservation_is_exact_over_gateways(market: Market, gateways: int) -> None:
    market.sell(0.6, 5 * COST)
    with ThreadPoolExecutor(12) as pool:
        answers = list(pool.map(lambda number: market.ask(at=number % gateways), range(20)))
    assert Counter(map(class_of, answers)) == {"reserved": 5, "best_effort": 15}


def test_the_bucket_fills_at_the_rate_that_was_sold(market: Market) -> None:
    market.sell(60 * COST, COST)
    assert class_of(market.ask()) == "reserved"
    assert class_of(market.ask()) == "best_effort"
    time.sleep(1.1)
    assert class_of(market.ask()) == "reserved"


def test_what_was_not_used_is_given_back(market: Market) -> None:
    market.sell(0.6, COST)
    failed = market.ask(user='{"fail": "status", "status": 422}')
    assert failed.status_code == 400
    assert failed.headers["x-penstock-class"] == "reserved"
    assert [class_of(market.ask()) for _ in range(2)] == ["reserved", "best_effort"]


def test_a_request_larger_than_the_bucket_is_reserved_while_the_bucket_is_empty(market: Market) -> None:
    market.sell(6.0, 1.0)
    assert class_of(market.ask()) == "reserved"
    assert class_of(market.ask()) == "best_effort"


def test_two_reservations_are_used_up_one_after_the_other(market: Market, shared: Shared) -> None:
    market.sell(0.6, COST)
    market.sell(0.6, 2 * COST, ends_at=time.time() + 3600.0)
    assert [class_of(market.ask()) for _ in range(4)] == ["reserved"] * 3 + ["best_effort"]


def test_a_reservation_holds_from_its_start_to_its_end(market: Market) -> None:
    market.sell(6000.0, 100.0, starts_at=time.time() + 3600.0)
    market.sell(6000.0, 100.0, ends_at=time.time() - 1.0)
    assert class_of(market.ask()) == "best_effort"
    market.sell(6000.0, 100.0, starts_at=time.time() - 1.0, ends_at=time.time() + 1.5)
    assert class_of(market.ask()) == "reserved"
    time.sleep(1.6)
    assert class_of(market.ask()) == "best_effort"


def test_a_reservation_is_charged_by_the_price_it_was_sold_by(market: Market, shared: Shared) -> None:
    dear = PROFILE | {"version": 4, "beta": 2.0}
    market.sell(6000.0, 100.0)
    market.pool(profile=dear)
    admitted, end = shared.books(market.ask("own"))
    assert (admitted["profile_version"], end["actual_mu"]) == (3, pytest.approx(COST, abs=0.01))
    admitted, end = shared.books(market.ask("else"))
    assert (admitted["profile_version"], end["actual_mu"]) == (4, pytest.approx(0.5 + 0.1 + 40.0, abs=0.01))


def test_where_nothing_is_lent_a_used_up_reservation_is_a_429_that_says_when(market: Market) -> None:
    market.pool(best_effort=False)
    market.sell(60 * COST, COST)
    assert class_of(market.ask()) == "reserved"
    refused = market.ask()
    assert refused.status_code == 429
    assert refused.json()["error"]["code"] == "reservation_exhausted"
    wait_s = int(refused.headers["retry-after-ms"]) / 1000
    assert 0.0 < wait_s <= 1.0
    time.sleep(wait_s)
    assert class_of(market.ask()) == "reserved"


def test_where_nothing_is_lent_who_has_reserved_nothing_is_told_to_reserve(market: Market) -> None:
    market.pool(best_effort=False)
    refused = market.ask("else")
    assert refused.status_code == 403
    assert refused.json()["error"]["code"] == "reservation_required"


def test_a_tenant_who_may_not_borrow_stays_inside_its_reservation(market: Market) -> None:
    market.tenant("own", best_effort=False)
    market.sell(0.6, COST)
    assert class_of(market.ask()) == "reserved"
    assert market.ask().json()["error"]["code"] == "reservation_exhausted"
    assert class_of(market.ask("else")) == "best_effort"


def test_plain_limits_hold_inside_a_reservation_too(market: Market) -> None:
    limit = {"id": f"l-{market.name}", "kind": "requests_per_min", "value": 2}
    market.tenant("own", limits=[limit])
    market.sell(6000.0, 1000.0)
    answers = [market.ask() for _ in range(3)]
    assert [answer.status_code for answer in answers] == [200, 200, 429]
    assert answers[2].json()["error"]["code"] == "rate_limit_exceeded"


def test_who_comes_when_a_plain_limit_told_it_is_inside_its_reservation(market: Market) -> None:
    market.sell(600.0, 40 * COST)
    market.tenant("own", limits=[{"id": f"c-{market.name}", "kind": "concurrency", "value": 1}])
    assert class_of(market.ask(user='{"first_ms": 300}')) == "reserved"
    with ThreadPoolExecutor(1) as pool:
        long = pool.submit(market.ask, user='{"first_ms": 1800}')
        time.sleep(0.3)
        refused = market.ask()
        assert (refused.status_code, refused.headers["x-penstock-reason"]) == (429, "concurrency")
        time.sleep(int(refused.headers["retry-after-ms"]) / 1000)
        assert not long.done(), "it waits in line"
        assert class_of(market.ask()) == "reserved"
        assert class_of(long.result()) == "reserved"


@pytest.mark.parametrize("owners_at", [0, 1])
def test_an_owner_without_a_slot_ends_what_is_lent_and_its_client_is_told(
    market: Market, shared: Shared, owners_at: int
) -> None:
    """Also where the owner is at one gateway, and everything was lent by the other."""
    market.pool(claw_back_s=1.0)
    market.sell(6000.0, 100.0)
    a, b = (engine.replica(f"d-{market.name}", target_concurrency=1) for engine in shared.engines)
    shared.publish(("replica", a), ("replica", b))
    slow = {"user": '{"delay_ms": 100}', "max_tokens": 100}
    with ThreadPoolExecutor(4) as pool:
        lent = [pool.submit(market.ask, "else", stream=stream, **slow) for stream in (True, False)]
        time.sleep(0.5)
        waits = pool.submit(market.ask, "else")
        time.sleep(0.2)
        began = time.monotonic()
        owner = market.ask("own", at=owners_at)
        took = time.monotonic() - began
        evicted = waits.result()
        answers = [one.result() for one in lent]
    assert class_of(owner) == "reserved"
    assert 0.5 <= took < 1.0, "within the pool's deadline"
    assert evicted.status_code == 429
    assert evicted.json()["error"]["code"] == "capacity_reclaimed"
    assert int(evicted.headers["retry-after"]) >= 1
    cut = [answer for answer in answers if "capacity_reclaimed" in answer.text]
    assert len(cut) == 1, "one of the two: the other goes on"
    end = shared.cluster.ended(cut[0].headers["x-penstock-request-id"])
    assert (end["outcome"], end["status"], end["error"]) == ("refused", 429, "capacity_reclaimed")


def test_what_is_stopped_refuses_owners_inside_their_reservation(market: Market, shared: Shared) -> None:
    """So their minutes count as broken: requests for a model that is not found would be in no books."""
    market.sell(60.0, 3 * COST)
    deployment = {"id": f"d-{market.name}", "name": market.name, "pool": market.name}
    stopped = deployment | {"revision": "r1", "runtime": "simulated", "is_stopped": True}
    gone = tuple(("replica", f"d-{market.name}-{engine.name}") for engine in shared.engines)
    shared.cluster.publish(("deployment", stopped), remove=gone)
    shared.cluster.settle(*shared.gateways)
    refused = market.ask()
    assert (refused.status_code, refused.headers["x-penstock-class"]) == (503, "reserved")
    assert "is stopped until its operator starts it again" in refused.json()["error"]["message"]
    admitted, end = shared.books(refused)
    assert (admitted["service_class"], end["outcome"], end["status"]) == ("reserved", "refused", 503)
    headers = {"authorization": f"Bearer mu_own{market.name}_secret"}
    listed = httpx.get(f"{shared.url}/v1/models", headers=headers).json()["data"]
    assert market.name not in [model["id"] for model in listed]
    assert httpx.get(f"{shared.url}/v1/models/{market.name}", headers=headers).status_code == 404


def test_whoever_found_no_room_is_told_its_turn_and_has_it_at_any_gateway(market: Market, shared: Shared) -> None:
    market.pool(best_effort_wait_s=0.3)
    narrow = f"narrow{market.name}"
    deployment = {"id": f"d-{narrow}", "name": narrow, "pool": market.name, "revision": "r1", "runtime": "simulated"}
    shared.publish(
        ("deployment", deployment), ("replica", shared.engines[0].replica(f"d-{narrow}", target_concurrency=1))
    )

    def ask(prompt: str, at: int = 0, **more: Any) -> httpx.Response:
        return market.ask("else", at=at, model=narrow, prompt=prompt * 10, **more)

    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(ask, "long", user='{"first_ms": 2000}')
        time.sleep(0.3)
        first = ask("once")
        told_at = time.monotonic()
        time.sleep(0.3)
        second = ask("more", at=1)
        assert running.result().status_code == 200
    for refused, ahead in ((first, 0.0), (second, COST)):
        assert refused.status_code == 429
        assert refused.headers["x-penstock-reason"] == "capacity_exceeded"
        assert float(refused.headers["x-penstock-mu-ahead"]) == pytest.approx(ahead, rel=0.05), (
            "also what another promised"
        )
        assert "Its place is kept." in refused.json()["error"]["message"]
    time.sleep(max(0.0, told_at + int(first.headers["retry-after-ms"]) / 1000 - time.monotonic()))
    assert class_of(ask("once", at=1)) == "best_effort"
