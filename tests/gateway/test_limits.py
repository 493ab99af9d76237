"""Plain limits over the wire: exact on one gateway and on two that share a port."""

from __future__ import annotations

import datetime
import threading
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any

import httpx
import pytest

from tenants.member_credentials import seal
from tests.gateway.conftest import Shared
from tests.gateway.harness import PEPPER, PROFILE, key_record

SENT = {"model": "alpha", "prompt": "abcd" * 10, "max_tokens": 20}
"""30 tokens by the engine's count."""


class Customer:
    """A tenant of one test, with its own limits, on the shared gateways."""

    count = 0

    def __init__(self, shared: Shared, limits: list[dict[str, Any]], *, key_limits: Any = ()) -> None:
        Customer.count += 1
        self.shared = shared
        self.name = f"limited{Customer.count}"
        self.headers = {"authorization": f"Bearer mu_{self.name}_secret"}
        own = [{**limit, "id": f"{self.name}-{limit['id']}"} for limit in limits]
        keys = [{**limit, "id": f"{self.name}-{limit['id']}"} for limit in key_limits]
        shared.publish(
            ("tenant", {"id": self.name, "slug": self.name, "limits": own}),
            ("key", key_record(self.name, self.name, limits=keys)),
        )

    def ask(self, number: int = 0, **more: Any) -> httpx.Response:
        """One request at gateway ``number``."""
        url = self.shared.gateways[number].url
        return httpx.post(f"{url}/v1/completions", json={**SENT, **more}, headers=self.headers, timeout=20)


@pytest.mark.parametrize("gateways", [1, 2])
@pytest.mark.parametrize("how", ["concurrent", "sequential", "streaming"])
def test_100_tokens_a_minute_admit_3_requests_of_30(shared: Shared, how: str, gateways: int) -> None:
    ask = Customer(shared, [{"id": "l1", "kind": "tokens_per_min", "value": 100}]).ask
    if how == "concurrent":
        with ThreadPoolExecutor(20) as pool:
            answers = list(pool.map(lambda number: ask(number % gateways), range(20)))
    else:
        answers = [ask(number % gateways, stream=how == "streaming") for number in range(10)]
    statuses = [answer.status_code for answer in answers]
    assert statuses.count(200) == 3
    assert statuses.count(429) == len(answers) - 3
    for answer in answers:
        assert answer.headers["x-ratelimit-limit-tokens"] == "100"
    refused = next(answer for answer in answers if answer.status_code == 429)
    assert refused.json()["error"]["code"] == "rate_limit_exceeded"
    assert refused.json()["error"]["type"] == "tokens"
    assert refused.headers["x-penstock-reason"] == "tokens_per_min"
    waits = sorted(int(answer.headers["retry-after-ms"]) / 1000 for answer in answers if answer.status_code == 429)
    assert 5 < waits[0] < 20, "the first has to wait until 30 are free"
    assert all(10 < later - sooner < 26 for sooner, later in pairwise(waits)), "and each other for 30 more, 18 s"
    admitted = [answer for answer in answers if answer.status_code == 200]
    left = sorted(int(answer.headers["x-ratelimit-remaining-tokens"]) for answer in admitted)
    assert left[0] < 30
    assert left[-1] <= 80
    assert all(answer.headers["x-ratelimit-reset-tokens"].endswith("s") for answer in admitted)
    assert int(refused.headers["x-ratelimit-remaining-tokens"]) < 30
    assert refused.headers["x-ratelimit-reset-tokens"].endswith("s")


