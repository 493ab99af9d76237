"""HTTP for the commands: the standard library's, so that they start at once. No redirect is followed."""

from __future__ import annotations

import http.client
import urllib.request
from typing import Any, NoReturn
from urllib.parse import urlsplit

UNREACHABLE = (OSError, http.client.HTTPException)
"""What a request raises when nobody answers, or what answers does not speak HTTP, or breaks off. HTTPError is one."""


class Redirected(Exception):
    """The address sends its visitors elsewhere. A token does not travel along, and a POST would become a GET."""


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> NoReturn:
        raise Redirected(f"{origin(req.full_url)} sends its visitors to {origin(newurl)}: use that address instead")


_opener = urllib.request.build_opener(_NoRedirects)


def send(request: urllib.request.Request, *, timeout_s: float) -> Any:
    """The answer. Raises urllib.error.HTTPError, Redirected, or one of ``UNREACHABLE``."""
    return _opener.open(request, timeout=timeout_s)


def is_address(url: str) -> bool:
    """Whether this is http:// or https://, a host, and a port if any that is a number."""
    try:
        parts = urlsplit(url)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 0) >= 0
    except ValueError:
        return False


def origin(url: str) -> str:
    """Scheme, host and port."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc}"
