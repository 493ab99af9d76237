"""A long best-effort prompt that is being read makes way for an owner: it goes back in the queue, and is served all the
same."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from time import monotonic, sleep
from types import SimpleNamespace
from unittest.mock import MagicMock

import httpx
import pytest

from serving.gateway.books import Books
from serving.gateway.dispatch import Busy, Placement
from serving.gateway.tickets import ReplicaBeat
from tests.gateway.best_effort_field import MS, OWNER, Field, lent, load, turn
from tests.gateway.conftest import Shared
from tests.gateway.test_service_classes import COST, Market, class_of
from tests.gateway.test_service_classes import market as market


class Prompt:
    """A long best-effort prompt that asks for a place again whenever it must leave one."""

    def __init__(self, field: Field, tenant: str = "t", ms: float = 2_000.0) -> None:
        self.field, self.ms = field, ms
        self.claim = lent(tenant, ms / MS, is_reserved=True)
        self.left: list[str] = []
        self.asked = self._ask()

    def _ask(self) -> asyncio.Task[Placement]:
        return self.field.ask(self.ms, self.claim, on_reclaim=lambda: None, on_way=self._leave)

    def _leave(self, replica: str, reason: str) -> None:
        assert "long best-effort prompts" in reason
        self.left.append(replica)

    @property
    def placed(self) -> Placement:
        return self.asked.result()

    def ask_again(self) -> None:
        self.field.dispatcher.finish("d", self.placed.ticket, ok=False)
        self.claim = self.claim._replace(home=self.left[-1])
        self.asked = self._ask()


async def test_it_leaves_its_replica_to_an_owner_and_comes_back_to_it_before_its_tenants_others() -> None:
    field = Field(2)
    prompt = Prompt(field)
    await turn()
    served = field.dispatcher.best_effort._lines["d"].queue.counter("t")
    owners = [await field.now(100.0, OWNER) for _ in range(2)]
    clear = "r1" if prompt.placed.replica.id == "r0" else "r0"
    assert owners[0].replica.id == clear
    assert owners[1].replica.id == prompt.placed.replica.id, "rather than behind the first"
    assert prompt.left == [owners[1].replica.id]
    assert field.loads.replica(owners[1].replica.id).lent_w == pytest.approx(0.0), "it is read no more"
    field.loads.pace = 200.0 / MS
    later = Prompt(field)
    prompt.ask_again()
    await turn()
    assert not prompt.asked.done(), "owners wait to be read"
    assert field.dispatcher.best_effort._lines["d"].queue.counter("t") == pytest.approx(served - 2_000.0 / MS), (
        "it was not served"
    )
    for owner in owners:
        field.read(owner)
    await turn()
    assert prompt.placed.replica.id == prompt.left[0], "where a part of it was read"
    assert not later.asked.done()


async def test_whoever_finds_no_room_after_it_has_made_way_was_served_nothing() -> None:
    field = Field(1)
    field.leave(await field.now(10.0, lent(mu=50.0, is_reserved=True)))
    prompt = Prompt(field)
    await turn()
    books = Books(
        MagicMock(dispatcher=field.dispatcher),
        request_id="",
        client_id="",
        arrived=monotonic(),
        principal=MagicMock(tenant=SimpleNamespace(id="t")),
        dialect=MagicMock(),
        parsed=MagicMock(),
        deployment=MagicMock(id="d"),
        profile=MagicMock(),
        estimate=MagicMock(mu=prompt.claim.mu),
        granted=None,
        service_class="best_effort",
    )
    books.place(prompt.placed)
    await field.now(100.0, OWNER)
    books.leave("made_way")
    field.loads.pace = 200.0 / MS
    prompt.claim = prompt.claim._replace(wait_s=0.05)
    prompt.ask_again()
    with pytest.raises(Busy):
        await prompt.asked
    books.settle("refused", 429)
    assert field.dispatcher.best_effort._lines["d"].queue.counter("t") == pytest.approx(50.0)


async def test_it_stays_where_nobody_waits_for_long_or_its_first_token_has_come() -> None:
    field = Field(2)
    prompt = Prompt(field)
    await turn()
    assert (await field.now(60.0, OWNER)).replica.id != prompt.placed.replica.id
    assert (await field.now(20.0, OWNER)).replica.id != prompt.placed.replica.id
    field.read(prompt.placed)
    for _ in range(4):
        await field.now(100.0, OWNER)
    assert not prompt.left


async def test_it_stays_where_the_owner_has_been_and_does_not_go_again() -> None:
    field = Field(2)
    prompt = Prompt(field)
    await turn()
    failed = prompt.placed.replica.id
    field.loads.dispatched("r1" if failed == "r0" else "r0", 300.0 / MS, 0.1)
    placed = await field.dispatcher.place("d", load(100.0), (failed,), claim=OWNER)
    assert placed.replica.id != failed
    assert not prompt.left
    assert (await field.now(100.0, OWNER)).replica.id == failed
    assert prompt.left == [failed]


async def test_one_that_may_not_be_asked_again_stays() -> None:
    field = Field(1)
    ended: list[str] = []
    await field.ask(2_000.0, lent(is_reserved=True), on_reclaim=lambda: ended.append("it"))
    await field.now(100.0, OWNER)
    assert not ended


async def test_best_effort_moves_no_best_effort() -> None:
    field = Field(1)
    prompt = Prompt(field)
    await turn()
    field.ask(100.0, lent("other", is_reserved=True))
    await turn()
    assert not prompt.left


async def test_what_other_gateways_have_placed_is_asked_of_them() -> None:
    field = Field(1)
    field.loads.replica("r0").add_other(ReplicaBeat(n=1, w=2_000.0 / MS, lent_w=2_000.0 / MS))
    field.loads.replica("r0").merge()
    await field.now(40.0, OWNER)
    assert not field.loads.ways, "it is read soon enough beside it"
    await field.now(60.0, OWNER)
    assert field.loads.ways == ["r0"]
    here = Field(1)
    prompt = Prompt(here)
    await turn()
    here.dispatcher.best_effort.make_way_at("r1")
    assert not prompt.left
    here.dispatcher.best_effort.make_way_at("r0")
    assert prompt.left == ["r0"]


@pytest.mark.parametrize(("stream", "owners_at"), [(True, 0), (False, 0), (True, 1)])
def test_its_client_gets_its_answer_and_pays_for_one(
    market: Market, shared: Shared, stream: bool, owners_at: int
) -> None:
    """Also where the owner is at one gateway, and both were placed by the other."""
    market.sell(6000.0, 100.0)
    shared.publish(*(("replica", e.replica(f"d-{market.name}", supply_mu_per_min=100.0)) for e in shared.engines))
    long = {"prompt": "abcd" * 200, "user": '{"first_ms": 900}', "stream": stream}
    with ThreadPoolExecutor(2) as pool:
        lent = [pool.submit(market.ask, "else", **long) for _ in shared.engines]
        sleep(0.3)
        began = monotonic()
        owner = market.ask("own", at=owners_at, prompt="abcd" * 60)
        took = monotonic() - began
        answers = [one.result() for one in lent]
    assert class_of(owner) == "reserved"
    assert took < 0.6, "it has not waited for them"
    assert [class_of(answer) for answer in answers] == ["best_effort"] * 2
    ends = [shared.books(answer)[1] for answer in answers]
    assert [end["outcome"] for end in ends] == ["completed"] * 2
    tries = sorted([attempt["outcome"] for attempt in end["attempts"]] for end in ends)
    assert tries == [["completed"], ["made_way", "completed"]]
    assert [end["actual_mu"] for end in ends] == [pytest.approx(COST + 1.9, abs=0.1)] * 2, "one answer each"
    scraped = httpx.get(f"{shared.gateways[0].url}/metrics", headers={"authorization": "Bearer scrape"}).text
    labels = f'{{class="best_effort",model="{market.name}"}}'
    assert f'penstock_gateway_made_way_total{{model="{market.name}"}} 1.0' in scraped
    assert f"penstock_gateway_class_admitted_total{labels} 2.0" in scraped
