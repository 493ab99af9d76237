"""An engine that does what the request tells it to: OpenAI's shapes as vLLM sends them, and its ways to fail.

Started as a process: ``python scripted_engine.py PORT``. A request's ``user`` field may hold a JSON script
``{"delay_ms", "first_ms", "fail", "at", "port", "pad", "say", "finish", "stop_reason", "cached", "bytes"}``; ``POST
/control`` sets the default for all. ``fail`` holds at the engine of that ``port`` alone, if one is named. ``say`` is a
chat's message (whole) or the list of its pieces (stream). ``GET /log?since=N`` tells every request it got, from the
N-th on, and what became of it: what it ``read`` of prompts, how much of that was ``cached``, what it ``generated``, and
``times``, when each token of a stream was made. Prompt tokens: UTF-8 bytes / ``bytes_per_token`` (4) rounded up, and 4
per message, and ``IMAGE_TOKENS`` per image, told apart at the end alone. ``scripted_tasks`` has the routes of other
tasks.
"""

from __future__ import annotations

import asyncio
import json
import math
import sys
import time
from collections.abc import Awaitable, Callable
from typing import Any

import scripted_tasks
from aiohttp import web

CONTEXT = 4096
IMAGE_TOKENS = 20
WHOLE_CACHED = 1
"""Input tokens that an answer in one piece says were cached."""
LOG: list[dict[str, Any]] = []
CONTROL: dict[str, Any] = {}
CONNECTIONS: set[int] = set()
PORT = 0


def tokens_of(text: str) -> int:
    return math.ceil(len(text.encode()) / float(CONTROL.get("bytes_per_token", 4)))


def prompt_tokens(body: dict[str, Any]) -> list[int]:
    """Tokens of each prompt."""
    if "messages" in body:
        total = 0
        for message in body["messages"]:
            content = message.get("content") or ""
            text = content if isinstance(content, str) else "".join(part.get("text", "") for part in content)
            total += tokens_of(text) + 4
        return [total + IMAGE_TOKENS * images_of(body)]
    prompt = body["prompt"]
    if isinstance(prompt, str):
        return [tokens_of(prompt)]
    if prompt and isinstance(prompt[0], int):
        return [len(prompt)]
    return [tokens_of(p) if isinstance(p, str) else len(p) for p in prompt]


def images_of(body: dict[str, Any]) -> int:
    contents = [message.get("content") for message in body.get("messages", ())]
    return sum(part.get("type") == "image_url" for each in contents if isinstance(each, list) for part in each)


def usage(prompt: int, done: int, cached: int | None = None, images: int = 0) -> dict[str, Any]:
    counts: dict[str, Any] = {"prompt_tokens": prompt, "total_tokens": prompt + done, "completion_tokens": done}
    if cached is None and not images:
        return counts
    seen = {"image": IMAGE_TOKENS * images} if images else None
    return counts | {"prompt_tokens_details": {"cached_tokens": cached, "multimodal_tokens": seen}}


def error(status: int, message: str, *, param: str | None = None) -> web.Response:
    kind = "BadRequestError" if status == 400 else "InternalServerError"
    return web.json_response(
        {"error": {"message": message, "type": kind, "param": param, "code": status}}, status=status
    )


Answerer = Callable[[web.Request, dict[str, Any], dict[str, Any], dict[str, Any]], Awaitable[web.StreamResponse]]
"""Answers a request, given its body, its script and its entry in the log."""


async def generate(request: web.Request) -> web.StreamResponse:
    return await logged(request, answer_to)


async def logged(request: web.Request, answerer: Answerer) -> web.StreamResponse:
    body = await request.json()
    script = {**CONTROL, **(json.loads(body["user"]) if body.get("user") else {})}
    if script.get("port", PORT) != PORT:
        script.pop("fail", None)
    entry: dict[str, Any] = {
        "id": request.headers.get("x-request-id"),
        "path": request.path,
        "body": body,
        "at": time.time(),
        "read": 0,
        "cached": 0,
        "generated": 0,
        "times": [],
        "end": "",
    }
    LOG.append(entry)
    if request.transport is not None:
        CONNECTIONS.add(id(request.transport))
    try:
        answer = await answerer(request, body, script, entry)
        entry["end"] = entry["end"] or "done"
        return answer
    except (asyncio.CancelledError, ConnectionError):
        entry["end"] = "aborted"
        entry["ended"] = time.time()
        raise


