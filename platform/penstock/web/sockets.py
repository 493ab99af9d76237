"""Websockets: which pages may open them, who is behind them, and the table of their routes."""

from __future__ import annotations

from importlib import import_module
from typing import Any
from urllib.parse import urlsplit

from channels.db import database_sync_to_async
from django.conf import settings
from django.contrib.auth import get_user
from django.http import HttpRequest, parse_cookie
from django.http.request import split_domain_port, validate_host
from django.utils.http import is_same_domain

from penstock.web.tenant.answers import Asker
from tenants.models import Tenant, User
from tenants.permissions import can
from tenants.policy.roles import Action

SIGNED_OUT, NOT_ALLOWED = 4401, 4403


class PolicyViolation(Exception):
    """Whoever is behind the socket may not use it (any more). ``code`` closes it; the message is for people."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


def is_own_origin(scope: dict[str, Any]) -> bool:
    """Whether a page of the console itself opened the socket: browsers send cookies with any site's."""
    headers = dict(scope["headers"])
    try:
        origin = urlsplit(headers.get(b"origin", b"").decode("ascii"))
        host = headers.get(b"host", b"").decode("ascii").lower()
    except (UnicodeDecodeError, ValueError):
        return False
    if origin.scheme not in ("http", "https") or not origin.netloc:
        return False
    for trusted in map(urlsplit, settings.CSRF_TRUSTED_ORIGINS):
        if origin.scheme == trusted.scheme and is_same_domain(origin.netloc, trusted.netloc.lstrip("*")):
            return True
    is_ours = validate_host(split_domain_port(host)[0], settings.ALLOWED_HOSTS)
    is_secure = origin.scheme == "https" or not settings.SESSION_COOKIE_SECURE
    return is_ours and is_secure and origin.netloc.lower() == host


async def asker_of(scope: dict[str, Any], slug: str) -> Asker:
    """The signed-in person who may use the models of the tenant ``slug``, as it is stored now. Raises PolicyViolation.

    Of a tenant that is not theirs they hear what they hear of one that does not exist.
    """
    found: Asker = await database_sync_to_async(_asker_of)(scope, slug)
    return found


def _asker_of(scope: dict[str, Any], slug: str) -> Asker:
    cookies = parse_cookie(dict(scope["headers"]).get(b"cookie", b"").decode("latin-1"))
    request = HttpRequest()
    request.session = import_module(settings.SESSION_ENGINE).SessionStore(cookies.get(settings.SESSION_COOKIE_NAME))
    user = get_user(request)
    if not isinstance(user, User) or not user.is_active:
        raise PolicyViolation(SIGNED_OUT, "You are signed out. Sign in again, then reload this page.")
    tenant = Tenant.objects.filter(slug=slug).first()
    if tenant is None or not can(user, Action.INFERENCE_USE, tenant):
        raise PolicyViolation(NOT_ALLOWED, "You may not use this tenant's models any more. Ask an owner or admin.")
    return Asker(tenant=tenant.pk, user=user.pk)
