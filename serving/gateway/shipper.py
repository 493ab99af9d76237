"""Ships closed requests from journal segments to the ``penstock:usage`` stream, and adopts dead gateways' segments."""

from __future__ import annotations

from collections.abc import Callable

from serving.gateway.journal import Journal
from serving.gateway.records import AdmitLine, Usage
from serving.gateway.state import State

Price = Callable[[AdmitLine, Usage], float]
"""Actual MU of a request by the profile version of its admit line."""


class Shipper:
    def __init__(self, state: State, journal: Journal, *, price: Price) -> None:
        raise NotImplementedError

    async def start(self) -> None: ...

    async def stop(self) -> None:
        """Ship what is closed, with a final ``closed`` batch, within 2 s; what remains waits in the file."""
        raise NotImplementedError
