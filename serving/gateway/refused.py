"""Why requests were refused: counted by minute and reason, and, where that was before they were admitted or because
there was no room, kept in the state for a while, so that each can be asked why.

Those that were not admitted are in no books: nothing was used. A flood of refusals keeps its newest ones, and displaces
its own tenant's alone.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Mapping
from contextlib import suppress
from itertools import islice

from redis.exceptions import ResponseError

from capacity.usage.lines import (
    REFUSAL_COUNTS_S,
    REFUSALS_KEPT,
    REFUSALS_KEPT_S,
    Refusal,
    RefusalField,
    refusal_counts_key,
    refusals_key,
)
from serving.gateway.access import Access
from serving.gateway.auth import Principal
from serving.gateway.dialects import Dialect, Parsed
from serving.gateway.errors import ApiError, LimitReached
from serving.gateway.records import encode
from serving.gateway.refusals import NoRoom
from serving.gateway.request import Request
from serving.gateway.state import State, StateUnavailable
from serving.gateway.usage import expected_usage
from serving.policy.admission import Estimate

logger = logging.getLogger(__name__)

_PERIOD_S = 0.5
_MOST_TENANTS = 1000
"""Of more in one period nothing is kept: it is for people who look at single requests."""
_MOST_COUNTS = 20_000
"""Of more kinds of refusals in one period, or while the state is away, none is counted that is new."""
_COUNTS_AT_ONCE, _BETWEEN_S = 200, 0.01

Counted = tuple[int, RefusalField]
"""The minute since 1970, and what was refused in it."""


def refusal_of(
    request: Request, dialect: Dialect, parsed: Parsed, access: Access, estimate: Estimate | None, error: ApiError
) -> Refusal:
    """What the receipt of a request says that is refused with ``error``."""
    told = Refusal(
        id=request.id,
        at=time.time(),
        tenant=access.principal.tenant.id,
        key=access.principal.key.uuid,
        pool=access.pool.id,
        deployment=access.deployment.id,
        model=parsed.model,
        dialect=dialect.name,
        status=error.status,
        reason=error.reason,
        message=error.message,
        client_request_id=request.client_id,
        stream=parsed.is_stream,
        profile_version=access.profile.version,
    )
    if isinstance(error, LimitReached):
        told.retry_after_s, told.charges = error.retry_after_s, error.obstacles
    elif isinstance(error, NoRoom):
        told.retry_after_s, told.was_admitted = error.retry_after_s, True
    if estimate is not None:
        told.estimated_mu, told.estimated = estimate.mu, expected_usage(estimate)
    return told


class RefusalNotes:
    def __init__(self, state: State) -> None:
        self._state = state
        self._new: dict[str, deque[Refusal]] = {}
        self._counts: dict[Counted, int] = {}
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        self._task = asyncio.get_running_loop().create_task(self._tell_on())

    async def stop(self) -> None:
        """Tell what is left, if the state answers."""
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task
        with suppress(StateUnavailable, ResponseError):
            await self._tell()

    def note(self, refusal: Refusal) -> None:
        """Remember it. Never awaits."""
        newest = self._new.get(refusal.tenant)
        if newest is None:
            if len(self._new) >= _MOST_TENANTS:
                return
            newest = self._new[refusal.tenant] = deque(maxlen=REFUSALS_KEPT)
        newest.append(refusal)

    def count(self, principal: Principal, pool: str, *, reason: str, status: int) -> None:
        """One request of ``principal`` was refused; ``pool`` is empty where none is known. Never awaits."""
        field = RefusalField(principal.tenant.id, principal.key.uuid, pool, reason[:40] or "refused", status)
        counted = (int(time.time() // 60), field)
        if counted in self._counts or len(self._counts) < _MOST_COUNTS:
            self._counts[counted] = self._counts.get(counted, 0) + 1

    async def _tell_on(self) -> None:
        while True:
            await asyncio.sleep(_PERIOD_S)
            try:
                await self._tell()
            except (StateUnavailable, ResponseError):
                continue
            except Exception:
                # Whatever it is, what is refused from now on must not wait for a restart.
                logger.exception("refusals could not be told; the next ones are")

    async def _tell(self) -> None:
        told, self._new = self._new, {}
        calls = []
        for tenant, refusals in told.items():
            key = refusals_key(tenant)
            calls += [
                self._state.call("LPUSH", key, *(encode(refusal) for refusal in refusals)),
                self._state.call("LTRIM", key, 0, REFUSALS_KEPT - 1),
                self._state.call("EXPIRE", key, REFUSALS_KEPT_S),
            ]
        # What is lost with the state is not told again.
        await asyncio.gather(*calls, self._tell_counts())

    async def _tell_counts(self) -> None:
        """Add what was counted since. What the state did not take is told with the next: a count whose answer was lost
        may stand twice, which is better than a flood that is not seen.
        """
        left, self._counts = self._counts, {}
        try:
            while left:
                # A few at a time: after the state was away there may be so many that streams would wait for them.
                some = dict(islice(left.items(), _COUNTS_AT_ONCE))
                told = await self._add(some)
                for counted in told:
                    del left[counted]
                if len(told) < len(some):
                    return
                await asyncio.sleep(_BETWEEN_S)
        finally:
            for counted, count in left.items():
                self._counts[counted] = self._counts.get(counted, 0) + count

    async def _add(self, counts: Mapping[Counted, int]) -> list[Counted]:
        """Those that the state has taken."""
        calls = [
            self._state.call("HINCRBY", refusal_counts_key(minute), field.encode(), count)
            for (minute, field), count in counts.items()
        ]
        calls += [
            self._state.call("EXPIRE", refusal_counts_key(minute), REFUSAL_COUNTS_S)
            for minute in {minute for minute, _ in counts}
        ]
        answers = await asyncio.gather(*calls, return_exceptions=True)
        return [
            counted
            for counted, answer in zip(counts, answers, strict=False)
            if not isinstance(answer, (StateUnavailable, ResponseError))
        ]
