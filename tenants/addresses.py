"""From where a request comes, and whether that is allowed: the same for gateways, console and REST API.

Imports no Django: gateways ask here, too.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

Network = ipaddress.IPv4Network | ipaddress.IPv6Network


def client_address(peer: str, forwarded_for: bytes | None, trusted: Sequence[Network]) -> str:
    """The client's address: the peer, or, when the peer is a trusted proxy, the last untrusted hop it names."""
    if forwarded_for is None or not trusted or not _is_in(peer, trusted):
        return peer
    found = peer
    for hop in reversed(forwarded_for.decode("latin-1").split(",")):
        found = hop.strip()
        if not _is_in(found, trusted):
            break
    return found


def address_in(meta: Mapping[str, Any], trusted: Sequence[Network]) -> str:
    """The client's address by a request's ``META``."""
    forwarded_for = meta.get("HTTP_X_FORWARDED_FOR")
    return client_address(
        meta.get("REMOTE_ADDR", ""),
        None if forwarded_for is None else forwarded_for.encode("latin-1", "replace"),
        trusted,
    )


def is_allowed(address: str, allowed: Sequence[str]) -> bool:
    """Whether ``address`` lies in one of the networks. An address that cannot be read is not allowed."""
    return _is_in(address, _networks(tuple(allowed)))


@lru_cache(maxsize=4096)
def _networks(allowed: tuple[str, ...]) -> tuple[Network, ...]:
    found = []
    for text in allowed:
        try:
            found.append(ipaddress.ip_network(text, strict=False))
        except ValueError:  # an unreadable entry allows nobody
            continue
    return tuple(found)


def _is_in(text: str, networks: Sequence[Network]) -> bool:
    address = _address(text)
    return address is not None and any(address in network for network in networks)


def _address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return None
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return mapped or address
