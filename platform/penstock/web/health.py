"""Is this web process able to serve? For load balancers and ``penstock up``."""

from django.db import DatabaseError, connection
from django.http import HttpRequest, JsonResponse
from django.views.decorators.http import require_safe

from penstock.web.live import is_state_reachable


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