async def misfortune(request: web.Request, script: dict[str, Any], prompts: list[int]) -> web.StreamResponse | None:
    """What comes instead of an answer, if the script or the prompt's length wants it."""
    fail, at = script.get("fail"), int(script.get("at", 0))
    if max(prompts) >= CONTEXT:
        text = f"This model's maximum context length is {CONTEXT} tokens. However, you requested more."
        return error(400, text, param="input_tokens")
    if fail == "status":
        return error(int(script.get("status", 500)), "EngineCore encountered an issue")
    if fail == "bytes":
        kind = script.get("kind", "application/json")
        return web.Response(body=script["bytes"].encode("latin-1"), content_type=kind, status=script.get("status", 200))
    if fail == "garbage":
        return web.Response(text="<html>", content_type="application/json")
    if fail == "hang":
        await asyncio.sleep(3600)
    if fail == "drop" and at == 0:
        request.transport.abort()  # type: ignore[union-attr]
        return web.Response()
    await asyncio.sleep(float(script.get("first_ms", 0)) / 1000)
    return None


async def answer_to(
    request: web.Request, body: dict[str, Any], script: dict[str, Any], entry: dict[str, Any]
) -> web.StreamResponse:
    is_chat = request.path.endswith("chat/completions")
    prompts = prompt_tokens(body)
    count = int(body.get("max_completion_tokens") or body.get("max_tokens") or 16)
    if (instead := await misfortune(request, script, prompts)) is not None:
        return instead
    entry["read"] = sum(prompts)
    entry["cached"] = int(script.get("cached") or 0) if body.get("stream") else WHOLE_CACHED
    choices = len(prompts) * int(body.get("n") or 1)
    if not body.get("stream"):
        entry["generated"] = count * choices
        await asyncio.sleep(count * float(script.get("delay_ms", 0)) / 1000)
        if fails_late(request, script):
            return web.Response()
        answer = whole(body, prompts, count, choices, is_chat)
        if "say" in script:
            answer["choices"][0] |= {"message": {"role": "assistant", **script["say"]}, **ended(script)}
        return web.json_response(answer)
    return await stream(request, body, script, entry, is_chat, prompts, count, choices)


def fails_late(request: web.Request, script: dict[str, Any]) -> bool:
    """Whether the connection breaks when all the work for a whole answer is done."""
    if script.get("fail") == "drop":
        request.transport.abort()  # type: ignore[union-attr]
        return True
    return False


def ended(script: dict[str, Any]) -> dict[str, Any]:
    return {"finish_reason": script.get("finish", "stop"), "stop_reason": script.get("stop_reason")}


def whole(body: dict[str, Any], prompts: list[int], count: int, choices: int, is_chat: bool) -> dict[str, Any]:
    text = "tok " * count
    made = []
    for index in range(choices):
        content = {"message": {"role": "assistant", "content": text}} if is_chat else {"text": text}
        made.append({"index": index, **content, "logprobs": None, "finish_reason": "length"})
    return {
        "id": "chatcmpl-1" if is_chat else "cmpl-1",
        "object": "chat.completion" if is_chat else "text_completion",
        "created": 1700000000,
        "model": body["model"],
        "choices": made,
        "usage": usage(sum(prompts), count * choices, WHOLE_CACHED, images_of(body)),
    }


