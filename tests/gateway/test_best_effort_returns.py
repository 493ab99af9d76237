"""Best-effort requests that were refused: the time that they are told, and the place that they come back to."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from types import SimpleNamespace
from typing import cast

import pytest

from serving.gateway.dispatch import Busy, Lent, Placement
from serving.gateway.lines import Line, Waiter
from serving.gateway.placement import Expected
from serving.gateway.services import Services
from serving.policy import gate
from serving.policy.fairness import FairQueue, Turn
from serving.policy.returns import LATE_S, Moved, Place, Word
from tests.gateway.best_effort_field import Field, lent, load, turn


def told_of(asked: asyncio.Task[Placement]) -> Expected:
    error = asked.exception()
    assert isinstance(error, Busy)
    assert error.expected is not None
    assert error.retry_after_s == error.expected.retry_after_s
    return error.expected


def client(name: str, key: str = "k", tenant: str = "t", wait_s: float = 5.0, mu: float = 1.0) -> Lent:
    return lent(tenant, mu, wait_s, key=key, mark=lambda: name)


async def test_whoever_comes_again_goes_before_those_of_its_tenant_that_came_later() -> None:
    field = Field()
    running = await field.now(200.0, lent())
    first = field.ask(10.0, client("first", wait_s=0.05))
    with pytest.raises(Busy):
        await first
    later = [field.ask(10.0, client(f"later{n}")) for n in range(2)]
    await turn()
    again = field.ask(200.0, client("first"))
    await turn()
    field.read(running)
    await turn()
    assert again.done()
    assert not any(one.done() for one in later)
    for one in later:
        one.cancel()


async def test_another_key_or_another_request_does_not_take_the_place() -> None:
    field = Field()
    running = await field.now(200.0, lent())
    with pytest.raises(Busy):
        await field.ask(10.0, client("first", wait_s=0.05))
    first = field.ask(200.0, client("waits"))
    await turn()
    for name, key in (("first", "other"), ("other", "k")):
        again = field.ask(10.0, client(name, key))
        await turn()
        field.read(running)
        await turn()
        assert first.done(), "who waited goes first"
        again.cancel()


async def test_times_count_what_waits_and_what_was_promised_in_the_tenants_own_line() -> None:
    field = Field(queue_max=2)
    await field.now(200.0, lent())
    waiting = [field.ask(10.0, client(f"w{n}", mu=2.0, wait_s=0.2)) for n in range(2)]
    await turn()
    refused = []
    for number in range(3):
        refused.append(field.ask(10.0, client(f"r{number}", mu=2.0)))
        await turn()
    ahead = [told_of(one).ahead_mu for one in refused]
    assert ahead == [4.0, 6.0, 8.0]
    times = [told_of(one).retry_after_s for one in refused]
    assert times == sorted(times)
    assert all(told_of(one).has_place for one in refused)
    await asyncio.wait(waiting)
    assert [told_of(one).ahead_mu for one in waiting] == [6.0, 8.0], "what was promised meanwhile, and no more"
    other = field.ask(10.0, client("x", tenant="u", wait_s=0.05))
    await asyncio.wait([other])
    assert told_of(other).ahead_mu == 0.0


async def test_whoever_leaves_again_is_told_the_time_that_it_was_told_before() -> None:
    field = Field()
    await field.now(200.0, lent())
    clock = asyncio.get_running_loop().time
    due = []
    for _ in range(3):
        asked = field.ask(10.0, client("early", mu=20.0, wait_s=0.05))
        await asyncio.wait([asked])
        due.append(clock() + told_of(asked).retry_after_s)
    assert due == pytest.approx([due[0]] * 3, abs=0.05)


async def test_a_full_queue_takes_whoever_comes_when_it_was_told_and_no_others() -> None:
    field = Field(queue_max=2)
    await field.now(200.0, lent())
    best_effort = field.dispatcher.best_effort
    flood = [field.ask(10.0, client(f"f{n}", "flood")) for n in range(2)]
    await turn()
    refused = field.ask(10.0, client("patient"))
    await asyncio.wait([refused])
    told_of(refused)
    early = field.ask(10.0, client("patient"))
    await asyncio.wait([early])
    assert early.exception() is not None
    (place,) = best_effort._lines["d"].returns.of("t")
    place.due = asyncio.get_running_loop().time()
    back = field.ask(10.0, client("patient"))
    await turn()
    assert not back.done()
    assert [one.done() for one in flood] == [False, True], "the newest of its tenant makes way"
    for one in (flood[0], back):
        one.cancel()


async def test_those_who_are_evicted_are_told_times_one_after_the_other() -> None:
    field = Field()
    await field.now(200.0, lent())
    waiting = [field.ask(10.0, client(f"w{n}", mu=5.0)) for n in range(3)]
    await turn()
    field.loads.others += 1
    await asyncio.wait(waiting)
    assert [told_of(one).ahead_mu for one in waiting] == [0.0, 5.0, 10.0]
    times = [told_of(one).retry_after_s for one in waiting]
    assert times == sorted(set(times))
    assert times[0] >= gate.HOLD_S


async def test_a_client_that_leaves_while_it_waits_keeps_its_place() -> None:
    field = Field()
    await field.now(200.0, lent())
    with pytest.raises(Busy):
        await field.ask(10.0, client("first", wait_s=0.05))
    again = field.ask(10.0, client("first"))
    await turn()
    again.cancel()
    await turn()
    (place,) = field.dispatcher.best_effort._lines["d"].returns.of("t")
    assert not place.is_here
    assert field.dispatcher.waiting == 0


@pytest.mark.parametrize("has_fresh", [False, True])
def test_the_pace_of_a_line_at_another_gateway_is_known_whether_all_who_wait_there_have_places(has_fresh: bool) -> None:
    line, now = Line(lambda: 0.0), 0.0
    for beat in range(600):
        now = beat / 10
        moved = Moved(5.0 if has_fresh else 0.0, 0.2 * beat, True)
        line.hear({"other": Word(lines={"t": moved, "": Moved(0.0, moved.took_mu)})}, "me", now)
    told = line.expect(client("x", mu=10.0), None, now, wait_s=5.0, supply_mu_per_s=3.0)
    assert told.mu_per_s == pytest.approx(2.0, rel=0.1)


@pytest.mark.parametrize("length", [10, 10_000, 1_000_000])
def test_a_request_is_known_again_and_others_are_not_taken_for_it(length: int) -> None:
    services = cast("Services", SimpleNamespace(_salt_key=b"pepper"))

    def mark(prompt: str, model: str = "m") -> str:
        return Services.mark(services, model, b'{"prompt": "%b"}' % prompt.encode())

    asked = "a" * length
    assert mark(asked) == mark(asked)
    assert len({mark(asked), mark(asked, "n"), mark(asked + "a"), mark("b" + asked[1:]), mark(asked[1:] + "b")}) == 5


class Watched(FairQueue[Waiter]):
    """Counts how often a tenant's line is looked through."""

    looks = 0

    def of(self, tenant: str) -> Sequence[Turn[Waiter]]:
        self.looks += 1
        return super().of(tenant)


async def test_places_to_which_nobody_came_go_to_who_waits_with_their_key_one_each() -> None:
    line = Line(lambda: 1_000.0)
    queue = line.queue = Watched()
    for number in range(50):
        key = "k" if number < 3 else "another"
        line.returns.promise(Place("t", key, 1.0, since=0.0, due=1.0, mark=str(number)), 0.0)
    joined = [line.join(load(10.0), client(f"w{n}", mu=mu), None, 0.0) for n, mu in enumerate((9.0, 1.0, 1.2, 1.3))]
    others = [line.join(load(10.0), client(f"o{n}", key="o"), None, 0.0) for n in range(20)]
    queue.looks = 0
    line.note_unclaimed(1.0 + LATE_S)
    assert [waiter.back is not None for waiter in joined] == [False, True, True, False], "none is for a larger one"
    assert not any(waiter.back for waiter in others)
    assert [one.item.ask.mark() for one in line.queue.of("t")][:2] == ["w1", "w2"], "these go before the others now"
    assert queue.looks < 15, "not for each place that finds nobody"
