"""Engines that answer in their own ways: without a tokenizer, busy, refusing, failing in the middle of a stream."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from worker.calibration import client as client_module
from worker.calibration.client import STOPPED_ANSWERING, EngineClient, MeasureError, Usage
from worker.calibration.load import LevelPlan, run_batch, run_level
from worker.runtimes.vllm import METRICS
from worker.spec import Shape

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
WORDS_TO_TOKENS = 3
BEGIN_TOKENS = 2


class FakeServer:
    """Counts three tokens a word and two before the prompt. ``complete`` answers completions, ``tokenize`` is there or
    not."""

    def __init__(self) -> None:
        self.bodies: list[dict[str, Any]] = []
        self.complete: Handler = self.answer
        self.has_tokenizer = True

    def tokens(self, text: str) -> int:
        return BEGIN_TOKENS + WORDS_TO_TOKENS * len(text.split())

    def usage(self, body: dict[str, Any]) -> dict[str, Any]:
        return {"prompt_tokens": self.tokens(body["prompt"]), "completion_tokens": body["max_tokens"]}

    async def answer(self, request: web.Request) -> web.StreamResponse:
        return web.json_response({"choices": [{"text": "x"}], "usage": self.usage(self.bodies[-1])})

    async def completions(self, request: web.Request) -> web.StreamResponse:
        self.bodies.append(await request.json())
        return await self.complete(request)

    async def tokenize(self, request: web.Request) -> web.StreamResponse:
        if not self.has_tokenizer:
            raise web.HTTPNotFound
        return web.json_response({"count": self.tokens((await request.json())["prompt"])})

    async def metrics(self, request: web.Request) -> web.StreamResponse:
        return web.Response(text='vllm:num_requests_running{engine="0"} 2.0\n')


@pytest.fixture
def fake() -> FakeServer:
    return FakeServer()


@pytest.fixture
async def server(fake: FakeServer) -> AsyncIterator[TestServer]:
    app = web.Application()
    app.router.add_post("/v1/completions", fake.completions)
    app.router.add_post("/tokenize", fake.tokenize)
    app.router.add_get("/metrics", fake.metrics)
    async with TestServer(app) as made:
        yield made


@pytest.fixture
async def client(server: TestServer) -> AsyncIterator[EngineClient]:
    async with aiohttp.ClientSession() as session:
        yield EngineClient(
            session, base=str(server.make_url("")).rstrip("/"), model="m", salt="s", metrics_path="/metrics",
            metric_table=METRICS, request_limit_s=5.0,
        )  # fmt: skip


# --------------------------------------------------------------------- prompts
@pytest.mark.parametrize("has_tokenizer", [True, False])
async def test_prompts_have_their_length_with_and_without_a_tokenizer(
    client: EngineClient, fake: FakeServer, has_tokenizer: bool
) -> None:
    fake.has_tokenizer = has_tokenizer
    prompts = await client.prompts(random.Random(5))
    for tokens in (20, 200, 2000):
        assert fake.tokens(prompts.unique(tokens)) == pytest.approx(tokens, abs=WORDS_TO_TOKENS)
    prefix = prompts.prefix(256)
    assert 256 <= fake.tokens(prefix) < 256 + WORDS_TO_TOKENS


async def test_an_engine_that_counts_no_prompt_tokens_cannot_be_calibrated(
    client: EngineClient, fake: FakeServer
) -> None:
    async def uncounted(request: web.Request) -> web.StreamResponse:
        return web.json_response({"usage": {"prompt_tokens": 0, "completion_tokens": 1}})

    fake.has_tokenizer, fake.complete = False, uncounted
    with pytest.raises(MeasureError, match="does not count the tokens"):
        await client.prompts(random.Random(5))


# --------------------------------------------------------------------- completions
async def test_a_request_asks_for_an_exact_length_in_a_cache_of_its_own(client: EngineClient, fake: FakeServer) -> None:
    assert await client.complete(" a b", 7) == Usage(8, 7, None)
    sent = fake.bodies[-1]
    assert (sent["max_tokens"], sent["ignore_eos"], sent["cache_salt"], sent["model"]) == (7, True, "s", "m")
    assert client.output_tokens == 7


async def test_a_full_queue_is_asked_again(client: EngineClient, fake: FakeServer) -> None:
    async def busy_twice(request: web.Request) -> web.StreamResponse:
        return web.Response(status=503) if len(fake.bodies) < 3 else await fake.answer(request)

    fake.complete = busy_twice
    assert await client.complete(" a", 1) == Usage(5, 1, None)
    assert len(fake.bodies) == 3


async def test_a_queue_that_stays_full_ends_the_measurement(
    client: EngineClient, fake: FakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def busy(request: web.Request) -> web.StreamResponse:
        return web.json_response({"error": {"message": "The engine is currently busy."}}, status=503)

    fake.complete = busy
    monkeypatch.setattr(client_module, "BUSY_LIMIT_S", 0.1)
    with pytest.raises(MeasureError, match="answered 503 to POST /v1/completions: The engine is currently busy"):
        await client.complete(" a", 1)


async def test_a_refusal_is_told_in_the_engines_words(client: EngineClient, fake: FakeServer) -> None:
    async def refuse(request: web.Request) -> web.StreamResponse:
        return web.json_response({"error": {"message": "max_tokens is too large"}}, status=400)

    fake.complete = refuse
    with pytest.raises(MeasureError, match="answered 400 to POST /v1/completions: max_tokens is too large"):
        await client.complete(" a", 1)
    with pytest.raises(MeasureError, match="answered 400"):
        await run_batch(client, [Shape(input_tokens=8)], lambda shape: " a", count=8, in_flight=4)


async def test_an_engine_that_tells_no_usage_cannot_be_calibrated(client: EngineClient, fake: FakeServer) -> None:
    async def untold(request: web.Request) -> web.StreamResponse:
        return web.json_response({"choices": []})

    fake.complete = untold
    with pytest.raises(MeasureError, match="does not tell how many tokens"):
        await client.complete(" a", 1)


async def test_an_engine_that_is_gone_is_said_to_be(client: EngineClient, server: TestServer) -> None:
    await server.close()
    with pytest.raises(MeasureError, match=STOPPED_ANSWERING):
        await client.complete(" a", 1)
    with pytest.raises(MeasureError, match=STOPPED_ANSWERING):
        await client.counters()
    assert (await client.stream(" a", 1)).usage is None


async def test_a_connection_that_the_engine_closes_unused_is_no_sign_of_its_end(
    client: EngineClient, fake: FakeServer
) -> None:
    async def closes_first(request: web.Request) -> web.StreamResponse:
        if len(fake.bodies) % 2 and request.transport is not None:
            request.transport.close()
        return await (streaming(fake) if fake.bodies[-1].get("stream") else fake.answer)(request)

    fake.complete = closes_first
    assert await client.complete(" a", 2) == Usage(5, 2, None)
    assert len(fake.bodies) == 2
    timing = await client.stream(" a", 3)
    assert timing.usage == Usage(5, 3, None)
    assert len(fake.bodies) == 4
    assert client.lost == 0


async def test_counters_have_penstocks_names(client: EngineClient) -> None:
    assert await client.counters() == {"running": 2.0}


# --------------------------------------------------------------------- streams
def streaming(fake: FakeServer, *, pause_s: float = 0.0, error: bool = False, cut: bool = False) -> Handler:
    """Three chunks of text, then usage, or what goes wrong: vLLM's error event before [DONE], or a cut connection."""

    async def stream(request: web.Request) -> web.StreamResponse:
        body = fake.bodies[-1]
        answer = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await answer.prepare(request)
        for number in range(3):
            await asyncio.sleep(pause_s if number else 0.0)
            await answer.write(b'data: {"choices":[{"index":0,"text":"x"}]}\n\n')
        if cut and request.transport is not None:
            request.transport.close()
            return answer
        if error:
            await answer.write(b'data: {"error": {"message": "EngineCore encountered an issue"}}\n\n')
        else:
            usage = json.dumps({"choices": [], "usage": fake.usage(body)}).encode()
            await answer.write(b"data: " + usage + b"\n\n")
        await answer.write(b"data: [DONE]\n\n")
        return answer

    return stream


