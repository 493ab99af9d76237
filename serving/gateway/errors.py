"""Errors, and the shapes that clients of each API expect of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol

import msgspec

from capacity.usage.lines import Charge

Header = tuple[bytes, bytes]

INVALID = "invalid_request_error"
SERVER = "server_error"

_REASON = b"x-penstock-reason"


class ApiError(Exception):
    """A refusal that the client is told about. ``headers`` go out with it, names in lower case.

    One for now (429, 503) names its reason in a header, for whoever counts them: ``code``, unless ``headers`` say more.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str | None,
        param: str | None = None,
        type: str = INVALID,
        headers: Sequence[Header] = (),
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.code = code
        self.param = param
        self.type = type
        self.headers = tuple(headers)
        if status in (429, 503) and code and not any(name == _REASON for name, _ in headers):
            self.headers += ((_REASON, code.encode()),)

    @property
    def reason(self) -> str:
        """As its header tells it, or the code."""
        return next((value.decode() for name, value in self.headers if name == _REASON), self.code or "")


class LimitReached(ApiError):
    """429 because of a limit or a reservation. ``obstacles``: what stood in the way; ``retry_after_s`` as promised."""

    def __init__(
        self,
        message: str,
        *,
        code: str,
        type: str,
        headers: Sequence[Header],
        obstacles: tuple[Charge, ...],
        retry_after_s: float,
    ) -> None:
        super().__init__(429, message, code=code, type=type, headers=headers)
        self.obstacles = obstacles
        self.retry_after_s = retry_after_s


class ErrorShape(Protocol):
    """How one API tells an error: as an answer of its own, and as the event that ends a stream."""

    def body(self, error: ApiError, request_id: str) -> bytes: ...

    def event(self, error: ApiError, request_id: str) -> bytes:
        """A server-sent event for a stream which cannot be completed; nothing follows it."""
        ...


def error_body(message: str, *, type: str, param: str | None = None, code: str | None = None) -> bytes:
    return msgspec.json.encode({"error": {"message": message, "type": type, "param": param, "code": code}})


class _OpenAI:
    """``{"error": {"message", "type", "param", "code"}}``."""

    def body(self, error: ApiError, request_id: str) -> bytes:
        return error_body(error.message, type=error.type, param=error.param, code=error.code)

    def event(self, error: ApiError, request_id: str) -> bytes:
        return b"data: " + self.body(error, request_id) + b"\n\n"


class _Responses(_OpenAI):
    """In a stream the ``error`` event of the Responses API, with what makes its clients raise."""

    def event(self, error: ApiError, request_id: str) -> bytes:
        told = {"message": error.message, "param": error.param, "code": error.code}
        event = {"type": "error", **told, "error": {"type": error.type, **told}}
        return b"event: error\ndata: " + msgspec.json.encode(event) + b"\n\n"


class _Anthropic:
    """``{"type": "error", "error": {"type", "message"}, "request_id"}``; the field at fault stands in the message."""

    def body(self, error: ApiError, request_id: str) -> bytes:
        kind = _ANTHROPIC_TYPES.get(error.status, "invalid_request_error" if error.status < 500 else "api_error")
        message = error.message
        if error.param and error.param not in message:
            message = f"{error.param}: {message}"
        told = {"type": kind, "message": message}
        return msgspec.json.encode({"type": "error", "error": told, "request_id": request_id})

    def event(self, error: ApiError, request_id: str) -> bytes:
        return b"event: error\ndata: " + self.body(error, request_id) + b"\n\n"


_ANTHROPIC_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    408: "timeout_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}

OPENAI: ErrorShape = _OpenAI()
RESPONSES: ErrorShape = _Responses()
ANTHROPIC: ErrorShape = _Anthropic()


def retry_after(seconds: float) -> tuple[Header, Header]:
    """``Retry-After`` in whole seconds, at least 1, and in milliseconds, as OpenAI's clients read it."""
    whole = max(1, math.ceil(seconds))
    return (b"retry-after", str(whole).encode()), (b"retry-after-ms", str(max(1, math.ceil(seconds * 1000))).encode())


def bad_request(message: str, *, param: str | None = None, code: str | None = None) -> ApiError:
    return ApiError(400, message, param=param, code=code)


def unauthorized(message: str, *, code: str = "invalid_api_key") -> ApiError:
    return ApiError(401, message, code=code, headers=((b"www-authenticate", b'Bearer realm="penstock"'),))


def forbidden(message: str, *, code: str) -> ApiError:
    return ApiError(403, message, code=code)


def model_not_found(name: str) -> ApiError:
    """The same answer for a model that does not exist and for one the tenant may not see."""
    shown = name if len(name) <= 200 else name[:200] + "…"
    return ApiError(
        404,
        f"The model '{shown}' does not exist or you do not have access to it. GET /v1/models lists those you can use.",
        code="model_not_found",
        param="model",
    )


def unknown_url(method: str, path: str) -> ApiError:
    return ApiError(404, f"Unknown request URL: {method} {path[:200]}.", code="unknown_url")


def not_stored(response: str) -> ApiError:
    return ApiError(
        404,
        f"The response '{response[:100]}' is not there: responses are not stored here. Keep the answer, and send the "
        "whole conversation as 'input' with each request.",
        code="response_not_found",
    )


def not_spoken(name: str, spoken: Sequence[str]) -> ApiError:
    """The model is there, but it answers other requests than this one; ``spoken`` as ``DeploymentRecord.speaks``."""
    routes = [route for word, found in _ROUTES.items() if word in spoken for route in found]
    said = f"It answers {', '.join(routes)}." if routes else "It answers no request of this API."
    return ApiError(404, f"The model '{name}' cannot be asked this. {said}", code="model_not_supported", param="model")


def not_served(name: str, path: str) -> ApiError:
    """The engine behind the model has no such route."""
    return ApiError(
        404, f"The engine that serves '{name}' does not answer {path[:200]}.", code="model_not_supported", param="model"
    )


_ROUTES = {
    "generate": ("/v1/chat/completions", "/v1/completions", "/v1/messages", "/v1/responses"),
    "embed": ("/v1/embeddings",),
    "score": ("/v1/rerank", "/v1/score"),
    "invocations": ("/invocations",),
    "http": ("/invocations",),
}
"""What to ask of a deployment instead, by the words of ``DeploymentRecord.speaks``."""


def unavailable(message: str, *, code: str, retry_after_s: float) -> ApiError:
    return ApiError(503, message, code=code, type=SERVER, headers=retry_after(retry_after_s))


def no_replica(name: str, *, is_stopped: bool) -> ApiError:
    """Nothing serves the model now; where its operator has stopped it, that is said."""
    if is_stopped:
        text = f"'{name}' is stopped until its operator starts it again."
        return unavailable(text, code="no_ready_replica", retry_after_s=60.0)
    text = f"No replica of '{name}' is ready. Try again shortly."
    return unavailable(text, code="no_ready_replica", retry_after_s=5.0)
