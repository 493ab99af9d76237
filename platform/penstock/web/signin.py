"""Sign in by password or one-time link, and sign out."""

from django.conf import settings
from django.contrib.auth import login, logout
from django.core.exceptions import PermissionDenied
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect, render, resolve_url
from django.urls import reverse
from django.utils.http import url_has_allowed_host_and_scheme
from django.views.decorators.cache import never_cache
from django.views.decorators.csrf import csrf_protect
from django.views.decorators.debug import sensitive_post_parameters, sensitive_variables
from django.views.decorators.http import require_http_methods, require_POST

from tenants.addresses import address_in
from tenants.models import User
from tenants.signin import SignInLinkError, sign_in_by_password, sign_in_link_redeem

BACKEND = "django.contrib.auth.backends.ModelBackend"


def safe_next(request: HttpRequest, wanted: str | None) -> str:
    """``wanted`` when it is a path of this site, else the start page."""
    home = resolve_url(settings.LOGIN_REDIRECT_URL)
    is_safe = url_has_allowed_host_and_scheme(
        wanted, allowed_hosts={request.get_host()}, require_https=request.is_secure()
    )
    return wanted if wanted and is_safe else home


@sensitive_post_parameters("password")
@sensitive_variables("password")
@never_cache
@csrf_protect
@require_http_methods(["GET", "HEAD", "POST"])
def sign_in(request: HttpRequest) -> HttpResponse:
    """The sign-in form; 422 for wrong credentials and 429 with Retry-After while sign-in pauses."""
    wanted = request.POST.get("next") or request.GET.get("next")
    if isinstance(request.user, User):
        target = safe_next(request, wanted)
        # The admin sends whoever it refuses to sign in: sending them back would go round for ever.
        if target.startswith(reverse("admin:index")) and not request.user.is_staff:
            raise PermissionDenied("The admin is for operators of the platform.")
        return redirect(target)
    if request.method != "POST":
        return render(request, "signin/form.html", {"next": wanted or ""})
    # No database holds a NUL, and PostgreSQL cannot be asked for one.
    email, password = request.POST.get("email", "").replace("\0", "").strip(), request.POST.get("password", "")
    if not email or not password:
        message = "Enter your e-mail address and your password."
        return render(request, "signin/form.html", {"next": wanted or "", "email": email, "error": message}, status=422)
    address = address_in(request.META, settings.PENSTOCK_TRUSTED_PROXIES)
    result = sign_in_by_password(email=email, password=password, address=address, request=request)
    if result.user is None:
        is_paused = result.retry_after_s > 0
        context = {"next": wanted or "", "email": email, "error": result.message, "is_paused": is_paused}
        response = render(request, "signin/form.html", context, status=429 if is_paused else 422)
        if is_paused:
            response.headers["Retry-After"] = str(round(result.retry_after_s))
        return response
    login(request, result.user, backend=BACKEND)
    return redirect(safe_next(request, wanted))


@never_cache
@csrf_protect
@require_http_methods(["GET", "HEAD", "POST"])
def sign_in_link(request: HttpRequest, token: str) -> HttpResponse:
    """A one-time link. Opening it changes nothing, since mail scanners open links too: the button redeems it."""
    if request.method != "POST":
        return render(request, "signin/link.html", {})
    try:
        user = sign_in_link_redeem(token)
    except SignInLinkError as error:
        return render(request, "signin/link.html", {"error": str(error)}, status=410)
    login(request, user, backend=BACKEND)
    return redirect(settings.LOGIN_REDIRECT_URL)


@require_POST
def sign_out(request: HttpRequest) -> HttpResponse:
    logout(request)
    return redirect(settings.LOGIN_URL)
