"""Whose turn it is among tenants that wait: virtual token counters, in MU (VTC, Sheng et al., OSDI 2024).

Each tenant has a counter of the MU it was served. The tenant with the smallest goes first; its own requests go in the
order they came. Whoever begins to wait is lifted to the smallest counter of those who do, or, when nobody does, to that
of the tenant who left last: being away earns no credit, and having been served when nobody else wanted costs nothing.
So two tenants that both wait differ in what they are served by two of their largest requests at most, however many
requests they send and however long these are.

A deterministic object over its own state: it reads no clock, and nothing is copied per request.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from typing import Generic, NamedTuple, TypeVar

T = TypeVar("T")

REMEMBERED = 10_000
"""Tenants whose counters are kept; of more, those that have least to tell are forgotten."""


class Turn(NamedTuple, Generic[T]):
    """A request that waits; ``mu`` is what it is expected to cost, above 0."""

    tenant: str
    item: T
    mu: float


class FairQueue(Generic[T]):
    """The requests that wait for one deployment, and what its tenants were served."""

    __slots__ = ("_counters", "_departed", "_lines", "_remembered", "mu", "size")

    def __init__(self, remembered: int = REMEMBERED) -> None:
        self._counters: dict[str, float] = {}
        self._lines: dict[str, deque[Turn[T]]] = {}
        self._departed = ""
        self._remembered = remembered
        self.size = 0
        """Requests that wait."""
        self.mu = 0.0
        """MU that wait."""

    def __len__(self) -> int:
        return self.size

    def __iter__(self) -> Iterator[Turn[T]]:
        """All that wait, tenant by tenant."""
        for line in self._lines.values():
            yield from line

    def counter(self, tenant: str) -> float:
        """MU on the tenant's counter."""
        return self._counters.get(tenant, 0.0)

    def serve(self, tenant: str, mu: float) -> None:
        """Count a request that is served without having waited. Nobody may be waiting."""
        counters = self._counters
        floor = counters.get(self._departed, 0.0)
        counters[tenant] = max(counters.get(tenant, 0.0), floor) + mu
        self._departed = tenant
        if len(counters) > 2 * self._remembered:
            self._forget()

    def join(self, tenant: str, item: T, mu: float) -> Turn[T]:
        """The request begins to wait, behind its tenant's others."""
        line = self._lines.get(tenant)
        if line is None:
            self._lift(tenant)
            line = self._lines[tenant] = deque()
        turn = Turn(tenant, item, mu)
        line.append(turn)
        self.size += 1
        self.mu += mu
        return turn

    def take(self, fits: Callable[[T], bool | None]) -> Turn[T] | None:
        """Take out and count the request whose turn it is; None when nothing fits.

        One that does not fit now is overtaken by others, but by no more than it costs: when they have been served as
        much as that, they wait as well, until there is room. Nobody is starved by requests that are smaller. One of
        which ``fits`` says None stands aside: what it waits for does not come from others' waiting.
        """
        bound = float("inf")
        for counter, tenant in sorted((self._counters[tenant], tenant) for tenant in self._lines):
            turn = self._lines[tenant][0]
            if counter + turn.mu > bound:
                continue
            verdict = fits(turn.item)
            if verdict:
                self._counters[tenant] = counter + turn.mu
                self._remove(turn)
                return turn
            if verdict is not None:
                bound = counter + turn.mu
        return None

    def leave(self, turn: Turn[T]) -> bool:
        """Take out a request that waits no longer, and count nothing; whether it was still there."""
        if turn not in self._lines.get(turn.tenant, ()):
            return False
        self._remove(turn)
        return True

    def settle(self, tenant: str, difference: float) -> None:
        """What a served request really cost, less what was counted of it."""
        if tenant in self._counters:
            self._counters[tenant] = max(0.0, self._counters[tenant] + difference)

    def _lift(self, tenant: str) -> None:
        counters = self._counters
        waiting = [counters[active] for active in self._lines]
        floor = min(waiting) if waiting else counters.get(self._departed, 0.0)
        counters[tenant] = max(counters.get(tenant, 0.0), floor)
        if len(counters) > 2 * self._remembered:
            self._forget()

    def _remove(self, turn: Turn[T]) -> None:
        line = self._lines[turn.tenant]
        line.remove(turn)
        self.size -= 1
        self.mu = self.mu - turn.mu if self.size else 0.0
        if not line:
            del self._lines[turn.tenant]
            self._departed = turn.tenant

    def _forget(self) -> None:
        """Keep those who wait, who left last, and of the others the highest counters: low ones would be lifted."""
        needed = {*self._lines, self._departed}
        others = sorted((count, tenant) for tenant, count in self._counters.items() if tenant not in needed)
        for _, tenant in others[: max(0, len(others) - self._remembered)]:
            del self._counters[tenant]
