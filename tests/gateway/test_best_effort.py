"""The best-effort queue by itself: the gate, the order, the bounds, and what an owner's return does to it."""

from __future__ import annotations

import asyncio

import pytest

from serving.gateway.dispatch import Busy, NoReplica, Owned, Placement, Reclaimed
from serving.policy import gate
from serving.policy.fairness import Head, Told
from tests.gateway.best_effort_field import MS, OWNER, Field, lent, load, turn


async def test_an_open_gate_costs_no_wait() -> None:
    field = Field(2)
    for _ in range(4):
        assert (await field.now(50.0, lent())).decision.verdict == "dispatch"
    assert field.dispatcher.waiting == 0
    assert sum(load.lent_w for load in field.loads.loads.values()) == pytest.approx(200.0 / MS)


async def test_pending_prefill_shuts_the_gate_and_a_first_token_opens_it() -> None:
    field = Field()
    first = await field.now(200.0, lent())
    second = field.ask(10.0, lent())
    await turn()
    assert not second.done()
    assert field.loads.queue_mu > 0.0
    field.read(first)
    await turn()
    assert second.done()
    assert field.loads.queue_mu == pytest.approx(0.0)


async def test_an_answer_in_one_piece_does_not_shut_the_gate_until_its_end() -> None:
    field = Field()
    whole = field.ask(200.0, lent(), stream=False)
    await turn()
    assert whole.done()
    second = field.ask(10.0, lent())
    async with asyncio.timeout(2.0):
        await second


async def test_tenants_take_turns_by_mu_and_a_tenants_requests_go_in_order() -> None:
    field = Field()
    running = await field.now(200.0, lent("first"))
    order: list[str] = []

    def send(tenant: str, mu: float, name: str) -> None:
        field.ask(200.0, lent(tenant, mu)).add_done_callback(lambda _: order.append(name))

    for number in range(3):
        send("long", 10.0, f"long{number}")
    for number in range(3):
        send("short", 1.0, f"short{number}")
    await turn()
    for _ in range(6):
        field.read(running)
        await turn()
        load = field.loads.loads["r0"]
        running = Placement(field.records[0], next(t for t in load._in_flight if t._waits_for_token), None)  # type: ignore[arg-type]
    assert order == ["long0", "short0", "short1", "short2", "long1", "long2"]


async def test_a_wait_is_bounded_and_says_why_it_was_in_vain() -> None:
    field = Field()
    await field.now(200.0, lent())
    with pytest.raises(Busy, match=r"within 0\.1 s, every replica has prompts to read first") as caught:
        await field.ask(10.0, lent(wait_s=0.1))
    assert caught.value.reason == "wait"
    assert caught.value.retry_after_s >= 1.0
    assert field.dispatcher.waiting == 0


async def test_the_queue_is_bounded() -> None:
    field = Field(queue_max=2)
    await field.now(200.0, lent())
    waiting = [field.ask(10.0, lent(f"t{n}")) for n in range(2)]
    await turn()
    with pytest.raises(Busy) as caught:
        await field.ask(10.0, lent())
    assert caught.value.reason == "queue_full"
    for one in waiting:
        one.cancel()
    await turn()
    assert field.dispatcher.waiting == 0
    assert field.loads.queue_mu == pytest.approx(0.0)


async def test_whoever_floods_the_queue_keeps_nobody_out_of_it() -> None:
    field = Field(queue_max=4)
    await field.now(200.0, lent())
    flood = [field.ask(200.0, lent("flood")) for _ in range(4)]
    await turn()
    others = [field.ask(200.0, lent("small")) for _ in range(2)]
    await turn()
    # Of the flood the newest go, and no more than until both have as much.
    assert [one.done() for one in flood] == [False, False, True, True]
    assert all(isinstance(one.exception(), Busy) for one in flood[2:])
    assert not any(one.done() for one in others)
    for tenant in ("small", "flood"):
        with pytest.raises(Busy) as caught:
            await field.ask(200.0, lent(tenant))
        assert caught.value.reason == "queue_full"
    assert field.dispatcher.waiting == 4
    for one in (*flood[:2], *others):
        one.cancel()


async def test_one_that_leaves_while_it_is_given_a_place_gives_it_back() -> None:
    field = Field()
    first = await field.now(200.0, lent())
    second = field.ask(10.0, lent())
    await turn()
    field.read(first)
    second.cancel()
    await turn()
    field.leave(first)
    assert field.loads.loads["r0"].n == 0


