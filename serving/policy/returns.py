"""Places in line for best-effort requests that were refused: when each is to come again, and whose place it then takes.

Nobody knows when there is room. But what has left a tenant's line of late tells how fast it moves, so a refused request
is told when as many MU will have gone as wait and were promised before it in its own tenant's line, and its own. Room
is not kept empty for that: others take what is there. Whoever comes again has the **place** that it left, before all of
its tenant's requests that came later. The order between tenants is ``fairness.py``'s, and no place changes it.

A place is its key's, and its request's (``mark``, a digest of what is asked): the same request has it whenever it
comes, early or in time, and is told no later time when it must leave again. Another request of the key has a place only
when nobody has come for it in ``LATE_S``: clients whose requests are never twice the same come in that way, and those
that are new do not take the places of those that are away. One to which nobody comes is forgotten ``HOLD_S`` after it
was due. Of each key ``FIRM`` places bind the others of its tenant, as with limits (``promises.py``); beyond, places are
**soft**: they are before newer requests of their own key alone, and nobody else's time counts them.

Gateways tell each other their places and how their lines move (``Word``). So all count what any of them has promised,
but for the last 0.2 s, at the pace of the tenant's lines together, and a client may come again at another: there its
place becomes that gateway's own. Without word of others each goes by what it knows itself.

Times are seconds of this gateway's monotonic clock; ``since`` is in UNIX seconds, as in ``fairness.Turn``.
"""

from __future__ import annotations

from bisect import insort
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Set

import msgspec

from serving.policy.promises import FIRM, HOLD_MS, LARGER

HOLD_S = HOLD_MS / 1000
LATE_S = 1.2
"""Clients that read whole seconds come up to one late; a place to which nobody has come by then is any's of its key."""
EARLY_S = 0.3
"""Gateways hear of each other late, and take each other's places to be due so much later than they are."""
SOONEST_S = 1.0
"""No sooner is anybody told to come: other gateways must have heard of the place."""
LONGEST_S = 3600.0
"""Nor later. Whose turn is not within an hour has no place: nobody knows how fast a line will move by then."""
UNKNOWN_S = 30.0
"""Told where nothing moves and nothing is known, because no replica is ready: then nobody can tell, and hours would be
too long."""
MARGIN = 1.25
"""Turns are a little further apart than the line moves: else those who come would be more and more whenever chance is
against it."""
MOST = 200
"""Places of a tenant at a gateway. Beyond, clients are told a time that counts these, and have none."""
MOST_OF_ALL = 5000
"""Places of a deployment at a gateway."""
TOLD = 400
"""Places of a deployment that a gateway tells the others of: of each tenant those that are due first."""


class Place:
    """``mu`` for a request of ``key`` at ``due``. ``maker`` and ``number`` name it, ``is_here``: its request waits."""

    __slots__ = ("due", "is_here", "is_soft", "key", "maker", "mark", "mu", "number", "since", "tenant")

    def __init__(
        self, tenant: str, key: str, mu: float, *, since: float, due: float, mark: str, is_soft: bool = False
    ) -> None:
        self.tenant, self.key, self.mu, self.since, self.due, self.mark = tenant, key, mu, since, due, mark
        self.is_soft = is_soft
        self.is_here = False
        self.maker, self.number = "", 0

    def is_for(self, mu: float) -> bool:
        """Whether it is large enough: what is estimated anew may be somewhat more."""
        return mu <= self.mu * LARGER

    def is_due(self, now: float) -> bool:
        return self.due <= now + EARLY_S


class Kept(msgspec.Struct, array_like=True, omit_defaults=True):
    """A place as other gateways are told of it; ``in_s``: seconds until it is due."""

    number: int
    in_s: float
    mu: float
    since: float
    mark: str = ""
    is_soft: bool = False
    is_here: bool = False


class Moved(msgspec.Struct, array_like=True):
    """A tenant's line at a gateway: MU that wait and have no place, and MU that left it since the gateway's start.

    ``is_back``: the first in it has come for its place.
    """

    waiting_mu: float
    took_mu: float
    is_back: bool = False


