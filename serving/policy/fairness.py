"""Whose turn it is among tenants that wait: virtual token counters, in MU (VTC, Sheng et al., OSDI 2024).

Each tenant has a counter of the MU it was served. The tenant with the smallest goes first; its own requests go in the
order they came. Whoever begins to wait is lifted to the smallest counter of those who do, or, when nobody does, to that
of the tenant who left last: being away earns no credit, and having been served when nobody else wanted costs nothing.
So two tenants that both wait differ in what they are served by two of their largest requests at most, however many
requests they send and however long these are.

Gateways that share replicas tell each other who waits, at which counter, and what they have served them (``Told``).
Whoever waits elsewhere bounds those who wait here as if it were here and did not fit, but for a ``slack``: what may be
served before others hear of it. So between gateways two tenants differ by the slack more. Of one tenant, who comes
later waits for those elsewhere who were told to come again (``returns.py``), but for a part of the slack.

A deterministic object over its own state: it reads no clock, and nothing is copied per request.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from typing import Generic, NamedTuple, TypeVar

T = TypeVar("T")

REMEMBERED = 10_000
"""Tenants whose counters are kept; of more, those that have least to tell are forgotten."""
TOLD_OF = 100
"""Waiting tenants that others are told of: those whose turn is next."""
TOLD_AGAIN = 50
"""How often what a tenant was served is told after it has last waited anywhere: mostly it is back soon."""
OLDER_S = 0.5
"""Of a tenant's requests at several gateways those that have come again go first, if they came so many seconds earlier:
gateways hear of each other late, and none is to wait for what makes no difference."""
_RUN = 0.03
"""What part of the slack may go before them between two words of the others: else replicas would wait for these."""
_RUN_MOST = 0.4
"""And what part in one go: what is larger than that waits until its turn has come."""
_NEVER = float("inf")


class Head(NamedTuple):
    """A tenant that waits: its counter, and the cost of its first request, ``prefill_mu`` of it for its prompt.

    ``since``: when that came, in UNIX seconds of its gateway. ``is_aside``: it is in nobody's way.
    """

    counter: float
    mu: float
    is_aside: bool = False
    prefill_mu: float = 0.0
    since: float = 0.0


class Told(NamedTuple):
    """What one gateway tells the others of a queue: who waits, and what it has served them, in MU since its start.

    ``floor`` is the counter that a tenant who begins to wait is lifted to.
    """

    floor: float
    waiting: dict[str, Head]
    served: dict[str, float]


class Turn(NamedTuple, Generic[T]):
    """A request that waits; ``mu`` is what it is expected to cost, above 0, and ``prefill_mu`` its prompt alone.

    ``since``: when it came, in UNIX seconds.
    """

    tenant: str
    item: T
    mu: float
    prefill_mu: float = 0.0
    since: float = 0.0


class FairQueue(Generic[T]):
    """The requests that wait for one deployment, and what its tenants were served."""

    __slots__ = (
        "_ahead",
        "_aside",
        "_counters",
        "_departed",
        "_floor_elsewhere",
        "_heads",
        "_least_elsewhere",
        "_lines",
        "_oldest",
        "_others",
        "_remembered",
        "_served",
        "_slack",
        "_telling",
        "come_again",
        "mu",
        "size",
    )

    def __init__(self, remembered: int = REMEMBERED) -> None:
        self._counters: dict[str, float] = {}
        self._lines: dict[str, deque[Turn[T]]] = {}
        self._departed = ""
        self._remembered = remembered
        self._aside: set[str] = set()
        """Tenants whose first request stood aside when it was last looked at."""
        self._served: dict[str, float] = {}
        self._telling: dict[str, int] = {}
        self._others: Mapping[str, Told] = {}
        self._heads: list[tuple[float, float, str]] = []
        """Who waits elsewhere: counter, what it has when it is served, tenant; the smallest counter first."""
        self._oldest: dict[str, float] = {}
        """Since when the first of a tenant's requests that wait elsewhere has waited, where that has come again."""
        self.come_again: Mapping[str, Set[str]] = {}
        """By gateway: tenants whose first request there was told to come again, and has."""
        self._ahead: dict[str, float] = {}
        """MU of a tenant that may go before older ones elsewhere."""
        self._slack = 0.0
        self._least_elsewhere = _NEVER
        self._floor_elsewhere = 0.0
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

    def most_waiting(self) -> tuple[Turn[T], int] | None:
        """The newest request of the tenant that has the most of them waiting, and how many; None where nobody waits."""
        line = max(self._lines.values(), key=len, default=None)
        return (line[-1], len(line)) if line else None

    def waiting(self, tenant: str) -> int:
        """Requests of the tenant that wait."""
        return len(self._lines.get(tenant, ()))

    @property
    def tenants(self) -> Set[str]:
        """Tenants that wait."""
        return self._lines.keys()

    def of(self, tenant: str) -> Sequence[Turn[T]]:
        """The tenant's requests that wait, in their order."""
        return self._lines.get(tenant, ())

    def serve(self, tenant: str, mu: float) -> None:
        """Count a request that is served without having waited. Nobody may be waiting."""
        counters = self._counters
        counters[tenant] = max(counters.get(tenant, 0.0), self._floor()) + mu
        self._served[tenant] = self._served.get(tenant, 0.0) + mu
        self._departed = tenant
        if len(counters) > 2 * self._remembered:
            self._forget()

    @property
    def others_wait(self) -> bool:
        """Whether somebody waits at another gateway who may be to go first."""
        return bool(self._heads)

    def may_pass(self, tenant: str, mu: float, *, slack: float) -> bool:
        """Whether nobody who waits elsewhere goes before a request that need not wait here."""
        if not self._heads:
            return True
        counter = max(self._counters.get(tenant, 0.0), self._floor())
        return all(
            counter + mu <= reach + slack for ahead, reach, other in self._heads if ahead < counter and other != tenant
        )

    def ahead(self, turn: Turn[T], *, name: str) -> list[float]:
        """Prefill MU of first requests that wait elsewhere and go before ``turn`` at the gateway ``name``.

        Between tenants counters say so, within one who came first; of a tenant that waits at several gateways the
        smallest counter. All compare the same numbers: no two gateways take themselves for the first, and there is no
        circle in which each waits for the next, but for what is still on its way.
        """
        least = {tenant: self._counters[tenant] for tenant in self._lines}
        for told in self._others.values():
            for tenant, head in told.waiting.items():
                least[tenant] = min(head.counter, least.get(tenant, _NEVER))
        own = (least.get(turn.tenant, 0.0), turn.since, name)
        found = []
        for gateway, told in self._others.items():
            for tenant, head in told.waiting.items():
                if (least[tenant], head.since, gateway) < own:
                    found.append(head.prefill_mu)
        return found

    def join(
        self,
        tenant: str,
        item: T,
        mu: float,
        *,
        prefill_mu: float = 0.0,
        since: float = 0.0,
        at: int | None = None,
    ) -> Turn[T]:
        """The request begins to wait: behind its tenant's others, or before the one that is ``at`` among them."""
        line = self._lines.get(tenant)
        if line is None:
            self._lift(tenant)
            line = self._lines[tenant] = deque()
        turn = Turn(tenant, item, mu, prefill_mu, since)
        line.insert(len(line) if at is None else at, turn)
        self.size += 1
        self.mu += mu
        return turn

    def take(self, fits: Callable[[T], bool | None], *, slack: float = 0.0) -> Turn[T] | None:
        """Take out and count the request whose turn it is; None when nothing fits.

        One that does not fit now is overtaken by others, but by no more than it costs: when they have been served as
        much as that, they wait as well, until there is room. Nobody is starved by requests that are smaller. One of
        which ``fits`` says None stands aside: what it waits for does not come from others' waiting. Those who wait
        elsewhere are overtaken by ``slack`` (MU) more.
        """
        bound = _NEVER
        elsewhere = _Ahead(self._heads)
        self._slack = slack
        for counter, tenant in sorted((self._counters[tenant], tenant) for tenant in self._lines):
            turn = self._lines[tenant][0]
            if counter + turn.mu > min(bound, elsewhere.bound(counter, tenant) + slack):
                continue
            is_older = self._is_older_elsewhere(tenant, turn.since)
            if is_older and turn.mu > self._ahead.get(tenant, 0.0):
                continue
            verdict = fits(turn.item)
            if verdict:
                self._counters[tenant] = counter + turn.mu
                self._served[tenant] = self._served.get(tenant, 0.0) + turn.mu
                if is_older:
                    self._ahead[tenant] -= turn.mu
                self._remove(turn)
                return turn
            if verdict is None:
                self._aside.add(tenant)
            else:
                self._aside.discard(tenant)
                bound = counter + turn.mu
        return None

    def _is_older_elsewhere(self, tenant: str, since: float) -> bool:
        """Whether a request of the tenant waits elsewhere that came much earlier."""
        oldest = self._oldest.get(tenant)
        return oldest is not None and since >= oldest + OLDER_S

    def move(self, turn: Turn[T], *, since: float, at: int) -> Turn[T]:
        """It waits on before the one that is ``at`` among its tenant's others, as if it had come at ``since``."""
        line = self._lines[turn.tenant]
        line.remove(turn)
        moved = turn._replace(since=since)
        line.insert(at, moved)
        self._aside.discard(turn.tenant)
        return moved

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
            self._served[tenant] = self._served.get(tenant, 0.0) + difference

    def tell(self) -> Told | None:
        """What others are to be told now, as they are ten times a second; None when there is nothing to tell."""
        telling = {tenant: left - 1 for tenant, left in self._telling.items() if left > 1}
        waits = [*self._lines, *(tenant for told in self._others.values() for tenant in told.waiting)]
        self._telling = telling | dict.fromkeys(waits, TOLD_AGAIN)
        floor = self._own_floor()
        if not (floor or self._telling):
            return None
        first = sorted((self._counters[tenant], tenant) for tenant in self._lines)[:TOLD_OF]
        heads = {}
        for at, tenant in first:
            turn = self._lines[tenant][0]
            heads[tenant] = Head(at, turn.mu, tenant in self._aside, turn.prefill_mu, turn.since)
        return Told(floor, heads, {tenant: self._served.get(tenant, 0.0) for tenant in self._telling})

    def hear(self, others: Mapping[str, Told]) -> None:
        """What the other gateways have told last, by name; of one that is not named nothing is known any more."""
        counters = self._counters
        for name, told in others.items():
            before = self._others.get(name)
            if before is None:
                self._meet(told)
                continue
            for tenant, mu in told.served.items():
                known = before.served.get(tenant)
                if known is not None and tenant in counters:
                    counters[tenant] = max(0.0, counters[tenant] + mu - known)
        self._oldest = {}
        for name, told in others.items():
            earlier = self._others[name].waiting if name in self._others else {}
            for tenant, head in told.waiting.items():
                # One that was told once may be served by now: nobody waits for what is old news.
                is_still_there = tenant in earlier and earlier[tenant].since == head.since
                is_back = tenant in self.come_again.get(name, ())
                if head.since and is_still_there and is_back and not head.is_aside:
                    self._oldest[tenant] = min(head.since, self._oldest.get(tenant, _NEVER))
        self._others = others
        part, most = self._slack * _RUN / max(1, len(others)), self._slack * _RUN_MOST
        self._ahead = {tenant: min(most, self._ahead.get(tenant, 0.0) + part) for tenant in self._oldest}
        reach: dict[str, tuple[float, float]] = {}
        for told in others.values():
            for tenant, head in told.waiting.items():
                if not head.is_aside:
                    reach[tenant] = min(reach.get(tenant, (_NEVER, _NEVER)), (head.counter, head.counter + head.mu))
        self._heads = sorted((counter, then, tenant) for tenant, (counter, then) in reach.items())
        self._least_elsewhere = min(
            (head.counter for told in others.values() for head in told.waiting.values()), default=_NEVER
        )
        self._floor_elsewhere = max((told.floor for told in others.values()), default=0.0)

    def _meet(self, told: Told) -> None:
        """A gateway that was not known, or not heard of for a while: counters begin to be comparable. Whoever waited
        where less was served is lifted: it has earned no credit by that."""
        gap = told.floor - self._own_floor()
        for tenant in self._lines:
            lifted = self._counters[tenant] + max(0.0, gap)
            head = told.waiting.get(tenant)
            self._counters[tenant] = lifted if head is None else max(lifted, head.counter)

    def _own_floor(self) -> float:
        """The smallest counter of those who wait here, or, when nobody does, that of the tenant who left last."""
        counters = self._counters
        return min((counters[tenant] for tenant in self._lines), default=counters.get(self._departed, 0.0))

    def _floor(self) -> float:
        """The same over all gateways."""
        own = self._own_floor()
        if self._lines:
            return min(own, self._least_elsewhere)
        return max(own, self._floor_elsewhere) if self._least_elsewhere == _NEVER else self._least_elsewhere

    def _lift(self, tenant: str) -> None:
        counters = self._counters
        known = [told.waiting[tenant].counter for told in self._others.values() if tenant in told.waiting]
        counters[tenant] = max(counters.get(tenant, 0.0), self._floor(), *known)
        if len(counters) > 2 * self._remembered:
            self._forget(joining=tenant)

    def _remove(self, turn: Turn[T]) -> None:
        line = self._lines[turn.tenant]
        line.remove(turn)
        self.size -= 1
        self.mu = self.mu - turn.mu if self.size else 0.0
        self._aside.discard(turn.tenant)
        if not line:
            del self._lines[turn.tenant]
            self._departed = turn.tenant

    def _forget(self, *, joining: str = "") -> None:
        """Keep those who wait or begin to, who left last, and of the others the highest counters: low ones would be
        lifted."""
        needed = {*self._lines, *self._telling, self._departed, joining}
        others = sorted((count, tenant) for tenant, count in self._counters.items() if tenant not in needed)
        for _, tenant in others[: max(0, len(others) - self._remembered)]:
            del self._counters[tenant]
            self._served.pop(tenant, None)


class _Ahead:
    """Who goes before a tenant elsewhere, asked for tenants in the order of their counters."""

    __slots__ = ("_first", "_heads", "_next", "_second")

    def __init__(self, heads: list[tuple[float, float, str]]) -> None:
        self._heads = heads
        self._next = 0
        self._first = self._second = (_NEVER, "")

    def bound(self, counter: float, tenant: str) -> float:
        """What ``tenant`` may come to: as much as those with smaller counters will have. Nobody is in its own way."""
        heads = self._heads
        while self._next < len(heads) and heads[self._next][0] < counter:
            _, reach, other = heads[self._next]
            self._first, self._second, _ = sorted((self._first, self._second, (reach, other)))
            self._next += 1
        return self._second[0] if self._first[1] == tenant else self._first[0]
