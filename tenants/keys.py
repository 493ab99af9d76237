"""API keys as text: ``mu_<public id>_<secret>``, their digests, and what may stand in a key's lists.

Imports no Django. The secret has 256 bits of randomness, so one round of HMAC is enough; the pepper keeps a stolen
database from being searched.
"""

import hashlib
import hmac
import ipaddress
import secrets
import string
from collections.abc import Collection, Mapping
from typing import NamedTuple

PREFIX = "mu"
TOKEN_PREFIX = "pst"  # noqa: S105
"""Of a person's access token, which has the same shape."""
ENROLMENT_PREFIX = "pse"
"""Of a token with which hosts enrol themselves."""
PUBLIC_LENGTH = 12
SECRET_LENGTH = 43
"""62^43 ≥ 2^256."""

SCOPES = ("inference", "usage", "manage")
"""``inference``: send requests; ``usage``: read the tenant's usage; ``manage``: the tenant's part of the REST API."""
MOST_MODELS, MOST_NETWORKS = 200, 100
"""Each gateway keeps the lists of every key."""
LONGEST_MODEL = 200
"""Of a served model's name, in characters."""
NO_NUL = "Leave out NUL characters."

_ALPHABET = string.ascii_letters + string.digits


class KeyText(NamedTuple):
    """The two parts of a key's text."""

    public_id: str
    secret: str
    prefix: str = PREFIX

    def __str__(self) -> str:
        return f"{self.prefix}_{self.public_id}_{self.secret}"


def key_make(prefix: str = PREFIX) -> KeyText:
    """A new random key."""
    return KeyText(_random_text(PUBLIC_LENGTH), _random_text(SECRET_LENGTH), prefix)


def key_parse(text: str, prefixes: Collection[str] = (PREFIX, TOKEN_PREFIX)) -> KeyText | None:
    """The parts of an API key's or access token's text, or None if it is not shaped like one."""
    parts = text.split("_")
    if len(parts) != 3 or parts[0] not in prefixes or not parts[1] or not parts[2]:
        return None
    return KeyText(parts[1], parts[2], parts[0])


def key_digest(secret: str, pepper: str) -> str:
    """Hex HMAC-SHA256 of ``secret`` under ``pepper``."""
    return hmac.new(pepper.encode(), secret.encode(), hashlib.sha256).hexdigest()


def key_matches(secret: str, digest: str, number: int, peppers: Mapping[int, str]) -> bool:
    """Whether ``digest`` is that of ``secret`` under the pepper of this ``number``, compared in constant time.

    Under a pepper that ``peppers`` no longer have, nothing matches.
    """
    pepper = peppers.get(number)
    return pepper is not None and hmac.compare_digest(key_digest(secret, pepper), digest)


def current_pepper(peppers: Mapping[int, str]) -> tuple[int, str]:
    """The pepper that signs new keys: the one with the highest number."""
    number = max(peppers)
    return number, peppers[number]


def scope_errors(scopes: object) -> list[str]:
    """What is wrong with a key's list of scopes, for people."""
    if not isinstance(scopes, list) or not scopes:
        return ["A key needs at least one scope."]
    if len(scopes) > len(SCOPES):
        return [f"Name each scope once: there are {len(SCOPES)}."]
    unknown = [str(scope) for scope in scopes if scope not in SCOPES]
    return [f"Unknown scope {scope!r}: use {', '.join(SCOPES)}." for scope in unknown]


def name_errors(names: object) -> list[str]:
    """What is wrong with a key's list of served model names."""
    if not isinstance(names, list) or not all(isinstance(name, str) and name for name in names):
        return ["Give a list of served model names; an empty list means all."]
    if len(names) > MOST_MODELS:
        return [f"A key names at most {MOST_MODELS} models; these are {len(names)}."]
    if any(len(name) > LONGEST_MODEL or "\0" in name for name in names):
        return [f"A served model's name has at most {LONGEST_MODEL} characters, and no NUL among them."]
    return []


def network_errors(networks: object) -> list[str]:
    """What is wrong with a key's list of networks."""
    if not isinstance(networks, list):
        return ["Give a list of networks in CIDR form; an empty list means all."]
    if len(networks) > MOST_NETWORKS:
        return [f"A key names at most {MOST_NETWORKS} networks; these are {len(networks)}."]
    found = []
    for network in networks:
        try:
            # It would take a number for an address; gateways take texts only.
            ipaddress.ip_network(network if isinstance(network, str) else "")
        except ValueError:
            found.append(f"{network!r} is not a network: write for example 192.0.2.0/24 or 2001:db8::/32.")
    return found


def _random_text(length: int) -> str:
    return "".join(secrets.choice(_ALPHABET) for _ in range(length))
