"""``penstock up --check``: one streamed answer from each demo deployment, with its usage row, from the outside."""

import asyncio
import http.client
import json
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from penstock import quickstart
from penstock.logs import Terminal
from penstock.status_client import StatusError

if TYPE_CHECKING:
    from penstock.installation import Installation

REQUEST_ID_HEADER = "x-penstock-request-id"
_ROW_WITHIN_S = 30.0
_ANSWER_WITHIN_S = 120.0
HEARD_WITHIN_S = 5.0
"""A replica is ready in the books a moment before every gateway has heard of it."""
_MAX_TOKENS = 24


@dataclass
class Answer:
    """One streamed answer as a client sees it. Times are seconds from sending."""

    request_id: str = ""
    status: int = 0
    chunks: int = 0
    text: str = ""
    usage: dict[str, Any] = field(default_factory=dict)
    is_done: bool = False
    first_text_s: float = 0.0
    total_s: float = 0.0
    error: str = ""


def problems(answer: Answer, row: dict[str, Any] | None) -> list[str]:
    """What does not hold about an answer and its usage row; empty when all of it does."""
    if answer.error or answer.status != 200:
        return [answer.error or f"status {answer.status}"]
    found = []
    if not answer.text:
        found.append("no text was streamed")
    if answer.chunks < 2:
        found.append("the answer came in one piece, not as a stream")
    if not answer.is_done:
        found.append("the stream did not end with [DONE]")
    if not answer.usage:
        found.append("the stream told no usage")
    if row is None:
        return [*found, f"its usage row did not reach the database within {_ROW_WITHIN_S:.0f} s"]
    pairs = (("input_tokens", "prompt_tokens"), ("output_tokens", "completion_tokens"))
    for column, said in pairs:
        if row[column] != answer.usage.get(said):
            found.append(f"the usage row has {row[column]} {column}, the stream said {answer.usage.get(said)}")
    if not row["actual_mu"] > 0:
        found.append(f"the usage row has {row['actual_mu']} MU")
    if row["outcome"] != "completed" or row["lower_bound"]:
        found.append(f"the usage row says {row['outcome']}{', a lower bound' if row['lower_bound'] else ''}")
    return found


async def check(installation: "Installation", *, terminal: Terminal, timeout_s: float) -> int:
    """Ask every deployment of the installation. Returns 0 only if everything held."""
    key = next((tenant["api_key"] for tenant in installation.quickstart["tenants"]), "")
    names = await _model_names(installation)
    if not key or not names:
        terminal.line("there is no demo in this data folder to check: use an empty one", source="check")
        return 1
    code = 0
    end = time.monotonic() + timeout_s
    for name in names:
        reason = await _wait_ready(installation, name, end=end)
        if reason:
            found = [reason]
            answer = Answer()
        else:
            answer = await ask(installation.options.api_url, key, name)
            row = await _usage_row(installation, answer.request_id) if answer.status == 200 else None
            found = problems(answer, row)
            if row is not None:
                terminal.line(_figures(name, answer, row), source="check")
        for problem in found:
            terminal.line(f"{name}: {problem}", source="check")
        code = code or (1 if found else 0)
    terminal.line("passed" if code == 0 else "FAILED", source="check")
    return code


def _figures(name: str, answer: Answer, row: dict[str, Any]) -> str:
    return (
        f"{name}: {answer.chunks} chunks, first text after {answer.first_text_s * 1000:.0f} ms, "
        f"{answer.total_s:.2f} s in all; usage row {row['id']}: {row['input_tokens']} tokens in, "
        f"{row['output_tokens']} out, {row['actual_mu']:.4f} MU"
    )


async def _model_names(installation: "Installation") -> list[str]:
    for _ in range(120):
        try:
            models = await installation.status.models()
        except StatusError:
            models = []
        if models:
            return [model.name for model in models if model.state != "disabled"]
        await asyncio.sleep(0.5)
    return []


async def _wait_ready(installation: "Installation", name: str, *, end: float) -> str:
    """Wait until a client can use ``name``. Returns why it cannot, or an empty text."""
    key = next(tenant["api_key"] for tenant in installation.quickstart["tenants"])
    while True:
        model = installation.model(name)
        if model is not None and model.state == "failed":
            return f"failed: {model.detail}"
        is_ready = model is not None and model.state == "ready"
        if is_ready and name in await installation.status.listed(installation.options.api_url, key):
            return ""
        if time.monotonic() > end:
            return f"not ready in time (--check-timeout): {model.line() if model else 'unknown'}"
        await asyncio.sleep(0.3)


async def ask(api_url: str, key: str, name: str) -> Answer:
    """The model's answer; asked again for as long as a gateway may not have heard yet that there is a replica."""
    end = time.monotonic() + HEARD_WITHIN_S
    while True:
        answer = await asyncio.to_thread(stream_once, api_url, key, name)
        if "no_ready_replica" not in answer.error or time.monotonic() > end:
            return answer
        await asyncio.sleep(0.3)


async def _usage_row(installation: "Installation", request_id: str) -> dict[str, Any] | None:
    end = time.monotonic() + _ROW_WITHIN_S
    while time.monotonic() < end:
        try:
            rows = await installation.status.usage([request_id])
        except StatusError:
            rows = {}
        if request_id in rows:
            return rows[request_id]
        await asyncio.sleep(0.3)
    return None


def stream_once(api_url: str, key: str, model: str) -> Answer:
    """Stream one chat completion with plain HTTP. Never raises for what the server does."""
    parts = urlsplit(api_url)
    body = {
        "model": model,
        "messages": [{"role": "user", "content": quickstart.PROMPT}],
        "max_tokens": _MAX_TOKENS,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port or 80, timeout=_ANSWER_WITHIN_S)
    answer = Answer()
    sent = time.monotonic()
    try:
        connection.request("POST", f"{parts.path}/chat/completions", json.dumps(body), headers)
        response = connection.getresponse()
        answer.status = response.status
        answer.request_id = response.headers.get(REQUEST_ID_HEADER) or ""
        if response.status != 200:
            answer.error = f"status {response.status}: {response.read(500).decode('utf-8', 'replace')}"
        else:
            _read_events(answer, response, sent)
    except (OSError, http.client.HTTPException, ValueError) as error:
        answer.error = f"{type(error).__name__}: {error}"
    finally:
        connection.close()
    answer.total_s = time.monotonic() - sent
    return answer


def _read_events(answer: Answer, lines: Iterable[bytes], sent: float) -> None:
    for line in lines:
        data = line.strip().removeprefix(b"data:").strip()
        if not line.startswith(b"data:"):
            continue
        if data == b"[DONE]":
            answer.is_done = True
            return
        event = json.loads(data)
        if "error" in event:
            answer.error = str(event["error"].get("message", event["error"]))
        answer.usage = event.get("usage") or answer.usage
        text = "".join(choice.get("delta", {}).get("content") or "" for choice in event.get("choices", []))
        if text:
            answer.first_text_s = answer.first_text_s or time.monotonic() - sent
            answer.chunks += 1
            answer.text += text
