"""Continuous batching in engine time: which tokens a step computes, how long it takes, what it yields.

After vLLM's V1 scheduler: a step has a token budget; running sequences come first (one token each while decoding, a
chunk while their prompt is prefilled), then waiting ones while slots, budget and KV blocks last. When blocks run out
the least urgent running sequence is preempted and computed again later. No clock and no I/O: ``begin`` gives a step and
its length, ``finish`` its tokens.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence as Tokens
from dataclasses import dataclass, field
from typing import Any

from worker.simulated.cache import Holding, KvCache, block_hashes
from worker.simulated.profile import BLOCK, EngineProfile
from worker.simulated.tokenizer import FIRST_WORD, FULL_STOP, WORD_COUNT

_MASK = (1 << 64) - 1
_SENTENCE = 12
"""One token in so many is a full stop."""


class Sequence:
    """One answer being made. ``owner`` is whoever takes its tokens; times are engine-loop seconds."""

    __slots__ = (
        "arrived_at",
        "cached_tokens",
        "computed",
        "eos_after",
        "first_at",
        "hashes",
        "holding",
        "index",
        "is_live",
        "is_running",
        "last_at",
        "max_tokens",
        "number",
        "outputs",
        "owner",
        "priority",
        "prompt_tokens",
        "random",
        "salt",
        "scheduled_at",
        "tokens",
    )

    def __init__(
        self,
        prompt: Tokens[int],
        *,
        max_tokens: int,
        eos_after: int | None,
        seed: int,
        priority: int = 0,
        salt: str = "",
        owner: Any = None,
        index: int = 0,
    ) -> None:
        self.tokens = list(prompt)
        self.prompt_tokens = len(self.tokens)
        self.max_tokens = max_tokens
        self.eos_after = eos_after
        self.random = seed & _MASK
        self.priority = priority
        self.salt = salt
        self.owner = owner
        self.index = index
        self.number = 0
        self.computed = 0
        self.outputs = 0
        self.cached_tokens: int | None = None
        self.holding = Holding()
        self.hashes: list[int] = []
        self.is_live = True
        self.is_running = False
        self.arrived_at = self.scheduled_at = self.first_at = self.last_at = 0.0

    def __lt__(self, other: Sequence) -> bool:
        return self.urgency < other.urgency

    @property
    def urgency(self) -> tuple[int, int]:
        """Lower is sooner: priority first, then arrival."""
        return (self.priority, self.number)

    def sample(self) -> int:
        """Return the next token: a word, now and then a full stop. Depends on the seed alone."""
        self.random = (self.random * 6364136223846793005 + 1442695040888963407) & _MASK
        draw = self.random >> 33
        if self.outputs and draw % _SENTENCE == 0:
            return FULL_STOP
        return FIRST_WORD + (draw // _SENTENCE) % WORD_COUNT


@dataclass(slots=True)
class Step:
    """A step under way: (sequence, tokens to compute) and its length in engine milliseconds."""

    work: list[tuple[Sequence, int]]
    duration_ms: float


@dataclass(slots=True)
class Counters:
    """Totals since the start."""

    prompt_tokens: int = 0
    cached_tokens: int = 0
    generation_tokens: int = 0
    preemptions: int = 0
    steps: int = 0
    busy_ms: float = 0.0
    finished: dict[str, int] = field(default_factory=lambda: {"stop": 0, "length": 0, "abort": 0, "error": 0})


Output = tuple[Sequence, int, str | None]
"""A sequence, its new token, and its finish reason when this was the last: ``length`` or ``stop``."""


class Scheduler:
    """The engine core. ``is_priority``: lower ``priority`` goes first, else first come, first served."""

    def __init__(self, profile: EngineProfile, *, is_priority: bool = True) -> None:
        self.profile = profile
        self.cache = KvCache(profile.kv_tokens // BLOCK)
        self.counters = Counters()
        self.is_priority = is_priority
        self.running: list[Sequence] = []
        self._waiting: list[Sequence] = []
        self._waiting_live = 0
        self._arrivals = 0

    @property
    def waiting(self) -> int:
        return self._waiting_live

    @property
    def has_work(self) -> bool:
        return bool(self.running or self._waiting_live)

    def add(self, sequence: Sequence, now: float) -> None:
        """Queue a sequence."""
        self._arrivals += 1
        sequence.number = self._arrivals
        sequence.arrived_at = now
        if not self.is_priority:
            sequence.priority = 0
        self._enqueue(sequence)

    def end(self, sequence: Sequence, reason: str) -> None:
        """Take a sequence out at once, wherever it is: aborted, stopped at a stop string, or failed."""
        if not sequence.is_live:
            return
        sequence.is_live = False
        self.counters.finished[reason] += 1
        if sequence.is_running:
            self.running.remove(sequence)
            sequence.is_running = False
        else:
            self._waiting_live -= 1
        self.cache.release(sequence.holding)

    def begin(self, now: float) -> Step | None:
        """Plan the next step; None when there is nothing to do."""
        budget = self.profile.max_num_batched_tokens
        work: list[tuple[Sequence, int]] = []
        planned: set[Sequence] = set()
        was_preempted = False
        for sequence in tuple(self.running):
            if budget <= 0:
                break
            if not sequence.is_running:
                continue
            count = self._chunk(len(sequence.tokens) - sequence.computed, budget)
            while not self.cache.grow(sequence.holding, sequence.computed + count):
                victim = max(self.running)
                if victim in planned:
                    planned.discard(victim)
                    budget += next(n for s, n in work if s is victim)
                    work = [(s, n) for s, n in work if s is not victim]
                self._preempt(victim)
                was_preempted = True
                if victim is sequence:
                    break
            if sequence.is_running:
                work.append((sequence, count))
                planned.add(sequence)
                budget -= count
        started = 0 if was_preempted else self._start_waiting(work, budget, now)
        if not work:
            return None
        return Step(work, max(self.profile.step_floor_ms, self._work_ms(work, started)))

    def finish(self, step: Step, now: float) -> list[Output]:
        """Complete a step: publish its blocks and return the tokens it sampled."""
        outputs: list[Output] = []
        counters = self.counters
        counters.steps += 1
        counters.busy_ms += step.duration_ms
        for sequence, count in step.work:
            if not sequence.is_running:
                continue
            sequence.computed += count
            hashes = block_hashes(sequence.tokens, sequence.salt, sequence.hashes)
            self.cache.publish(sequence.holding, hashes, sequence.computed)
            if sequence.computed < len(sequence.tokens):
                continue
            token = sequence.sample()
            sequence.tokens.append(token)
            sequence.outputs += 1
            counters.generation_tokens += 1
            if sequence.outputs == 1:
                sequence.first_at = now
                counters.prompt_tokens += sequence.prompt_tokens
                counters.cached_tokens += sequence.cached_tokens or 0
            reason = None
            if sequence.eos_after is not None and sequence.outputs >= sequence.eos_after:
                reason = "stop"
            elif sequence.outputs >= sequence.max_tokens:
                reason = "length"
            if reason:
                self.end(sequence, reason)
            outputs.append((sequence, token, reason))
        return outputs

    def _chunk(self, missing: int, budget: int) -> int:
        threshold = self.profile.long_prefill_token_threshold
        return min(missing, budget, threshold) if threshold else min(missing, budget)

    def _start_waiting(self, work: list[tuple[Sequence, int]], budget: int, now: float) -> int:
        """Move waiting sequences into the batch; return how many are computed for the first time."""
        fresh = 0
        while self._waiting and budget > 0 and len(self.running) < self.profile.max_num_seqs:
            sequence = self._waiting[0]
            if not sequence.is_live:
                heapq.heappop(self._waiting)
                continue
            hashes = block_hashes(sequence.tokens, sequence.salt, sequence.hashes)
            total = len(sequence.tokens)
            hit_blocks = self.cache.lookup(hashes, total)
            count = self._chunk(total - hit_blocks * BLOCK, budget)
            if not self.cache.can_admit(hashes, hit_blocks, -(-(hit_blocks * BLOCK + count) // BLOCK)):
                break
            heapq.heappop(self._waiting)
            self._waiting_live -= 1
            self.cache.admit(sequence.holding, hashes, hit_blocks)
            sequence.computed = hit_blocks * BLOCK
            self.cache.grow(sequence.holding, sequence.computed + count)
            sequence.is_running = True
            self.running.append(sequence)
            if sequence.cached_tokens is None:
                # A later start after preemption finds its own blocks: those are no cache hits of the request.
                sequence.cached_tokens = sequence.computed
                sequence.scheduled_at = now
                self.cache.queries += sequence.prompt_tokens
                self.cache.hits += sequence.computed
                fresh += 1
            work.append((sequence, count))
            budget -= count
        return fresh

    def _work_ms(self, work: list[tuple[Sequence, int]], started: int) -> float:
        p = self.profile
        total = p.base_ms * started
        for sequence, count in work:
            end = sequence.computed + count
            is_decoding = sequence.outputs > 0 and count == 1 and end == len(sequence.tokens)
            if not is_decoding:
                total += p.alpha_ms * count + p.epsilon_ms * count * (sequence.computed + end)
            if end == len(sequence.tokens):
                total += p.beta_ms + p.gamma_ms * end
        return total

    def _preempt(self, sequence: Sequence) -> None:
        self.running.remove(sequence)
        sequence.is_running = False
        self.cache.release(sequence.holding)
        sequence.computed = 0
        self.counters.preemptions += 1
        self._enqueue(sequence)

    def _enqueue(self, sequence: Sequence) -> None:
        self._waiting_live += 1
        heapq.heappush(self._waiting, sequence)