async def test_a_stream_tells_its_first_and_last_token(client: EngineClient, fake: FakeServer) -> None:
    fake.complete = streaming(fake, pause_s=0.1)
    loop = asyncio.get_running_loop()
    started = loop.time()
    timing = await client.stream(" a b c", 3)
    assert timing.usage == Usage(11, 3, None)
    assert timing.first_at is not None
    assert timing.last_at is not None
    assert timing.first_at - started < 0.1
    assert timing.last_at - timing.first_at == pytest.approx(0.2, abs=0.1)
    assert (client.lost, client.output_tokens) == (0, 3)
    assert fake.bodies[-1]["stream_options"] == {"include_usage": True}


@pytest.mark.parametrize("wrong", [{"error": True}, {"cut": True}])
async def test_a_stream_that_fails_is_no_answer_whatever_follows(
    client: EngineClient, fake: FakeServer, wrong: dict[str, bool]
) -> None:
    fake.complete = streaming(fake, **wrong)
    assert (await client.stream(" a", 3)).usage is None
    assert client.lost == 1


# --------------------------------------------------------------------- levels
async def level(client: EngineClient, *, ttft_ms: float, tpot_ms: float, slots: int = 4, due: int = 20) -> Any:
    plan = LevelPlan(tuple(0.02 * number for number in range(due)), 0.1, 0.02 * due)
    return await run_level(
        client, plan, [Shape(input_tokens=8, output_tokens=3)], lambda shape: " a b",
        rate_per_s=50.0, slots=slots, ttft_objective_ms=ttft_ms, tpot_objective_ms=tpot_ms, rng=random.Random(1),
    )  # fmt: skip


