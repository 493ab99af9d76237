"""What an API key or an access token may hand on to another: never more than it may do itself."""

from __future__ import annotations

import datetime
from collections.abc import Collection
from typing import NamedTuple


class Reach(NamedTuple):
    """What a key may do, where from, with which models, and until when. An empty collection means no restriction."""

    scopes: Collection[str]
    models_allowed: Collection[str] = ()
    allowed_ips: Collection[str] = ()
    expires_at: datetime.datetime | None = None


def beyond(own: Reach, other: Reach) -> dict[str, str]:
    """By field, how ``other`` reaches further than ``own``, in words; empty when it does not."""
    found: dict[str, str] = {}
    if not set(other.scopes) <= set(own.scopes):
        found["scopes"] = f"A key hands on its own scopes alone: {', '.join(own.scopes)}."
    for field in ("models_allowed", "allowed_ips"):
        mine, theirs = set(getattr(own, field)), set(getattr(other, field))
        if mine and (not theirs or not theirs <= mine):
            found[field] = f"The key that asks is restricted itself: name some of {', '.join(sorted(mine))}."
    if longer := outlives(own.expires_at, other.expires_at, who="key"):
        found["expires_at"] = longer
    return found


def outlives(own: datetime.datetime | None, other: datetime.datetime | None, *, who: str) -> str | None:
    """In words, that what ends at ``other`` outlives the ``who`` that asks and ends at ``own``; None where it does not.

    None as a moment: never.
    """
    if own is None or (other is not None and other <= own):
        return None
    return f"The {who} that asks ends at {own.isoformat(timespec='seconds')}: end by then."
