"""Whatever the end of requests, what a budget counts is what they used: against the end lines in the journals.

Gateways are killed on the way. The books are the test's own sum over what a survivor wrote of it.
"""

from __future__ import annotations

import random
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import msgspec
import pytest

from serving.gateway.state import run_script, script
from serving.policy import budgets
from tests.gateway.harness import PROFILE, Cluster, Gateway, cluster, key_record, wait_for

AUTH = {"authorization": "Bearer mu_acme1_secret"}
VALUE = 100_000
LIMITS = [
    {"id": "day", "kind": "mu_per_day", "value": VALUE},
    {"id": "month", "kind": "money_per_month", "value": VALUE},
    {"id": "minute", "kind": "mu_per_min", "value": VALUE * 10},
]


@pytest.fixture
def made() -> Iterator[Cluster]:
    with cluster() as running:
        engine = running.engine("a")
        running.publish(
            ("tenant", {"id": "acme", "slug": "acme", "limits": LIMITS}),
            ("key", key_record("acme1", "acme")),
            ("pool", {"id": "p", "slug": "p", "profile": PROFILE | {"price_per_1000_mu": 500.0}}),
            ("deployment", {"id": "d", "name": "m", "pool": "p", "revision": "r1", "runtime": "simulated"}),
            ("replica", engine.replica("d")),
        )
        yield running


def used(running: Cluster) -> float:
    """What all requests that have ended used, in MU."""
    return sum(request["e"]["actual_mu"] for request in running.journal().values() if "e" in request)


def left(gateway: Gateway) -> dict[str, float]:
    """What is left of the budgets, as one more request is told, without what it takes itself."""
    body = {"model": "m", "prompt": "abcd", "max_tokens": 1}
    answer = httpx.post(f"{gateway.url}/v1/completions", json=body, headers=AUTH, timeout=20)
    assert answer.status_code == 200
    own = float(answer.headers["x-penstock-mu-estimated"])
    return {
        "mu": float(answer.headers["x-ratelimit-remaining-mu-day"]) + own,
        "money": float(answer.headers["x-ratelimit-remaining-money-month"]) + own / 2,
    }


def one(url: str, rng: random.Random) -> None:
    """A request with any end: whole, streamed, failed by the engine, or left by the client."""
    script = rng.choice(['{"fail": "drop"}', '{"fail": "status"}', '{"fail": "error_event", "at": 2}', "{}", "{}"])
    body = {"model": "m", "prompt": "abcd" * rng.randrange(1, 200), "max_tokens": rng.randrange(1, 300)}
    body |= {"user": script, "stream": rng.random() < 0.6}
    try:
        with httpx.stream("POST", f"{url}/v1/completions", json=body, headers=AUTH, timeout=20) as answer:
            for number, _ in enumerate(answer.iter_raw()):
                if rng.random() < 0.2 and number > 1:
                    return
    except httpx.HTTPError:
        return


def test_a_budget_counts_what_requests_used_whatever_their_end(made: Cluster) -> None:
    gateways = [made.gateway(f"g{number}") for number in range(2)]
    rng = random.Random(5)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda number: one(gateways[number % 2].url, random.Random(number)), range(120)))
    wait_for("all ends", lambda: all("e" in request for request in made.journal().values()))
    time.sleep(0.3)
    assert used(made) > 100
    for gateway in rng.sample(gateways, 2):
        before = used(made)
        told = left(gateway)
        assert told["mu"] == pytest.approx(VALUE - before, abs=0.01)
        assert told["money"] == pytest.approx(VALUE - before / 2, abs=0.01)
        wait_for("its end", lambda before=before: used(made) > before)
        time.sleep(0.3)


def test_what_a_killed_gateway_ran_is_counted_as_the_books_have_it(made: Cluster) -> None:
    first, second = made.gateway("g1"), made.gateway("g2")
    slow = {"model": "m", "prompt": "abcd", "max_tokens": 4000, "stream": True, "user": '{"delay_ms": 50}'}

    def stream() -> None:
        try:
            httpx.post(f"{first.url}/v1/completions", json=slow, headers=AUTH, timeout=30)
        except httpx.HTTPError:
            return

    threads = [threading.Thread(target=stream) for _ in range(5)]
    for thread in threads:
        thread.start()
    wait_for("progress of all", lambda: sum(bool(r["p"]) for r in made.journal().values()) == 5)
    first.process.stop(signal.SIGKILL)
    for thread in threads:
        thread.join()
    estimate = 0.5 + 0.01 + 4000 * 0.2
    told = left(second)
    assert told["mu"] == pytest.approx(VALUE - 5 * estimate, abs=5), "charged in full, as long as nobody knows better"
    # The other gateway finds the segment, and closes its requests.
    wait_for(
        "their ends",
        lambda: sum(r.get("e", {}).get("outcome") == "gateway_lost" for r in made.journal().values()) == 5,
        seconds=20,
    )
    time.sleep(2.5)
    until = budgets.minute_of(time.time()) + 2
    names = made.client.keys("penstock:budget:*")
    assert len(names) == 2  # type: ignore[arg-type]
    books = used(made)
    for name in names:  # type: ignore[union-attr]
        amount = books / 2 if b"month" in name else books
        run_script(made.client, script("budgets"), [name.decode()], [repr(amount), until, 600_000])
    told = left(second)
    assert told["mu"] == pytest.approx(VALUE - books, abs=0.01)
    assert told["money"] == pytest.approx(VALUE - books / 2, abs=0.01)
    fields: Any = made.client.hgetall(names[0])  # type: ignore[index]
    assert sum(name != b"books" for name in fields) == 1, "the lost gateway is forgotten"
    assert msgspec.msgpack.decode(fields[b"books"])[1] == until
