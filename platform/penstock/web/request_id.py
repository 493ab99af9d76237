"""An id for every HTTP request: in its answer, in its log lines, and in the audit entries of what was done in it."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from asgiref.sync import iscoroutinefunction
from django.http import HttpRequest
from django.http.response import HttpResponseBase
from django.utils.decorators import sync_and_async_middleware

from tenants.audit import request_id_var
from tenants.models import uuid7

HEADER = "X-Request-ID"


@sync_and_async_middleware
def request_id(get_response: Any) -> Callable[[HttpRequest], Any]:
    """Our own id and never the visitor's, who could put anything into the audit."""
    if iscoroutinefunction(get_response):

        async def amiddleware(request: HttpRequest) -> HttpResponseBase:
            with _named(request) as identifier:
                response: HttpResponseBase = await get_response(request)
            response.headers[HEADER] = identifier
            return response

        return amiddleware

    def middleware(request: HttpRequest) -> HttpResponseBase:
        with _named(request) as identifier:
            response: HttpResponseBase = get_response(request)
        response.headers[HEADER] = identifier
        return response

    return middleware


@contextmanager
def _named(request: HttpRequest) -> Iterator[str]:
    identifier = str(uuid7())
    # For log lines and error pages, which know the request and may be written after its context has ended.
    request.META["REQUEST_ID"] = identifier
    token = request_id_var.set(identifier)
    try:
        yield identifier
    finally:
        request_id_var.reset(token)
