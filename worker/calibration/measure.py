"""The course of a measurement: warm-up, the cost of each shape with repeats, the levels up to the knee."""

from __future__ import annotations

import asyncio
import functools
import math
import random
import secrets
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Literal, TypeVar

import aiohttp
import msgspec

from worker.calibration.client import Disturbed, EngineClient, MeasureError
from worker.calibration.cpu import cpu_seconds, spent_seconds
from worker.calibration.load import Batch, MakePrompt, least_rounds, plan_level, run_batch, run_level, steady_s
from worker.calibration.prompts import Prompts
from worker.calibration.record import Record, Size
from worker.calibration.search import next_rate
from worker.runtimes.base import MetricTable
from worker.spec import CostPoint, LevelPoint, Shape, saturating_slots

T = TypeVar("T")

REQUEST_LIMIT_S = 600.0
KEEP_ALIVE_S = 2.0
"""Less than engines keep an idle connection (vLLM: 5 s): theirs must not be the first end to close it."""
MOST_REQUESTS = 4096
"""Of a batch, however short they are."""
QUEUED_S = 0.5
"""Work that waits in a saturated engine: so long this agent may be kept from running before the engine runs dry."""
MOST_QUEUED = 256
PILOT_SHARE = 1 / 5
"""Of a batch's length: a pilot that took so long tells how many requests a batch needs."""
BUSY_CPU_SHARE = 0.5
"""Cores that a saturated engine's processes use, at least, where it computes in them."""
CPU_ROUNDS = 2
"""Rounds of the engine's slots in a batch whose CPU time is taken: nothing is cut off at its ends."""
IDLE_S = 2.0
IDLE_PAUSE_S = 0.2
MOST_DISTURBED = 5
FOREIGN_SHARE = 0.02
FOREIGN_TOKENS = 4.0
"""Tokens that others may have made meanwhile (health probes), beside a share of our own."""
COUNTERS_SETTLE_S = 2.0


class Engine(msgspec.Struct, frozen=True):
    """What is measured. ``method`` empty: found out by what the engine burns. ``slots``: requests it runs at once.
    ``pids`` gives its living processes."""

    base: str
    model: str
    method: Literal["", "engine_cpu", "saturated"]
    slots: int
    pids: Callable[[], Sequence[int]]
    metrics_path: str
    metric_table: MetricTable
    kv_tokens: int | None = None
    max_model_len: int | None = None


