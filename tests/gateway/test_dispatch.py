"""The dispatcher keeps candidates between decisions: what they see must be what is."""

from __future__ import annotations

import asyncio

import pytest

from serving.gateway import dispatch
from serving.gateway.dispatch import Dispatcher, NoReplica
from serving.gateway.loads import ReplicaLoad, Ticket
from serving.gateway.records import ReplicaRecord
from serving.policy.routing import Load, least_wait

LOAD = Load("w", 1.0, 1.0)


class LoadBook:
    """Loads of this gateway alone."""

    def __init__(self) -> None:
        self.generation = 0
        self.place = (0, 1)
        self.loads: dict[str, ReplicaLoad] = {}

    def replica(self, replica_id: str) -> ReplicaLoad:
        return self.loads.setdefault(replica_id, ReplicaLoad())

    def dispatched(self, replica_id: str, w_mu: float, d_mu: float, *, is_lent: bool = False) -> Ticket:
        return Ticket(self.replica(replica_id), w_mu, d_mu, is_lent=is_lent)

    def queued(self, deployment_id: str, mu: float) -> None:
        pass

    def owned(self, deployment_id: str, prefill_mu: float) -> None:
        pass

    def owned_mu_per_s(self, deployment_id: str) -> float:
        return 0.0

    def wants_cut(self, replica_id: str) -> None:
        pass

    def claw_backs(self, deployment_id: str) -> int:
        return 0


def record(name: str, state: str = "ready", target: int = 2) -> ReplicaRecord:
    return ReplicaRecord(
        id=name,
        deployment="d",
        revision="r",
        host="h",
        address="http://127.0.0.1:1",
        state=state,  # type: ignore[arg-type]
        target_concurrency=target,
    )


class Field:
    def __init__(self, *records: ReplicaRecord) -> None:
        self.records = records
        self.loads = LoadBook()
        self.dispatcher = Dispatcher(lambda _: self.records, self.loads, least_wait, queue_s=0.2, queue_max=4)

    async def place(self, *tried: str) -> str:
        return (await self.dispatcher.place("d", LOAD, tried)).replica.id


async def test_each_decision_sees_the_one_before() -> None:
    field = Field(record("a"), record("b"))
    assert [await field.place() for _ in range(4)] == ["a", "b", "a", "b"]


async def test_records_that_change_are_seen_at_once() -> None:
    field = Field(record("a"), record("b"))
    assert await field.place() == "a"
    field.records = (record("a", "draining"), record("b", target=1), record("c"))
    assert [await field.place() for _ in range(2)] == ["b", "c"]
    field.records = ()
    with pytest.raises(NoReplica):
        await field.place()


async def test_where_a_gateway_begins_changes_with_their_number() -> None:
    field = Field(record("a", "draining"), record("b"), record("c"), record("d"), record("e"))
    field.loads.place = (1, 2)
    assert [await field.place() for _ in range(3)] == ["d", "e", "b"], "halfway through those that are ready"
    field.loads.place = (0, 1)
    assert await field.place() == "c"


async def test_a_load_that_was_forgotten_is_asked_for_again() -> None:
    field = Field(record("a"), record("b"))
    assert await field.place() == "a"
    del field.loads.loads["a"]
    field.loads.generation += 1
    assert [await field.place() for _ in range(3)] == ["a", "b", "a"], "the new load of a counts from nothing"


async def test_a_suspect_comes_last_for_a_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "SUSPECT_S", 0.1)
    field = Field(record("a", target=9), record("b", target=9))
    field.dispatcher.suspect("a")
    assert [await field.place() for _ in range(2)] == ["b", "b"]
    field.records = (record("a", target=9), record("b", target=9), record("c", target=9))
    assert await field.place() == "c", "it is known of new records, too"
    await asyncio.sleep(0.07)
    field.dispatcher.suspect("a")
    await asyncio.sleep(0.07)
    assert await field.place("c", "b") == "a", "nothing else can"
    assert await field.place() == "c", "a second failure begins the moment anew"
    await asyncio.sleep(0.1)
    assert {await field.place() for _ in range(3)} >= {"a"}


async def test_one_that_has_tried_what_is_free_holds_nobody_back() -> None:
    field = Field(record("a", target=1), record("b", target=1))
    places = {(await field.dispatcher.place("d", LOAD)).replica.id: None for _ in range(2)}
    assert set(places) == {"a", "b"}
    first = asyncio.ensure_future(field.dispatcher.place("d", LOAD, ("a",)))
    second = asyncio.ensure_future(field.dispatcher.place("d", LOAD))
    await asyncio.sleep(0)
    ticket = next(iter(field.loads.loads["a"]._in_flight))
    field.dispatcher.finish("d", ticket, ok=True)
    assert (await second).replica.id == "a"
    assert not first.done()
    ticket = next(iter(field.loads.loads["a"]._in_flight))
    field.dispatcher.finish("d", ticket, ok=True)
    async with asyncio.timeout(dispatch.POLL_S / 2):
        assert (await field.dispatcher.place("d", LOAD)).replica.id == "a", "nor one that comes later"
    assert not first.done()
    field.dispatcher.finish("d", next(iter(field.loads.loads["b"]._in_flight)), ok=True)
    assert (await first).replica.id == "b"


async def test_those_who_wait_are_told_when_every_replica_is_gone() -> None:
    field = Field(record("a", target=1))
    await field.place()
    waiting = [asyncio.ensure_future(field.dispatcher.place("d", LOAD)) for _ in range(2)]
    await asyncio.sleep(0)
    field.records = ()
    for one in waiting:
        with pytest.raises(NoReplica):
            await one
    assert field.dispatcher.waiting == 0
