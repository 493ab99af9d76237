"""What a gateway has of one deployment's best effort: its queue, how fast that moves, and who was told to come again.

What is decided of it is in ``serving/policy``: the order in ``fairness.py``, the times and places in ``returns.py``.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Mapping

from serving.gateway.lent import LentOut
from serving.gateway.placement import Busy, Expected, Lent, Placement
from serving.policy import returns
from serving.policy.fairness import TOLD_OF, FairQueue, Turn
from serving.policy.pace import Flow
from serving.policy.returns import Moved, Place, Returns, Word
from serving.policy.routing import Load

_FLOW_OVER_S = 20.0
_FLOW_FORGOTTEN_S = 60.0
_FLOWS = 10_000
"""Tenants of whom it is remembered how fast their lines move."""
_OTHERS_FIRST = "tenants who were served less go first"


class Waiter:
    """A request in the queue. ``why``: what kept it there when it was last looked at; ``first_at``: since when it is
    its tenant's first, as far as somebody has looked. ``back``: the place that it has come again for."""

    __slots__ = ("ask", "back", "first_at", "load", "place", "turn", "why")

    def __init__(self, load: Load, ask: Lent, back: Place | None) -> None:
        self.load = load
        self.ask = ask
        self.back = back
        self.place: asyncio.Future[Placement] = asyncio.get_running_loop().create_future()
        self.why = _OTHERS_FIRST
        self.first_at: float | None = None
        self.turn: Turn[Waiter] | None = None


