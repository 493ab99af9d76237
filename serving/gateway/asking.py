"""The exchange of a gateway with the arbiter of plain limits, as ``lua/grants.lua`` reads it."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import msgspec

from serving.gateway.demands import Ask
from serving.gateway.limits import Limit
from serving.gateway.state import EPOCH, GATEWAYS, GRACE_MS, GRACE_UNTIL, LIFETIME_MS, SILENCE_MS, script

GRANTS = script("grants")


class Exchange(NamedTuple):
    keys: list[str]
    body: bytes


def exchange_of(
    gateway: str,
    order: Mapping[Limit, int],
    sent: Sequence[Sequence[Any]],
    asks: Sequence[Ask],
    limits: Mapping[str, Limit],
    now: float,
) -> Exchange:
    """What is told and asked at ``now`` (monotonic seconds): ``sent`` of each limit in ``order``, which numbers them
    from 1, and ``asks`` of ``limits`` by id."""
    request = {
        "g": gateway,
        "e": f"{time.time_ns():x}",
        "life": LIFETIME_MS,
        "grace": GRACE_MS,
        "silence": SILENCE_MS,
        "l": sent,
        "a": [
            [
                ask.who,
                ask.is_last,
                [[order[limits[d.limit.id]], d.amount] for d in ask.remote],
                ask.name,
                now < ask.in_line_until,
            ]
            for ask in asks
        ],
    }
    keys = [EPOCH, GATEWAYS, GRACE_UNTIL, *(limit.key for limit in order)]
    return Exchange(keys, msgspec.msgpack.encode(request))
