"""One engine, asked over HTTP: completions of a given length, its counters, its tokenizer."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Mapping
from typing import Any

import aiohttp
import msgspec

from worker.calibration.prompts import WORDS, Prompts, best_words
from worker.metrics import read_metrics
from worker.runtimes.base import MetricTable

ANSWER_LIMIT_S = 30.0
"""For what a busy engine, too, answers between two steps: its counters, its tokenizer."""
TRIES = 3
"""A server may close a connection that has been idle just when it is used again: only an engine that cannot be reached
anew is taken for gone."""
BUSY_PAUSE_S = 0.02
BUSY_LIMIT_S = 60.0
TAIL_BYTES = 8192
"""The end of a stream that is kept for its usage."""
SAMPLE_WORDS = 64
PATH = "/v1/completions"
STOPPED_ANSWERING = "The engine stopped answering: its log says why."


class MeasureError(Exception):
    """The measurement cannot go on; the message says why and what a person can do."""


class Disturbed(Exception):
    """Something else was at work in the engine: what was measured is thrown away, and measured again."""


class Usage(msgspec.Struct, frozen=True):
    """Tokens of one request as the engine counted them. ``cached`` None: it does not tell."""

    input: int
    output: int
    cached: int | None = None


class Timing(msgspec.Struct, frozen=True):
    """A streamed request in seconds of the caller's clock; ``usage`` None: it failed."""

    first_at: float | None
    last_at: float | None
    usage: Usage | None