class Word(msgspec.Struct, omit_defaults=True):
    """What a gateway tells of its places, by tenant and key, which of others' its own clients have taken, and of its
    lines by tenant, all together under the empty name."""

    places: dict[str, dict[str, list[Kept]]] = {}
    taken: list[tuple[str, int]] = []
    lines: dict[str, Moved] = {}


def wait_s(ahead_mu: float, mu: float, mu_per_s: float, *, hold_s: float = 0.0) -> float:
    """Seconds until ``mu`` has its turn behind ``ahead_mu`` in a line that moves by ``mu_per_s``; nothing moves for
    ``hold_s`` (s)."""
    if mu_per_s <= 0.0:
        return max(UNKNOWN_S, hold_s)
    return min(LONGEST_S, max(SOONEST_S, hold_s + MARGIN * (ahead_mu + mu) / mu_per_s))


def waiting_mu(own_mu: float, others_mu: float, mu_per_s: float, wait_s: float) -> float:
    """MU that wait in a tenant's line and go before one of its keys that is told a time now: what waits of the key, and
    of the others' what the line takes in their ``wait_s``. The rest of it has places by then."""
    return own_mu + min(others_mu, mu_per_s * wait_s)


class Returns:
    """The places of one deployment at one gateway."""

    __slots__ = ("_elsewhere", "_number", "_own", "_size", "_taken")

    def __init__(self) -> None:
        self._own: dict[str, list[Place]] = {}
        """By tenant, in the order in which they are due."""
        self._elsewhere: dict[str, list[Place]] = {}
        self._taken: dict[tuple[str, int], None] = {}
        """Others' places that are this gateway's now, until they tell of them no more."""
        self._size = self._number = 0

    def __len__(self) -> int:
        """Places that this gateway has promised, or taken over."""
        return self._size

    @property
    def are_any(self) -> bool:
        return bool(self._size or self._elsewhere)

    def of(self, tenant: str) -> list[Place]:
        """The tenant's places here, those first that are due first."""
        return self._own.get(tenant, [])

    def take(self, tenant: str, key: str, mu: float, mark: Callable[[], str], now: float) -> Place | None:
        """The place of a request that has come; None: it has none. ``mark`` is asked where its key has any.

        Give it to ``done`` when the request is served, and to ``leave`` when it goes again.
        """
        found = [
            place
            for place in (*self._own.get(tenant, ()), *self._elsewhere.get(tenant, ()))
            if place.key == key and not place.is_here and place.is_for(mu) and place.due + HOLD_S > now
        ]
        if not found:
            return None
        asked = mark()
        same = [place for place in found if place.mark == asked]
        if same:
            return self._come(min(same, key=lambda place: place.since))
        late = min(found, key=lambda place: place.due)
        return self._come(late) if late.due + LATE_S <= now else None

    def unclaimed(self, now: float) -> Iterator[Place]:
        """Places to which nobody has come in time: each is for any request of its key that waits, see ``claim``."""
        for places in [*self._own.values(), *self._elsewhere.values()]:
            for place in list(places):
                if place.due + LATE_S <= now < place.due + HOLD_S and not place.is_here:
                    yield place

    def claim(self, place: Place) -> Place:
        """A request that waits takes it: the place as it is here now."""
        return self._come(place)

    def _come(self, place: Place) -> Place:
        if place.maker:
            self._taken[place.maker, place.number] = None
            self._elsewhere[place.tenant].remove(place)
            place.maker = ""
            self._add(place)
        place.is_here = True
        return place

    def done(self, place: Place) -> None:
        """Its request is served."""
        places = self._own.get(place.tenant, [])
        if place in places:
            places.remove(place)
            self._size -= 1
            if not places:
                del self._own[place.tenant]

    def leave(self, place: Place, *, due: float | None = None) -> None:
        """Its request waits no longer, and was not served: it may come again, at ``due`` where that is told anew."""
        place.is_here = False
        if due is not None and due != place.due:
            self.done(place)
            place.due = due
            self._add(place, number=place.number)

    def ahead_mu(self, tenant: str, key: str, place: Place | None = None) -> float:
        """MU of the places that go before a request of ``key``: before ``place``, or before one that has none yet.

        Of another key all that are firm, and as many as ``key`` has itself: of two that are alike none is before the
        other.
        """
        own, elsewhere = self._own.get(tenant, []), self._elsewhere.get(tenant, [])
        most = sum(one.key == key for one in (*own, *elsewhere)) - FIRM
        total, soft = 0.0, Counter[str]()
        for one in (*own, *elsewhere):
            if one is place or (place is not None and one.due > place.due):
                continue
            if one.key != key and one.is_soft:
                soft[one.key] += 1
                if soft[one.key] > most:
                    continue
            total += one.mu
        return total

    def promise(self, place: Place, now: float) -> bool:
        """Set it aside, softly where its key has ``FIRM`` that are not; whether there was room for it.

        Of too many the last soft one makes way for one that is firm.
        """
        self._forget(place.tenant, now)
        places = self._own.get(place.tenant, [])
        firm = sum(
            one.key == place.key and not one.is_soft for one in (*places, *self._elsewhere.get(place.tenant, ()))
        )
        place.is_soft = firm >= FIRM
        if self._size >= MOST_OF_ALL or place.due - now >= LONGEST_S:
            return False
        if len(places) >= MOST:
            last = next((one for one in reversed(places) if one.is_soft and not one.is_here), None)
            if place.is_soft or last is None:
                return False
            self.done(last)
        self._add(place)
        return True

    def _add(self, place: Place, *, number: int = 0) -> None:
        if not number:
            self._number += 1
            number = self._number
        place.number = number
        insort(self._own.setdefault(place.tenant, []), place, key=lambda one: one.due)
        self._size += 1

    def forget(self, now: float) -> None:
        """Drop those to which nobody came."""
        for tenant in list(self._own):
            self._forget(tenant, now)

    def _forget(self, tenant: str, now: float) -> None:
        for place in list(self._own.get(tenant, ())):
            if place.due + HOLD_S > now:
                break
            if not place.is_here:
                self.done(place)

    def tell(self, now: float) -> Word | None:
        """What others are to know of places now; None: nothing."""
        self.forget(now)
        if not (self._size or self._taken):
            return None
        word = Word(taken=list(self._taken))
        each = max(1, TOLD // max(1, len(self._own)))
        left = TOLD
        for tenant, places in self._own.items():
            told: dict[str, list[Kept]] = {}
            for place in places[: min(each, left)]:
                left -= 1
                told.setdefault(place.key, []).append(
                    Kept(place.number, place.due - now, place.mu, place.since, place.mark, place.is_soft, place.is_here)
                )
            if told:
                word.places[tenant] = told
        return word

    def hear(self, words: Mapping[str, Word], name: str, now: float) -> None:
        """What all other gateways have told last; ``name``: as they know this one."""
        if not words and not self._elsewhere and not self._taken:
            return
        self._drop({number for word in words.values() for owner, number in word.taken if owner == name})
        elsewhere: dict[str, list[Place]] = {}
        told: set[tuple[str, int]] = set()
        for maker, word in words.items():
            for tenant, keys in word.places.items():
                for key, places in keys.items():
                    for kept in places:
                        if (maker, kept.number) in self._taken:
                            told.add((maker, kept.number))
                            continue
                        place = Place(
                            tenant,
                            key,
                            kept.mu,
                            since=kept.since,
                            due=now + kept.in_s,
                            mark=kept.mark,
                            is_soft=kept.is_soft,
                        )
                        place.maker, place.number, place.is_here = maker, kept.number, kept.is_here
                        elsewhere.setdefault(tenant, []).append(place)
        self._elsewhere = elsewhere
        self._taken = {one: None for one in self._taken if one in told}

    def _drop(self, numbers: Set[int]) -> None:
        """Their clients have come to other gateways."""
        if numbers:
            for place in [one for places in self._own.values() for one in places if one.number in numbers]:
                if not place.is_here:
                    self.done(place)