class Measurement:
    """Carries a record to its end. ``changed`` is called after each step, with the record as it is to be kept."""

    def __init__(self, record: Record, engine: Engine, changed: Callable[[Record], None]) -> None:
        self.record, self._engine, self._changed = record, engine, changed
        self._rng = random.Random()  # noqa: S311  (words and arrivals, nothing secret)
        self._client: EngineClient
        self._prompts: Prompts
        self._idle_share = 0.0

    async def run(self) -> None:
        """Measure what the record lacks. Raises MeasureError."""
        self._check_lengths()
        connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=KEEP_ALIVE_S)
        async with aiohttp.ClientSession(connector=connector, trust_env=False) as session:
            self._client = EngineClient(
                session,
                base=self._engine.base,
                model=self._engine.model,
                salt=secrets.token_hex(8),
                metrics_path=self._engine.metrics_path,
                metric_table=self._engine.metric_table,
                request_limit_s=REQUEST_LIMIT_S,
            )
            await self._warm_up()
            await self._measure_costs()
            if self.record.order.mix:
                await self._find_knee()
        self._say("done", step="done")

    def _check_lengths(self) -> None:
        order, most = self.record.order, self._engine.max_model_len
        if not order.shapes:
            raise MeasureError("The order names no shapes to measure.")
        for shape in (*order.shapes, *order.mix):
            if most is not None and shape.input_tokens + shape.output_tokens > most:
                raise MeasureError(
                    f"A shape of {_words(shape)} tokens does not fit the engine's context of {most}: use shorter ones."
                )

    # ------------------------------------------------------------------ warm-up
    async def _warm_up(self) -> None:
        self._say("measuring", step="warm up")
        await self._wait_until_idle()
        self._prompts = await self._client.prompts(self._rng)
        order = self.record.order
        shapes = (*order.shapes, *order.mix)
        slots = min(self._slots(shape) for shape in shapes)
        before = cpu_seconds(self._engine.pids())
        batch = await run_batch(self._client, shapes, self._unique, count=max(len(shapes), slots), in_flight=2 * slots)
        spent = spent_seconds(before, cpu_seconds(before)) or 0.0
        if not self.record.method:
            is_busy = spent >= BUSY_CPU_SHARE * batch.elapsed_s
            self.record.method = self._engine.method or ("engine_cpu" if is_busy else "saturated")
        if self.record.method == "engine_cpu":
            await self._wait_until_idle()
            idle = cpu_seconds(self._engine.pids())
            await asyncio.sleep(IDLE_S)
            self._idle_share = (spent_seconds(idle, cpu_seconds(idle)) or 0.0) / IDLE_S

    # ------------------------------------------------------------------ the cost grid
    async def _measure_costs(self) -> None:
        """All shapes once, then all again: what changes slowly on the host meets every shape alike."""
        order = self.record.order
        for repeat in range(order.repeats):
            for index, shape in enumerate(order.shapes):
                known = self.record.points.get(index)
                if (known is not None and len(known.engine_ms) > repeat) or self.record.is_untold(index):
                    continue
                where = f"shape {index + 1} of {len(order.shapes)}: {_words(shape)}"
                self._say("measuring", step="measure costs", detail=f"repeat {repeat + 1} of {order.repeats}, {where}")
                if index not in self.record.sizes:
                    self.record.sizes[index] = await self._undisturbed(functools.partial(self._size_of_shape, shape))
                point = await self._undisturbed(functools.partial(self._measure_shape, index, shape))
                if point is not None:
                    self.record.points[index] = point
                self._changed(self.record)
        if not self.record.points:
            raise MeasureError("The engine does not tell how many tokens were cached: measure shapes without any.")

    async def _size_of_shape(self, shape: Shape) -> Size:
        slots = self._slots(shape)
        least = CPU_ROUNDS if self.record.method == "engine_cpu" else least_rounds(slots)
        return await self._size([shape], await self._primed([shape]), slots, least=least)

    async def _measure_shape(self, index: int, shape: Shape) -> CostPoint | None:
        """Return the shape's point with one repeat more; None where the engine does not tell what was cached."""
        slots = self._slots(shape)
        make_prompt = await self._primed([shape])
        batch, engine_ms = await self._cost([shape], make_prompt, self.record.sizes[index], slots)
        if batch.cached is None and shape.cached_tokens:
            self.record.sizes[index] = Size(count=0, in_flight=0)
            return None
        known = self.record.points.get(index) or CostPoint(shape=shape, engine_ms=())
        return _with_repeat(known, batch, engine_ms)

    async def _cost(
        self, shapes: Sequence[Shape], make_prompt: MakePrompt, size: Size, slots: int
    ) -> tuple[Batch, float]:
        """Return a batch and the engine milliseconds of each of its requests. Raises Disturbed."""
        is_cpu = self.record.method == "engine_cpu"
        before = cpu_seconds(self._engine.pids()) if is_cpu else {}
        batch = await run_batch(self._client, shapes, make_prompt, count=size.count, in_flight=size.in_flight)
        if not is_cpu:
            return batch, 1000.0 * _steady_s(batch, slots)
        spent = spent_seconds(before, cpu_seconds(self._engine.pids()))
        if spent is None:
            raise Disturbed("a process of the engine ended")
        return batch, (spent - self._idle_share * batch.elapsed_s) * 1000.0 / size.count

    async def _size(self, shapes: Sequence[Shape], make_prompt: MakePrompt, slots: int, *, least: int) -> Size:
        """How many requests make a batch: whole rounds of the engine's slots, ``least`` of them, about ``batch_s``
        long."""
        step = -(-slots // len(shapes)) * len(shapes)
        count, aimed = step, self.record.order.batch_s
        while True:
            pilot = await run_batch(self._client, shapes, make_prompt, count=count, in_flight=2 * slots)
            if pilot.elapsed_s >= PILOT_SHARE * aimed or count >= MOST_REQUESTS:
                break
            count *= 2
        each_s = pilot.elapsed_s / count
        rounds = max(least, min(round(aimed / each_s / step), MOST_REQUESTS // step))
        queued = min(MOST_QUEUED, math.ceil(QUEUED_S / each_s))
        return Size(count=rounds * step, in_flight=slots + max(slots, queued))

    # ------------------------------------------------------------------ the knee
    async def _find_knee(self) -> None:
        order, record = self.record.order, self.record
        slots = min(self._slots(shape) for shape in order.mix)
        self._say("measuring", step="find the knee", detail="saturation")
        if not record.saturation_per_s:
            record.saturation_per_s = await self._undisturbed(functools.partial(self._saturation, slots))
            self._changed(record)
        while True:
            rate = next_rate(
                record.levels,
                saturation_per_s=record.saturation_per_s,
                attained_share=order.attained_share,
                max_levels=order.max_levels,
            )
            if rate is None:
                return
            self._say(
                "measuring", step="find the knee", detail=f"level {len(record.levels) + 1}: {rate:.3g} requests/s"
            )
            record.levels.append(await self._undisturbed(functools.partial(self._level, rate, slots)))
            self._changed(record)

    async def _saturation(self, slots: int) -> float:
        mix = self.record.order.mix
        make_prompt = await self._primed(mix)
        size = await self._size(mix, make_prompt, slots, least=least_rounds(slots))
        batch = await run_batch(self._client, mix, make_prompt, count=size.count, in_flight=size.in_flight)
        return 1.0 / _steady_s(batch, slots)

    async def _level(self, rate: float, slots: int) -> LevelPoint:
        order = self.record.order
        make_prompt = await self._primed(order.mix)
        return await run_level(
            self._client,
            plan_level(rate, order.window_s, self._rng),
            order.mix,
            make_prompt,
            rate_per_s=rate,
            slots=slots,
            ttft_objective_ms=order.ttft_objective_ms,
            tpot_objective_ms=order.tpot_objective_ms,
            rng=self._rng,
        )

    # ------------------------------------------------------------------ small parts
    async def _undisturbed(self, work: Callable[[], Awaitable[T]]) -> T:
        """Do ``work`` while the engine has no request of anybody else, again where somebody came in between. Raises
        MeasureError when that goes on."""
        why = ""
        for _ in range(MOST_DISTURBED):
            await self._wait_until_idle()
            before, made, lost = await self._client.counters(), self._client.output_tokens, self._client.lost
            try:
                result = await work()
            except Disturbed as error:
                why = str(error)
                continue
            own = self._client.output_tokens - made
            if self._client.lost > lost or not await self._has_foreign(before, own):
                return result
            why = "others sent requests"
        raise MeasureError(f"The measurement was disturbed {MOST_DISTURBED} times in a row ({why}): try again later.")

    async def _wait_until_idle(self) -> None:
        is_waiting = False
        while True:
            counters = await self._client.counters() or {}
            others = counters.get("running", 0.0) + counters.get("waiting", 0.0)
            if not others:
                break
            if not is_waiting:
                is_waiting = True
                self._say("waiting", reason=f"The engine still serves {others:.0f} requests of others.")
            await asyncio.sleep(IDLE_PAUSE_S)
        if is_waiting:
            self._say("measuring")

    async def _has_foreign(self, before: Mapping[str, float] | None, own: int) -> bool:
        """Whether the engine made more tokens than we asked for. Its counters may lag behind its answers."""
        name, end = "generation_tokens_total", asyncio.get_running_loop().time() + COUNTERS_SETTLE_S
        if before is None or name not in before:
            return False
        while True:
            made = (await self._client.counters() or {}).get(name, 0.0) - before[name]
            if made >= own or asyncio.get_running_loop().time() > end:
                return made > own + max(FOREIGN_TOKENS, FOREIGN_SHARE * own)
            await asyncio.sleep(IDLE_PAUSE_S)

    async def _primed(self, shapes: Sequence[Shape]) -> MakePrompt:
        """Put the cached parts of ``shapes`` into the prefix cache, and return what makes their prompts."""
        prefixes: dict[Shape, str] = {}
        for shape in shapes:
            if shape.cached_tokens:
                prefix = self._prompts.prefix(shape.cached_tokens)
                await self._client.complete(prefix + self._prompts.rest(prefix, 0), 1)
                prefixes[shape] = prefix

        def make_prompt(shape: Shape) -> str:
            prefix = prefixes.get(shape)
            if prefix is None:
                return self._prompts.unique(shape.input_tokens)
            return prefix + self._prompts.rest(prefix, shape.input_tokens)

        return make_prompt

    def _unique(self, shape: Shape) -> str:
        return self._prompts.unique(shape.input_tokens)

    def _slots(self, shape: Shape) -> int:
        return saturating_slots(shape, slots=self._engine.slots, kv_tokens=self._engine.kv_tokens)

    def _say(
        self,
        state: Literal["waiting", "measuring", "done"],
        *,
        step: str | None = None,
        detail: str | None = None,
        reason: str = "",
    ) -> None:
        record = self.record
        record.state, record.reason = state, reason
        if step is not None:
            record.step, record.detail = step, ""
        if detail is not None:
            record.detail = detail
        self._changed(record)


def _steady_s(batch: Batch, slots: int) -> float:
    """Raises Disturbed for a batch that does not tell."""
    each_s = steady_s(batch.ends, slots)
    if each_s is None:
        raise Disturbed("the answers came at no steady rate")
    return each_s


def _with_repeat(known: CostPoint, batch: Batch, engine_ms: float) -> CostPoint:
    """``known`` with one repeat more; its token counts are means over all repeats."""
    repeats = len(known.engine_ms)

    def mean(old: float, new: float) -> float:
        return (old * repeats + new) / (repeats + 1)

    return msgspec.structs.replace(
        known,
        engine_ms=(*known.engine_ms, engine_ms),
        input_tokens=mean(known.input_tokens, batch.input),
        cached_tokens=mean(known.cached_tokens, batch.cached or 0.0),
        output_tokens=mean(known.output_tokens, batch.output),
    )


def _words(shape: Shape) -> str:
    return f"{shape.input_tokens} input, {shape.cached_tokens} cached, {shape.output_tokens} output"
