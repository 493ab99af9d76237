"""What requests really took of limits: told at their end, and of some before it."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence

from serving.gateway.alone import Alone
from serving.gateway.budgets import Budget
from serving.gateway.demands import Demand, Granted
from serving.gateway.ledger import Ledger
from serving.gateway.limits import Limit
from serving.gateway.records import LimitRecord


class Settling:
    """``alone`` and ``gateways`` tell how limits are decided at the moment; ``tell_soon`` is called when the state is
    to hear of something before the next exchange."""

    def __init__(
        self,
        ledger: Ledger,
        alone: Callable[[], Alone | None],
        gateways: Callable[[], int],
        tell_soon: Callable[[], None],
    ) -> None:
        self._ledger = ledger
        self._limits = ledger.limits
        self._dirty, self._urgent = ledger.dirty, ledger.urgent
        self._alone = alone
        self._gateways = gateways
        self._tell_soon = tell_soon

    def settle(self, granted: Granted, actual: Mapping[str, float]) -> None:
        """End of the request: ``actual`` amounts by limit id (absent: as estimated). Idempotent, never awaits."""
        if granted.settled:
            return
        granted.settled = True
        if granted.hold is not None:
            granted.hold.release()
        for demand in granted.demands:
            record, amount = demand.limit, demand.amount
            limit = self._limits.get(record.id) or self._ledger.known(record)
            if record.kind == "concurrency":
                self._put_back(limit, amount)
                continue
            used = actual.get(record.id, amount)
            if isinstance(limit, Budget):
                limit.spend(amount, used, time.time())
                self._ledger.note(limit)
                continue
            self._correct(limit, demand, used - amount, granted)
        if self._urgent:
            self._tell_soon()

    def overrun(self, granted: Granted, record: LimitRecord, used: float) -> None:
        """A request that still runs has taken ``used`` of a limit of a rate: what that is beyond its charge is charged
        now, and not only at its end. Never awaits."""
        for i, demand in enumerate(granted.demands):
            if demand.limit is record and used > demand.amount and not granted.settled:
                limit = self._limits.get(record.id) or self._ledger.known(record)
                self._correct(limit, demand, used - demand.amount, granted)
                made = Demand(record, used)
                granted.demands = (*granted.demands[:i], made, *granted.demands[i + 1 :])
        if self._urgent:
            self._tell_soon()

    def void(self, granted: Granted) -> None:
        """Nothing was taken of it."""
        self.settle(granted, dict.fromkeys((demand.limit.id for demand in granted.demands), 0.0))

    def give_back(self, demands: Sequence[Demand], charged_at_ms: float) -> None:
        """What was taken from leases for a request that was not admitted. As a refund: the lease may have moved on."""
        self.void(Granted(tuple(demands), charged_at_ms=charged_at_ms))

    def _correct(self, limit: Limit, demand: Demand, difference: float, granted: Granted) -> None:
        """Of a rate, ``difference`` more was taken than was charged for ``demand``."""
        # Of another kind, the bucket of the charge is gone, and this one counts something else.
        if difference == 0.0 or limit.record.kind != demand.limit.kind:
            return
        alone = self._alone()
        if alone is not None and alone.settle(limit, difference, granted.alone_at_ms, time.monotonic() * 1000):
            return
        limit.settled(difference, granted.charged_at_ms)
        (self._urgent if limit.is_central(self._gateways()) else self._dirty).add(limit)

    def _put_back(self, limit: Limit, amount: float) -> None:
        is_leased = self._alone() is None and limit.is_concurrency and not limit.is_awaited
        is_leased = is_leased and not limit.is_central(self._gateways())
        limit.put_back(amount, is_leased=is_leased)
        (self._dirty if is_leased else self._urgent).add(limit)
