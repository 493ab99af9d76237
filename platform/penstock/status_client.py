"""The supervisor's side of ``penstock.status``: asks web and gateway over HTTP, without Django."""

import asyncio
import http.client
import json
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import urlencode, urlsplit

from penstock.quickstart import Model

_TIMEOUT_S = 5.0


class StatusError(RuntimeError):
    """Nothing usable came back; it is asked again."""


class StatusClient:
    """``environment`` is what the web role must be started with for this token to open its endpoint."""

    def __init__(self, console_url: str, token: str) -> None:
        self._url, self._token = console_url, token
        self.environment = {"PENSTOCK_STATUS_TOKEN": token}

    async def models(self) -> list[Model]:
        """Every deployment and how far it is. Raises StatusError."""
        answer = await asyncio.to_thread(_get, f"{self._url}/-/status", self._token)
        return [Model.of(raw) for raw in answer["models"]]

    async def usage(self, ids: Sequence[str]) -> dict[str, dict[str, Any]]:
        """The usage records of these request ids that have landed. Raises StatusError."""
        query = urlencode([("usage", each) for each in ids])
        answer = await asyncio.to_thread(_get, f"{self._url}/-/status?{query}", self._token)
        return {row["id"]: row for row in answer["usage"]}

    async def listed(self, api_url: str, key: str) -> list[str]:
        """The models that a gateway offers to ``key``; empty while it does not answer."""
        try:
            answer = await asyncio.to_thread(_get, f"{api_url}/models", key)
        except StatusError:
            return []
        return [str(model["id"]) for model in answer.get("data", [])]


def _get(url: str, token: str, headers: Mapping[str, str] | None = None) -> dict[str, Any]:
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port or 80, timeout=_TIMEOUT_S)
    try:
        target = f"{parts.path}?{parts.query}" if parts.query else parts.path
        connection.request("GET", target, headers={"Authorization": f"Bearer {token}", **(headers or {})})
        answer = connection.getresponse()
        body = answer.read()
        if answer.status != 200:
            raise StatusError(f"{parts.path} answered {answer.status}")
        content = json.loads(body)
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise StatusError(f"{parts.path}: {error}") from error
    finally:
        connection.close()
    if not isinstance(content, dict):
        raise StatusError(f"{parts.path} answered something else")
    return content
