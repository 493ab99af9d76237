"""The scripted engine's routes beside completions and chat: embeddings, scores, responses and MLflow's predictions."""

from __future__ import annotations

import asyncio
import base64
import json
import math
import struct
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

from aiohttp import web

DIMENSIONS = 8
Misfortune = Callable[[web.Request, dict[str, Any], list[int]], Awaitable[web.StreamResponse | None]]


def texts_of(body: dict[str, Any], *names: str) -> list[Any]:
    """Each text, or list of token ids, of the first of these fields that is there."""
    found = next(body[name] for name in names if name in body)
    return found if isinstance(found, list) and found and not isinstance(found[0], int) else [found]


def count(text: Any) -> int:
    return len(text) if isinstance(text, list) else math.ceil(len(text.encode()) / 4)


async def embed(
    misfortune: Misfortune, request: web.Request, body: dict[str, Any], script: dict[str, Any], entry: dict[str, Any]
) -> web.StreamResponse:
    inputs = texts_of(body, "input")
    tokens = [count(text) for text in inputs]
    if (instead := await misfortune(request, script, tokens)) is not None:
        return instead
    size = body.get("dimensions") or DIMENSIONS
    if pad := script.get("pad"):
        return web.Response(body=b"x" * pad, content_type="application/json")
    vectors = [[float(index + 1)] * size for index in range(len(inputs))]
    made: list[Any] = vectors
    if body.get("encoding_format") == "base64":
        made = [base64.b64encode(struct.pack(f"<{size}f", *vector)).decode() for vector in vectors]
    data = [{"object": "embedding", "index": index, "embedding": vector} for index, vector in enumerate(made)]
    usage = {"prompt_tokens": sum(tokens), "total_tokens": sum(tokens), "completion_tokens": 0}
    return web.json_response({"id": "embd-1", "object": "list", "model": body["model"], "data": data, "usage": usage})


async def score(
    misfortune: Misfortune, request: web.Request, body: dict[str, Any], script: dict[str, Any], entry: dict[str, Any]
) -> web.StreamResponse:
    is_rerank = "rerank" in request.path
    left = texts_of(body, "query") if is_rerank else texts_of(body, "text_1", "queries", "data_1")
    right = texts_of(body, "documents", "items", "text_2", "data_2")
    tokens = [count(text) + count(left[index % len(left)]) for index, text in enumerate(right)]
    if (instead := await misfortune(request, script, tokens)) is not None:
        return instead
    usage = {"prompt_tokens": sum(tokens), "total_tokens": sum(tokens)}
    head = {"id": "score-1", "model": body["model"], "usage": usage}
    scores = [1.0 / (index + 1) for index in range(len(right))]
    if is_rerank:
        results = [
            {"index": index, "document": {"text": text}, "relevance_score": scores[index]}
            for index, text in enumerate(right)
        ]
        return web.json_response({**head, "results": results[: body.get("top_n") or None]})
    data = [{"index": index, "object": "score", "score": value} for index, value in enumerate(scores)]
    return web.json_response({**head, "object": "list", "data": data})


async def predict(
    misfortune: Misfortune, request: web.Request, body: dict[str, Any], script: dict[str, Any], entry: dict[str, Any]
) -> web.StreamResponse:
    if (instead := await misfortune(request, script, [0])) is not None:
        return instead
    if "inputs" in body and body["inputs"] == "wrong":
        return web.json_response({"error_code": "BAD_REQUEST", "message": "Failed to parse input."}, status=400)
    await asyncio.sleep(float(script.get("delay_ms", 0)) / 1000)
    if "as_text" in body:
        return web.Response(text=body["as_text"], content_type="text/csv")
    return web.json_response({"predictions": [0]})


async def respond(
    misfortune: Misfortune, request: web.Request, body: dict[str, Any], script: dict[str, Any], entry: dict[str, Any]
) -> web.StreamResponse:
    text = body["input"] if isinstance(body["input"], str) else json.dumps(body["input"])
    prompt = count(text) + 4
    if (instead := await misfortune(request, script, [prompt])) is not None:
        return instead
    made = int(body.get("max_output_tokens") or 16)
    response: dict[str, Any] = {"id": "resp_1", "object": "response", "created_at": 1700000000, "model": body["model"]}
    response |= {"parallel_tool_calls": True, "tool_choice": "auto", "tools": [], "output": []}
    said = {"type": "output_text", "text": "tok " * made, "annotations": []}
    message = {"type": "message", "id": "msg_1", "role": "assistant", "status": "completed", "content": [said]}
    details = {"input_tokens_details": {"cached_tokens": 1}, "output_tokens_details": {"reasoning_tokens": 0}}
    usage = {"input_tokens": prompt, "output_tokens": made, "total_tokens": prompt + made, **details}
    ended = {**response, "status": "incomplete", "incomplete_details": {"reason": "max_output_tokens"}}
    ended |= {"output": [message], "usage": usage}
    if not body.get("stream"):
        entry["generated"] = made
        await asyncio.sleep(made * float(script.get("delay_ms", 0)) / 1000)
        return web.json_response(ended)
    answer = web.StreamResponse(headers={"content-type": "text/event-stream; charset=utf-8"})
    await answer.prepare(request)
    sequence = -1

    async def event(kind: str, **members: Any) -> None:
        nonlocal sequence
        sequence += 1
        data = json.dumps({"type": kind, "sequence_number": sequence, **members})
        await answer.write(f"event: {kind}\ndata: {data}\n\n".encode())

    at = {"item_id": "msg_1", "output_index": 0, "content_index": 0}
    await event("response.created", response={**response, "status": "in_progress"})
    await event("response.output_item.added", output_index=0, item={**message, "status": "in_progress", "content": []})
    await event("response.content_part.added", part={**said, "text": ""}, **at)
    fail, where = script.get("fail"), int(script.get("at", 0))
    for number in range(made):
        if fail and number == where:
            entry["end"] = fail
            if fail == "failed_event":
                error = {"code": "server_error", "message": "EngineCore encountered an issue"}
                await event("response.failed", response={**response, "status": "failed", "error": error})
                return answer
            if fail == "drop":
                request.transport.abort()  # type: ignore[union-attr]
                return answer
            if fail == "no_done":
                return answer
            if fail == "silent":
                await asyncio.sleep(3600)
        await asyncio.sleep(float(script.get("delay_ms", 0)) / 1000)
        entry["generated"] += 1
        delta = " tok" + "x" * int(script.get("pad", 0))
        await event("response.output_text.delta", delta=delta, logprobs=[], **at)
    await event("response.output_text.done", text=said["text"], logprobs=[], **at)
    await event("response.output_item.done", output_index=0, item=message)
    await event("response.completed", response=ended)
    return answer


ANSWERERS = {
    "/v1/embeddings": embed,
    "/v1/rerank": score,
    "/v1/score": score,
    "/invocations": predict,
    "/v1/responses": respond,
}


def routes(logged: Callable[..., Awaitable[web.StreamResponse]], misfortune: Misfortune) -> list[web.RouteDef]:
    """``logged`` runs an answerer and notes what became of it; ``misfortune`` is what may come instead of an answer."""

    def route(path: str, answerer: Callable[..., Awaitable[web.StreamResponse]]) -> web.RouteDef:
        async def handle(request: web.Request) -> web.StreamResponse:
            return await logged(request, partial(answerer, misfortune))

        return web.post(path, handle)

    return [route(path, answerer) for path, answerer in ANSWERERS.items()]
