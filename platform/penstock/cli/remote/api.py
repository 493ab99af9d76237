"""The REST API's client."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import quote, urlencode

from penstock.cli.remote import web
from penstock.cli.remote.profile import Profile

_TIMEOUT_S = 30.0
_PAGE = 500


class ApiError(Exception):
    """What the installation answered, or why it could not be asked, in words; ``status`` is 0 without an answer."""

    def __init__(
        self, message: str, *, status: int = 0, hint: str = "", fields: tuple[tuple[str, str], ...] = ()
    ) -> None:
        super().__init__(message)
        self.status = status
        self.hint = hint
        self.fields = fields


class Api:
    """``path`` arguments begin with a slash, below ``/api/v1``."""

    def __init__(self, profile: Profile) -> None:
        self._profile = profile

    def get(self, path: str, query: Mapping[str, Any] | None = None) -> Any:
        return self._call("GET", path, query=query)

    def post(self, path: str, body: Any = None) -> Any:
        """A creation or an act. A lost answer may be asked for again: it happens once."""
        return self._call("POST", path, body={} if body is None else body)

    def patch(self, path: str, body: Any) -> Any:
        return self._call("PATCH", path, body=body)

    def put(self, path: str, body: Any) -> Any:
        return self._call("PUT", path, body=body)

    def delete(self, path: str, query: Mapping[str, Any] | None = None) -> Any:
        return self._call("DELETE", path, query=query)

    def every(self, path: str, query: Mapping[str, Any] | None = None) -> Iterator[dict[str, Any]]:
        """All rows of a list, page after page."""
        page = self.get(path, {"page_size": _PAGE, **(query or {})})
        while True:
            yield from page["results"]
            following = page.get("next")
            if not following:
                return
            if web.origin(following) != web.origin(self._profile.url):
                raise ApiError(
                    f"the list goes on at {web.origin(following)}, which is not {web.origin(self._profile.url)}",
                    hint="Sign in with the address by which the installation knows itself: penstock login URL.",
                )
            page = self._open("GET", following, None)

    def lines(self, path: str, query: Mapping[str, Any] | None = None) -> Iterator[bytes]:
        """A file line by line, while it is sent. Raises ApiError, also where it breaks off."""
        try:
            with self._sent(self._request("GET", self._url(path, query), None)) as answer:
                yield from answer
        except web.UNREACHABLE as error:
            raise self._unreachable(error) from None

    def _call(self, method: str, path: str, *, query: Mapping[str, Any] | None = None, body: Any = None) -> Any:
        return self._open(method, self._url(path, query), body)

    def _url(self, path: str, query: Mapping[str, Any] | None) -> str:
        given = {name: value for name, value in (query or {}).items() if value not in (None, "")}
        return f"{self._profile.url}/api/v1{quote(path, safe='/')}" + (f"?{urlencode(given)}" if given else "")

    def _open(self, method: str, url: str, body: Any) -> Any:
        request = self._request(method, url, body)
        tries = 2 if method in ("GET", "POST") else 1
        while True:
            tries -= 1
            try:
                with self._sent(request) as answer:
                    text = answer.read()
                    return json.loads(text) if text else None
            except web.UNREACHABLE as error:
                if not tries:
                    raise self._unreachable(error) from None
            except ValueError:
                raise ApiError(
                    f"{self._profile.url} does not speak Penstock's API", hint="Give the console's address."
                ) from None

    def _request(self, method: str, url: str, body: Any) -> urllib.request.Request:
        headers = {
            "Authorization": f"Bearer {self._profile.token}",
            "Accept": "application/json, application/problem+json",
        }
        data = None
        if body is not None:
            data = json.dumps(body).encode()
            headers["Content-Type"] = "application/json"
        if method == "POST":
            headers["Idempotency-Key"] = str(uuid.uuid4())
        if not web.is_address(url):
            raise ApiError(f"{self._profile.url!r} is not an address: give http://… or https://…")
        return urllib.request.Request(url, data=data, headers=headers, method=method)  # noqa: S310 - checked above

    def _sent(self, request: urllib.request.Request) -> Any:
        """The answer. Raises ApiError for a refusal, one of ``web.UNREACHABLE`` where there is none."""
        try:
            return web.send(request, timeout_s=_TIMEOUT_S)
        except urllib.error.HTTPError as error:
            raise _problem(error) from None
        except web.Redirected as error:
            raise ApiError(str(error), hint="penstock login URL keeps another address.") from None

    def _unreachable(self, error: Exception) -> ApiError:
        reason = getattr(error, "reason", error)
        return ApiError(
            f"{self._profile.url} does not answer: {reason}",
            hint="Is the address right, and is Penstock running there? 'penstock login URL' sets another.",
        )


def _problem(error: urllib.error.HTTPError) -> ApiError:
    with error:
        try:
            told = json.loads(error.read())
        except (OSError, ValueError):
            told = {}
    if not isinstance(told, dict) or "detail" not in told:
        hint = "Its log says why." if error.code >= 500 else "Give the console's address."
        return ApiError(f"{error.code} {error.reason}", status=error.code, hint=hint)
    fields = tuple((str(f.get("field", "")), str(f.get("message", ""))) for f in told.get("errors", ()))
    return ApiError(str(told["detail"]), status=error.code, hint=str(told.get("hint", "")), fields=fields)
