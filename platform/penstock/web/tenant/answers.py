"""One answer of the playground: asked of a real gateway as any client asks, and told to the page while it comes."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any, NamedTuple
from uuid import UUID

import aiohttp
import msgspec
from channels.db import database_sync_to_async
from django.conf import settings

from capacity.models import UsageRecord
from penstock.web.tenant.chat import Ask, AskError, gateway_request, read_event, read_refusal
from tenants.member_credentials import seal

CONNECT_S = 5.0
SILENCE_S = 150.0
"""A gateway ends a silent stream before."""
_LONGEST_LINE = 4 * 1024 * 1024
_SETTLED_AFTER_S = (0.4, 0.6, 1.0, 1.5, 2.0, 3.0, 5.0, 8.0)
"""Pauses between looks for the usage record: gateways ship twice a second, and the books are written by the loops."""

Told = dict[str, Any]


class Asker(NamedTuple):
    """Ids of the tenant that is charged, and of the person who asks."""

    tenant: UUID
    user: UUID


async def answer(ask: Ask, asker: Asker) -> AsyncGenerator[Told, None]:
    """What the page is told, in order: ``started``, ``delta``s and ``done``, or ``failed``. Closing it ends it.

    TTFT and tokens/s are as the console sees them: from sending the request to the first piece of text, and over the
    pieces that follow.
    """
    began = time.monotonic()
    timeout = aiohttp.ClientTimeout(total=None, connect=CONNECT_S, sock_read=SILENCE_S)
    try:
        async with (
            aiohttp.ClientSession(timeout=timeout, read_bufsize=_LONGEST_LINE) as session,
            session.post(
                f"{settings.PENSTOCK_GATEWAY_URL.rstrip('/')}/chat/completions",
                data=msgspec.json.encode(gateway_request(ask)),
                headers={"authorization": f"Bearer {_credential(asker)}", "content-type": "application/json"},
                allow_redirects=False,
            ) as response,
        ):
            if response.status != 200 or not response.content_type.startswith("text/event-stream"):
                yield await _refusal(response)
                return
            yield {
                "type": "started",
                "request_id": response.headers.get("x-penstock-request-id", ""),
                "service_class": response.headers.get("x-penstock-class", ""),
                "replica": response.headers.get("x-penstock-replica", ""),
                "mu_estimated": _number(response.headers.get("x-penstock-mu-estimated", "")),
            }
            async with aclosing(_relayed(response, began)) as relayed:
                async for told in relayed:
                    yield told
    except aiohttp.ClientConnectorError:
        yield _failed("The gateway cannot be reached from the console.", code="gateway_unreachable")
    except (aiohttp.ClientError, TimeoutError, ValueError, OSError):
        yield _failed("The connection to the gateway broke.", code="gateway_lost")


async def _relayed(response: aiohttp.ClientResponse, began: float) -> AsyncGenerator[Told, None]:
    first = last = 0.0
    usage: dict[str, int] = {}
    finish_reason = ""
    async for line in response.content:
        if not line.startswith(b"data:"):
            continue
        data = line[5:].strip()
        if data == b"[DONE]":
            yield _done(began, first, last, usage, finish_reason)
            return
        try:
            piece = read_event(data)
        except AskError as error:
            yield _failed(str(error), code="gateway_error")
            return
        if piece.error:
            yield _failed(piece.error, code="engine_error")
            return
        if piece.text or piece.thinking:
            last = time.monotonic()
            first = first or last
            yield {"type": "delta", "text": piece.text, "thinking": piece.thinking, "ttft_ms": (first - began) * 1000}
        finish_reason = piece.finish_reason or finish_reason
        usage = piece.usage or usage
    yield _failed("The answer broke off before its end.", code="gateway_lost")


def _done(began: float, first: float, last: float, usage: dict[str, int], finish_reason: str) -> Told:
    after_first = usage.get("output", 0) - 1
    return {
        "type": "done",
        "finish_reason": finish_reason,
        "duration_ms": (time.monotonic() - began) * 1000,
        "ttft_ms": (first - began) * 1000 if first else None,
        "tokens_per_s": after_first / (last - first) if after_first > 0 and last > first else None,
        "tokens": usage or None,
    }


async def settled(request_id: str, asker: Asker) -> Told | None:
    """What the books say of the request, once it is in them; None when that takes too long."""
    try:
        key = UUID(request_id)
    except ValueError:
        return None
    for pause in _SETTLED_AFTER_S:
        await asyncio.sleep(pause)
        found: Told | None = await database_sync_to_async(_booked)(key, asker)
        if found is not None:
            return found
    return None


def _booked(key: UUID, asker: Asker) -> Told | None:
    record = UsageRecord.objects.filter(pk=key, tenant_id=asker.tenant, key_id=asker.user).first()
    if record is None:
        return None
    return {
        "type": "settled",
        "mu": record.actual_mu,
        "service_class": record.service_class,
        "replica": str(record.replica_id or ""),
        "outcome": record.outcome,
        "tokens": {"input": record.input_tokens, "cached": record.cached_tokens, "output": record.output_tokens},
    }


async def _refusal(response: aiohttp.ClientResponse) -> Told:
    message, code = read_refusal(await response.read())
    wait = _number(response.headers.get("retry-after", ""))
    return _failed(message, code=code, status=response.status, retry_after_s=wait)


def _failed(message: str, *, code: str, status: int = 0, retry_after_s: float | None = None) -> Told:
    return {"type": "failed", "message": message, "code": code, "status": status, "retry_after_s": retry_after_s}


def _credential(asker: Asker) -> str:
    peppers = settings.PENSTOCK_KEY_PEPPERS
    return seal(tenant=str(asker.tenant), member=str(asker.user), peppers=peppers, now=time.time())


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None
