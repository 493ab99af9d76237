"""Loads of replicas over several gateways."""

import asyncio
import os
import random
import signal
import time

import pytest

from serving.gateway.loads import Loads, read_beats
from serving.gateway.state import State, connect
from serving.policy.fairness import FairQueue


@pytest.fixture
async def make(state_url):
    made = []

    async def start(name, url=state_url, **options):
        state = State(url)
        loads = Loads(state, name, **options)
        await loads.start()
        made.append((loads, state))
        return loads

    yield start
    for loads, state in made:
        await loads.stop()
        await state.close()


async def until(condition, timeout_s=5.0):
    async with asyncio.timeout(timeout_s):
        while not condition():
            await asyncio.sleep(0.005)


def figures(load):
    return (load.n, load.w, load.d)


async def test_a_ticket_moves_its_mu_through_prefill_and_decode(make):
    loads = await make("a")
    load = loads.replica("r")
    ticket = loads.dispatched("r", 3.0, 5.0)
    assert figures(load) == (1, 3.0, 5.0)
    assert load is loads.replica("r")
    ticket.first_token()
    ticket.first_token()
    assert figures(load) == (1, 0.0, 5.0)
    ticket.finished(True)
    ticket.finished(False)
    ticket.first_token()
    ticket.token()
    assert figures(load) == (0, 0.0, 0.0)
    assert load.own.last_success_at > 0
    assert load.own.last_error_at == 0


async def test_whatever_the_order_nothing_stays(make):
    rng = random.Random(3)
    loads = await make("a")
    tickets = [loads.dispatched(f"r{i % 3}", rng.random(), rng.random()) for i in range(300)]
    calls = [call for t in tickets for call in (t.first_token, t.token, lambda t=t: t.finished(rng.random() < 0.5))] * 2
    rng.shuffle(calls)
    for call in calls:
        call()
    assert [figures(loads.replica(f"r{i}")) for i in range(3)] == [(0, 0.0, 0.0)] * 3


async def test_whoever_leaves_is_counted_once_however_it_ended(make):
    loads = await make("a")
    tickets = [loads.dispatched("r", 1.0, 1.0) for _ in range(4)]
    for ticket, ok in zip(tickets, (True, False, True), strict=False):
        ticket.finished(ok)
        ticket.finished(True)
    assert (loads.replica("r").own.departed, loads.replica("r").n) == (3, 1)


async def test_the_oldest_request_is_known(make):
    loads = await make("a")
    first = loads.dispatched("r", 1, 1)
    since = loads.replica("r").own.oldest_in_flight_at
    await asyncio.sleep(0.01)
    second = loads.dispatched("r", 1, 1)
    assert loads.replica("r").own.oldest_in_flight_at == since
    first.finished(True)
    assert loads.replica("r").own.oldest_in_flight_at >= since + 0.01
    second.finished(True)
    assert loads.replica("r").own.oldest_in_flight_at == 0


async def test_gateways_add_each_others_beats_to_their_own(make):
    a, b, c = await make("a"), await make("b"), await make("c")
    tickets = [x.dispatched("r", 1.0, 2.0) for x in (a, b, b, c)]
    await until(lambda: all(x.replica("r").n == 4 for x in (a, b, c)))
    assert figures(a.replica("r")) == (4, 4.0, 8.0)
    assert a.gateways() == 3
    assert [x.place for x in (a, b, c)] == [(0, 3), (1, 3), (2, 3)]
    began = time.monotonic()
    tickets[1].first_token()
    tickets[2].finished(True)
    await until(lambda: figures(a.replica("r")) == (3, 2.0, 6.0))
    assert time.monotonic() - began < 0.5


async def test_an_orderly_stop_vanishes_at_once_and_a_dead_gateway_within_two_seconds(make):
    a, b, c = await make("a"), await make("b"), await make("c")
    b.dispatched("r", 1.0, 1.0)
    c.dispatched("r", 1.0, 1.0)
    await until(lambda: a.replica("r").n == 2)
    await b.stop()
    await until(lambda: a.replica("r").n == 1, 0.5)
    c._ticker.cancel()
    began = time.monotonic()
    await until(lambda: a.replica("r").n == 0, 3)
    assert 1.5 < time.monotonic() - began < 2.5
    assert a.gateways() == 1


async def test_others_are_forgotten_when_the_state_is_away(make, valkey_server):
    server = valkey_server()
    a, b = await make("a", server.url), await make("b", server.url)
    b.dispatched("r", 1.0, 1.0)
    a.dispatched("r", 1.0, 1.0)
    await until(lambda: a.replica("r").n == 2)
    server.stop(signal.SIGKILL)
    await until(lambda: a.replica("r").n == 1, 4)
    server.start()
    await until(lambda: a.replica("r").n == 2, 4)