async def test_reserved_requests_pass_whatever_best_effort_waits_for() -> None:
    field = Field()
    await field.now(200.0, lent())
    waiting = field.ask(10.0, lent())
    await turn()
    assert (await field.now(10.0, OWNER)).decision.verdict == "dispatch"
    assert not waiting.done()
    waiting.cancel()


async def test_an_owner_who_finds_no_slot_evicts_what_waits_and_stops_what_comes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(gate, "HOLD_S", 0.2)
    field = Field(target=2)
    places = [await field.now(10.0, lent(f"t{n}")) for n in range(2)]
    waiting = field.ask(10.0, lent())
    await turn()
    owner = field.ask(10.0, OWNER)
    await turn()
    with pytest.raises(Reclaimed, match="owner of a reservation") as caught:
        await waiting
    assert caught.value.retry_after_s >= 0.2
    assert field.loads.told == 1, "other gateways hear of it"
    field.leave(places[0])
    await turn()
    assert owner.done()
    assert field.relief, "and how long it took is told"
    field.leave(places[1])
    late = field.ask(10.0, lent())
    await turn()
    assert not late.done(), "nothing is lent for a moment"
    async with asyncio.timeout(1.0):
        await late


async def test_an_owner_who_would_be_answered_late_takes_back_what_was_lent() -> None:
    field = Field()
    first = await field.now(10.0, lent())
    field.loads.dispatched("r0", 600.0 / MS, 0.0, is_lent=True)
    waiting = field.ask(10.0, lent())
    await turn()
    assert (await field.now(10.0, OWNER)).decision.verdict == "dispatch"
    with pytest.raises(Reclaimed):
        await waiting
    field.leave(first)


async def test_an_owner_at_another_gateway_counts_as_one_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gate, "HOLD_S", 0.2)
    field = Field()
    await field.now(200.0, lent())
    waiting = field.ask(10.0, lent())
    await turn()
    field.loads.others += 1
    async with asyncio.timeout(1.0):
        with pytest.raises(Reclaimed):
            await waiting


async def test_those_of_every_tenant_are_evicted_at_once() -> None:
    field = Field()
    await field.now(200.0, lent())
    waiting = [field.ask(10.0, lent(f"t{n}")) for n in range(5)]
    await turn()
    field.loads.others += 1
    async with asyncio.timeout(1.0):
        ends = await asyncio.gather(*waiting, return_exceptions=True)
    assert all(isinstance(end, Reclaimed) for end in ends)


async def test_what_is_short_passes_what_is_too_long_for_a_while() -> None:
    field = Field()
    field.loads.pace = 0.1
    owner = await field.now(10.0, OWNER)
    long = field.ask(500.0, lent("a", 9.0, is_reserved=True))
    await turn()
    assert not long.done(), "an owner is served at the only replica"
    for n in range(10):
        place = await field.now(10.0, lent(f"t{n}", is_reserved=True))
        field.read(place)
    field.leave(owner)
    field.loads.pace = 0.01 / MS
    async with asyncio.timeout(1.0):
        await long


async def test_slots_are_kept_for_owners_where_something_is_reserved() -> None:
    field = Field(target=8)
    for n in range(7):
        await field.now(1.0, lent(f"t{n}", is_reserved=True))
    eighth = field.ask(1.0, lent(is_reserved=True))
    await turn()
    assert not eighth.done()
    assert (await field.now(1.0, OWNER)).decision.verdict == "dispatch"
    eighth.cancel()


async def test_those_who_wait_are_told_when_every_replica_is_gone() -> None:
    field = Field()
    await field.now(200.0, lent())
    waiting = [field.ask(10.0, lent(f"t{n}")) for n in range(2)]
    await turn()
    field.records = ()
    for one in waiting:
        with pytest.raises(NoReplica):
            await one
    assert field.dispatcher.waiting == 0
    with pytest.raises(NoReplica):
        await field.ask(10.0, lent())


async def test_what_runs_is_ended_for_an_owner_who_has_waited_for_half_of_what_it_may() -> None:
    field = Field(target=2)
    owner_s = 0.4
    ended: list[str] = []
    places: dict[str, Placement] = {}

    def end(name: str) -> None:
        ended.append(name)
        field.leave(places[name])

    # Lent before anybody had sent: no slot was kept.
    for name in ("old", "new"):
        ask = field.ask(1.0, lent(name, is_reserved=True), on_reclaim=lambda name=name: end(name))  # type: ignore[misc]
        places[name] = await ask
    began = asyncio.get_running_loop().time()
    await field.ask(1.0, Owned(1_000.0, owner_s))
    took = asyncio.get_running_loop().time() - began
    assert ended == ["new"], "the newest, and one for each who waits"
    assert owner_s / 2 <= took < owner_s


