"""Short-lived credentials of members: ``psm_<pepper>.<tenant>.<member>.<expiry>.<mac>``, sealed by the web role.

With one the web role sends a member's requests from the playground to a gateway. It is bound to a tenant and a member
and lives for minutes; it is made for one request, kept by the web role alone and stored nowhere. What seals it are the
peppers that gateways have anyway, so it needs no publishing. Imports no Django.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Mapping
from typing import NamedTuple

from tenants.keys import current_pepper

PREFIX = "psm"
LIFETIME_S = 120
"""From sealing to expiry. Only the admission of a request looks at it: an answer may take longer."""
LONGEST_S = 600
"""One that expires later than so long from now is refused: nobody made it as this module does."""

_PURPOSE = "penstock member credential"
_LONGEST_TEXT = 300
_NAME = re.compile(r"[A-Za-z0-9-]{1,64}")


class MemberCredential(NamedTuple):
    """Whose it is; ``expires_at`` in whole UNIX seconds."""

    tenant: str
    member: str
    expires_at: int


class MemberCredentialError(ValueError):
    """The text is no credential, was not sealed here, or has expired. The message is for people."""


def seal(*, tenant: str, member: str, peppers: Mapping[int, str], now: float) -> str:
    """A credential's text for the ids ``tenant`` and ``member``. ``now`` in UNIX seconds. Raises ValueError."""
    if not _NAME.fullmatch(tenant) or not _NAME.fullmatch(member):
        raise ValueError("a credential names its tenant and member by ids of letters, digits and hyphens")
    number, pepper = current_pepper(peppers)
    signed = f"{number}.{tenant}.{member}.{int(now) + LIFETIME_S}"
    return f"{PREFIX}_{signed}.{_mac(signed, pepper.encode())}"


def unseal(text: str, *, peppers: Mapping[int, bytes], now: float) -> MemberCredential:
    """Whose credential ``text`` is. ``now`` in UNIX seconds. Raises MemberCredentialError."""
    signed, _, mac = text.removeprefix(f"{PREFIX}_").rpartition(".")
    parts = signed.split(".")
    is_shaped = len(parts) == 4 and parts[0].isdecimal() and parts[3].isdecimal()
    if len(text) > _LONGEST_TEXT or not text.isascii() or not is_shaped:
        raise MemberCredentialError("The credential is malformed.")
    pepper = peppers.get(int(parts[0]))
    if not hmac.compare_digest(mac, _mac(signed, pepper or b"-")) or pepper is None:
        raise MemberCredentialError("The credential was not made by this installation.")
    found = MemberCredential(parts[1], parts[2], int(parts[3]))
    if not now < found.expires_at <= now + LONGEST_S:
        raise MemberCredentialError("The credential has expired.")
    return found


def _mac(signed: str, pepper: bytes) -> str:
    """Hex HMAC-SHA256. The purpose keeps it apart from digests of API keys under the same pepper."""
    return hmac.new(pepper, f"{_PURPOSE}\0{signed}".encode(), hashlib.sha256).hexdigest()
