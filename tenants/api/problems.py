"""Problem details (RFC 9457) for every error of the REST API: what is wrong, at which field, and what to do."""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import Any

from django.core.exceptions import NON_FIELD_ERRORS, ObjectDoesNotExist, PermissionDenied, RequestDataTooBig
from django.core.exceptions import ValidationError as ModelError
from django.db import IntegrityError, OperationalError
from django.db.models import ProtectedError, RestrictedError
from django.http import Http404
from rest_framework import exceptions, serializers, status
from rest_framework.response import Response
from rest_framework.views import set_rollback

from tenants.needed import Reference, StillNeeded

CONTENT_TYPE = "application/problem+json"

_TITLES = {
    400: "The request cannot be carried out as it is",
    401: "Sign in or send a token",
    403: "Not allowed",
    404: "Not found",
    405: "Method not allowed",
    406: "Not acceptable",
    409: "It conflicts with what is there",
    412: "It has changed meanwhile",
    413: "The request is too large",
    415: "Unsupported media type",
    422: "The Idempotency-Key was used for another request",
    429: "Too many requests",
    500: "A fault of ours",
}
_HINTS = {
    400: "Send a JSON document of the shape that /api/docs shows.",
    401: "Send 'Authorization: Bearer <token>', or sign in to the console in this browser.",
    403: "Ask an owner or admin of the tenant, or an operator, for the right to do this.",
    404: "Check the address. What belongs to a tenant that is not yours is not found either.",
    405: "The methods that this address takes are in the Allow header.",
    409: "Read the object again, then decide.",
    412: "Read it again, look at what has changed, and send the request with the new ETag in If-Match.",
    413: "Send less at once.",
    415: "Send JSON with 'Content-Type: application/json'.",
    422: "Use a fresh Idempotency-Key for each request; repeat one only with the very same request.",
    429: "Wait as long as the Retry-After header says.",
    500: "Tell an operator the X-Request-ID of this answer: the log of the role web says under it what failed.",
}

_GIVE_WAY = ("40P01", "40001")
"""SQLSTATE of a deadlock and of a failed serialization: PostgreSQL undoes one transaction for the sake of others."""


class Conflict(exceptions.APIException):
    status_code = status.HTTP_409_CONFLICT
    default_detail = "It conflicts with what is there."
    default_code = "conflict"


class InUse(Conflict):
    """Something still refers to it; ``references`` says what."""

    default_code = "in_use"

    def __init__(self, refused: StillNeeded) -> None:
        super().__init__(str(refused))
        self.hint = refused.hint
        self.references: tuple[Reference, ...] = refused.references


class PreconditionFailed(exceptions.APIException):
    status_code = status.HTTP_412_PRECONDITION_FAILED
    default_detail = "The object has changed since you read it."
    default_code = "changed"


class TooLarge(exceptions.APIException):
    status_code = status.HTTP_413_REQUEST_ENTITY_TOO_LARGE
    default_detail = "The body of the request is larger than the REST API reads."
    default_code = "too_large"


class KeyReused(exceptions.APIException):
    status_code = status.HTTP_422_UNPROCESSABLE_ENTITY
    default_detail = "This Idempotency-Key was sent with another request before."
    default_code = "idempotency_key_reused"


class FieldErrorSerializer(serializers.Serializer[Any]):
    """One thing that is wrong with one field."""

    field = serializers.CharField(help_text="Path of the field, e.g. limits[0].value; empty for the whole request.")
    code = serializers.CharField()
    message = serializers.CharField()


class ReferenceSerializer(serializers.Serializer[Any]):
    """Something that still refers to what was to be removed."""

    kind = serializers.CharField()
    name = serializers.CharField(help_text="How it is called, or its id.")
    detail = serializers.CharField(allow_blank=True)


class ProblemSerializer(serializers.Serializer[Any]):
    """Problem details, RFC 9457."""

    type = serializers.CharField(help_text="URN of the kind of problem.")
    title = serializers.CharField()
    status = serializers.IntegerField()
    code = serializers.CharField(help_text="Stable, for programs.")
    detail = serializers.CharField()
    hint = serializers.CharField(required=False, help_text="What to do.")
    errors = FieldErrorSerializer(many=True, required=False)  # type: ignore[assignment]
    references = ReferenceSerializer(many=True, required=False, help_text="What stands in the way, the first of it.")