async def stream(
    request: web.Request,
    body: dict[str, Any],
    script: dict[str, Any],
    entry: dict[str, Any],
    is_chat: bool,
    prompts: list[int],
    count: int,
    choices: int,
) -> web.StreamResponse:
    options = body.get("stream_options") or {}
    fail, at = script.get("fail"), int(script.get("at", 0))
    response = web.StreamResponse(headers={"content-type": "text/event-stream; charset=utf-8"})
    await response.prepare(request)
    head = {
        "id": "chatcmpl-1" if is_chat else "cmpl-1",
        "object": "chat.completion.chunk" if is_chat else "text_completion",
        "created": 1700000000,
        "model": body["model"],
    }

    async def event(data: dict[str, Any]) -> None:
        await response.write(b"data: " + json.dumps(data, separators=(",", ":")).encode() + b"\n\n")

    async def chunk(index: int, done: int, text: str, finish: str | None, *, role: bool = False) -> None:
        delta = {"delta": {"role": "assistant", "content": ""} if role else {"content": text}}
        choice = {"index": index, **(delta if is_chat else {"text": text}), "logprobs": None, "finish_reason": finish}
        data: dict[str, Any] = {**head, "choices": [choice]}
        if options.get("continuous_usage_stats"):
            data["usage"] = usage(prompts[index // max(1, choices // len(prompts))], done)
        await event(data)

    if is_chat:
        for index in range(choices):
            await chunk(index, 0, "", None, role=True)
    for number, piece in enumerate(script.get("say", ())):
        entry["generated"] += 1
        last = number == len(script["say"]) - 1
        choice = {"index": 0, "delta": piece, **(ended(script) if last else {"finish_reason": None})}
        await event({**head, "choices": [choice], "usage": usage(prompts[0], number + 1)})
    count = len(script["say"]) if "say" in script else count
    for number in range(count if "say" not in script else 0):
        if fail and number == at:
            entry["end"] = fail
            if fail == "error_event":
                await event({"error": {"message": "EngineCore encountered an issue", "type": "x", "code": 500}})
                await response.write(b"data: [DONE]\n\n")
                return response
            if fail == "drop":
                request.transport.abort()  # type: ignore[union-attr]
                return response
            if fail == "no_done":
                return response
            if fail == "silent":
                await asyncio.sleep(3600)
        await asyncio.sleep(float(script.get("delay_ms", 0)) / 1000)
        for index in range(choices):
            last = number == count - 1
            entry["generated"] += 1
            entry["times"].append(time.time())
            await chunk(index, number + 1, " tok" + "x" * int(script.get("pad", 0)), "length" if last else None)
    if options.get("include_usage"):
        last_word = usage(sum(prompts), count * choices, script.get("cached"), images_of(body))
        await event({**head, "choices": [], "usage": last_word})
    await response.write(b"data: [DONE]\n\n")
    return response


async def tokenize(request: web.Request) -> web.Response:
    body = await request.json()
    await asyncio.sleep(float(CONTROL.get("tokenize_ms", 0)) / 1000)
    if CONTROL.get("fail") == "tokenize":
        CONTROL["tokenize_failures"] = CONTROL.get("tokenize_failures", 0) + 1
        return error(500, "not yet")
    CONTROL.setdefault("tokenized", []).append(body.get("model"))
    count = sum(prompt_tokens(body))
    return web.json_response({"count": count, "max_model_len": CONTEXT, "tokens": list(range(count))})


async def log(request: web.Request) -> web.Response:
    since = int(request.query.get("since", 0))
    return web.json_response({"requests": LOG[since:], "connections": len(CONNECTIONS), "control": CONTROL})


async def control(request: web.Request) -> web.Response:
    CONTROL.clear()
    CONTROL.update(await request.json())
    return web.Response()


def main(port: int) -> None:
    global PORT
    PORT = port
    app = web.Application(client_max_size=64 * 1024 * 1024)
    app.add_routes(scripted_tasks.routes(logged, misfortune))
    app.add_routes(
        [
            web.post("/v1/chat/completions", generate),
            web.post("/v1/completions", generate),
            web.post("/tokenize", tokenize),
            web.get("/log", log),
            web.post("/control", control),
        ]
    )
    web.run_app(app, host="127.0.0.1", port=port, print=None, handler_cancellation=True, shutdown_timeout=0.1)


if __name__ == "__main__":
    main(int(sys.argv[1]))
