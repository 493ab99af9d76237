"""A dispatcher with scripted loads: replicas without engines, and the words of other gateways."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from capacity.policy import claw_back
from serving.gateway.dispatch import Dispatcher, Lent, Owned, Placement
from serving.gateway.loads import ReplicaLoad, Ticket
from serving.gateway.placement import OnWay
from serving.gateway.records import ReplicaRecord
from serving.policy.routing import Load, least_wait

MS = claw_back.ms_per_mu(100.0)
OWNER = Owned(ttft_objective_ms=1_000.0, claw_back_s=2.4)


def load(prefill_ms: float, *, stream: bool = True) -> Load:
    return Load("w", prefill_ms / MS, 0.1, stream)


def lent(tenant: str = "t", mu: float = 1.0, wait_s: float = 5.0, **more: Any) -> Lent:
    return Lent(tenant, mu, wait_s, **more)


class LoadBook:
    """Loads of this gateway; ``others`` is how often owners at other gateways have found no room."""

    def __init__(self) -> None:
        self.generation = 0
        self.place = (0, 1)
        self.loads: dict[str, ReplicaLoad] = {}
        self.presumed: list[tuple[float, Ticket]] = []
        self.queue_mu = 0.0
        self.told = 0
        self.others = 0
        self.pace = 0.0
        self.ways: list[str] = []

    def replica(self, replica_id: str) -> ReplicaLoad:
        return self.loads.setdefault(replica_id, ReplicaLoad())

    def dispatched(self, replica_id: str, w_mu: float, d_mu: float, *, is_lent: bool = False) -> Ticket:
        return Ticket(self.replica(replica_id), w_mu, d_mu, is_lent=is_lent)

    def presume(self, ticket: Ticket, at: float) -> None:
        self.presumed.append((at, ticket))

    def note_presumed(self, now: float) -> None:
        for at, ticket in self.presumed:
            if at <= now:
                ticket.prefilled()

    def queued(self, deployment_id: str, mu: float) -> None:
        self.queue_mu += mu

    def clawed_back(self, deployment_id: str) -> None:
        self.told += 1

    def owned(self, deployment_id: str, prefill_mu: float) -> None:
        pass

    def owned_mu_per_s(self, deployment_id: str) -> float:
        return self.pace

    def wants_cut(self, replica_id: str) -> None:
        pass

    def wants_way(self, replica_id: str) -> None:
        self.ways.append(replica_id)

    def claw_backs(self, deployment_id: str) -> int:
        return self.others


class Field:
    def __init__(self, replicas: int = 1, target: int = 16, queue_max: int = 8) -> None:
        self.records: tuple[ReplicaRecord, ...] = tuple(
            ReplicaRecord(
                id=f"r{n}",
                deployment="d",
                revision="r",
                host="h",
                address="http://127.0.0.1:1",
                state="ready",
                target_concurrency=target,
            )
            for n in range(replicas)
        )
        self.loads = LoadBook()
        self.relief: list[float] = []
        self.dispatcher = Dispatcher(
            lambda _: self.records,
            self.loads,  # type: ignore[arg-type]
            least_wait,
            queue_s=5.0,
            queue_max=queue_max,
            on_claw_back=lambda _, seconds: self.relief.append(seconds),
        )

    def ask(
        self,
        ms: float,
        claim: Lent | Owned,
        *,
        stream: bool = True,
        on_reclaim: Callable[[], None] | None = None,
        on_way: OnWay | None = None,
    ) -> asyncio.Task[Placement]:
        place = self.dispatcher.place("d", load(ms, stream=stream), claim=claim, on_reclaim=on_reclaim, on_way=on_way)
        return asyncio.ensure_future(place)

    async def now(self, ms: float, claim: Lent | Owned) -> Placement:
        """A place without a wait."""
        asked = self.ask(ms, claim)
        await turn()
        assert asked.done()
        return asked.result()

    def read(self, placement: Placement) -> None:
        self.dispatcher.started("d", placement.ticket)

    def leave(self, placement: Placement) -> None:
        self.dispatcher.finish("d", placement.ticket, ok=True)


async def turn() -> None:
    for _ in range(5):
        await asyncio.sleep(0)