def test_over_four_gateways_it_is_three_whatever_the_way(shared: Shared) -> None:
    more = [shared.cluster.start_gateway(f"gateway-of-four-{number}") for number in (3, 4)]
    try:
        shared.cluster.settle(*[gateway.wait() for gateway in more])
        urls = [gateway.url for gateway in (*shared.gateways, *more)]
        for how, count in (("concurrent", 20), ("sequential", 10), ("streaming", 10)):
            customer = Customer(shared, [{"id": "l1", "kind": "tokens_per_min", "value": 100}])
            shared.cluster.settle(*more)
            sent = SENT | {"stream": how == "streaming"}

            def ask(number: int, headers: Any = customer.headers, sent: Any = sent) -> int:
                url = f"{urls[number % 4]}/v1/completions"
                return httpx.post(url, json=sent, headers=headers, timeout=20).status_code

            with ThreadPoolExecutor(20 if how == "concurrent" else 1) as pool:
                statuses = list(pool.map(ask, range(count)))
            assert (statuses.count(200), statuses.count(429)) == (3, count - 3), how
    finally:
        for gateway in more:
            gateway.process.stop()


def test_what_was_reserved_and_not_used_comes_back(shared: Shared) -> None:
    ask = Customer(shared, [{"id": "l1", "kind": "tokens_per_min", "value": 100}]).ask
    # The engine refuses: nothing was used, so nothing stays taken.
    for _ in range(6):
        assert ask(prompt="abcd" * 5000, max_tokens=1).status_code in (400, 429)
    for _ in range(3):
        assert ask().status_code == 200
    assert ask().status_code == 429


def test_concurrency_is_released_at_every_end(shared: Shared) -> None:
    ask = Customer(shared, [{"id": "c1", "kind": "concurrency", "value": 2}]).ask
    script = '{"first_ms": 2000}'
    with ThreadPoolExecutor(5) as pool:
        answers = list(pool.map(lambda _: ask(user=script), range(5)))
    assert sorted(answer.status_code for answer in answers) == [200, 200, 429, 429, 429]
    for fail in ('{"fail": "drop"}', '{"fail": "status"}', '{"fail": "error_event", "at": 1}') * 2:
        assert ask(user=fail, stream=True).status_code in (200, 502)
    with ThreadPoolExecutor(2) as pool:
        answers = list(pool.map(lambda _: ask(user=script), range(2)))
    assert [answer.status_code for answer in answers] == [200, 200]


def test_who_is_told_when_a_seat_comes_waits_in_line_and_who_leaves_is_not_waited_for(shared: Shared) -> None:
    customer = Customer(shared, [{"id": "c1", "kind": "concurrency", "value": 1}])
    assert customer.ask(user='{"first_ms": 400}').status_code == 200
    with ThreadPoolExecutor(3) as pool:
        long = pool.submit(customer.ask, user='{"first_ms": 6000}')
        time.sleep(0.3)
        refused = customer.ask(1)
        assert refused.status_code == 429
        wait_s = int(refused.headers["retry-after-ms"]) / 1000
        assert 0.2 < wait_s < 5, "by how long requests have taken"
        time.sleep(wait_s)
        url = f"{shared.gateways[0].url}/v1/completions"
        with pytest.raises(httpx.ReadTimeout):
            # In line, and gone before its seat comes.
            httpx.post(url, json=SENT, headers=customer.headers, timeout=httpx.Timeout(5, read=1.2))
        assert not long.done()
        again = customer.ask(1)
        assert again.status_code == 429
        time.sleep(max(0.0, int(again.headers["retry-after-ms"]) / 1000))
        began = time.monotonic()
        assert customer.ask(1).status_code == 200, "it has waited for the seat"
        print(f"waited in line {time.monotonic() - began:.1f} s")
        assert long.result().status_code == 200


def test_requests_a_minute_of_a_key_and_limits_of_another_model(shared: Shared) -> None:
    customer = Customer(
        shared,
        [{"id": "m1", "kind": "requests_per_min", "value": 1, "model": "other"}],
        key_limits=[{"id": "r1", "kind": "requests_per_min", "value": 2}],
    )
    assert [customer.ask().status_code for _ in range(4)] == [200, 200, 429, 429]
    assert customer.ask().headers["x-penstock-reason"] == "requests_per_min"
    tokenize = httpx.post(
        f"{shared.url}/tokenize", json={"model": "alpha", "prompt": "x"}, headers=customer.headers, timeout=20
    )
    assert tokenize.status_code == 429