async def test_the_loops_read_what_gateways_say(make, state_url):
    a = await make("a", snapshot=lambda: (42, float("inf")))
    a.offered("d", 1.5)
    a.offered("d", 2.0)
    a.refused("d")
    a.completed("d")
    a.queued("d", 3.0)
    a.queued("d", -1.0)
    ticket = a.dispatched("r", 1.0, 2.0)
    ticket.first_token()
    client = connect(state_url)

    def seen():
        beats = read_beats(client)
        return beats and beats[0].deployments and beats[0].replicas

    await until(seen)
    (beat,) = read_beats(client)
    d = beat.deployments["d"]
    assert (d.offered_mu, d.offered_requests, d.refused, d.completed, d.queue_mu) == (3.5, 2, 1, 1, 2.0)
    r = beat.replicas["r"]
    assert (r.n, r.w, r.d) == (1, 0.0, 2.0)
    assert 0 < r.oldest_in_flight_at <= r.last_token_at <= time.time()
    assert (beat.gateway, beat.pid, beat.snapshot_version) == ("a", os.getpid(), 42)
    assert 0 < client.pttl("penstock:gw:a") <= 2000
    client.set("penstock:gw:a", "rubbish")
    assert read_beats(client) == []
    client.close()


async def test_what_is_lent_is_told_apart_over_gateways(make):
    a, b = await make("a"), await make("b")
    lent = a.dispatched("r", 3.0, 5.0, is_lent=True)
    owned = b.dispatched("r", 1.0, 2.0)
    for loads in (a, b):
        load = loads.replica("r")
        await until(lambda load=load: load.n == 2)
        assert (load.w, load.d, load.lent_w, load.lent_d) == (4.0, 7.0, 3.0, 5.0)
    lent.first_token()
    owned.first_token()
    await until(lambda: b.replica("r").lent_w == 0.0)
    assert b.replica("r").lent_d == 5.0
    lent.finished(True)
    await until(lambda: b.replica("r").lent_d == 0.0)
    owned.finished(True)


async def test_other_gateways_hear_of_owners(make):
    a, b = await make("a"), await make("b")
    a.clawed_back("d")
    await until(lambda: b.claw_backs("d") == 1)
    assert a.claw_backs("d") == 0, "its own it knows"
    a.clawed_back("d")
    await until(lambda: b.claw_backs("d") == 2)
    late = await make("c")
    await until(lambda: late.gateways() == 3)
    assert late.claw_backs("d") == 0, "what was counted before is old"
    a.owned("d", 50.0)
    await until(lambda: b.owned_mu_per_s("d") > 0.0)
    assert 5.0 < b.owned_mu_per_s("d") <= a.owned_mu_per_s("d") * 1.2


async def test_a_prefill_that_nobody_sees_the_end_of_is_taken_for_done_in_time(make):
    loads = await make("a")
    ticket = loads.dispatched("r", 3.0, 5.0, is_lent=True)
    loads.presume(ticket, time.monotonic() + 0.2)
    assert loads.replica("r").w == 3.0
    await until(lambda: loads.replica("r").w == 0.0)
    assert loads.replica("r").lent_w == 0.0
    ticket.finished(True)


async def test_other_gateways_end_what_an_owner_waits_for(make):
    a, b = await make("a"), await make("b")
    heard = []
    b.on_cut = heard.append
    a.wants_cut("r")
    await until(lambda: heard == ["r"])
    await asyncio.sleep(0.25)
    assert heard == ["r"], "once for each time"
    a.wants_cut("r")
    await until(lambda: heard == ["r", "r"])


async def test_other_gateways_put_back_what_an_owner_is_read_beside(make):
    a, b = await make("a"), await make("b")
    cut, heard = [], []
    b.on_cut, b.on_way = cut.append, heard.append
    a.wants_way("r")
    await until(lambda: heard == ["r"])
    a.wants_way("r")
    await until(lambda: heard == ["r", "r"])
    assert not cut


async def test_a_gateway_that_cannot_make_sense_of_others_is_heard_all_the_same(make, caplog):
    a, b = await make("a"), await make("b")
    failures = []

    def fail(told, name):
        failures.append(name)
        if len(failures) == 1:
            raise ValueError("news")

    a.on_order = fail
    await until(lambda: len(failures) > 1)
    assert "tried again" in caplog.text
    a.wants_way("r")
    heard = []
    b.on_way = heard.append
    await until(lambda: heard == ["r"])


def line(loads):
    """A best-effort queue that tells and hears with the gateway's beats."""
    queue = FairQueue()

    def tell():
        told = queue.tell()
        return {} if told is None else {"d": told}

    loads.order = tell
    loads.on_order = lambda told, name: queue.hear(told.get("d", {}))
    return queue


async def test_gateways_agree_whose_turn_it_is(make):
    a, b = await make("a"), await make("b")
    first, second = line(a), line(b)
    first.join("poor", None, 1.0)
    second.serve("rich", 10.0)
    await until(lambda: not second.may_pass("rich", 1.0, slack=0.0))
    assert first.may_pass("poor", 1.0, slack=0.0)
    first.settle("poor", 20.0)
    await until(lambda: second.may_pass("rich", 1.0, slack=0.0))


async def test_who_waits_at_a_dead_gateway_is_in_nobodys_way(make, valkey_server):
    server = valkey_server()
    a, b = await make("a", server.url), await make("b", server.url)
    first, second = line(a), line(b)
    first.join("poor", None, 1.0)
    second.serve("rich", 10.0)
    await until(lambda: second.others_wait)
    server.stop(signal.SIGKILL)
    await until(lambda: not second.others_wait, 4)
    server.start()
    await until(lambda: second.others_wait, 4)
    a._ticker.cancel()
    await until(lambda: not second.others_wait, 4)
