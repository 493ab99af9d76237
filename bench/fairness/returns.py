"""Clients of best effort who are refused, and come again: in the time that they were told, or without waiting.

What decides is the product, as in ``world.py``. Each asks a gateway by chance, each time.
"""

from __future__ import annotations

import asyncio
import random
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from bench.fairness import virtual
from bench.fairness.scenarios import CHUNKED, owners
from bench.fairness.world import Tenant, World, all_over, jain

LATE_S = (0.0, 0.05)
"""How much later than told clients come: what a network takes."""
IMPATIENT_S = 0.05


@dataclass(frozen=True)
class Crowd:
    """``clients`` of one key, each of whom sends its next request when it has the answer to the one before.

    ``is_patient``: who is refused comes again when it was told, else almost at once. ``late_s``: by how much later.
    ``is_new``: no request is twice the same. ``per_s``: as many more each second that do not come again.
    """

    tenant: str
    key: str
    clients: int
    is_patient: bool = True
    prompt: tuple[int, int] = (20, 100)
    output: tuple[int, int] = (20, 60)
    wait_s: float = 5.0
    late_s: tuple[float, float] = LATE_S
    is_new: bool = False
    per_s: float = 0.0


class Came(NamedTuple):
    """A client that came again: when it was told, how long it was to wait, and whether it got room.

    ``is_first``: it had been refused once.
    """

    key: str
    at: float
    told_s: float
    is_admitted: bool
    is_first: bool


class Told(NamedTuple):
    """Of those that came again for the first time: how many, the share that got room, and what they were told (s)."""

    count: int
    admitted: float
    median_s: float
    longest_s: float


class Street(World):
    """Crowds before gateways. ``owned``: who has reserved a part, and sends beside them."""

    def __init__(self, crowds: Sequence[Crowd], owned: Sequence[Tenant] = (), **more: Any) -> None:
        tenants = {
            crowd.tenant: Tenant(crowd.tenant, crowd.prompt, crowd.output, wait_s=crowd.wait_s) for crowd in crowds
        }
        super().__init__("classes", [*tenants.values(), *owned], engine=CHUNKED, **more)
        self.crowds = crowds
        self.came: list[Came] = []

    async def _send(self, tenant: Tenant, seconds: float) -> None:
        own = [crowd for crowd in self.crowds if crowd.tenant == tenant.name]
        if not own:
            await super()._send(tenant, seconds)
            return
        running: set[asyncio.Task[Any]] = {
            asyncio.ensure_future(self._come(crowd, self._dice(f"{crowd.key} {number}"), seconds, number))
            for crowd in own
            for number in range(crowd.clients)
        }
        await asyncio.gather(*(self._flood(crowd, running, seconds) for crowd in own if crowd.per_s))
        await all_over(running)

    def _dice(self, name: str) -> random.Random:
        return random.Random(f"{name} {self.random.random()}")

    async def _flood(self, crowd: Crowd, running: set[asyncio.Task[Any]], seconds: float) -> None:
        """Requests at random moments, whatever became of those before, and none of them comes again."""
        loop, tenant, dice = asyncio.get_running_loop(), self._like(crowd), self._dice(crowd.key)
        while loop.time() < seconds:
            await asyncio.sleep(dice.expovariate(crowd.per_s))
            asked = self.ask(
                tenant,
                self.new_request(tenant, dice),
                dice.randrange(self.gateways),
                key=crowd.key,
                mark=f"{crowd.key} {loop.time()}",
            )
            running.add(asyncio.ensure_future(asked))

    def _like(self, crowd: Crowd) -> Tenant:
        return Tenant(crowd.tenant, crowd.prompt, crowd.output, wait_s=crowd.wait_s)

    async def _come(self, crowd: Crowd, dice: random.Random, seconds: float, number: int) -> None:
        """One client, who begins no request any more after ``seconds``, and gives up a minute later."""
        loop, tenant, asked = asyncio.get_running_loop(), self._like(crowd), 0
        await asyncio.sleep(dice.uniform(0.0, 2.0))
        while loop.time() < seconds:
            request, tries, told, mark = self.new_request(tenant, dice), 0, 0.0, ""
            while loop.time() < seconds + 60.0:
                if not tries or crowd.is_new:
                    asked += 1
                    mark = f"{crowd.key} {number} {asked}"
                began = loop.time()
                error = await self.ask(tenant, request, dice.randrange(self.gateways), key=crowd.key, mark=mark)
                if tries:
                    self.came.append(Came(crowd.key, began, told, error is None, tries == 1))
                if error is None:
                    break
                tries, told = tries + 1, error.retry_after_s
                await asyncio.sleep(told + dice.uniform(*crowd.late_s) if crowd.is_patient else IMPATIENT_S)

    def told(self, *keys: str, since: float, until: float = float("inf")) -> Told:
        """What became of those of ``keys`` that came again for the first time between two moments."""
        some = [one for one in self.came if one.key in keys and one.is_first and since <= one.at < until]
        times = [one.told_s for one in some] or [0.0]
        admitted = sum(one.is_admitted for one in some) / len(some) if some else 1.0
        return Told(len(some), admitted, statistics.median(times), max(times))