def problem(exc: Exception, context: dict[str, Any]) -> Response | None:
    """DRF's exception handler. None: it is a fault of ours, and Django's own handler answers and logs it."""
    error = _as_api_error(exc)
    if error is None:
        return None
    set_rollback()
    headers = {}
    if (wait := getattr(error, "wait", None)) is not None:
        headers["Retry-After"] = str(max(1, math.ceil(wait)))
    if (challenge := getattr(error, "auth_header", None)) is not None:
        headers["WWW-Authenticate"] = challenge
    return Response(body_of(error), status=error.status_code, headers=headers, content_type=CONTENT_TYPE)


def body_of(error: exceptions.APIException) -> dict[str, Any]:
    number = error.status_code
    fields = _fields(error.detail) if isinstance(error, exceptions.ValidationError) else []
    code = "invalid" if fields else _code_of(error)
    body: dict[str, Any] = {
        "type": f"urn:penstock:problem:{code}",
        "title": _TITLES.get(number, "Error"),
        "status": number,
        "code": code,
        "detail": "; ".join(f"{f['field']}: {f['message']}" if f["field"] else f["message"] for f in fields)
        or str(error.detail),
    }
    if fields:
        body["hint"] = "Correct the fields named under errors and send the request again."
        body["errors"] = fields
    elif hint := getattr(error, "hint", _HINTS.get(number)):
        body["hint"] = hint
    body |= getattr(error, "more", {})
    if isinstance(error, InUse) and error.references:
        body["references"] = [asdict(one) for one in error.references]
    return body


def _code_of(error: exceptions.APIException) -> str:
    codes = error.get_codes()
    return codes if isinstance(codes, str) else "error"


def _as_api_error(exc: Exception) -> exceptions.APIException | None:
    if isinstance(exc, exceptions.APIException):
        return exc
    if isinstance(exc, Http404):
        return exceptions.NotFound(str(exc) or "There is no such object.")
    if isinstance(exc, ObjectDoesNotExist):
        return exceptions.NotFound("It has been removed meanwhile.")
    if isinstance(exc, StillNeeded):
        return InUse(exc)
    if isinstance(exc, PermissionDenied):
        return exceptions.PermissionDenied(str(exc) or None)
    if isinstance(exc, RequestDataTooBig):
        return TooLarge()
    if isinstance(exc, ModelError):
        return exceptions.ValidationError(_detail_of(exc))
    if isinstance(exc, OperationalError) and getattr(exc.__cause__, "sqlstate", None) in _GIVE_WAY:
        return Conflict("Somebody changed the same things at the same moment, and nothing of this was done: try again.")
    if isinstance(exc, IntegrityError) and not isinstance(exc, ProtectedError | RestrictedError):
        # Services check before they write; only somebody who wrote in between leaves it to the database.
        return Conflict("Somebody made or changed the same thing at the same moment.")
    if isinstance(exc, ProtectedError | RestrictedError):
        return Conflict("Something still belongs to it: remove that first.")
    return None


def _detail_of(error: ModelError) -> dict[str, list[exceptions.ErrorDetail]]:
    """A service's or model's ValidationError, by field."""
    if not hasattr(error, "error_dict"):
        return {"": [exceptions.ErrorDetail(text, error.code or "invalid") for text in error.messages]}
    return {
        "" if name == NON_FIELD_ERRORS else name: [
            exceptions.ErrorDetail(text, single.code or "invalid") for single in errors for text in single.messages
        ]
        for name, errors in error.error_dict.items()
    }


def _fields(detail: Any, path: str = "") -> list[dict[str, str]]:
    if isinstance(detail, dict):
        found = []
        for name, inner in detail.items():
            if isinstance(name, int):  # an entry of a list
                found += _fields(inner, f"{path}[{name}]")
                continue
            plain = "" if name == "non_field_errors" else str(name)
            found += _fields(inner, f"{path}.{plain}" if path and plain else path or plain)
        return found
    if isinstance(detail, list):
        if all(isinstance(entry, exceptions.ErrorDetail) for entry in detail):
            return [{"field": path, "code": entry.code or "invalid", "message": str(entry)} for entry in detail]
        return [one for i, inner in enumerate(detail) if inner for one in _fields(inner, f"{path}[{i}]")]
    return [{"field": path, "code": getattr(detail, "code", None) or "invalid", "message": str(detail)}]
