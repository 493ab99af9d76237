"""Who is asking: an API key, checked against the snapshot, without a network unless the key is new."""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections.abc import Callable, Mapping
from typing import NamedTuple, Protocol

from serving.gateway import errors
from serving.gateway.records import KeyRecord, TenantRecord
from tenants.addresses import client_address as client_address
from tenants.addresses import is_allowed

INFERENCE = "inference"
"""The scope that every model route needs."""

_UNKNOWN_PEPPER = b"compare against something, so that an unknown key takes as long as a wrong one"


class KeySource(Protocol):
    """Where keys come from: ``serving.gateway.snapshot.SnapshotStore``."""

    async def find_key(self, public_id: str) -> KeyRecord | None: ...


class Principal(NamedTuple):
    key: KeyRecord
    tenant: TenantRecord


class Verified:
    """Headers whose secret was verified once, kept as digests under a key of this process.

    What was verified holds while key and tenant are the very records it was verified with; whatever the control plane
    changes of them replaces them.
    """

    def __init__(self, size: int = 50_000) -> None:
        self._size = size
        self._salt = secrets.token_bytes(32)
        self._principals: dict[bytes, Principal] = {}

    def digest(self, authorization: bytes) -> bytes:
        return hashlib.blake2b(authorization, digest_size=32, key=self._salt).digest()

    def find(
        self, digest: bytes, keys: Mapping[str, KeyRecord], tenants: Mapping[str, TenantRecord]
    ) -> Principal | None:
        found = self._principals.get(digest)
        if found is not None and keys.get(found.key.id) is found.key and tenants.get(found.key.tenant) is found.tenant:
            return found
        return None

    def keep(self, digest: bytes, principal: Principal) -> None:
        if len(self._principals) >= self._size:
            self._principals.clear()
        self._principals[digest] = principal


def credential(headers: Mapping[bytes, bytes]) -> bytes | None:
    """The request's ``Authorization``; where there is none, the key that Anthropic's clients send as ``X-Api-Key``."""
    authorization = headers.get(b"authorization")
    if authorization is None and (key := headers.get(b"x-api-key")) is not None:
        return b"Bearer " + key
    return authorization


def parse_bearer(authorization: bytes | None) -> tuple[str, bytes]:
    """Split ``Bearer mu_<public id>_<secret>``. Raises ApiError 401."""
    if authorization is None:
        raise errors.unauthorized(
            "You did not send an API key. Send it in a header: 'Authorization: Bearer mu_…' or 'x-api-key: mu_…'.",
            code="missing_api_key",
        )
    scheme, _, token = authorization.partition(b" ")
    parts = token.strip().split(b"_", 2)
    if scheme.lower() != b"bearer" or len(parts) != 3 or parts[0] != b"mu" or not parts[1] or not parts[2]:
        raise errors.unauthorized("The API key is malformed: 'Authorization: Bearer mu_<key>_<secret>' is expected.")
    try:
        return parts[1].decode("ascii"), parts[2]
    except UnicodeDecodeError:
        raise errors.unauthorized("The API key is malformed: it holds other than ASCII characters.") from None


async def authenticate(
    authorization: bytes | None,
    *,
    verified: Verified,
    keys: Mapping[str, KeyRecord],
    tenants: Mapping[str, TenantRecord],
    source: KeySource,
    peppers: Mapping[int, bytes],
    client_ip: Callable[[], str],
    now: float,
) -> Principal:
    """Return whose key this is. ``now`` in UNIX seconds. Raises ApiError 401 or 403."""
    digest = verified.digest(authorization) if authorization is not None else b""
    principal = verified.find(digest, keys, tenants)
    if principal is None:
        key = await _verify(authorization, keys=keys, source=source, peppers=peppers)
        tenant = tenants.get(key.tenant)
        if key.revoked:
            raise errors.unauthorized("This API key was revoked. Use another, or make a new one in the console.")
        if tenant is None or not tenant.active:
            raise errors.forbidden("This account is not active. Ask your operator.", code="tenant_inactive")
        principal = Principal(key, tenant)
        verified.keep(digest, principal)
    key = principal.key
    if key.expires_at is not None and key.expires_at <= now:
        raise errors.unauthorized("This API key has expired. Make a new one in the console.", code="expired_api_key")
    if key.allowed_ips and not is_allowed(client_ip(), key.allowed_ips):
        raise errors.forbidden("This API key may not be used from your address.", code="ip_not_allowed")
    return principal


async def _verify(
    authorization: bytes | None, *, keys: Mapping[str, KeyRecord], source: KeySource, peppers: Mapping[int, bytes]
) -> KeyRecord:
    """The key whose secret the header holds. Raises ApiError 401."""
    public_id, secret = parse_bearer(authorization)
    key = keys.get(public_id) or await source.find_key(public_id)
    pepper = peppers.get(key.pepper, _UNKNOWN_PEPPER) if key else _UNKNOWN_PEPPER
    digest = hmac.digest(pepper, secret, "sha256").hex()
    is_known = key is not None and key.pepper in peppers
    if not hmac.compare_digest(digest, key.digest if key else "") or not is_known or key is None:
        raise errors.unauthorized("Incorrect API key provided. Check it, or make a new one in the console.")
    return key


def require_scope(principal: Principal, scope: str) -> None:
    """Raises ApiError 403 when the key lacks ``scope``."""
    if scope not in principal.key.scopes:
        raise errors.forbidden(
            f"This API key lacks the scope '{scope}' that this request needs.", code="insufficient_scope"
        )


def is_same_token(authorization: bytes | None, token: str) -> bool:
    """Whether the header is ``Bearer <token>``, compared in constant time."""
    return authorization is not None and hmac.compare_digest(authorization, b"Bearer " + token.encode())
