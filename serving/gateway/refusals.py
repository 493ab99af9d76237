"""What a replica that does not answer as asked is taken for, and what the client hears of it."""

from __future__ import annotations

import msgspec

from serving.gateway import errors
from serving.gateway.errors import ApiError
from serving.gateway.placement import Busy, Reclaimed
from serving.gateway.relay import error_message
from serving.gateway.upstream import UpstreamError
from serving.gateway.usage import UNREADABLE
from serving.policy import gate


class EngineRefused(UpstreamError):
    """The replica answered, but not as a healthy engine with this model does; ``status`` is its own."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status


class EngineFailed(UpstreamError):
    """The engine reported an error inside the stream, or what it sent is no stream."""


def is_no_route(status: int, body: bytes) -> bool:
    """Whether the engine has no such route. One that does not know its own model is broken instead."""
    return status in (405, 501) or (status == 404 and b"model" not in body[:4096].lower())


def is_bomb(status: int, body: bytes) -> bool:
    """Whether the engine's decoder refused an image for its size, which vLLM answers with 500 as if it had failed."""
    return status == 500 and b"decompression bomb" in body[:4096].lower()


def failure(error: Exception) -> ApiError:
    """What the client hears of a replica's failure; the engine's own words stay inside."""
    if isinstance(error, EngineRefused) and error.status in (429, 503):
        return errors.unavailable("The engine is busy. Try again shortly.", code="engine_busy", retry_after_s=1.0)
    if isinstance(error, (EngineRefused, EngineFailed)):
        return ApiError(502, "The engine failed on this request.", code="engine_error", type=errors.SERVER)
    return ApiError(502, "The connection to the engine was lost.", code="engine_lost", type=errors.SERVER)


def no_room(name: str, error: Busy) -> ApiError:
    """What the client hears when ``name`` has no room for it, now or in the time that it may wait."""
    is_reclaimed = isinstance(error, Reclaimed)
    code = "capacity_reclaimed" if is_reclaimed else "capacity_exceeded"
    return ApiError(
        429,
        f"'{name}' has no room for best-effort requests: {error}. Try again in {error.retry_after_s:.3g} s."
        if is_reclaimed
        else f"'{name}' is at capacity: {error}. Try again in {error.retry_after_s:.3g} s.",
        code=code,
        type="requests",
        headers=[*errors.retry_after(error.retry_after_s), (b"x-penstock-reason", code.encode())],
    )


def reclaimed() -> Reclaimed:
    """Why what is lent is ended before it is complete."""
    return Reclaimed("the owner of a reservation needs what was lent", retry_after_s=gate.HOLD_S, reason="cut")


def client_mistake(status: int, body: bytes) -> ApiError:
    """An engine's 4xx in OpenAI's shape. The message speaks of the client's own request, so it is passed on."""
    message, param = "", None
    try:
        members = msgspec.json.decode(body, type=dict[str, msgspec.Raw])
        message = error_message(members)
        inner = msgspec.json.decode(members.get("error", members.get("param", b"null")))
        param = inner.get("param") if isinstance(inner, dict) else inner
    except UNREADABLE:
        message = ""
    text = message or "The engine refused the request."
    is_length = "maximum context length" in text or "max_model_len" in text or param == "input_tokens"
    return ApiError(
        413 if status == 413 else 400,
        text,
        param=param if isinstance(param, str) else None,
        code="context_length_exceeded" if is_length else "invalid_request",
    )
