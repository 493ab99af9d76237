"""Error pages in the look of the house. The server's own fault page uses neither database nor session."""

from django.http import HttpRequest, HttpResponse
from django.shortcuts import render

TEMPLATE = "errors/error.html"


def bad_request(request: HttpRequest, exception: Exception) -> HttpResponse:
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
    # Whoever asks the operator about the page can name it by the id that is in the log.
    context = {"status": status, "title": title, "why": why, "request_id": request.META.get("REQUEST_ID", "")}
    return render(request, TEMPLATE, context, status=status)