MU = 0.5 + 10 * 0.01 + 20 * 0.2
"""What a request of ``SENT`` costs by the harness's price, as estimated and as counted: 4.6."""


@pytest.mark.parametrize("keys", [1, 4])
def test_who_waits_as_told_is_admitted(shared: Shared, keys: int) -> None:
    """Clients of one key and of several, at two gateways, are refused at once, and come again exactly when told; others
    of the tenant, that nobody was promised anything, ask all the time."""
    limits = [
        {"id": "t", "kind": "tokens_per_min", "value": 1800},
        {"id": "m", "kind": "mu_per_min", "value": 100_000},
        {"id": "r", "kind": "requests_per_min", "value": 90},
    ]
    customer = Customer(shared, limits)
    names = [f"{customer.name}k{number}" for number in range(keys)]
    shared.publish(*[("key", key_record(name, customer.name)) for name in names])
    large = {"prompt": "abcd" * 100, "max_tokens": 1700}
    assert customer.ask(**large).status_code == 200
    outcomes: list[tuple[float, int]] = []
    is_over = threading.Event()

    def client(number: int) -> None:
        url = shared.gateways[number % 2].url
        headers = {"authorization": f"Bearer mu_{names[number % keys]}_secret"}
        with httpx.Client(base_url=url, headers=headers, timeout=20) as http:
            first = http.post("/v1/completions", json=SENT)
            came = time.monotonic()
            assert first.status_code == 429
            wait_s = int(first.headers["retry-after-ms"]) / 1000
            time.sleep(max(0.0, came + wait_s - time.monotonic()))
            outcomes.append((wait_s, http.post("/v1/completions", json=SENT).status_code))

    def intruder() -> None:
        while not is_over.wait(0.05):
            customer.ask(prompt="abcd" * 5, max_tokens=5)

    with ThreadPoolExecutor(17) as pool:
        running = [pool.submit(intruder)]
        clients = [pool.submit(client, number) for number in range(16)]
        for done in clients:
            done.result()
        is_over.set()
        running[0].result()
    waits = sorted(wait for wait, _ in outcomes)
    assert len({round(wait, 1) for wait in waits}) >= 12, f"staggered: {waits}"
    assert [status for _, status in outcomes] == [200] * 16, outcomes


@pytest.mark.parametrize("gateways", [1, 2])
@pytest.mark.parametrize("how", ["concurrent", "sequential", "streaming"])
def test_mu_a_minute_admit_exactly_as_many_as_fit(shared: Shared, how: str, gateways: int) -> None:
    customer = Customer(shared, [{"id": "m1", "kind": "mu_per_min", "value": 15}])
    ask = customer.ask
    if how == "concurrent":
        with ThreadPoolExecutor(20) as pool:
            answers = list(pool.map(lambda number: ask(number % gateways), range(20)))
    else:
        answers = [ask(number % gateways, stream=how == "streaming") for number in range(8)]
    assert [answer.status_code for answer in answers].count(200) == 3
    for answer in answers:
        assert answer.headers["x-ratelimit-limit-mu"] == "15"
    refused = next(answer for answer in answers if answer.status_code == 429)
    assert "model units" in refused.json()["error"]["message"]
    assert 15 - 3 * MU - 0.1 <= float(refused.headers["x-ratelimit-remaining-mu"]) < MU
    # Another pool's model units are others.
    assert ask(model="sighted").status_code == 200


def test_model_units_come_back_when_there_was_no_answer(shared: Shared) -> None:
    customer = Customer(shared, [{"id": "m1", "kind": "mu_per_min", "value": 100}])
    long = {"max_tokens": 400}
    assert customer.ask(**long).status_code == 200
    assert customer.ask(**long).status_code == 429
    other = Customer(shared, [{"id": "m1", "kind": "mu_per_min", "value": 100}])
    for fail in ('{"fail": "drop"}', '{"fail": "status"}') * 4:
        assert other.ask(user=fail, **long).status_code == 502
    assert other.ask(**long).status_code == 200
    assert other.ask(**long).status_code == 429


