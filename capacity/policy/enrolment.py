"""What hosts that enrol themselves may be told of the shared state."""

from __future__ import annotations

import ipaddress
from urllib.parse import urlsplit


def agent_url_fault(url: str, *, own: str) -> str | None:
    """Why agents of other hosts cannot be told ``url``, for people; None when they can.

    ``own`` is the control plane's: whoever holds its login may give orders to every host and read every tenant's load.
    """
    try:
        host, scheme, login = urlsplit(url).hostname or "", urlsplit(url).scheme, _login(url)
    except ValueError:
        return "PENSTOCK_AGENT_REDIS_URL cannot be read as an address."
    if not url:
        return "PENSTOCK_AGENT_REDIS_URL is not set, and agents are never told REDIS_URL."
    if scheme not in ("redis", "rediss") or _is_local(host):
        return "PENSTOCK_AGENT_REDIS_URL is not an address that other hosts can reach."
    if login == _login(own):
        return "PENSTOCK_AGENT_REDIS_URL holds the login of REDIS_URL, which may do everything."
    return None


def _login(url: str) -> tuple[str, str]:
    parts = urlsplit(url)
    return parts.username or "default", parts.password or ""


def _is_local(host: str) -> bool:
    if host in ("", "localhost") or host.endswith(".localhost"):
        return True
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    return address.is_loopback or address.is_unspecified
