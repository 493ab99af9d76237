"""How often one caller may ask: far more than people and scripts need, far less than hurts the others."""

from __future__ import annotations

import logging
from typing import Any

from django.conf import settings
from django.utils.crypto import salted_hmac
from redis.exceptions import RedisError
from rest_framework.request import Request
from rest_framework.throttling import SimpleRateThrottle

from tenants.addresses import address_in
from tenants.api.caller import caller_of

logger = logging.getLogger(__name__)


class CallerThrottle(SimpleRateThrottle):
    """``PENSTOCK_API_RATE`` requests for each caller: 429 beyond them, with the seconds to wait.

    All sessions and tokens of a person count together, and each API key for itself. Whoever is neither, or sends a
    wrong token, counts by address. Without the shared state nobody is held back.
    """

    scope = "caller"

    def get_rate(self) -> str:
        return str(settings.PENSTOCK_API_RATE)

    def get_cache_key(self, request: Request, view: Any) -> str:
        caller = caller_of(request)
        return f"penstock:api-rate:{caller.identity if caller is not None else _address_of(request)}"

    def allow_request(self, request: Request, view: Any) -> bool:
        try:
            return bool(super().allow_request(request, view))
        except (RedisError, OSError) as error:
            logger.warning("the API's rate cannot be counted: %s", error)
            return True


def _address_of(request: Request) -> str:
    """Keyed, and of one length whatever was sent: addresses are not kept, and few enough to try a plain digest of."""
    address = address_in(request.META, settings.PENSTOCK_TRUSTED_PROXIES)
    return f"address:{salted_hmac('tenants.api.throttles', address, algorithm='sha256').hexdigest()}"
