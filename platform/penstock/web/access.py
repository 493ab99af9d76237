"""Who may open which page. A tenant that is not yours does not exist: its pages answer 404."""

from collections.abc import Callable
from functools import wraps
from typing import Concatenate, ParamSpec
from urllib.parse import urlencode

from django.conf import settings
from django.core.exceptions import PermissionDenied
from django.http import Http404, HttpRequest, HttpResponse
from django.http.response import HttpResponseBase
from django.shortcuts import redirect, resolve_url

from tenants.models import Tenant, User
from tenants.permissions import can, role_in
from tenants.policy.roles import Action

P = ParamSpec("P")


class UserRequest(HttpRequest):
    """A request of a signed-in user."""

    user: User


def to_sign_in(request: HttpRequest) -> HttpResponse:
    """Send the visitor to sign in and back. A fragment's request is told to load the whole sign-in page."""
    url = resolve_url(settings.LOGIN_URL)
    if "HX-Request" in request.headers or request.headers.get("Accept") == "application/json":
        return HttpResponse(status=401, headers={"HX-Redirect": url})
    query = urlencode({"next": request.get_full_path()}) if request.method == "GET" and request.path != "/" else ""
    return redirect(f"{url}?{query}" if query else url)


def signed_in(
    view: Callable[Concatenate[UserRequest, P], HttpResponseBase],
) -> Callable[Concatenate[HttpRequest, P], HttpResponseBase]:
    """Only for signed-in users."""

    @wraps(view)
    def guarded(request: HttpRequest, /, *args: P.args, **kwargs: P.kwargs) -> HttpResponseBase:
        if not isinstance(request.user, User):
            return to_sign_in(request)
        return view(request, *args, **kwargs)  # type: ignore[arg-type]

    return guarded


def operators_only(
    action: Action,
) -> Callable[
    [Callable[Concatenate[UserRequest, P], HttpResponseBase]], Callable[Concatenate[HttpRequest, P], HttpResponseBase]
]:
    """Only for those who may do ``action`` on the platform; other signed-in users get 403 and a way back."""

    def guard(
        view: Callable[Concatenate[UserRequest, P], HttpResponseBase],
    ) -> Callable[Concatenate[HttpRequest, P], HttpResponseBase]:
        @wraps(view)
        def guarded(request: UserRequest, /, *args: P.args, **kwargs: P.kwargs) -> HttpResponseBase:
            if not can(request.user, action):
                raise PermissionDenied("The operator console is for operators of the platform.")
            return view(request, *args, **kwargs)

        return signed_in(guarded)

    return guard


def tenant_or_404(user: User, slug: str, action: Action = Action.USAGE_VIEW) -> tuple[Tenant, str]:
    """The tenant and the user's role in it (``operator`` for operators who are no members).

    Raises Http404 when there is no such tenant or the user may not do ``action`` in it.
    """
    tenant = Tenant.objects.filter(slug=slug).first()
    if tenant is None or not can(user, action, tenant):
        raise Http404("There is no such tenant, or you are not a member of it.")
    return tenant, role_in(user, tenant) or "operator"
