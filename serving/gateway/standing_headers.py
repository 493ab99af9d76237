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
    """A limit that is told of, and the names under which it is. ``reset`` is empty for what does not refill by time."""

    limit: LimitRecord
    remaining: bytes
    reset: bytes


def shown_of(limits: Iterable[LimitRecord]) -> tuple[Shown, ...]:
    """The tightest limit of each kind."""
    tightest: dict[LimitKind, LimitRecord] = {}
    for limit in limits:
        known = tightest.get(limit.kind)
        if known is None or limit.value < known.value:
            tightest[limit.kind] = limit
    return tuple(Shown(limit, *map(str.encode, admission.header_names(limit))) for limit in tightest.values())


def told(book: Book, shown: Iterable[Shown]) -> list[Header]:
    """``x-ratelimit-remaining-*`` and ``-reset-*``: what is left, this request taken, and seconds until all is."""
    headers: list[Header] = []
    for limit, remaining, reset in shown:
        left = book.left(limit)
        if left is None:
            continue
        headers.append((remaining, admission.amount_left(limit, left).encode()))
        if reset:
            headers.append((reset, b"%.3fs" % ((limit.value - left) * limit.window_s / limit.value)))
    return headers


def mu_left(book: Book, limit: LimitRecord) -> list[Header]:
    """``x-penstock-mu-remaining``, of a reservation's bucket or a limit in MU."""
    left = book.left(limit)
    return [] if left is None else [(b"x-penstock-mu-remaining", admission.amount_left(limit, left).encode())]
