"""Can we sell this? The answer against an oracle that counts minute by minute and accelerator by accelerator."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from capacity.policy.ledger import can_sell, outlook, sold_peak
from capacity.policy.placement import Need
from capacity.policy.stock import (
    Stock,
    Term,
    provisioned_replicas,
    shares,
)
from tests.policy.ledger_world import END, GIB, MINUTE, Sold, deployment, host, pool, term, worlds


@settings(max_examples=300, deadline=None)
@given(worlds(), st.integers(1, 250), st.integers(0, END - 1), st.integers(1, END), st.booleans())
def test_the_answer_is_that_of_counting_every_minute(world, mu, start, length, is_open):
    end = None if is_open else start + length
    ask = Term("ask", mu, start * MINUTE, None if end is None else end * MINUTE)
    answer = can_sell(world.stock(), ask)
    # Beyond the last start and end of all that is promised nothing changes.
    minutes = range(start, END + 4 if end is None else end)
    by_minute = {minute: world.missing(minute, mu) for minute in minutes}
    if any(without > 1e-6 for _, without in by_minute.values()):
        assert answer.verdict == "short"
    elif any(by_rule > 1e-6 for by_rule, _ in by_minute.values()):
        assert answer.verdict == "without_spare"
    else:
        assert answer.verdict == "fits"
    assert answer.headroom == pytest.approx(max(0.0, mu - max(by_rule for by_rule, _ in by_minute.values())), abs=1e-6)
    for minute, (by_rule, _) in by_minute.items():
        here = [
            s
            for s in answer.shortages
            if s.starts_at <= minute * MINUTE and (s.ends_at is None or minute * MINUTE < s.ends_at)
        ]
        assert bool(here) == (by_rule > 1e-6)
    if answer.shortages:
        assert max(s.mu_per_min for s in answer.shortages) == pytest.approx(max(b for b, _ in by_minute.values()))
        assert "UTC" in answer.reason
    assert json.loads(json.dumps(answer.inputs)) == answer.inputs


@settings(max_examples=150, deadline=None)
@given(worlds(), st.integers(0, END - 1), st.integers(1, END))
def test_what_has_been_sold_by_the_answers_is_never_too_much(world, start, length):
    """Sell as long as the answer is yes: then no minute is beyond the rules that was not beyond them before."""
    world.sold = [s for s in world.sold if s.pool != "chat"]
    for number in range(12):
        mu = 7 + 13 * number % 40
        if can_sell(world.stock(), Term("ask", mu, start * MINUTE, (start + length) * MINUTE)).verdict == "fits":
            world.sold.append(Sold("chat", mu, start, start + length))
    for minute in range(start, start + length):
        if any(s.pool == "chat" for s in world.sold):
            assert world.missing(minute, 0)[0] <= 1e-6


@settings(max_examples=200, deadline=None)
@given(
    st.integers(1, 4000),
    st.sampled_from([20.0, 33.3, 100.0]),
    st.sampled_from([1.0, 1.25, 2.0]),
    st.booleans(),
    st.integers(0, 40),
)
def test_what_fits_on_equal_replicas_can_be_kept_warm_by_them(mu, supply, oversell, spare, most):
    """The answer and the floor of the scale loop say the same."""
    serving = deployment(each=0, most=most, supply={"cpu": supply})
    stock = Stock(pool("chat", serving, oversell=oversell, spare=spare), (host("h", hardware="cpu"),))
    needed = provisioned_replicas(mu, supply_mu_per_min=supply, oversell_factor=oversell, keep_spare=spare)
    assert (can_sell(stock, term(mu)).verdict == "fits") == (needed <= most)


# ----- examples
def test_a_sale_fits_only_without_its_spare_and_says_what_would_be_missing():
    stock = Stock(pool(spare=True), (host("gpu-1", free=3),))
    assert can_sell(stock, term(200)).verdict == "fits"
    answer = can_sell(stock, term(250))
    assert answer.verdict == "without_spare"
    assert [s.mu_per_min for s in answer.shortages] == [50.0]
    assert "fit only without N−1" in answer.reason
    assert "50 MU/min would be missing" in answer.reason
    assert can_sell(stock, term(301)).verdict == "short"


def test_a_shortage_says_how_much_is_missing_from_when_to_when():
    sold = (term(150, 5, 8, "a"), term(180, 8, 9, "b"), term(250, 12, 13, "c"))
    answer = can_sell(Stock(pool(sold=sold), (host("gpu-1", free=2),)), term(100, 0, 20))
    assert [(s.starts_at / MINUTE, s.ends_at / MINUTE, s.mu_per_min) for s in answer.shortages] == [
        (5, 9, 80.0),
        (12, 13, 150.0),
    ]
    assert answer.reason.startswith(
        "Short by 150 MU/min from 1970-01-01 00:12 UTC to 1970-01-01 00:13 UTC, and in 1 other"
    )
    assert answer.headroom == 0.0


def test_accelerators_that_others_hold_or_have_promised_cannot_be_sold_and_are_named():
    embed = pool("embed", deployment("embed", on=("gpu-1",)), sold=(term(250, 0, 10, "e"),))
    gpu = host("gpu-1", free=4, held={"embed": 1})
    answer = can_sell(Stock(pool(), (gpu,), (embed,)), term(300))
    assert (answer.verdict, answer.pieces[0].replicas) == ("short", 2)
    assert "gpu-1: embed holds 1 accelerator" in answer.reason
    later = can_sell(Stock(pool(), (gpu,), (embed,)), term(300, 10, 20))
    assert later.verdict == "fits"


def test_what_others_have_promised_on_slower_hardware_takes_as_many_as_it_needs_there():
    """Of 250 MU/min that another pool can have, 200 are sold: but for 50 of it nothing is left of its accelerators."""
    hosts = (host("big", free=1), host("small", free=5, hardware="a10"))
    supply = {"h100": 100.0, "a10": 30.0}
    embed = pool("embed", deployment("embed", supply=supply), sold=(term(200, name="e"),))
    chat = pool("chat", deployment("chat", supply=supply))
    assert can_sell(Stock(replace(embed, sold=()), hosts), term(200)).verdict == "fits"
    answer = can_sell(Stock(chat, hosts, (embed,)), term(60))
    assert (answer.verdict, answer.headroom) == ("short", 30.0)
    # What runs already on slower hardware keeps as little of the promise as it supplies.
    running = replace(embed, deployments=(replace(embed.deployments[0], on=("small",) * 4),))
    left = (hosts[0], host("small", free=1, hardware="a10"))
    assert can_sell(Stock(chat, left, (running,)), term(60)).headroom == 30.0


@pytest.mark.parametrize(
    ("hosts", "serving", "told"),
    [
        ((host("gpu-1", free=4, why_not="it is draining"),), deployment(), "gpu-1: it is draining"),
        ((host("gpu-1", free=4),), deployment(most=2), "chat runs at most 2 replicas"),
        ((host("gpu-1", free=1),), deployment(), "hosts have room for 1 of chat's 10 replicas"),
        (
            (host("gpu-1", free=4),),
            replace(deployment(), need=Need(1, labels={"zone": "a"})),
            "gpu-1: label zone is not a",
        ),
    ],
)
def test_the_reason_names_what_limits(hosts, serving, told):
    answer = can_sell(Stock(pool("chat", serving), hosts), term(1000))
    assert answer.verdict == "short"
    assert told in answer.reason


def test_a_pool_that_nothing_serves_sells_nothing():
    answer = can_sell(Stock(replace(pool(), deployments=())), term(1))
    assert (answer.verdict, answer.headroom) == ("short", 0.0)
    assert "nothing serves chat" in answer.reason


def test_memory_of_the_host_limits_engines_on_a_cpu():
    serving = replace(deployment(supply={"cpu": 10.0}), need=Need(memory_bytes=4 * GIB))
    answer = can_sell(Stock(pool("chat", serving), (host("h", hardware="cpu", memory_bytes=13 * GIB),)), term(31))
    assert (answer.pieces[0].replicas, answer.verdict) == (3, "short")


def test_oversell_sells_more_than_there_is():
    stock = Stock(pool(oversell=1.5), (host("gpu-1", free=2),))
    assert can_sell(stock, term(300)).verdict == "fits"
    assert can_sell(stock, term(301)).verdict == "short"


def test_a_change_is_asked_only_where_it_promises_more():
    """Hosts were lost since: what is promised stays promised, more is asked, and less never refused."""
    old = term(150, 0, 10, "r")
    stock = Stock(pool(sold=(old, term(100, 20, 30, "s"))), (host("gpu-1", free=1),))
    smaller = replace(old, mu_per_min=120)
    assert can_sell(stock, smaller, instead_of=old).verdict == "fits"
    assert "no more than what is promised already" in can_sell(stock, smaller, instead_of=old).reason
    assert can_sell(stock, replace(old, mu_per_min=151), instead_of=old).verdict == "short"
    longer = can_sell(stock, Term("r", 100, 0, 25 * MINUTE), instead_of=replace(old, mu_per_min=100))
    assert [(s.starts_at / MINUTE, s.ends_at / MINUTE) for s in longer.shortages] == [(20, 25)]


def test_the_outlook_divides_time_where_something_changes():
    sold = (term(10, 2, 4, "a"), term(20, 3, None, "b"))
    pieces = outlook(Stock(pool(sold=sold), (host("gpu-1", free=1),)), since=0.0, until=10 * MINUTE)
    assert [(p.starts_at / MINUTE, p.sold, p.headroom) for p in pieces] == [
        (0, 0, 100.0),
        (2, 10, 90.0),
        (3, 30, 70.0),
        (4, 20, 80.0),
    ]
    assert pieces[-1].ends_at == 10 * MINUTE


def test_the_peak_counts_a_hand_over_once():
    terms = (term(10, 0, 5, "a"), term(12, 5, None, "b"))
    assert sold_peak(terms, since=4 * MINUTE, until=6 * MINUTE) == 12
    assert sold_peak(terms, since=0, until=4 * MINUTE) == 10
    assert sold_peak((), since=0, until=1) == 0


def test_replicas_that_are_too_many_or_supply_nothing_are_not_counted_on():
    many = deployment(most=2, on=("a", "b", "c"), supply={"h100": 100.0, "a10": 20.0})
    hosts = (host("a", hardware="a10"), host("b"), host("c", hardware="t4"))
    (piece,) = outlook(Stock(pool("chat", many), hosts), since=0, until=1)
    assert (piece.could_have, piece.replicas) == (120.0, 2)


def test_shares_follow_what_each_deployment_can_supply():
    first, second = deployment(most=3), replace(deployment(most=1), supply={"a10": 100.0})
    assert shares((first, second)) == [0.75, 0.25]
    assert shares((deployment(most=0),)) == [0.0]


@pytest.mark.parametrize(
    ("sold", "supply", "factor", "spare", "replicas"),
    [
        (0, 100, 1, True, 0),
        (1, 100, 1, False, 1),
        (100, 100, 1, True, 2),
        (101, 100, 1, False, 2),
        (300, 100, 1.5, True, 3),
    ],
)
def test_what_is_sold_sets_how_many_must_run(sold, supply, factor, spare, replicas):
    found = provisioned_replicas(sold, supply_mu_per_min=supply, oversell_factor=factor, keep_spare=spare)
    assert found == replicas


def test_nonsense_is_refused():
    with pytest.raises(ValueError, match="more than 0"):
        term(0)
    with pytest.raises(ValueError, match="ends after it starts"):
        term(1, 5, 5)
    with pytest.raises(ValueError, match="oversell factor"):
        provisioned_replicas(1, supply_mu_per_min=1, oversell_factor=0.5, keep_spare=False)
