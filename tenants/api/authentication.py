"""``Authorization: Bearer`` with a person's access token (``pst_…``) or a tenant's API key (``mu_…``)."""

from __future__ import annotations

from django.conf import settings
from django.contrib.auth.models import AnonymousUser
from rest_framework import authentication, exceptions
from rest_framework.request import Request

from tenants.addresses import address_in, is_allowed
from tenants.keys import PREFIX, KeyText, key_matches, key_parse
from tenants.models import AccessToken, ApiKey, User
from tenants.services import access_token_used, api_key_used

_WRONG = "The token is unknown. Make one in the console, or send an API key with the scope usage or manage."


class TokenAuthentication(authentication.BaseAuthentication):
    """401 for a header that names no living token; no header is left to the session."""

    def authenticate_header(self, request: Request) -> str:
        return 'Bearer realm="penstock"'

    def authenticate(self, request: Request) -> tuple[User | AnonymousUser, AccessToken | ApiKey] | None:
        scheme, _, text = request.headers.get("Authorization", "").partition(" ")
        if not scheme:
            return None
        parts = key_parse(text.strip()) if scheme.lower() == "bearer" else None
        if parts is None:
            raise exceptions.AuthenticationFailed("Send 'Authorization: Bearer' with an access token or API key.")
        if parts.prefix == PREFIX:
            return AnonymousUser(), self._api_key(parts, address_in(request.META, settings.PENSTOCK_TRUSTED_PROXIES))
        token = self._access_token(parts)
        return token.user, token

    def _access_token(self, parts: KeyText) -> AccessToken:
        token = AccessToken.objects.select_related("user").filter(public_id=parts.public_id).first()
        if token is None or not _matches(parts, token):
            raise exceptions.AuthenticationFailed(_WRONG)
        if not token.is_usable or not token.user.is_active:
            raise exceptions.AuthenticationFailed("The token was revoked or has expired. Make another in the console.")
        access_token_used(token=token)
        return token

    def _api_key(self, parts: KeyText, address: str) -> ApiKey:
        key = ApiKey.objects.select_related("tenant").filter(public_id=parts.public_id).first()
        if key is None or not _matches(parts, key):
            raise exceptions.AuthenticationFailed(_WRONG)
        if not key.is_usable or not key.tenant.is_active:
            raise exceptions.AuthenticationFailed("The API key was revoked, has expired, or its tenant is not active.")
        if key.allowed_ips and not is_allowed(address, key.allowed_ips):
            raise exceptions.AuthenticationFailed("The API key may not be used from your address.")
        api_key_used(key=key)
        return key


def _matches(parts: KeyText, row: AccessToken | ApiKey) -> bool:
    return key_matches(parts.secret, row.digest, row.pepper, settings.PENSTOCK_KEY_PEPPERS)
