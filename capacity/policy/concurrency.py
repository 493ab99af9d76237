"""Whether a replica's target concurrency, rather than its hardware, is what limits its supply, and what to raise it to.

The levels of a calibration tell how long a token takes with so many requests side by side, and by Little's law a
replica completes ``n / service(n)`` of them per second. Where a token's time grows in proportion to ``n`` the hardware
is used up, and more places only make each request slower; where it grows more slowly, as where a step reads the weights
once for all requests that are in it, more places are more supply. What reading the prompts takes is shared by nobody:
it is the ceiling. Waiting for a place, which more places would end, is left out.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from capacity.policy.cost import CostProfile, request_cost
from worker.spec import LevelPoint, Shape, knee_bracket

PEAK_SIGMAS = 1.645
"""Requests come as they like: so many standard deviations above their mean number hold them 95 times in 100."""
LEAST_GAIN = 0.1
"""Twice the places are worth asking for where they raise the supply by this share at least."""
MOST_TIMES = 4
"""Nothing is foretold further than this: the next calibration measures there, and looks on from it."""
LEAST_SPREAD = 1.25
"""The levels with most and fewest requests side by side differ by this factor at least, or they tell no trend."""
MOST_COUNT = 1e6
"""No replica has more requests side by side: an agent that tells so is wrong."""
TPOT_SHARE = 0.9
"""Of the objective: what is foretold of a token's time stays below."""


@dataclass(frozen=True, slots=True)
class Trend:
    """How a replica gets on with n requests side by side: ``first_s`` to the first token where none waits for a place,
    then ``tokens`` of which each takes ``tpot_ms`` + ``tpot_each_ms`` · n in the median, and ``slow_ms`` +
    ``slow_each_ms`` · n in the 95th percentile. ``most_per_s``: requests/s that reading the prompts allows."""

    first_s: float
    tokens: float
    tpot_ms: float
    tpot_each_ms: float
    slow_ms: float
    slow_each_ms: float
    most_per_s: float

    def rate_per_s(self, count: float) -> float:
        """Requests completed per second with ``count`` side by side."""
        service = self.first_s + self.tokens * (self.tpot_ms + self.tpot_each_ms * count) / 1000.0
        return min(self.most_per_s, count / service) if service > 0 else self.most_per_s

    def slow_token_ms(self, count: float) -> float:
        """The 95th percentile of a token's time with ``count`` requests side by side."""
        return self.slow_ms + self.slow_each_ms * count


@dataclass(frozen=True, slots=True)
class SupplyLimit:
    """What limits the supply of a replica other than its hardware's speed.

    ``by``: its ``target_concurrency``, or the memory for the tokens that requests hold (``kv_requests`` of them; 0: not
    told). ``recommended``: the target concurrency to calibrate with next, None where none helps; ``factor`` is what the
    supply is then expected to be of what was measured. ``estimate``: (requests side by side, requests/s) from the knee
    on to what is recommended. ``text`` says all of it to people.
    """

    by: Literal["concurrency", "memory"]
    target_concurrency: int
    recommended: int | None
    factor: float
    kv_requests: int
    estimate: tuple[tuple[float, float], ...]
    text: str


def residence_s(level: LevelPoint) -> float:
    """Return how long a request of a level stays in the replica, in seconds, by its medians."""
    return level.ttft_ms.get("p50", 0.0) / 1000.0 + _answer_s(level)


def _answer_s(level: LevelPoint) -> float:
    outputs = level.output_tokens / level.completed if level.completed else 1.0
    return level.tpot_ms.get("p50", 0.0) * max(0.0, outputs - 1.0) / 1000.0


def served_per_s(level: LevelPoint) -> float:
    """Return the requests/s that were completed of a level, never more than were offered."""
    return min(level.rate_per_s, level.completed / level.seconds) if level.seconds > 0 else 0.0


def side_by_side(levels: Sequence[LevelPoint]) -> list[float]:
    """Return how many requests were served at the same time at each level, on average, by Little's law. The least
    median time to a first token stands for all: what is beyond it is waiting for a place."""
    first_s = _first_s(levels)
    return [served_per_s(level) * (first_s + _answer_s(level)) for level in levels]


def _first_s(levels: Sequence[LevelPoint]) -> float:
    return min((level.ttft_ms["p50"] for level in levels if "p50" in level.ttft_ms), default=0.0) / 1000.0


def with_peaks(mean: float) -> int:
    """Return the places that hold ``mean`` requests on average 95 times in 100."""
    return math.ceil(mean + PEAK_SIGMAS * math.sqrt(mean))


