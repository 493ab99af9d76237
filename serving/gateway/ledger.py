"""The limits that one gateway has met, and which of them the state is still to be told of."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import islice
from typing import Any

from serving.gateway.budgets import Budget
from serving.gateway.demands import Ask
from serving.gateway.limits import Limit
from serving.gateway.records import LimitRecord

_FORGET_AFTER_S = 120.0
SWEEP_S = _FORGET_AFTER_S / 4
_LIMITS_PER_EXCHANGE = 500


class Ledger:
    def __init__(self) -> None:
        self.limits: dict[str, Limit] = {}
        self.dirty: set[Limit] = set()
        """To be reported in the next periodic exchange."""
        self.urgent: set[Limit] = set()
        """To be reported in the next exchange of any kind."""
        self.is_due = False
        """Whether the next exchange is a periodic one."""
        self._holding: set[Limit] = set()  # limits with seats taken, and budgets with what the books do not have yet

    def known(self, record: LimitRecord) -> Limit:
        """The limit as newer requests may have found it since ``record``: what ends must not bring back old values."""
        limit = self.limits.get(record.id)
        if limit is None:
            limit = self.limits[record.id] = Budget(record) if record.is_budget else Limit(record)
        return limit

    def renewed(self, record: LimitRecord) -> Limit:
        """The limit as a request that comes now finds it."""
        limit = self.known(record)
        if limit.record is not record:
            limit.renew(record)
        return limit

    def note(self, limit: Limit) -> None:
        """Something was admitted: it is to be reported, and seats are to be remembered."""
        self.dirty.add(limit)
        if limit.is_counted:
            self._holding.add(limit)

    def remind(self, now: float) -> None:
        """Seats that are held long, and what the books do not have yet, are reported again and again."""
        self._holding = {limit for limit in self._holding if limit.is_holding}
        self.dirty.update(limit for limit in self._holding if limit.is_due(now))

    def drop_seats(self) -> None:
        """The state may have given the free seats, and what is set aside of budgets, to others by now."""
        for limit in self.limits.values():
            if limit.is_counted:
                limit.lease = 0.0

    def sweep(self, now: float) -> None:
        """Forget limits that nobody has used for long, once everything is told of them: two records of one limit would
        overwrite each other's reports.
        """
        for key, limit in list(self.limits.items()):
            if limit.is_forgettable(now, _FORGET_AFTER_S) and limit not in self.urgent:
                self.dirty.discard(self.limits.pop(key))

    def next(self, asks: Sequence[Ask]) -> tuple[dict[Limit, int], int]:
        """What the next exchange tells of: limits with their numbers from 1, of which the first so many are asked."""
        order: dict[Limit, int] = {}
        for ask in asks:
            for demand in ask.remote:
                order.setdefault(self.limits[demand.limit.id], len(order) + 1)
        asked = len(order)
        for waiting in (self.urgent, self.dirty if self.is_due else ()):
            for limit in islice(waiting, max(0, _LIMITS_PER_EXCHANGE - len(order))):
                order.setdefault(limit, len(order) + 1)
        self.urgent.difference_update(order)
        self.dirty.difference_update(order)
        self.is_due = self.is_due and len(order) >= _LIMITS_PER_EXCHANGE and bool(self.dirty)
        return order, asked

    def answered(self, order: Iterable[Limit], reports: Iterable[Sequence[Any]], at_ms: float) -> None:
        """What the state said of each limit it was told of, at ``at_ms``: (level, _, leased, this gateway's own), of a
        budget what the books have, up to which minute, and of seats how many wait for one.
        """
        for limit, (level, _, given, own, *more) in zip(order, reports, strict=True):
            limit.reported(level, given, at_ms, own=own)
            had = limit.lease
            if isinstance(limit, Budget) and more:
                limit.booked(*more)
            elif limit.is_concurrency and more:
                limit.awaited(*more)
            if had > 0.0:
                self.dirty.add(limit)

    def lost(self, order: Iterable[Limit]) -> None:
        """The state did not answer: what it was told of is to be told again."""
        for limit in order:
            limit.report_lost()
            self.dirty.add(limit)

    def let_go(self) -> None:
        """Nothing is held any more, and all that the state knows of is to be given back."""
        for limit in self.limits.values():
            limit.held = 0
            limit.is_idle = True
        self.dirty.update(limit for limit in self.limits.values() if limit.known_at_ms)
