"""``penstock chat``: through the same gateway, with an API key of an hour that ends with the conversation."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from typing import Any

from penstock.cli.remote import output, web
from penstock.cli.remote.api import Api, ApiError
from penstock.cli.remote.nouns import Refused, only_tenant, told
from penstock.cli.remote.profile import load

_KEY_LIFE = timedelta(hours=1)
_NEWS_S = 5.0
"""A new key is known to every gateway well before."""
_ANSWER_S = 600.0


def run(arguments: argparse.Namespace) -> int:
    return told(lambda: _run(arguments))


def _run(arguments: argparse.Namespace) -> int:
    api = Api(load())
    base = str(api.get("/me")["api_url"])
    messages = [{"role": "system", "content": arguments.system}] if arguments.system else []
    with _key(api, arguments) as key:
        for question in _questions(arguments):
            messages.append({"role": "user", "content": question})
            body = {"model": arguments.model, "messages": messages, "stream": True}
            if arguments.max_tokens:
                body["max_tokens"] = arguments.max_tokens
            messages.append({"role": "assistant", "content": _ask(base, key, body)})
    return 0


def _questions(arguments: argparse.Namespace) -> Iterator[str]:
    if arguments.question:
        yield " ".join(arguments.question)
        return
    is_person = sys.stdin.isatty()
    while True:
        if is_person:
            print("> ", end="", file=sys.stderr, flush=True)
        line = sys.stdin.readline()
        if not line or line.strip() == "/bye":
            return
        if line.strip():
            yield line.strip()


@contextmanager
def _key(api: Api, arguments: argparse.Namespace) -> Iterator[str]:
    """``PENSTOCK_API_KEY``, or a key made for this conversation and revoked after it."""
    given = os.environ.get("PENSTOCK_API_KEY", "")
    if given:
        yield given
        return
    tenant = arguments.tenant or os.environ.get("PENSTOCK_TENANT", "") or only_tenant(api)
    ends = (datetime.now(UTC) + _KEY_LIFE).isoformat()
    wanted = {"name": "penstock chat", "scopes": ["inference"], "models_allowed": [arguments.model], "expires_at": ends}
    made = api.post(f"/tenants/{tenant}/keys", wanted)
    try:
        yield str(made["secret"])
    finally:
        with suppress(ApiError):
            api.post(f"/tenants/{tenant}/keys/{made['id']}/revoke")


def _ask(base: str, key: str, body: dict[str, Any]) -> str:
    """Stream the answer to the terminal, with what it took; return it. Raises Refused."""
    began = time.monotonic()
    with _open(base, key, body | {"stream_options": {"include_usage": True}}) as answer:
        text, first_s, usage = [], 0.0, None
        for line in _lines(answer):
            if not line.startswith(b"data: "):
                continue
            if line.startswith(b"data: [DONE]"):
                break
            try:
                event = json.loads(line[6:])
            except ValueError:
                raise Refused("the gateway sent what is no event of OpenAI's API") from None
            if "error" in event:
                print(file=sys.stderr)
                raise Refused(str(event["error"].get("message", "the answer broke off")))
            usage = event.get("usage") or usage
            for choice in event.get("choices", ()):
                piece = choice.get("delta", {}).get("content") or ""
                if piece:
                    first_s = first_s or time.monotonic() - began
                    text.append(piece)
                    sys.stdout.write(output.clean(piece, keep=" \n\t"))
                    sys.stdout.flush()
        else:
            print(file=sys.stderr)
            raise Refused("the answer broke off before its end")
        print()
        _tell(answer, usage or {}, first_s, time.monotonic() - began)
    return "".join(text)


def _lines(answer: Any) -> Iterator[bytes]:
    """The answer's lines as they come. Raises Refused when it breaks off."""
    while True:
        try:
            line = answer.readline()
        except web.UNREACHABLE:
            print(file=sys.stderr)
            raise Refused("the answer broke off: the connection to the gateway was lost") from None
        if not line:
            return
        yield line


def _tell(answer: Any, usage: dict[str, Any], first_s: float, whole_s: float) -> None:
    made = int(usage.get("completion_tokens") or 0)
    speed = f"{(made - 1) / (whole_s - first_s):.0f} tokens/s" if made > 1 and whole_s > first_s else ""
    parts = [
        f"{usage.get('prompt_tokens', 0)} in, {made} out",
        f"TTFT {first_s * 1000:.0f} ms",
        speed,
        f"about {answer.headers.get('x-penstock-mu-estimated', '?')} MU",
        answer.headers.get("x-penstock-class", ""),
    ]
    print("  " + " · ".join(part for part in parts if part), file=sys.stderr)


def _open(base: str, key: str, body: dict[str, Any]) -> Any:
    """The streaming answer. A key that was just made is tried again until the gateways know it. Raises Refused."""
    if not web.is_address(base):
        raise Refused(f"the installation names no address of its gateway: {base!r}")
    request = urllib.request.Request(  # noqa: S310 - checked above
        f"{base}/chat/completions",
        data=json.dumps(body).encode(),
        headers={"Authorization": f"Bearer {key}", "Content-Type": "application/json"},
    )
    patience = time.monotonic() + _NEWS_S
    while True:
        try:
            return web.send(request, timeout_s=_ANSWER_S)
        except urllib.error.HTTPError as error:
            with error:
                text = error.read()
            if error.code == 401 and time.monotonic() < patience:
                time.sleep(0.3)
                continue
            raise Refused(_words(text) or f"{error.code} {error.reason}") from None
        except web.Redirected as error:
            raise Refused(str(error)) from None
        except web.UNREACHABLE as error:
            reason = getattr(error, "reason", error)
            raise Refused(f"the gateway at {base} does not answer: {reason}") from None


def _words(text: bytes) -> str:
    try:
        return str(json.loads(text)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return ""
