"""Load on an engine: closed loops that saturate it, and open loops that arrive whatever it does."""

from __future__ import annotations

import asyncio
import math
import random
import statistics
from collections.abc import Callable, Iterator, Sequence

import msgspec

from worker.calibration.client import EngineClient, Timing, Usage
from worker.spec import LevelPoint, Shape

SETTLE_SHARE = 0.25
"""Of a window: load that is offered before the window opens, so that it sees no empty engine."""
LEAST_REQUESTS = 50
LONGEST_STRETCH = 3.0
"""A window that would see fewer than ``LEAST_REQUESTS`` is made up to so many times as long."""
IN_FLIGHT_PER_SLOT = 16
"""An engine that holds so many requests for each that it runs is beyond all hope: no more are sent."""
SHORTEST_GRACE_S = 5.0


def least_rounds(slots: int) -> int:
    """Rounds of an engine's slots that a batch holds at least: one to fill them, one to empty them, the others to
    measure; more where a round is only a few requests."""
    return 4 if slots >= 16 else 6


class Batch(msgspec.Struct, frozen=True):
    """A closed loop that has ended. Tokens are means per request; ``cached`` None: the engine does not tell.

    ``ends``: when each request ended, in seconds from the start, in order.
    """

    count: int
    elapsed_s: float
    ends: tuple[float, ...]
    input: float
    output: float
    cached: float | None


MakePrompt = Callable[[Shape], str]


async def run_batch(
    client: EngineClient, shapes: Sequence[Shape], make_prompt: MakePrompt, *, count: int, in_flight: int
) -> Batch:
    """Have ``count`` requests of ``shapes`` in turn answered, ``in_flight`` at a time. Raises MeasureError."""
    loop = asyncio.get_running_loop()
    turns = iter(range(count))
    used: list[Usage] = []
    ends: list[float] = []

    async def work() -> None:
        for turn in turns:
            shape = shapes[turn % len(shapes)]
            used.append(await client.complete(make_prompt(shape), shape.output_tokens))
            ends.append(loop.time() - started)

    started = loop.time()
    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(min(in_flight, count)):
                group.create_task(work())
    except ExceptionGroup as errors:
        raise errors.exceptions[0] from None
    elapsed = loop.time() - started
    cached = [each.cached for each in used if each.cached is not None]
    return Batch(
        count=count,
        elapsed_s=elapsed,
        ends=tuple(ends),
        input=sum(each.input for each in used) / count,
        output=sum(each.output for each in used) / count,
        cached=sum(cached) / len(cached) if cached else None,
    )


