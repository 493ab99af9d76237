"""Error pages in the look of the house, and problem details for what the REST API's views never got to see.

The server's own fault page uses neither database nor session.
"""

from django.core.exceptions import DisallowedHost
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.shortcuts import render
from rest_framework import exceptions

from tenants.api import problems

TEMPLATE = "errors/error.html"
_API = "/api/"
_CODES = {400: "bad_request", 403: "permission_denied", 404: "not_found", 500: "internal_error"}


def bad_request(request: HttpRequest, exception: Exception) -> HttpResponse:
    if isinstance(exception, DisallowedHost):
        why = "Penstock does not answer to the name that you asked for. Operators add names to PENSTOCK_ALLOWED_HOSTS."
        return _error(request, 400, "That name is not known here", why)
    return _error(
        request, 400, "That request is not understood", "Go back and try again; if it was a link, it is incomplete."
    )


def forbidden(request: HttpRequest, exception: Exception) -> HttpResponse:
    why = str(exception) or "Your account does not have the role this page needs."
    return _error(request, 403, "This page is not for your account", why)


def csrf_failure(request: HttpRequest, reason: str = "") -> HttpResponse:
    return _error(
        request,
        403,
        "The form has expired",
        "It was opened before you signed in or out, or cookies are blocked. Go back, reload the page, send it again.",
    )


def not_found(request: HttpRequest, exception: Exception) -> HttpResponse:
    return _error(
        request, 404, "There is no such page", "The address is wrong, or what it showed is gone or not yours to see."
    )


def server_error(request: HttpRequest) -> HttpResponse:
    return _error(
        request,
        500,
        "Something broke on our side",
        "The page could not be made; the log of the role web says why. Inference does not depend on this page.",
    )


def _error(request: HttpRequest, status: int, title: str, why: str) -> HttpResponse:
    if request.path.startswith(_API):
        error = exceptions.APIException(why, _CODES[status])
        error.status_code = status
        return JsonResponse(problems.body_of(error), status=status, content_type=problems.CONTENT_TYPE)
    # Whoever asks the operator about the page can name it by the id that is in the log.
    context = {"status": status, "title": title, "why": why, "request_id": request.META.get("REQUEST_ID", "")}
    return render(request, TEMPLATE, context, status=status)
