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
    tenant: int = 0
    """Whose key it came with, by its number."""
    sent_at: float = 0.0
    ended_at: float = 0.0
    status: int = 0
    service_class: str = ""
    estimated_mu: float = 0.0
    request_id: str = ""
    tokens: list[tuple[float, int]] = field(default_factory=list)
    """When the client had been told of how many output tokens."""
    usage: dict[str, object] = field(default_factory=dict)
    done: bool = False
    error: str = ""
    refused: str = ""
    left_at: float = 0.0
    """When the client went away, in the middle of it; 0: it stayed to the end."""

    @property
    def output_tokens(self) -> int:
        return self.tokens[-1][1] if self.tokens else 0

    def tokens_at(self, when: float) -> int:
        return max((count for at, count in self.tokens if at <= when), default=0)


async def stream(
    session: aiohttp.ClientSession,
    base_url: str,
    key: str,
    *,
    model: str,
    client_id: str,
    max_tokens: int,
    prompt: str,
    leave_after: int | None = None,
) -> StreamLog:
    """Stream one completion and note every token count the server states. Never raises for what the server does.

    After ``leave_after`` output tokens the client closes its connection, whatever is still to come.
    """
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
            log.service_class = answer.headers.get("x-penstock-class", "")
            log.estimated_mu = float(answer.headers.get("x-penstock-mu-estimated", 0.0))
            if answer.status != 200:
                log.refused = await answer.text()
                return log
            async for raw in answer.content:
                if raw.startswith(b"data: "):
                    note(log, raw[6:].strip())
                    if leave_after is not None and log.output_tokens >= leave_after:
                        log.left_at = time.time()
                        answer.close()
                        return log
    except (aiohttp.ClientError, TimeoutError, ConnectionError, OSError) as error:
        log.error = f"{type(error).__name__}: {error}"
    finally:
        log.ended_at = time.time()
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