def steady_s(ends: Sequence[float], slots: int) -> float | None:
    """Return the engine seconds that each request takes of a saturated engine; None where ``ends`` do not tell.

    Without the ramps: the first ``slots`` ends, while the engine fills, and the last ``slots``, when nothing is left to
    take a freed slot. What is left is compared with itself whole rounds of ``slots`` later: requests that run side by
    side end in a pattern, and it repeats with each round. The median over such pairs: what delays some of the answers
    on their way does nothing to it. Where it is less than half of what each took over all, the answers came in bursts:
    the engine ran dry in between, or whoever took the times did not run.
    """
    steady = ends[slots : len(ends) - slots]
    rounds = len(steady) // slots
    if rounds < 2:
        return None
    slopes = [
        (steady[number + apart] - steady[number]) / apart
        for apart in range(max(1, rounds // 2) * slots, len(steady), slots)
        for number in range(len(steady) - apart)
    ]
    found = statistics.median(slopes)
    over_all = (steady[-1] - steady[0]) / (len(steady) - 1)
    return found if found > 0 and found >= over_all / 2 else None


class LevelPlan(msgspec.Struct, frozen=True):
    """When requests arrive, in seconds from the start, and the window in which they are judged."""

    due: tuple[float, ...]
    opens_s: float
    closes_s: float


def plan_level(rate_per_s: float, window_s: float, rng: random.Random) -> LevelPlan:
    """Return random arrivals, exactly as many as the rate says: a short window must not offer another rate by luck."""
    wanted = LEAST_REQUESTS / rate_per_s
    window = min(max(window_s, wanted), LONGEST_STRETCH * window_s)
    opens = SETTLE_SHARE * window
    before = [rng.uniform(0.0, opens) for _ in range(round(rate_per_s * opens))]
    within = [rng.uniform(opens, opens + window) for _ in range(max(1, round(rate_per_s * window)))]
    return LevelPlan(tuple(sorted([*before, *within])), opens, opens + window)


class _Sent(msgspec.Struct):
    """One request of a level, in seconds of the loop's clock; ``timing`` None: it has not ended."""

    shape: Shape
    due_at: float
    timing: Timing | None = None
    ended_at: float = math.inf


async def run_level(
    client: EngineClient,
    plan: LevelPlan,
    mix: Sequence[Shape],
    make_prompt: MakePrompt,
    *,
    rate_per_s: float,
    slots: int,
    ttft_objective_ms: float,
    tpot_objective_ms: float,
    rng: random.Random,
) -> LevelPoint:
    """Offer the mix in open loop, and judge what was due in the window.

    ``slots``: requests that the engine runs at once. What has not ended some time after the window has missed its
    objectives, as has what was never sent because the engine held too many already.
    """
    loop = asyncio.get_running_loop()
    sent: list[_Sent] = []
    tasks: set[asyncio.Task[None]] = set()
    started = loop.time() + 0.05

    async def send(one: _Sent) -> None:
        one.timing = await client.stream(make_prompt(one.shape), one.shape.output_tokens)
        one.ended_at = loop.time()

    shapes = _shuffled(mix, rng)
    try:
        for due in plan.due:
            one = _Sent(shape=next(shapes), due_at=started + due)
            sent.append(one)
            await asyncio.sleep(max(0.0, one.due_at - loop.time()))
            if len(tasks) < IN_FLIGHT_PER_SLOT * slots:
                task = loop.create_task(send(one))
                tasks.add(task)
                task.add_done_callback(tasks.discard)
        await asyncio.sleep(max(0.0, started + plan.closes_s - loop.time()))
        if tasks:
            grace = max(SHORTEST_GRACE_S, plan.closes_s - plan.opens_s)
            await asyncio.wait(tuple(tasks), timeout=grace)
    finally:
        left = tuple(tasks)
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)
    opens, closes = started + plan.opens_s, started + plan.closes_s
    return _judge(
        sent,
        opens,
        closes,
        rate_per_s=rate_per_s,
        ttft_objective_ms=ttft_objective_ms,
        tpot_objective_ms=tpot_objective_ms,
    )


def _shuffled(mix: Sequence[Shape], rng: random.Random) -> Iterator[Shape]:
    """The shapes of the mix for ever, in equal parts, in no order."""
    while True:
        yield from rng.sample(tuple(mix), len(mix))


def _judge(
    sent: Sequence[_Sent],
    opens: float,
    closes: float,
    *,
    rate_per_s: float,
    ttft_objective_ms: float,
    tpot_objective_ms: float,
) -> LevelPoint:
    ttft: list[float] = []
    tpot: list[float] = []
    attained = judged = 0
    for one in sent:
        if not opens <= one.due_at < closes:
            continue
        judged += 1
        timing = one.timing
        if timing is None or timing.usage is None or timing.first_at is None or timing.last_at is None:
            continue
        first_ms = (timing.first_at - one.due_at) * 1000.0
        ttft.append(first_ms)
        each_ms = 0.0
        if timing.usage.output > 1:
            each_ms = (timing.last_at - timing.first_at) * 1000.0 / (timing.usage.output - 1)
            tpot.append(each_ms)
        attained += first_ms <= ttft_objective_ms and each_ms <= tpot_objective_ms
    usages = [
        each.timing.usage
        for each in sent
        if each.timing is not None and each.timing.usage is not None and opens <= each.ended_at < closes
    ]
    return LevelPoint(
        rate_per_s=rate_per_s,
        completed=len(usages),
        seconds=closes - opens,
        input_tokens=sum(each.input for each in usages),
        cached_tokens=sum(each.cached or 0 for each in usages),
        output_tokens=sum(each.output for each in usages),
        ttft_ms=percentiles(ttft),
        tpot_ms=percentiles(tpot),
        attained=attained / judged if judged else 0.0,
        requests=judged,
    )


def percentiles(values: Sequence[float]) -> dict[str, float]:
    """Return ``p50``, ``p95`` and ``p99`` (nearest rank), rounded to microseconds; empty for no values."""
    if not values:
        return {}
    ordered = sorted(values)
    return {f"p{share}": round(ordered[max(0, math.ceil(share / 100 * len(ordered)) - 1)], 3) for share in (50, 95, 99)}
