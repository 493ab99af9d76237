"""The search for the knee: which load is offered next. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence

from worker.spec import LevelPoint, knee_bracket

FIRST_SHARE = 0.6
"""Of saturation: about where most engines have their knee."""
GROWTH = 1.25
HIGHEST_SHARE = 1.6
"""Of saturation: an engine that keeps its objectives with this load keeps them with any."""
LOWEST_SHARE = 0.02
CLOSE = 1.08
"""The knee is known well enough between rates this close; what is left is interpolated."""


def next_rate(
    levels: Sequence[LevelPoint], *, saturation_per_s: float, attained_share: float, max_levels: int
) -> float | None:
    """Return the rate to offer next, in requests per second; None when the knee is known or cannot be found.

    Grows from ``FIRST_SHARE`` of saturation until the objectives break (shrinks, if they break at once), then halves
    the ratio between the last kept and the first broken level. What breaks below saturation is offered once more: a
    hiccup of the host must not pass for the knee.
    """
    if len(levels) >= max_levels or saturation_per_s <= 0:
        return None
    if not levels:
        return FIRST_SHARE * saturation_per_s
    kept, broken = knee_bracket(levels, attained_share)
    if broken is None:
        rate = max(each.rate_per_s for each in levels) * GROWTH
        return rate if rate <= HIGHEST_SHARE * saturation_per_s else None
    if broken.rate_per_s < saturation_per_s and sum(each.rate_per_s == broken.rate_per_s for each in levels) < 2:
        return broken.rate_per_s
    if kept is None:
        rate = broken.rate_per_s / GROWTH**2
        return rate if rate >= LOWEST_SHARE * saturation_per_s else None
    if broken.rate_per_s / kept.rate_per_s <= CLOSE:
        return None
    return math.sqrt(kept.rate_per_s * broken.rate_per_s)