class Outcome(NamedTuple):
    """By key; ``index``: Jain's of what the tenants were served, ``mu_per_min`` of all together."""

    told: dict[str, Told]
    index: float
    mu_per_min: float


def street(
    crowds: Sequence[Crowd],
    *,
    replicas: int,
    gateways: int,
    seconds: float,
    since: float,
    seed: int = 1,
    owned: Sequence[Tenant] = (),
) -> Outcome:
    """Let them come for so long; what is counted is what came ``since``."""
    world = Street(crowds, owned, replicas=replicas, gateways=gateways, seed=seed)
    virtual.run(world.run(seconds))
    names = sorted({crowd.tenant for crowd in crowds})
    mu = [world.served_mu(name, since=since, until=seconds) for name in names]
    told = {crowd.key: world.told(crowd.key, since=since, until=seconds) for crowd in crowds if crowd.is_patient}
    return Outcome(told, jain(mu), 60 * sum(mu) / (seconds - since))


STREETS = {
    "steady": (
        Crowd("a", "a1", 60),
        Crowd("a", "a2", 60),
        Crowd("b", "b1", 150),
        Crowd("c", "c1", 20, prompt=(300, 600)),
    ),
    "up to a second late": (
        Crowd("a", "a1", 110, late_s=(0.0, 1.0)),
        Crowd("b", "b1", 130, late_s=(0.0, 1.0)),
    ),
    "beside impatient ones": (
        Crowd("a", "patient", 20),
        Crowd("a", "impatient", 30, is_patient=False),
        Crowd("a", "open", 0, is_patient=False, per_s=20.0),
        Crowd("b", "other", 120),
        Crowd("c", "flood", 0, is_patient=False, per_s=20.0),
    ),
    "never twice the same": (
        Crowd("a", "a1", 110, is_new=True),
        Crowd("b", "b1", 110, is_new=True),
    ),
    "quiet": (Crowd("a", "a1", 10), Crowd("b", "b1", 10)),
}
"""Tenants who always want more than there is, but for ``quiet``: by one key or several, in short prompts or long ones,
with clients that wait as they were told, or do not, or send something else each time."""


def claw_back(*, replicas: int, gateways: int, seconds: float = 100.0, seed: int = 1) -> Outcome:
    """Owners come back for two seconds to what was lent: what waited is refused at once, and comes again."""
    back = owners(replicas, begins=60.0, ends=62.0)
    crowds = (Crowd("a", "a1", 75 * replicas), Crowd("b", "b1", 75 * replicas))
    return street(crowds, replicas=replicas, gateways=gateways, seconds=seconds, since=60.0, owned=back, seed=seed)


def report() -> None:
    """Of each street and as many gateways: of those that came again for the first time how many got room."""
    for gateways in (1, 2, 4):
        for name, crowds in STREETS.items():
            _show(name, gateways, street(crowds, replicas=2, gateways=gateways, seconds=150.0, since=60.0))
        _show("after a claw-back", gateways, claw_back(replicas=2, gateways=gateways))


def _show(name: str, gateways: int, found: Outcome) -> None:
    for key, told in found.told.items():
        print(
            f"{name:22} {gateways} gateways  {key:8} {told.count:5} came again, {100 * told.admitted:6.2f} % got room; "
            f"told {told.median_s:5.1f} s, at most {told.longest_s:5.1f} s; Jain {found.index:.3f}, "
            f"{found.mu_per_min:.0f} MU/min",
            flush=True,
        )


if __name__ == "__main__":
    report()
