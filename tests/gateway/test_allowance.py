"""A key that has taught tiny answers and sends long ones, over the wire: its reservation does not take it at its word.

By the profile of the tests 10 tokens in and 1 out cost 0.8 MU, and 200 out 40.6.
"""

from __future__ import annotations

import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from tests.gateway.conftest import Shared
from tests.gateway.test_service_classes import Market, class_of

LONG: dict[str, Any] = {"max_tokens": 200, "user": '{"delay_ms": 5}'}


@pytest.fixture
def market(shared: Shared) -> Market:
    """Its owner has learned that answers have one token."""
    made = Market(shared)
    made.sell(60.0, 50.0)
    for _ in range(3):
        assert class_of(made.ask(max_tokens=1)) == "reserved"
    time.sleep(1.0)
    return made


def charges(shared: Shared, answer: httpx.Response) -> dict[str, list[Any]]:
    admitted, _ = shared.books(answer)
    return {charge[1]: charge for charge in admitted["charges"]}


def test_a_flood_of_long_answers_is_reserved_as_far_as_the_allowance_and_the_bucket_hold_it(
    market: Market, shared: Shared
) -> None:
    """The allowance is 120 MU, and each of them can take 39.8 beyond its estimate. Half of it is this gateway's until
    the next beat, and one more request; the bucket of 50 holds another, at all that it can take."""
    with ThreadPoolExecutor(12) as pool:
        answers = list(pool.map(lambda _: market.ask(**LONG), range(12)))
    classes = Counter(map(class_of, answers))
    assert 3 <= classes["reserved"] <= 5
    told = [charges(shared, answer) for answer in answers]
    about = pytest.approx
    believed = [one["reservation"] for one in told if "allowance" not in one]
    assert 2 <= len(believed) <= 4
    assert all(bucket[5] == about(0.8, abs=0.1) for bucket in believed)
    (most,) = [one for one in told if "allowance" in one and one["reservation"][7]]
    assert most["reservation"][5] == about(40.6, abs=0.2)
    name, _, kind, _, value, asked, left, is_charged = most["allowance"]
    assert (name.partition(".")[0], kind, value, is_charged) == (f"r1-{market.name}", "mu_per_min", 120.0, False)
    assert asked == about(39.8, abs=0.2)
    assert left == 0.0
    assert class_of(market.ask(max_tokens=1)) == "best_effort", "what they took is a debt now"


def test_what_a_stream_takes_beyond_its_estimate_is_charged_while_it_runs(market: Market) -> None:
    """It takes 80 MU, and a bucket holds 50: others find no room before it ends."""
    with ThreadPoolExecutor(1) as pool:
        long = pool.submit(market.ask, max_tokens=400, stream=True, user='{"delay_ms": 10}')
        time.sleep(0.3)
        assert class_of(market.ask(max_tokens=1)) == "reserved"
        while class_of(market.ask(max_tokens=1)) == "reserved":
            assert not long.done()
            time.sleep(0.1)
        assert not long.done()
        assert class_of(long.result()) == "reserved"
