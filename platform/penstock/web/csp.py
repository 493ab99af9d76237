"""Content-Security-Policy for our own pages: nothing inline, nothing from elsewhere."""

from collections.abc import Callable
from typing import Any

from asgiref.sync import iscoroutinefunction
from django.http import HttpRequest
from django.http.response import HttpResponseBase
from django.utils.decorators import sync_and_async_middleware

POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self'",
        "font-src 'self'",
        "connect-src 'self'",
        "form-action 'self'",
        "frame-ancestors 'none'",
        "base-uri 'none'",
    )
)
ADMIN_POLICY = "; ".join(
    (
        # The admin theme evaluates Alpine expressions and writes inline styles; still nothing from elsewhere.
        "default-src 'self'",
        "script-src 'self' 'unsafe-inline' 'unsafe-eval'",
        "style-src 'self' 'unsafe-inline'",
        "img-src 'self' data:",
        "object-src 'none'",
        "form-action 'self'",
        "frame-ancestors 'none'",
        "base-uri 'none'",
    )
)
DOCS_POLICY = POLICY.replace("style-src 'self'", "style-src 'self' 'unsafe-inline'").replace(
    "img-src 'self'", "img-src 'self' data:"
)
"""The reader of the API's document writes inline styles and draws icons from data; scripts come from files alone."""
HEADER = "Content-Security-Policy"


def policy_for(path: str) -> str:
    """The policy of a page by its path."""
    if path == "/api/docs":
        return DOCS_POLICY
    return ADMIN_POLICY if path.startswith("/admin/") else POLICY


@sync_and_async_middleware
def content_security_policy(get_response: Any) -> Callable[[HttpRequest], Any]:
    """Sets the policy on every response that does not bring its own."""
    if iscoroutinefunction(get_response):

        async def amiddleware(request: HttpRequest) -> HttpResponseBase:
            return _with_policy(request, await get_response(request))

        return amiddleware

    def middleware(request: HttpRequest) -> HttpResponseBase:
        return _with_policy(request, get_response(request))

    return middleware


def _with_policy(request: HttpRequest, response: HttpResponseBase) -> HttpResponseBase:
    response.headers.setdefault(HEADER, policy_for(request.path))
    return response