class EngineClient:
    """Requests of one calibration. ``salt`` keeps its prompts apart from everybody else's in the prefix cache."""

    def __init__(
        self,
        session: aiohttp.ClientSession,
        *,
        base: str,
        model: str,
        salt: str,
        metrics_path: str,
        metric_table: MetricTable,
        request_limit_s: float,
    ) -> None:
        self._session, self._base, self._model, self._salt = session, base, model, salt
        self._metrics_path, self._metric_table = metrics_path, metric_table
        self._limit = aiohttp.ClientTimeout(total=request_limit_s)
        self._limit_s = request_limit_s
        self.output_tokens = 0
        """Made for us so far, by the usage of what was answered."""
        self.lost = 0
        """Requests that did not end well: what was made for them nobody told."""

    async def complete(self, prompt: str, output_tokens: int) -> Usage:
        """Have ``output_tokens`` made, in one answer. An engine whose queue is full is asked again for a while. Raises
        MeasureError."""
        loop = asyncio.get_running_loop()
        body, pause, end = self._body(prompt, output_tokens), BUSY_PAUSE_S, loop.time() + BUSY_LIMIT_S
        tries = TRIES
        while True:
            try:
                async with self._session.post(
                    self._base + PATH, data=body, headers=_JSON, timeout=self._limit
                ) as answer:
                    data = await answer.read()
                    status = answer.status
            except TimeoutError as error:
                raise MeasureError(f"The engine did not answer a request within {self._limit_s:.0f} s.") from error
            except (aiohttp.ClientError, OSError) as error:
                tries -= 1
                if not tries:
                    raise MeasureError(STOPPED_ANSWERING) from error
                await asyncio.sleep(BUSY_PAUSE_S)
                continue
            if status == 503 and loop.time() < end:
                await asyncio.sleep(pause)
                pause = min(1.0, 2 * pause)
                continue
            if status != 200:
                raise MeasureError(f"The engine answered {status} to POST {PATH}: {_error_text(data)}")
            usage = read_usage(data)
            if usage is None:
                raise MeasureError("The engine does not tell how many tokens it used: it cannot be calibrated.")
            self.output_tokens += usage.output
            return usage

    async def stream(self, prompt: str, output_tokens: int) -> Timing:
        """Have ``output_tokens`` streamed, and note when the first and the last came. A failure is no error here: it is
        what a client of an overloaded engine sees."""
        body, timing = self._body(prompt, output_tokens, is_stream=True), _NOTHING
        self.lost += 1
        for _ in range(TRIES):
            with contextlib.suppress(*_CLOSED):
                timing = await self._stream(body)
                break
        if timing.usage is not None:
            self.lost -= 1
            self.output_tokens += timing.usage.output
        return timing

    async def _stream(self, body: bytes) -> Timing:
        """Raises one of ``_CLOSED`` for a connection that was closed before there was an answer."""
        loop = asyncio.get_running_loop()
        first_at = last_at = usage = None
        tail, is_answered = b"", False
        try:
            async with self._session.post(self._base + PATH, data=body, headers=_JSON, timeout=self._limit) as answer:
                is_answered = True
                async for data in answer.content.iter_any():
                    if b'"choices":[{' in data or b'"choices": [{' in data:
                        last_at = loop.time()
                        first_at = first_at or last_at
                    tail = (tail + data)[-TAIL_BYTES:]
            usage = _usage_of_stream(tail) if answer.status == 200 else None
        except _CLOSED:
            if not is_answered:
                raise
        except (aiohttp.ClientError, TimeoutError, OSError):
            usage = None
        return Timing(first_at, last_at, usage)

    async def counters(self) -> Mapping[str, float] | None:
        """The engine's metrics by Penstock's names; None where it tells none. Raises MeasureError."""
        if not self._metrics_path:
            return None
        for left in reversed(range(TRIES)):
            try:
                text = await self._get(self._metrics_path)
            except (aiohttp.ClientError, TimeoutError, OSError) as error:
                if not left:
                    raise MeasureError(STOPPED_ANSWERING) from error
                await asyncio.sleep(BUSY_PAUSE_S)
            else:
                return read_metrics(text, self._metric_table) if text is not None else None
        return None

    async def prompts(self, rng: random.Random) -> Prompts:
        """Find words of equal length by the engine's tokenizer, or, without one, their mean length by its own count.
        Raises MeasureError."""
        if (tokens := await self._word_tokens()) is not None and (best := best_words(tokens)) is not None:
            words, count = best
            sample = rng.choices(words, k=SAMPLE_WORDS)
            used = await self.complete(" " + " ".join(sample), 1)
            return Prompts(words, word_tokens=count, extra_tokens=max(0, used.input - count * len(sample)), rng=rng)
        short, long = [rng.choices(WORDS, k=size) for size in (SAMPLE_WORDS, 3 * SAMPLE_WORDS)]
        counts = [(await self.complete(" " + " ".join(sample), 1)).input for sample in (short, long)]
        mean = (counts[1] - counts[0]) / (len(long) - len(short))
        if mean <= 0:
            raise MeasureError("The engine does not count the tokens of its prompts: it cannot be calibrated.")
        return Prompts(WORDS, word_tokens=mean, extra_tokens=max(0.0, counts[0] - mean * len(short)), rng=rng)

    async def _word_tokens(self) -> dict[str, int] | None:
        # Between two others: what an engine puts before a prompt cancels out, and a space counts as in the middle.
        alone = await self._tokens(" the the")
        found: dict[str, int] = {}
        for word in WORDS:
            if alone is None or (among := await self._tokens(f" the {word} the")) is None:
                return None
            found[word] = among - alone
        return found

    async def _tokens(self, text: str) -> int | None:
        body = msgspec.json.encode({"model": self._model, "prompt": text})
        try:
            async with self._session.post(
                self._base + "/tokenize", data=body, headers=_JSON, timeout=aiohttp.ClientTimeout(total=ANSWER_LIMIT_S)
            ) as answer:
                return int(msgspec.json.decode(await answer.read())["count"]) if answer.status == 200 else None
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError, LookupError, TypeError):
            return None

    async def _get(self, path: str) -> str | None:
        async with self._session.get(self._base + path, timeout=aiohttp.ClientTimeout(total=ANSWER_LIMIT_S)) as answer:
            return (await answer.read()).decode("utf-8", "replace") if answer.status == 200 else None

    def _body(self, prompt: str, output_tokens: int, *, is_stream: bool = False) -> bytes:
        body: dict[str, Any] = {
            "model": self._model,
            "prompt": prompt,
            "max_tokens": output_tokens,
            "ignore_eos": True,
            "cache_salt": self._salt,
        }
        if is_stream:
            body |= {"stream": True, "stream_options": {"include_usage": True}}
        return msgspec.json.encode(body)


_JSON = {"Content-Type": "application/json"}
_NOTHING = Timing(None, None, None)
_CLOSED = (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError, ConnectionResetError)


def read_usage(data: bytes) -> Usage | None:
    """The usage in an answer or in a stream's event; None when there is none."""
    try:
        usage = msgspec.json.decode(data)["usage"]
        details = usage.get("prompt_tokens_details") or {}
        cached = details.get("cached_tokens")
        return Usage(
            int(usage["prompt_tokens"]), int(usage["completion_tokens"]), int(cached) if cached is not None else None
        )
    except (ValueError, LookupError, TypeError, AttributeError):
        return None


def _usage_of_stream(tail: bytes) -> Usage | None:
    """The last usage of a stream that ended well; an event with an error is no good end, whatever follows it."""
    found = None
    for line in tail.splitlines():
        if line.startswith(b"data: {"):
            if line.startswith(b'data: {"error"'):
                return None
            found = read_usage(line[6:]) or found
    return found


def _error_text(body: bytes) -> str:
    """The message of an OpenAI-shaped error, cut; a prompt in it would be one of random words."""
    try:
        return str(msgspec.json.decode(body)["error"]["message"])[:200]
    except (ValueError, LookupError, TypeError):
        return body[:200].decode("utf-8", "replace")
