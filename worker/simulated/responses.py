"""``POST /v1/responses`` of the simulated engine: a chat underneath, told in the Responses API's words."""

from __future__ import annotations

import time
from typing import Any

import msgspec

from worker.simulated.api import Responder
from worker.simulated.requests import ApiError, StreamOptions, decode_body


class _Part(msgspec.Struct):
    type: str
    text: str | None = None


class _Item(msgspec.Struct):
    type: str = "message"
    role: str | None = None
    content: str | list[_Part] | None = None
    arguments: str | None = None
    output: str | list[_Part] | None = None


class ResponsesRequest(msgspec.Struct):
    input: str | list[_Item]
    model: str | None = None
    instructions: str | None = None
    max_output_tokens: int | None = None
    stream: bool | None = False
    temperature: float | None = None
    top_p: float | None = None
    stop: str | list[str] | None = None
    seed: int | None = None
    ignore_eos: bool | None = False
    priority: int = 0
    cache_salt: str | None = None


_SAME = ("model", "stream", "temperature", "top_p", "stop", "seed", "ignore_eos", "priority", "cache_salt")


def chat_of(body: bytes) -> bytes:
    """The chat request that stands for a response's. Raises ApiError 400."""
    asked = decode_body(body, ResponsesRequest)
    messages: list[dict[str, Any]] = []
    if asked.instructions:
        messages.append({"role": "system", "content": asked.instructions})
    if isinstance(asked.input, str):
        messages.append({"role": "user", "content": asked.input})
    else:
        messages += [{"role": _role(item), "content": _text(item)} for item in asked.input]
    chat: dict[str, Any] = {name: getattr(asked, name) for name in _SAME}
    chat |= {"messages": messages, "max_completion_tokens": asked.max_output_tokens}
    if asked.stream:
        chat["stream_options"] = StreamOptions(include_usage=True)
    return msgspec.json.encode(chat)


def _role(item: _Item) -> str:
    return item.role or ("tool" if item.type.endswith("_output") else "assistant")


def _text(item: _Item) -> str:
    content = item.content if item.content is not None else item.output
    if not isinstance(content, list):
        return content or item.arguments or ""
    other = next((part.type for part in content if part.text is None), None)
    if other:
        raise ApiError(400, f"At most 0 {other.removeprefix('input_')}(s) may be provided in one prompt.")
    return "\n".join(part.text or "" for part in content)


class ResponsesResponder:
    """Takes what a chat's call writes, and writes it to ``responder`` as a response. ``response_id`` names it."""

    def __init__(self, responder: Responder, *, response_id: str, model: str) -> None:
        self._responder = responder

        self._response = {
            "id": response_id,
            "object": "response",
            "created_at": int(time.time()),
            "model": model,
            "parallel_tool_calls": True,
            "tool_choice": "auto",
            "tools": [],
        }
        self._item = {"id": f"msg_{response_id}", "type": "message", "role": "assistant"}
        self._at = {"item_id": self._item["id"], "output_index": 0, "content_index": 0}
        self._text: list[str] = []
        self._finish = ""
        self._usage: dict[str, Any] = {}
        self._number = 0
        self._failed = False

    def start_stream(self) -> None:
        self._responder.start_stream()
        begun = {"response": self._made("in_progress", [])}
        item = {"output_index": 0, "item": {**self._item, "status": "in_progress", "content": []}}
        self._responder.write(
            self._event("response.created", begun)
            + self._event("response.in_progress", begun)
            + self._event("response.output_item.added", item)
            + self._event("response.content_part.added", {**self._at, "part": _said("")})
        )

    def write(self, data: bytes) -> None:
        out = b"".join(self._translated(event[6:]) for event in data.split(b"\n\n") if event.startswith(b"data: "))
        if out:
            self._responder.write(out)

    def end_stream(self) -> None:
        # After a failure vLLM's stream just ends, without a last event.
        if not self._failed:
            text = "".join(self._text)
            item = {**self._item, "status": "completed", "content": [_said(text)]}
            self._responder.write(
                self._event("response.output_text.done", {**self._at, "text": text, "logprobs": []})
                + self._event("response.content_part.done", {**self._at, "part": _said(text)})
                + self._event("response.output_item.done", {"output_index": 0, "item": item})
                + self._event("response.completed", {"response": self._ended()})
            )
        self._responder.end_stream()

    def send(self, status: int, body: bytes) -> None:
        if status == 200:
            answer = msgspec.json.decode(body)
            choice = answer["choices"][0]
            self._text, self._finish, self._usage = (
                [choice["message"]["content"]],
                choice["finish_reason"],
                answer["usage"],
            )
            body = msgspec.json.encode(self._ended())
        self._responder.send(status, body)

    def _translated(self, payload: bytes) -> bytes:
        if payload == b"[DONE]":
            return b""
        chunk = msgspec.json.decode(payload)
        if "error" in chunk:
            self._failed = True
            return b""
        self._usage = chunk.get("usage") or self._usage
        out = b""
        for choice in chunk["choices"]:
            self._finish = choice["finish_reason"] or self._finish
            if text := choice["delta"].get("content"):
                self._text.append(text)
                out += self._event("response.output_text.delta", {**self._at, "delta": text, "logprobs": []})
        return out

    def _event(self, kind: str, members: dict[str, Any]) -> bytes:
        data = msgspec.json.encode({"type": kind, "sequence_number": self._number, **members})
        self._number += 1
        return b"event: %b\ndata: %b\n\n" % (kind.encode(), data)

    def _made(self, status: str, output: list[dict[str, Any]]) -> dict[str, Any]:
        return {**self._response, "status": status, "output": output}

    def _ended(self) -> dict[str, Any]:
        is_cut = self._finish == "length"
        item = {**self._item, "status": "completed", "content": [_said("".join(self._text))]}
        made = self._made("incomplete" if is_cut else "completed", [item])
        cached = (self._usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0
        return made | {
            "incomplete_details": {"reason": "max_output_tokens"} if is_cut else None,
            "usage": {
                "input_tokens": self._usage.get("prompt_tokens", 0),
                "input_tokens_details": {"cached_tokens": cached},
                "output_tokens": self._usage.get("completion_tokens", 0),
                "output_tokens_details": {"reasoning_tokens": 0},
                "total_tokens": self._usage.get("total_tokens", 0),
            },
        }


def _said(text: str) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": []}