class Line:
    """One deployment's queue, and what its owners have taken back.

    ``wall_clock`` gives UNIX seconds; ``now`` is monotonic everywhere.
    """

    __slots__ = (
        "_elsewhere",
        "_flows",
        "_heard",
        "_took",
        "_wall_clock",
        "hold_until",
        "lent",
        "needed_since",
        "queue",
        "returns",
        "seen",
        "told_at",
    )

    def __init__(self, wall_clock: Callable[[], float]) -> None:
        self._wall_clock = wall_clock
        self.queue: FairQueue[Waiter] = FairQueue()
        self.returns = Returns()
        self._flows: dict[str, Flow] = {}
        """By tenant, and under the empty name of all together: MU/s that leave the queues for replicas, everywhere."""
        self._took: dict[str, float] = {}
        """By the same names: MU that left this queue."""
        self._heard: dict[str, dict[str, Moved]] = {}
        self._elsewhere: dict[str, float] = {}
        """MU that wait at other gateways and have no place, by tenant: none where all that wait have one."""
        self.hold_until = float("-inf")
        """Nothing is lent before this moment."""
        self.needed_since: float | None = None
        self.told_at = float("-inf")
        self.seen = 0
        self.lent = LentOut()

    def join(self, load: Load, ask: Lent, back: Place | None, now: float) -> Waiter:
        """It waits: where its place is, or behind its tenant's others."""
        waiter = Waiter(load, ask, back)
        at, since = self._where(ask, back, now)
        waiter.turn = self.queue.join(ask.tenant, waiter, ask.mu, prefill_mu=load.prefill_mu, since=since, at=at)
        self._note(ask.tenant, now)
        return waiter

    def took(self, turn: Turn[Waiter], now: float) -> None:
        """It goes to a replica."""
        for name in (turn.tenant, ""):
            self._flow(name).add(turn.mu, now)
            self._took[name] = self._took.get(name, 0.0) + turn.mu
        self._note(turn.tenant, now)

    def tell(self, now: float) -> Word | None:
        """What other gateways are to know now of places and of how the lines move; None: nothing."""
        word = self.returns.tell(now)
        names = self.queue.tenants | self._elsewhere.keys()
        if names:
            word = word or Word()
            for name in sorted(names)[:TOLD_OF]:
                turns = self.queue.of(name)
                fresh = sum(turn.mu for turn in turns if turn.item.back is None)
                is_back = bool(turns) and turns[0].item.back is not None
                word.lines[name] = Moved(fresh, self._took.get(name, 0.0), is_back)
            word.lines[""] = Moved(0.0, self._took.get("", 0.0))
        return word

    def hear(self, words: Mapping[str, Word], name: str, now: float) -> None:
        """What all other gateways have told last; ``name``: as they know this one."""
        self.returns.hear(words, name, now)
        if not words and not self._heard:
            return
        before, self._heard = self._heard, {maker: word.lines for maker, word in words.items()}
        self.queue.come_again = {
            maker: {tenant for tenant, moved in lines.items() if moved.is_back} for maker, lines in self._heard.items()
        }
        elsewhere: dict[str, float] = {}
        for maker, lines in self._heard.items():
            known = before.get(maker, {})
            for tenant, moved in lines.items():
                if tenant in known:
                    self._flow(tenant).add(max(0.0, moved.took_mu - known[tenant].took_mu), now)
                if moved.waiting_mu or moved.is_back:
                    elsewhere[tenant] = elsewhere.get(tenant, 0.0) + moved.waiting_mu
        changed = set(self._elsewhere) ^ set(elsewhere)
        self._elsewhere = elsewhere
        for tenant in changed:
            self._note(tenant, now)

    def leave(self, turn: Turn[Waiter] | None, now: float) -> None:
        """It waits no longer, if it still did."""
        if turn is not None and self.queue.leave(turn):
            self._note(turn.tenant, now)

    def gives_way(self, tenant: str, back: Place | None, now: float) -> Turn[Waiter] | None:
        """Who is to leave a full queue for a request of ``tenant``; None: nobody.

        Where another tenant has more waiting, the newest of the one that has most: whoever floods the queue keeps
        nobody out of it. For whoever comes when it was told, the newest of its own tenant that was told nothing yet.
        """
        found = self.queue.most_waiting()
        if found is not None and found[1] > self.queue.waiting(tenant) + 1:
            return found[0]
        if back is None or not back.is_due(now):
            return None
        return next((turn for turn in reversed(self.queue.of(tenant)) if turn.item.back is None), None)

    def note_unclaimed(self, now: float) -> None:
        """Give places to which nobody has come to requests of their keys that wait."""
        smallest: dict[str, dict[str, float]] = {}
        for place in list(self.returns.unclaimed(now)):
            known = smallest.get(place.tenant)
            if known is None:
                known = smallest[place.tenant] = self._smallest(place.tenant)
            # Most places find nobody: who waits is looked through for the others alone.
            if not place.is_for(known.get(place.key, math.inf)):
                continue
            for turn in self.queue.of(place.tenant):
                waiter = turn.item
                ask = waiter.ask
                if waiter.back is None and ask.key == place.key and place.is_for(ask.mu):
                    waiter.back = self.returns.claim(place)
                    at, since = self._where(ask, place, now)
                    if since < turn.since:
                        waiter.turn = self.queue.move(turn, since=since, at=at)
                    del smallest[place.tenant]
                    break

    def _smallest(self, tenant: str) -> dict[str, float]:
        """MU of the smallest request that waits and has no place, by the tenant's keys."""
        found: dict[str, float] = {}
        for turn in self.queue.of(tenant):
            ask = turn.item.ask
            if turn.item.back is None and ask.mu < found.get(ask.key, math.inf):
                found[ask.key] = ask.mu
        return found

    def _where(self, ask: Lent, back: Place | None, now: float) -> tuple[int, float]:
        """Its index among its tenant's, and since when it waits, in UNIX seconds, as other gateways are to see it."""
        turns, wall = self.queue.of(ask.tenant), self._wall_clock()
        if ask.home:
            # It was served before, and has made way.
            return 0, wall
        if back is None:
            return len(turns), wall
        is_due = back.is_due(now)
        # In time it is older than any that was not told to come.
        since = wall - ask.wait_s if is_due else wall
        if not back.is_soft:
            since = min(since, back.since)
            ahead = (turn.since <= since and not _is_soft(turn.item.back) for turn in turns)
        elif is_due:
            ahead = (
                other is not None and (not other.is_soft or other.due <= back.due)
                for other in (turn.item.back for turn in turns)
            )
        else:
            ahead = (turn.item.back is not None or turn.item.ask.key != ask.key for turn in turns)
        return next((at for at, goes_before in enumerate(ahead) if not goes_before), len(turns)), since

    def expect(
        self,
        ask: Lent,
        back: Place | None,
        now: float,
        *,
        wait_s: float,
        supply_mu_per_s: float,
        since: float | None = None,
        hold_s: float = 0.0,
        elsewhere: float = 0.0,
    ) -> Expected:
        """When a request that is refused now has its turn, and a place for it then.

        ``since``: when it came, in UNIX seconds; None: now. ``hold_s``: nothing is lent for so long. ``elsewhere``:
        which part of what waits at other gateways goes before it.
        ``supply_mu_per_s``: what the replicas could take, where nothing is known of late. ``wait_s``: for how long
        requests wait here.
        """
        pace = self._pace(ask.tenant, supply_mu_per_s, now)
        since = self._wall_clock() if since is None else since
        own, others = 0.0, self._elsewhere.get(ask.tenant, 0.0) * elsewhere
        if back is None:
            for turn in self.queue.of(ask.tenant):
                if turn.since < since and turn.item.back is None:
                    if turn.item.ask.key == ask.key:
                        own += turn.mu
                    else:
                        others += turn.mu
        ahead = self.returns.ahead_mu(ask.tenant, ask.key, back) + returns.waiting_mu(own, others, pace, wait_s)
        expected_s = returns.wait_s(ahead, ask.mu, pace, hold_s=hold_s)
        if back is not None:
            # What it was told before still holds, if that is to come.
            left_s = back.due - now
            if left_s > 0.0:
                expected_s = max(returns.SOONEST_S, hold_s, left_s)
            self.returns.leave(back, due=now + expected_s)
            return Expected(expected_s, ahead, pace, True)
        place = Place(ask.tenant, ask.key, ask.mu, since=since, due=now + expected_s, mark=ask.mark())
        return Expected(expected_s, ahead, pace, self.returns.promise(place, now))

    def _pace(self, tenant: str, supply_mu_per_s: float, now: float) -> float:
        """MU/s that leave the tenant's line, while it waits; where that is not known yet, its part of all."""
        everybody = self._flow("").now(now, presumed=supply_mu_per_s)
        tenants = len(self._elsewhere.keys() | self.queue.tenants)
        return self._flow(tenant).now(now, presumed=everybody / max(1, tenants))

    def _flow(self, name: str) -> Flow:
        flow = self._flows.get(name)
        if flow is None:
            if len(self._flows) > _FLOWS:
                waiting = {"", *self._elsewhere, *self.queue.tenants}
                self._flows = {name: flow for name, flow in self._flows.items() if name in waiting}
                self._took = {name: mu for name, mu in self._took.items() if name in waiting}
            flow = self._flows[name] = Flow(_FLOW_OVER_S, _FLOW_FORGOTTEN_S)
        return flow

    def _note(self, tenant: str, now: float) -> None:
        self._flow(tenant).note(self.queue.waiting(tenant) > 0 or tenant in self._elsewhere, now)
        self._flow("").note(self.queue.size > 0 or bool(self._elsewhere), now)


def _is_soft(back: Place | None) -> bool:
    return back is not None and back.is_soft


def busy(message: str, expected: Expected, *, reason: str, kind: type[Busy] = Busy) -> Busy:
    """The refusal that tells it."""
    return kind(message, retry_after_s=expected.retry_after_s, reason=reason, expected=expected)
