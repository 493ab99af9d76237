"""Headers that tell a client where it stands with its limits, from what this gateway knows without asking anybody."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple, Protocol

from serving.gateway.errors import Header
from serving.gateway.records import LimitKind, LimitRecord
from serving.policy import admission


class Book(Protocol):
    """``serving.gateway.grants.Grants``, as far as is asked here."""

    def left(self, record: LimitRecord) -> float | None: ...


class Shown(NamedTuple):
    """A limit that is told of, and the names under which it is. ``reset`` is empty for what does not refill by time.

    ``is_fine``: what is left of it is told in thousandths. ``refill_s``: how long one takes to come back.
    """

    limit: LimitRecord
    remaining: bytes
    reset: bytes
    is_fine: bool
    refill_s: float


def shown_of(limits: Iterable[LimitRecord]) -> tuple[Shown, ...]:
    """The tightest limit of each kind."""
    tightest: dict[LimitKind, LimitRecord] = {}
    for limit in limits:
        known = tightest.get(limit.kind)
        if known is None or limit.value < known.value:
            tightest[limit.kind] = limit
    return tuple(_shown(limit) for limit in tightest.values() if limit.value > 0)


def _shown(limit: LimitRecord) -> Shown:
    remaining, reset = admission.header_names(limit)
    refill_s = limit.window_s / limit.value
    return Shown(limit, remaining.encode(), reset.encode(), admission.is_fine(limit), refill_s)


def told(book: Book, shown: Iterable[Shown]) -> list[Header]:
    """``x-ratelimit-remaining-*`` and ``-reset-*``: what is left, this request taken, and seconds until all is."""
    headers: list[Header] = []
    left_of = book.left
    for limit, remaining, reset, is_fine, refill_s in shown:
        left = left_of(limit)
        if left is not None:
            headers.append((remaining, b"%.10g" % (int(left * 1000) / 1000) if is_fine else b"%d" % left))
            if reset:
                headers.append((reset, b"%.3fs" % ((limit.value - left) * refill_s)))
    return headers


def mu_left(book: Book, limit: LimitRecord) -> list[Header]:
    """``x-penstock-mu-remaining``, of a reservation's bucket or a limit in MU."""
    left = book.left(limit)
    return [] if left is None else [(b"x-penstock-mu-remaining", admission.amount_left(limit, left).encode())]
