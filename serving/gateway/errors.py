"""Errors as OpenAI's API shapes them: ``{"error": {"message", "type", "param", "code"}}`` and the right status."""

from __future__ import annotations

import math
from collections.abc import Sequence

import msgspec

Header = tuple[bytes, bytes]

INVALID = "invalid_request_error"
SERVER = "server_error"


class ApiError(Exception):
    """A refusal that the client is told about. ``headers`` go out with it, names in lower case."""

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

    def body(self) -> bytes:
        return error_body(self.message, type=self.type, param=self.param, code=self.code)


def error_body(message: str, *, type: str, param: str | None = None, code: str | None = None) -> bytes:
    return msgspec.json.encode({"error": {"message": message, "type": type, "param": param, "code": code}})


def error_event(message: str, *, code: str) -> bytes:
    """A server-sent event that ends a stream which cannot be completed; no ``[DONE]`` follows it."""
    return b"data: " + error_body(message, type=SERVER, code=code) + b"\n\n"


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


def unavailable(message: str, *, code: str, retry_after_s: float) -> ApiError:
    return ApiError(503, message, code=code, type=SERVER, headers=retry_after(retry_after_s))
