"""The page behind the link of an invitation."""

from urllib.parse import urlencode

from django.conf import settings
from django.contrib.auth import login
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect, render, resolve_url
from django.urls import reverse
from django.views.decorators.cache import never_cache
from django.views.decorators.csrf import csrf_protect
from django.views.decorators.http import require_http_methods

from penstock.web.signin import BACKEND
from tenants.models import User
from tenants.services import (
    InvitationError,
    InvitationForAccountError,
    invitation_accept,
    invitation_account,
    invitation_find,
)

TEMPLATE = "signin/invitation.html"


@never_cache
@csrf_protect
@require_http_methods(["GET", "HEAD", "POST"])
def invitation(request: HttpRequest, token: str) -> HttpResponse:
    """What the invitation offers, and a button that accepts it. Opening changes nothing: mail scanners open links too.

    A new person is signed in. Whoever has an account signs in first: the link alone must not open an account.
    """
    visitor = request.user if isinstance(request.user, User) else None
    try:
        found = invitation_find(token)
        if request.method == "POST":
            user = invitation_accept(token, visitor=visitor)
            if user != visitor:
                login(request, user, backend=BACKEND)
            return redirect("tenant", slug=found.tenant.slug)
    except InvitationForAccountError:
        # The page says what to do.
        return redirect(request.path)
    except InvitationError as error:
        return render(request, TEMPLATE, {"error": str(error)}, status=410)
    account = invitation_account(found)
    query = urlencode({"next": reverse("invitation", args=[token])})
    context = {
        "invitation": found,
        "visitor": visitor,
        "must_sign_in": account is not None and account != visitor,
        "sign_in_url": f"{resolve_url(settings.LOGIN_URL)}?{query}",
    }
    return render(request, TEMPLATE, context)