def supply_limit(
    levels: Sequence[LevelPoint],
    *,
    mix: Sequence[Shape],
    times: CostProfile,
    attained_share: float,
    max_concurrency: int,
    tpot_objective_ms: float,
    kv_tokens: int | None = None,
) -> SupplyLimit | None:
    """Return what limits a replica that had ``max_concurrency`` places; None where it is its speed, or nobody can tell.

    Told only where the places were taken at the knee, the levels that kept the objectives show a trend, and twice the
    places raise the supply by ``LEAST_GAIN`` at least with a token's time inside its objective. ``times`` is a fit's
    profile in engine milliseconds, ``kv_tokens`` what the engine's cache holds, where it told.
    """
    kept, _ = knee_bracket(levels, attained_share)
    if kept is None or tpot_objective_ms <= 0 or not mix or max_concurrency < 2:
        # With one place nobody has seen requests beside each other.
        return None
    below = [each for each in levels if each.rate_per_s <= kept.rate_per_s and each.attained >= attained_share]
    trend = trend_of(below, mix=mix, times=times)
    if trend is None or with_peaks(kept.rate_per_s * residence_s(kept)) < max_concurrency:
        return None
    count, target = max(side_by_side(below)), max_concurrency
    while target < MOST_TIMES * max_concurrency:
        here, beyond = (count * part / max_concurrency for part in (target, 2 * target))
        is_slow = trend.slow_token_ms(beyond) > TPOT_SHARE * tpot_objective_ms
        if is_slow or trend.rate_per_s(beyond) < (1.0 + LEAST_GAIN) * trend.rate_per_s(here):
            break
        target *= 2
    if target == max_concurrency:
        return None
    held = kv_requests(mix, kv_tokens)
    recommended, estimate = None, tuple[tuple[float, float], ...]()
    if 0 < held < target:
        target = max(held, max_concurrency)
    factor = trend.rate_per_s(count * target / max_concurrency) / trend.rate_per_s(count)
    if factor < 1.0 + LEAST_GAIN:
        # Only the memory can have brought the target down so far.
        factor = 1.0
    else:
        recommended, estimate = target, _estimate(trend, count, count * target / max_concurrency)
    return SupplyLimit(
        by="memory" if recommended is None else "concurrency",
        target_concurrency=max_concurrency,
        recommended=recommended,
        factor=factor,
        kv_requests=held,
        estimate=estimate,
        text=_words(max_concurrency, recommended, factor, kept.tpot_ms.get("p95", 0.0), tpot_objective_ms, held),
    )


def trend_of(levels: Sequence[LevelPoint], *, mix: Sequence[Shape], times: CostProfile) -> Trend | None:
    """Return how levels that the replica kept up with depend on the requests side by side; None where they are too
    few, too close or tell nothing of tokens after the first."""
    told = [each for each in levels if served_per_s(each) > 0.0 and each.tpot_ms.get("p95", 0.0) > 0.0]
    # Who comes at random finds the others there, and itself.
    seen = [1.0 + count for count in side_by_side(told)]
    if len(told) < 2 or not max(seen) < MOST_COUNT or max(seen) < LEAST_SPREAD * min(seen):
        return None
    tpot, tpot_each = _line(seen, [level.tpot_ms["p50"] for level in told])
    slow, slow_each = _line(seen, [level.tpot_ms["p95"] for level in told])
    prompt_ms = sum(
        request_cost(times, input_tokens=shape.input_tokens, cached_tokens=shape.cached_tokens, output_tokens=0)
        for shape in mix
    ) / len(mix)
    return Trend(
        first_s=_first_s(told),
        tokens=sum(level.output_tokens for level in told) / sum(level.completed for level in told) - 1.0,
        tpot_ms=tpot,
        tpot_each_ms=tpot_each,
        slow_ms=slow,
        slow_each_ms=slow_each,
        most_per_s=1000.0 / prompt_ms if prompt_ms > 0 else math.inf,
    )


def kv_requests(mix: Sequence[Shape], kv_tokens: int | None) -> int:
    """Return how many requests of the mix a cache of ``kv_tokens`` holds side by side, at least 1; 0: not told."""
    if not kv_tokens:
        return 0
    tokens = sum(shape.input_tokens + shape.output_tokens for shape in mix) / len(mix)
    return max(1, int(kv_tokens / tokens))


def _line(xs: Sequence[float], ys: Sequence[float]) -> tuple[float, float]:
    """Height at 0 and slope of the least-squares line through points of different ``xs``; neither is negative."""
    x, y = sum(xs) / len(xs), sum(ys) / len(ys)
    slope = sum((a - x) * (b - y) for a, b in zip(xs, ys, strict=True)) / sum((a - x) ** 2 for a in xs)
    slope = max(0.0, slope)
    if y < slope * x:
        # Through the origin: what grows in proportion has no fixed part.
        return 0.0, sum(a * b for a, b in zip(xs, ys, strict=True)) / sum(a * a for a in xs)
    return y - slope * x, slope


def _estimate(trend: Trend, first: float, last: float, steps: int = 8) -> tuple[tuple[float, float], ...]:
    counts = [first + (last - first) * step / steps for step in range(steps + 1)]
    return tuple((count, trend.rate_per_s(count)) for count in counts)


def _words(places: int, recommended: int | None, factor: float, token_ms: float, objective_ms: float, held: int) -> str:
    taken = (
        f"all {places} places were taken at the knee, where a token took {token_ms:.0f} of the {objective_ms:.0f} ms "
        "allowed."
    )
    memory = f"The engine's cache holds about {held} such requests" if held else ""
    if recommended is None:
        return (
            f"Supply is limited by memory, not by the speed of the hardware: {taken} {memory}, so more places would "
            "not help; an accelerator with more memory, or smaller weights, would."
        )
    found = (
        f"Supply is limited by the target concurrency, not by the hardware: {taken} Raise it to {recommended} and "
        f"calibrate again: about {factor:.2g} times the supply is expected, by how long requests stayed at each load."
    )
    return f"{found} {memory}." if memory else found
