"""What a replica that does not answer as asked is taken for, and what the client hears of it."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from serving.gateway import errors
from serving.gateway.dialects import media
from serving.gateway.errors import ApiError
from serving.gateway.placement import Busy, Reclaimed
from serving.gateway.records import Outcome
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


class NoRoom(ApiError):
    """429: no replica takes it now. ``retry_after_s``: when its turn is."""

    def __init__(self, message: str, *, code: str, headers: Sequence[errors.Header], retry_after_s: float) -> None:
        super().__init__(429, message, code=code, type="requests", headers=headers)
        self.retry_after_s = retry_after_s


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


def no_room(name: str, error: Busy) -> NoRoom:
    """What the client hears when ``name`` has no room for it, now or in the time that it may wait."""
    is_reclaimed = isinstance(error, Reclaimed)
    code = "capacity_reclaimed" if is_reclaimed else "capacity_exceeded"
    lead = "has no room for best-effort requests" if is_reclaimed else "is at capacity"
    headers = [*errors.retry_after(error.retry_after_s), (b"x-penstock-reason", code.encode())]
    why = ""
    if error.expected is not None:
        told = error.expected
        why = f" Before it go {told.ahead_mu:.3g} MU of your own requests, at {told.mu_per_s:.3g} MU/s."
        why += " Its place is kept." if told.has_place else " No place could be kept for it."
        headers.append((b"x-penstock-mu-ahead", b"%.6g" % told.ahead_mu))
    return NoRoom(
        f"'{name}' {lead}: {error}.{why} Try again in {error.retry_after_s:.3g} s.",
        code=code,
        headers=headers,
        retry_after_s=error.retry_after_s,
    )


def stopped(why: str | None, *, total_s: float) -> ApiError:
    """What the client hears of a request that is over before its answer is: the engine is ``idle``, its time of
    ``total_s`` is up (``timeout``), or else the gateway ends."""
    if why == "idle":
        return ApiError(504, "The engine fell silent.", code="engine_timeout", type=errors.SERVER)
    if why == "timeout":
        return ApiError(504, f"The request took more than {total_s:g} s.", code="timeout", type=errors.SERVER)
    return errors.unavailable("The gateway is stopping.", code="gateway_stopping", retry_after_s=1.0)


def too_large(limit: int) -> ApiError:
    """The answer exceeds ``limit`` bytes."""
    return ApiError(
        400,
        f"The answer would exceed {limit // 2**20} MiB. Ask for less in one request: fewer inputs, or, of "
        "embeddings, 'encoding_format': 'base64'.",
        code="answer_too_large",
    )


def outcome_of(error: ApiError) -> Outcome:
    """How a request ended that was answered with ``error``."""
    # A client's own mistake that only the engine saw says nothing about the engine.
    if error.code in ("no_ready_replica", "capacity_exceeded", "capacity_reclaimed") or error.status in (400, 404, 413):
        return "refused"
    return "engine_lost" if error.code == "engine_lost" else "engine_error"


def reclaimed() -> Reclaimed:
    """Why what is lent is ended before it is complete."""
    return Reclaimed("the owner of a reservation needs what was lent", retry_after_s=gate.HOLD_S, reason="cut")


def mistake(status: int, body: bytes, *, model: str, path: str) -> ApiError:
    """What the client hears of an engine's no. Raises EngineRefused where that is the replica's failure."""
    if is_no_route(status, body):
        return errors.not_served(model, path)
    if is_bomb(status, body):
        return media.too_large("An image has more pixels than its first bytes say")
    if status not in (400, 413, 422):
        raise EngineRefused(status, f"the engine answered {status}")
    return client_mistake(status, body)


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