async def test_a_level_judges_both_objectives_of_what_was_due_in_its_window(
    client: EngineClient, fake: FakeServer
) -> None:
    fake.complete = streaming(fake, pause_s=0.05)
    kept = await level(client, ttft_ms=2000.0, tpot_ms=2000.0)
    assert (kept.attained, kept.requests) == (1.0, 15), "five came before the window opened"
    assert kept.tpot_ms["p50"] == pytest.approx(50.0, abs=30.0)
    assert kept.input_tokens == 8 * kept.completed
    assert kept.output_tokens == 3 * kept.completed
    slow = await level(client, ttft_ms=2000.0, tpot_ms=10.0)
    assert slow.attained == 0.0
    late = await level(client, ttft_ms=0.0, tpot_ms=2000.0)
    assert late.attained == 0.0


async def test_failures_keep_no_objective(client: EngineClient, fake: FakeServer) -> None:
    fake.complete = streaming(fake, error=True)
    found = await level(client, ttft_ms=2000.0, tpot_ms=2000.0)
    assert (found.attained, found.completed, found.ttft_ms) == (0.0, 0, {})


async def test_an_engine_that_answers_nothing_is_sent_only_so_much_and_waited_for_only_so_long(
    client: EngineClient, fake: FakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bounded: what is held open, and how long the level lasts."""
    never = asyncio.Event()

    async def hang(request: web.Request) -> web.StreamResponse:
        await never.wait()
        return web.Response()

    fake.complete = hang
    monkeypatch.setattr("worker.calibration.load.SHORTEST_GRACE_S", 0.2)
    loop = asyncio.get_running_loop()
    started = loop.time()
    found = await level(client, ttft_ms=2000.0, tpot_ms=2000.0, slots=1, due=40)
    assert loop.time() - started < 10.0
    assert len(fake.bodies) <= 16
    assert (found.attained, found.completed) == (0.0, 0)
    never.set()
