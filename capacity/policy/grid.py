"""What to measure: the shapes of the cost grid, the mix of requests for the knee, and how long it all takes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from worker.spec import CalibrationOrder, Shape, saturating_slots

GridSize = Literal["small", "medium", "thorough"]

BLOCK_TOKENS = 128
"""A cached prefix ends at a block of the engine's cache; every known engine's block divides this."""
SHORTEST_INPUT = 16
LONGEST_INPUT_SHARE = 0.85
"""Of the context: the rest is for the output."""
LEAST_CONTEXT = 64
PILOT_SHARE = 0.5
"""Of a batch: what finding its size takes, once for each shape."""
LEAST_ROUNDS = 6
"""A batch fills the engine at least so often, however long its requests are."""
WARM_UP_BATCHES = 1
SETTLE_SHARE = 0.25
"""Of a window: load that is offered before the window opens."""
USUAL_LEVELS = 8


@dataclass(frozen=True, slots=True)
class _Plan:
    """``inputs`` lengths, ``outputs`` lengths, and how many of the longest inputs are measured with cached prefixes."""

    inputs: int
    outputs: tuple[int, ...]
    cached: int
    repeats: int


PLANS: dict[GridSize, _Plan] = {
    "small": _Plan(inputs=4, outputs=(1, 64), cached=2, repeats=2),
    "medium": _Plan(inputs=5, outputs=(1, 32, 256), cached=3, repeats=3),
    "thorough": _Plan(inputs=7, outputs=(1, 16, 64, 256), cached=4, repeats=5),
}


def cost_grid(
    context_tokens: int, *, size: GridSize = "medium", block_tokens: int = BLOCK_TOKENS, prefix_caching: bool = True
) -> tuple[Shape, ...]:
    """Return the shapes to measure for an engine that holds ``context_tokens`` per sequence.

    Inputs grow geometrically up to most of the context, crossed with the outputs, so that every term of the price
    shows: long inputs for ε, long outputs at short and at long inputs for β and γ, cached prefixes of whole blocks for
    the cached factor. In the order in which they are measured: short ones first. Raises ValueError for a context below
    ``LEAST_CONTEXT`` tokens or a block that is not positive.
    """
    if context_tokens < LEAST_CONTEXT:
        raise ValueError(f"a context of {context_tokens} tokens is too short to calibrate: {LEAST_CONTEXT} are needed")
    if block_tokens < 1:
        raise ValueError(f"a block holds at least 1 token, got {block_tokens}")
    plan = PLANS[size]
    longest = int(context_tokens * LONGEST_INPUT_SHARE)
    inputs = _geometric(min(SHORTEST_INPUT, longest // 2), longest, plan.inputs)
    outputs = sorted({min(each, context_tokens - longest) for each in plan.outputs})
    shapes = [Shape(input_tokens=each, output_tokens=output) for each in inputs for output in outputs]
    if prefix_caching:
        for each in inputs[-plan.cached :]:
            shapes += [
                Shape(input_tokens=each, cached_tokens=cached, output_tokens=1)
                for cached in _cached_lengths(each, block_tokens)
            ]
    return tuple(dict.fromkeys(shapes))


def request_mix(
    context_tokens: int, *, block_tokens: int = BLOCK_TOKENS, prefix_caching: bool = True
) -> tuple[Shape, ...]:
    """Return the requests to offer while the knee is looked for, in equal parts.

    Like mixed chat traffic: mostly short questions with answers of some length, a longer document now and then, and
    half of the conversations' history in the prefix cache. Raises ValueError as ``cost_grid``.
    """
    if context_tokens < LEAST_CONTEXT:
        raise ValueError(f"a context of {context_tokens} tokens is too short to calibrate: {LEAST_CONTEXT} are needed")
    document = min(4096, context_tokens // 2)
    chat = min(512, context_tokens // 4)
    question = min(128, context_tokens // 8)
    answer = min(128, context_tokens // 8)
    cached = chat // 2 // block_tokens * block_tokens if prefix_caching else 0
    return (
        Shape(input_tokens=question, output_tokens=answer),
        Shape(input_tokens=question, output_tokens=max(1, answer // 4)),
        Shape(input_tokens=chat, cached_tokens=cached, output_tokens=answer),
        Shape(input_tokens=chat, output_tokens=max(1, answer // 2)),
        Shape(input_tokens=document, output_tokens=max(1, answer // 2)),
    )


def default_repeats(size: GridSize) -> int:
    """Return how often each shape of a grid is measured."""
    return PLANS[size].repeats


def estimated_s(order: CalibrationOrder, *, request_ms: Callable[[Shape], float] | None = None) -> float:
    """Return about how many seconds an order takes.

    ``request_ms`` estimates the engine milliseconds of a request where a profile is known: a batch holds at least as
    many requests as the engine runs at once, and so takes longer than ``batch_s`` when these are long.
    """
    grid = WARM_UP_BATCHES * order.batch_s
    for shape in order.shapes:
        slots = saturating_slots(shape, slots=order.max_concurrency)
        round_s = request_ms(shape) * slots / 1000.0 if request_ms is not None else 0.0
        grid += (order.repeats + PILOT_SHARE) * max(order.batch_s, LEAST_ROUNDS * round_s)
    if not order.mix:
        return grid
    levels = min(order.max_levels, USUAL_LEVELS)
    return grid + (1 + PILOT_SHARE) * order.batch_s + levels * order.window_s * (1.0 + 2 * SETTLE_SHARE)


def _geometric(shortest: int, longest: int, count: int) -> list[int]:
    factor = (longest / shortest) ** (1.0 / (count - 1))
    return sorted({round(shortest * factor**step) for step in range(count)})


def _cached_lengths(input_tokens: int, block_tokens: int) -> list[int]:
    """Half of the input and nearly all of it, in whole blocks; at least one token is always computed."""
    blocks = (input_tokens - 1) // block_tokens
    return sorted({each * block_tokens for each in (blocks // 2, blocks) if each})
