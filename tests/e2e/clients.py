"""Clients that keep their own books: what each stream was sent, when, and how it ended."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, field

import aiohttp


@dataclass
class StreamLog:
    """One request as its client saw it. Times are UNIX seconds."""

    client_id: str
    max_tokens: int
    sent_at: float = 0.0
    status: int = 0
    request_id: str = ""
    tokens: list[tuple[float, int]] = field(default_factory=list)
    """When the client had been told of how many output tokens."""
    usage: dict[str, object] = field(default_factory=dict)
    done: bool = False
    error: str = ""
    refused: str = ""

    @property
    def output_tokens(self) -> int:
        return self.tokens[-1][1] if self.tokens else 0

    def tokens_at(self, when: float) -> int:
        return max((count for at, count in self.tokens if at <= when), default=0)


async def stream(
    session: aiohttp.ClientSession, base_url: str, key: str, *, model: str, client_id: str, max_tokens: int, prompt: str
) -> StreamLog:
    """Stream one completion and note every token count the server states. Never raises for what the server does."""
    log = StreamLog(client_id=client_id, max_tokens=max_tokens, sent_at=time.time())
    body = {
        "model": model,
        "prompt": prompt,
        "max_tokens": max_tokens,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True, "continuous_usage_stats": True},
    }
    headers = {"Authorization": f"Bearer {key}", "X-Request-Id": client_id}
    try:
        async with session.post(f"{base_url}/completions", json=body, headers=headers) as answer:
            log.status = answer.status
            log.request_id = answer.headers.get("x-penstock-request-id", "")
            if answer.status != 200:
                log.refused = await answer.text()
                return log
            async for raw in answer.content:
                if raw.startswith(b"data: "):
                    note(log, raw[6:].strip())
    except (aiohttp.ClientError, TimeoutError, ConnectionError, OSError) as error:
        log.error = f"{type(error).__name__}: {error}"
    return log


def note(log: StreamLog, data: bytes) -> None:
    if data == b"[DONE]":
        log.done = True
        return
    event = json.loads(data)
    if "error" in event:
        log.error = str(event["error"].get("message"))
        return
    if usage := event.get("usage"):
        log.usage = usage
        log.tokens.append((time.time(), int(usage["completion_tokens"])))
