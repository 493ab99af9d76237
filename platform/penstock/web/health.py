"""Is this web process able to serve? For load balancers and ``penstock up``."""

from collections.abc import Callable
from typing import Any

from asgiref.sync import iscoroutinefunction, sync_to_async
from django.db import DatabaseError, connection
from django.http import HttpRequest, JsonResponse
from django.http.response import HttpResponseBase
from django.utils.decorators import sync_and_async_middleware
from django.views.decorators.http import require_safe

from penstock.web.live import is_state_reachable

PATH = "/healthz"


def _is_database_reachable() -> bool:
    try:
        with connection.cursor() as cursor:
            cursor.execute("SELECT 1")
            return cursor.fetchone() is not None
    except DatabaseError:
        return False


@require_safe
def healthz(request: HttpRequest) -> JsonResponse:
    """200 when database and state answer, else 503 with the one that does not."""
    checks = {"database": _is_database_reachable(), "state": is_state_reachable()}
    is_healthy = all(checks.values())
    body = {
        "status": "ok" if is_healthy else "unavailable",
        **{name: "ok" if fine else "does not answer" for name, fine in checks.items()},
    }
    return JsonResponse(body, status=200 if is_healthy else 503, headers={"Cache-Control": "no-store"})


@sync_and_async_middleware
def health_by_any_name(get_response: Any) -> Callable[[HttpRequest], Any]:
    """Answer ``/healthz`` before the host's name is looked at: probes ask by address, which no setting names."""
    if iscoroutinefunction(get_response):
        look = sync_to_async(healthz)

        async def amiddleware(request: HttpRequest) -> HttpResponseBase:
            response: HttpResponseBase = await (look if request.path == PATH else get_response)(request)
            return response

        return amiddleware

    def middleware(request: HttpRequest) -> HttpResponseBase:
        response: HttpResponseBase = (healthz if request.path == PATH else get_response)(request)
        return response

    return middleware
