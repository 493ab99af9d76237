"""What one gateway process keeps of one plain limit: its lease, and what is to be reported.

The lease of a concurrency limit is free seats: a request takes one, and its end puts it back.
"""

from __future__ import annotations

import time
from typing import Any

from serving.gateway.records import LimitRecord
from serving.policy import bucket

FRESH_MS = 2000.0
"""What the state said less than this before a gateway went on alone still holds."""
LEASED_SHARE = 1 / 8
"""All leases of a limit together are at most about this part of it."""
_CENTRAL_REQUESTS = 32
"""A limit of fewer typical requests per gateway is decided in the state: a lease of it would be a few requests."""
_HELD_AGAIN_S = 0.5
"""Gateways that hold seats know so well how many the others hold, for the time that they go on alone."""
_CURRENT_S = 1.0
"""Requests come with the limit as it is published: after so long without one, its value may have changed."""
_SEATS_AHEAD = 4.0


class Limit:
    """Local record of one limit. Amounts in its unit; ``known_*``: the state's last word, on the monotonic clock.

    ``vacated``: seats that were left since the last report. ``is_awaited``: others wait for seats.
    """

    __slots__ = (
        "_is_under_way",
        "_is_whole",
        "_lost",
        "held",
        "is_awaited",
        "is_budget",
        "is_concurrency",
        "is_counted",
        "is_idle",
        "known_at_ms",
        "known_level",
        "known_own",
        "lease",
        "rate_per_ms",
        "record",
        "reported_at",
        "settlements",
        "taken",
        "typical",
        "used_at",
        "vacated",
    )

    def __init__(self, record: LimitRecord) -> None:
        self.held = 0
        self.used_at = 0.0
        self.reported_at = 0.0
        self.is_idle = False
        self._begin(record)

    def _begin(self, record: LimitRecord) -> None:
        self._take_over(record)
        self.is_concurrency = record.kind == "concurrency"
        self.is_budget = record.is_budget
        # What is held of it is told in absolute numbers, and nothing drains: seats, and budgets.
        self.is_counted = self.is_concurrency or self.is_budget
        self.is_awaited = False
        self.vacated = 0
        self.lease = 0.0
        self.taken = 0.0
        self.typical = 0.0
        self.settlements: list[tuple[float, float]] = []
        self.known_level = 0.0
        self.known_own = 0.0
        self.known_at_ms = 0.0
        self._lost: list[tuple[float, float]] = []
        self._is_under_way = False

    def renew(self, record: LimitRecord) -> None:
        """The limit as it is published now. Of another kind, it begins anew, but for the requests that hold seats."""
        if record.kind == self.record.kind:
            self._take_over(record)
        else:
            self._begin(record)

    def _take_over(self, record: LimitRecord) -> None:
        self.record = record
        self.rate_per_ms = bucket.rate_per_ms(record.value, record.window_ms)
        # Nothing counts less than 1 but MU and money: of these nothing is known before the first request.
        self._is_whole = record.kind in ("requests_per_min", "tokens_per_min", "concurrency")

    @property
    def is_holding(self) -> bool:
        """Whether the state must be told of it again and again."""
        return self.held > 0

    @property
    def key(self) -> str:
        return f"penstock:{'held' if self.is_concurrency else 'grant'}:{self.record.id}"

    def is_central(self, gateways: int) -> bool:
        """Whether every request is decided in the state: too small for leases."""
        typical = max(1.0, self.typical) if self._is_whole else self.typical or self.record.value
        return self.record.value < _CENTRAL_REQUESTS * gateways * typical

    def take(self, amount: float) -> None:
        """Use ``amount`` of the lease, which holds it."""
        self.lease -= amount
        self.note(amount)

    def note(self, amount: float) -> None:
        """``amount`` was admitted."""
        self.taken += amount
        if self.is_concurrency:
            self.held += int(amount)
        self.typical = amount if self.typical == 0.0 else self.typical + 0.1 * (amount - self.typical)

    def settled(self, difference: float, charged_at_ms: float) -> None:
        """A request that was charged then really took ``difference`` more. Those of one time and sign are told as one:
        to the bucket it is the same.
        """
        found = self.settlements
        if found:
            so_far, at_ms = found[-1]
            if at_ms == charged_at_ms and (so_far > 0.0) == (difference > 0.0):
                found[-1] = (so_far + difference, at_ms)
                return
        found.append((difference, charged_at_ms))

    def put_back(self, amount: float, *, is_leased: bool) -> None:
        """Seats that a request has left: free ones of this gateway when ``is_leased``, else the state's."""
        self.held = max(0, self.held - int(amount))
        self.vacated += int(amount)
        if is_leased:
            self.lease += amount

    def left(self, now_ms: float) -> float | None:
        """What is left of the limit for this gateway's requests, as far as the state has said; monotonic time."""
        if not self.known_at_ms:
            return None
        level, value = self.known_level, self.record.value
        if not self.is_counted:
            level -= self.rate_per_ms * (now_ms - self.known_at_ms)
        left = value + self.lease - (level if level > 0.0 else 0.0)
        return left if 0.0 < left < value else 0.0 if left <= 0.0 else value

    def awaited(self, places: int) -> None:
        """So many wait for a seat of the limit, or were told when one comes: seats go to the state, none is leased."""
        self.is_awaited = places > 0
        if self.is_awaited and not self._is_under_way:
            self.lease = 0.0

    def is_due(self, now: float) -> bool:
        """Whether requests are held and the state must be reminded of them."""
        return self.held > 0 and now - self.reported_at > _HELD_AGAIN_S

    def is_forgettable(self, now: float, after_s: float) -> bool:
        # One that is on its way to the state may have to be told again.
        return now - max(self.used_at, self.reported_at) > after_s and not (self.held or self.lease or self.settlements)

    def report(self, is_asked: bool, gateways: int) -> list[Any]:
        """The limit's entry in an exchange; what it says is not said again unless ``report_lost`` follows."""
        self.reported_at = time.monotonic()
        self._is_under_way = True
        if self.is_concurrency:
            return self._report_seats(is_asked, gateways)
        left, kept, wanted = self.lease, self.lease, 0.0
        if is_asked or self.is_idle or self.taken == 0.0:
            # Given up before the state decides: it must not be used meanwhile.
            self.lease = kept = 0.0
        if not self.is_central(gateways) and self.taken > 0.0:
            # Two periods' worth ahead; at least a few requests.
            wanted = min(max(2 * self.taken, 4 * self.typical), self.record.value * LEASED_SHARE / gateways) - kept
        self.taken = 0.0
        self._lost, self.settlements = self.settlements, []
        known = 0.0
        if self.known_at_ms:
            elapsed_ms = time.monotonic() * 1000 - self.known_at_ms
            known = max(0.0, self.known_level - self.rate_per_ms * elapsed_ms)
        is_old = not is_asked and self.reported_at - self.used_at > _CURRENT_S
        window_ms = self.record.window_ms
        return ["r", self.record.value, left, kept, self._lost, max(0.0, wanted), known, is_old, window_ms]

    def _report_seats(self, is_asked: bool, gateways: int) -> list[Any]:
        wanted = 0.0
        vacated, self.vacated = self.vacated, 0
        if is_asked or self.is_idle or self.taken == 0.0 or self.is_awaited or self.is_central(gateways):
            self.lease = 0.0
        else:
            # Seats come back, so that the fluctuation of one period is enough; what is beyond it goes back.
            share = self.record.value * LEASED_SHARE / gateways
            target = float(int(min(max(_SEATS_AHEAD, 2 * self.taken), share)))
            self.lease = min(self.lease, target)
            wanted = target - self.lease
        self.taken = 0.0
        return ["c", self.record.value, self.held, self.lease, wanted, vacated]

    def report_lost(self) -> None:
        """It is unknown whether the state heard: debts are told again, refunds are not. Both err to the safe side."""
        self.settlements = [entry for entry in self._lost if entry[0] > 0.0] + self.settlements
        self._lost = []

    def reported(self, level: float, given: float, at_ms: float, *, own: float = 0.0) -> None:
        """The state's answer to ``report``: the level, leases included, the gateway's ``own`` part of it (seats, or its
        lease), and what is newly leased to it. It says nothing of a limit that has begun anew meanwhile.
        """
        if not self._is_under_way:
            return
        self._is_under_way = False
        self._lost = []
        self.lease += given
        self.known_level, self.known_own, self.known_at_ms = level, own, at_ms