async def test_what_runs_where_an_owners_first_token_is_late_is_ended() -> None:
    field = Field(2)
    ended: list[str] = []
    places: dict[str, Placement] = {}
    for number in range(4):
        name = f"t{number}"
        ask = field.ask(1.0, lent(name, is_reserved=True), on_reclaim=lambda name=name: ended.append(name))  # type: ignore[misc]
        places[name] = await ask
    owner = await field.ask(1.0, Owned(1_000.0, 0.2))
    await asyncio.sleep(0.4)
    beside = {name for name, place in places.items() if place.replica.id == owner.replica.id}
    assert set(ended) == beside, "at its replica alone"
    field.read(owner)
    in_time = await field.ask(1.0, Owned(1_000.0, 0.2))
    field.read(in_time)
    await asyncio.sleep(0.25)
    assert set(ended) == beside


async def test_an_owners_own_long_prompt_ends_nothing() -> None:
    field = Field()
    ended: list[str] = []
    place = await field.ask(1.0, lent(is_reserved=True), on_reclaim=lambda: ended.append("it"))
    field.read(place)
    await field.ask(2_000.0, Owned(1_000.0, 0.2))
    await asyncio.sleep(0.4)
    assert not ended


async def test_who_was_served_less_elsewhere_goes_first() -> None:
    """However open the gate is here; what others tell lets it pass as soon as they are gone, or were served as well."""
    field = Field(1)
    await field.now(10.0, lent("rich", 50.0))
    best_effort = field.dispatcher.best_effort
    best_effort.hear({"d": {"other": Told(1.0, {"poor": Head(1.0, 2.0)}, {"poor": 1.0})}}, "me")
    waits = field.ask(10.0, lent("rich", 1.0))
    assert (await field.now(10.0, lent("poor", 9.0))).decision.verdict == "dispatch"
    await turn()
    assert not waits.done()
    ((tenant, head),) = best_effort.tell()["d"].waiting.items()
    assert (tenant, head[:3]) == ("rich", (50.0, 1.0, False))
    best_effort.hear({"d": {"other": Told(60.0, {"poor": Head(60.0, 2.0)}, {"poor": 60.0})}}, "me")
    await turn()
    assert waits.done()


async def test_a_wait_for_others_says_so() -> None:
    field = Field(1)
    await field.now(10.0, lent("rich", 50.0))
    field.dispatcher.best_effort.hear({"d": {"other": Told(1.0, {"poor": Head(1.0, 2.0)}, {})}}, "me")
    with pytest.raises(Busy, match="tenants who were served less go first"):
        await field.ask(10.0, lent("rich", 1.0, wait_s=0.1))


async def test_an_owner_who_fills_the_queue_keeps_no_other_out_of_it() -> None:
    field = Field(target=1, queue_max=4)
    await field.now(1.0, OWNER)
    greedy = [field.ask(1.0, OWNER._replace(tenant="greedy")) for _ in range(4)]
    await turn()
    others = [field.ask(1.0, OWNER._replace(tenant="other")) for _ in range(2)]
    await turn()
    assert [one.done() for one in greedy] == [False, False, True, True]
    assert not any(one.done() for one in others)
    for tenant in ("greedy", "other"):
        with pytest.raises(Busy, match="4 requests are waiting already"):
            await field.ask(1.0, OWNER._replace(tenant=tenant))
    for one in greedy[2:]:
        assert isinstance(one.exception(), Busy)
    for one in (*greedy[:2], *others):
        one.cancel()
    await turn()
    assert field.dispatcher.waiting == 0


async def test_what_is_lent_is_taken_back_also_from_a_second_try() -> None:
    field = Field(2, target=1)
    ended: list[str] = []
    again = field.dispatcher.place(
        "d", load(1.0), ("r0",), claim=lent(is_reserved=True), on_reclaim=lambda: ended.append("again")
    )
    assert (await again).replica.id == "r1"
    assert field.dispatcher.best_effort.cut("d", "r1")
    assert ended == ["again"]
