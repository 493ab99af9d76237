"""A flood beside what is reserved, with real processes: two gateways, Valkey, each engine by itself, clients over HTTP.

``python -m bench.fairness --processes`` measures the same for longer. Nothing is asserted about times but their ratios
within one run, by medians and widely: the machine may be busy.
"""

from __future__ import annotations

import statistics

import pytest

from bench.fairness import scenarios
from bench.fairness.processes import Site
from bench.fairness.world import Request

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(180)]

REPLICAS = 2
FLOOD_AT, END = 4.0, 12.0


def median(requests: list[Request]) -> float:
    return statistics.median(request.first_s for request in requests)


def test_owners_are_not_refused_and_not_slowed_by_a_flood_that_limits_of_requests_let_through() -> None:
    tenants = [*scenarios.owners(REPLICAS), *scenarios.small(REPLICAS), scenarios.flood(REPLICAS, begins=FLOOD_AT)]
    sold = Site("classes", tenants, replicas=REPLICAS, gateways=2, engine=scenarios.CHUNKED)
    sold.run(END, last_word_s=6.0)
    before, beside = sold.of(*scenarios.OWNERS, until=FLOOD_AT), sold.of(*scenarios.OWNERS, since=FLOOD_AT)
    assert all(request.is_reserved and not request.refused for request in (*before, *beside))
    assert not any(request.refused for request in sold.of(*scenarios.SMALL))
    assert sold.served_mu("flood") > 0.0, "what is spare is lent"

    limited = Site("direct", tenants, replicas=REPLICAS, gateways=0, engine=scenarios.CHUNKED)
    limited.run(END, last_word_s=0.5)
    assert not any(request.refused for request in limited.of("flood")), "limits of requests let it through"
    late = FLOOD_AT + 5.0
    assert median(sold.of(*scenarios.OWNERS, since=late)) < 5 * median(before)
    assert median(limited.of(*scenarios.OWNERS, since=late)) > 3 * median(sold.of(*scenarios.OWNERS, since=late))
