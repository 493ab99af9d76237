"""What is asked of limits for one request, and what they answer."""

from __future__ import annotations

import asyncio
from typing import Literal, NamedTuple, get_args

import msgspec

from serving.gateway.records import LimitRecord
from serving.policy.allowance import Hold

Phase = Literal["arbiter", "alone", "reporting", "unknown"]
"""``arbiter``: the state decides, or has leased. ``alone``: it does not answer, and the gateway gives out its shares.
``reporting``: it was away or began anew, and grants nothing until all have told what they hold. ``unknown``: it has not
answered yet, and how many gateways there are was not told."""
PHASES: tuple[Phase, ...] = get_args(Phase)


class Standing(NamedTuple):
    """``gateways`` that share the limits, as last known; 0: not known. Seconds alone so far, and how many are left."""

    phase: Phase
    gateways: int
    alone_s: float | None
    alone_left_s: float | None


class Demand(msgspec.Struct, frozen=True):
    """``amount`` in the limit's unit: tokens, or 1 for requests and concurrency."""

    limit: LimitRecord
    amount: float = 1.0


class Granted(msgspec.Struct, eq=False):
    """What was admitted; give it to ``Grants.settle`` exactly when the request ends, whatever its end."""

    demands: tuple[Demand, ...]
    settled: bool = False
    charged_at_ms: float = 0.0
    """On the state's clock, never later than the charge."""
    alone_at_ms: float = 0.0
    """On this process's monotonic clock, when it was admitted without the state; else 0."""
    hold: Hold | None = None
    """What is held of a reservation's allowance until the end."""


class Refused(msgspec.Struct, frozen=True):
    """``limit`` stands in the way; ``remaining`` is in its unit; try again after ``retry_after_s``, as promised."""

    limit: LimitRecord
    retry_after_s: float
    remaining: float


class Ask:
    """A request that waits for the state's word on some of its demands; the rest is taken from leases already.

    ``who`` is promised a time where it is refused; nobody, where it is empty.
    """

    __slots__ = ("answer", "demands", "give_up_at", "in_line_until", "is_last", "local", "name", "remote", "who")

    def __init__(
        self, demands: tuple[Demand, ...], local: list[Demand], remote: list[Demand], who: str = "", *, name: str = ""
    ) -> None:
        self.demands, self.local, self.remote, self.who, self.name = demands, local, remote, who, name
        self.answer: asyncio.Future[Granted | Refused] = asyncio.get_running_loop().create_future()
        self.give_up_at = 0.0
        self.in_line_until = 0.0
        """Until when it may wait for a seat that it was promised."""
        self.is_last = False
        """Whether it is not asked again when others' leases stand in the way."""