def test_a_members_limit_holds_for_their_playground_and_not_for_others(shared: Shared) -> None:
    member, other = str(uuid.uuid4()), str(uuid.uuid4())
    customer = Customer(shared, [])
    limit = {"id": f"{customer.name}-m", "kind": "requests_per_min", "value": 1}
    shared.publish(("tenant", {"id": customer.name, "slug": customer.name, "members": {member: [limit]}}))

    def ask(who: str) -> int:
        text = seal(tenant=customer.name, member=who, peppers={1: PEPPER}, now=time.time())
        customer.headers = {"authorization": f"Bearer {text}"}
        return customer.ask().status_code

    assert [ask(member), ask(member), ask(other), ask(other)] == [200, 429, 200, 200]


MONEY = {"id": "sold", "slug": "sold", "profile": PROFILE | {"price_per_1000_mu": 100.0}}
"""A request of ``SENT`` costs 0.46."""


@pytest.fixture(scope="module")
def priced(shared: Shared) -> None:
    deployment = {"id": "d-priced", "name": "priced", "pool": "sold", "revision": "r1", "runtime": "simulated"}
    shared.publish(("pool", MONEY), ("deployment", deployment), ("replica", shared.engines[0].replica("d-priced")))


@pytest.mark.parametrize("kind", ["money_per_day", "mu_per_month"])
@pytest.mark.parametrize("how", ["concurrent", "sequential"])
def test_a_budget_admits_exactly_as_much_and_says_that_another_try_does_not_help(
    shared: Shared, priced: None, kind: str, how: str
) -> None:
    value = 1.5 if kind == "money_per_day" else 15
    customer = Customer(shared, [{"id": "b1", "kind": kind, "value": value}])
    if how == "concurrent":
        with ThreadPoolExecutor(20) as pool:
            answers = list(pool.map(lambda number: customer.ask(number % 2, model="priced"), range(20)))
    else:
        answers = [customer.ask(number % 2, model="priced") for number in range(8)]
    assert [answer.status_code for answer in answers].count(200) == 3
    refused = next(answer for answer in answers if answer.status_code == 429)
    error = refused.json()["error"]
    assert (error["code"], error["type"]) == ("insufficient_quota", "insufficient_quota")
    assert "UTC" in error["message"]
    assert refused.headers["x-should-retry"] == "false"
    assert refused.headers["x-penstock-reason"] == kind
    ends = datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=int(refused.headers["retry-after"]))
    assert (ends.hour, ends.minute) in ((0, 0), (23, 59))
    if kind == "money_per_day":
        assert "USD" in error["message"]
        assert customer.ask(model="alpha").status_code == 200, "what has no price costs nothing"
    else:
        assert customer.ask(model="alpha").status_code == 200, "another pool's model units are others"


def test_a_budget_gets_back_what_was_not_used(shared: Shared, priced: None) -> None:
    customer = Customer(shared, [{"id": "b1", "kind": "mu_per_day", "value": 100, "model": "priced"}])
    for fail in ('{"fail": "drop"}', '{"fail": "status"}') * 4:
        assert customer.ask(user=fail, max_tokens=400, model="priced").status_code == 502
    assert customer.ask(max_tokens=400, model="priced").status_code == 200
    refused = customer.ask(max_tokens=400, model="priced")
    assert refused.status_code == 429
    assert 19 < float(refused.headers["x-ratelimit-remaining-mu-day"]) < 20
    larger = Customer(shared, [{"id": "b1", "kind": "mu_per_day", "value": 10}])
    assert larger.ask(max_tokens=400, model="priced").status_code == 429, "more than the whole budget is never admitted"
