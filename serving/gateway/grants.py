"""Plain limits over many gateways, exact in sum (``docs/protocols.md``, *Grants*)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import msgspec

from serving.gateway.records import LimitRecord
from serving.gateway.state import State


class Demand(msgspec.Struct, frozen=True):
    """``amount`` in the limit's unit: tokens, or 1 for requests and concurrency."""

    limit: LimitRecord
    amount: float = 1.0


class Granted(msgspec.Struct, eq=False):
    """What was admitted; give it to ``Grants.settle`` exactly when the request ends, whatever its end."""

    demands: tuple[Demand, ...]
    settled: bool = False


class Refused(msgspec.Struct, frozen=True):
    """``limit`` stands in the way; ``remaining`` is in its unit; try again after ``retry_after_s``."""

    limit: LimitRecord
    retry_after_s: float
    remaining: float


class Grants:
    mode: Literal["shared", "alone"]

    def __init__(self, state: State, gateway_id: str, *, alone_max_s: float = 600.0) -> None:
        raise NotImplementedError

    async def start(self) -> None:
        """Begin the exchange with the state."""

    async def stop(self) -> None:
        """Give back slices and everything held."""

    async def acquire(self, demands: Sequence[Demand]) -> Granted | Refused:
        """All or nothing. Cancellation gives everything back."""
        raise NotImplementedError

    def settle(self, granted: Granted, actual: Mapping[str, float]) -> None:
        """End of the request: ``actual`` amounts by limit id (absent: as estimated). Idempotent, never awaits."""
        raise NotImplementedError
