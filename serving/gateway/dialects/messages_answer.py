"""A chat's answer as Anthropic's Messages API tells it, in one piece and as a stream of events."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from serving.gateway.dialects.base import Answer
from serving.gateway.records import Usage
from serving.gateway.relay import EventRelay, RelayError, error_message, payload_of
from serving.gateway.usage import UNREADABLE, EngineUsage

Kind = Literal["text", "thinking", "tool_use"]


class Function(msgspec.Struct):
    name: str | None = None
    arguments: str | None = None


class Call(msgspec.Struct):
    index: int = 0
    id: str | None = None
    function: Function | None = None


class Said(msgspec.Struct):
    """A message, or a stream's next piece of one. Engines call what a model thinks by either of two names."""

    content: str | None = None
    reasoning: str | None = None
    reasoning_content: str | None = None
    tool_calls: list[Call] | None = None

    @property
    def thought(self) -> str:
        return self.reasoning or self.reasoning_content or ""


class Choice(msgspec.Struct):
    message: Said | None = None
    delta: Said | None = None
    finish_reason: str | None = None
    stop_reason: str | int | None = None


class Chat(msgspec.Struct):
    """A chat's answer, or one event of its stream."""

    choices: list[Choice] | None = None
    usage: EngineUsage | None = None
    error: msgspec.Raw = msgspec.Raw()
    object: str = ""


_decode_chat = msgspec.json.Decoder(Chat).decode
_decode_members = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_decode_object = msgspec.json.Decoder(dict[str, Any]).decode


def message_of(body: bytes, *, model: str, request_id: str) -> Answer:
    """The engine's complete answer as a Message. Raises msgspec.DecodeError."""
    answer = _decode_chat(body)
    if not answer.choices or answer.choices[0].message is None:
        raise msgspec.DecodeError("the engine's answer holds no message")
    choice, said = answer.choices[0], answer.choices[0].message
    content: list[dict[str, Any]] = []
    if said.thought:
        content.append({"type": "thinking", "thinking": said.thought, "signature": ""})
    calls = said.tool_calls or []
    if said.content or not (content or calls):
        content.append({"type": "text", "text": said.content or ""})
    for call in calls:
        function = call.function or Function()
        made = {"id": call.id or "", "name": function.name or "", "input": _input(function.arguments or "")}
        content.append({"type": "tool_use", **made})
    last = (calls[-1].function or Function()).arguments if calls else None
    reason, sequence = _stop(choice, last)
    usage = answer.usage.record() if answer.usage is not None else None
    message = _message(model, request_id) | {
        "content": content,
        "stop_reason": reason,
        "stop_sequence": sequence,
        "usage": _usage(usage or Usage()),
    }
    return Answer(msgspec.json.encode(message), usage, choice.finish_reason or "")


class MessagesRelay(EventRelay):
    """A chat's stream as ``message_start``, blocks of content, ``message_delta`` and ``message_stop``.

    Blocks come one after the other. Text that comes between the pieces of a tool's input waits for the input's end.
    """

    __slots__ = (
        "_arguments",
        "_choice",
        "_counts",
        "_held",
        "_index",
        "_is_open",
        "_kind",
        "_model",
        "_request_id",
        "_tool",
    )

    def __init__(self, *, model: str, request_id: str) -> None:
        super().__init__()
        self._model = model
        self._request_id = request_id
        self._counts: EngineUsage | None = None
        self._is_open = False
        """``message_start`` was sent."""
        self._index = -1
        self._kind: Kind | None = None
        """Of the block that is open."""
        self._tool = -1
        self._arguments: list[str] | None = None
        self._held: list[str] = []
        self._choice = Choice()

    def usage(self) -> Usage | None:
        return None if self._counts is None else self._counts.record()

    def _event(self, event: bytes, separator: bytes) -> bytes:
        self.events += 1
        payload = payload_of(event)
        if payload is None:
            return b""
        out: list[bytes] = []
        if payload == b"[DONE]":
            self.is_done = True
            self._start(out)
            self._finish(out)
            return b"".join(out)
        try:
            chat = _decode_chat(payload)
        except UNREADABLE as error:
            raise RelayError("an event of the engine is not what a chat sends") from error
        if chat.usage is not None:
            self._counts = chat.usage
        if chat.choices is None:
            if chat.error or chat.object == "error":
                self.error = error_message(_decode_members(payload))
            return b""
        self._start(out)
        for choice in chat.choices:
            if choice.delta is not None:
                self._say(choice.delta, out)
            if choice.finish_reason:
                self._choice = choice
                self.finish_reason = choice.finish_reason
        return b"".join(out)

    def _start(self, out: list[bytes]) -> None:
        if self._is_open:
            return
        self._is_open = True
        usage = _usage(self.usage() or Usage())
        begun: dict[str, Any] = {"content": [], "stop_reason": None, "stop_sequence": None, "usage": usage}
        message = _message(self._model, self._request_id) | begun
        out.append(_told("message_start", message=message))
        out.append(_told("ping"))

    def _say(self, said: Said, out: list[bytes]) -> None:
        if said.thought:
            self._open("thinking", {"thinking": "", "signature": ""}, out)
            self._delta({"type": "thinking_delta", "thinking": said.thought}, out)
        if said.content:
            if self._kind == "tool_use":
                self._held.append(said.content)
            else:
                self._text(said.content, out)
        for call in said.tool_calls or ():
            self._call(call, out)

    def _text(self, text: str, out: list[bytes]) -> None:
        self._open("text", {"text": ""}, out)
        self._delta({"type": "text_delta", "text": text}, out)

    def _call(self, call: Call, out: list[bytes]) -> None:
        function = call.function or Function()
        if call.index > self._tool:
            self._tool = call.index
            self._close(out)
            self._arguments = []
            self._open("tool_use", {"id": call.id or "", "name": function.name or "", "input": {}}, out)
        elif call.index < self._tool or self._kind != "tool_use":
            raise RelayError("the engine goes on with a tool's input that has ended")
        if function.arguments and self._arguments is not None:
            self._arguments.append(function.arguments)
            self._delta({"type": "input_json_delta", "partial_json": function.arguments}, out)

    def _open(self, kind: Kind, block: dict[str, Any], out: list[bytes]) -> None:
        if self._kind == kind:
            return
        self._close(out)
        self._index += 1
        self._kind = kind
        out.append(_told("content_block_start", index=self._index, content_block={"type": kind, **block}))

    def _delta(self, delta: dict[str, Any], out: list[bytes]) -> None:
        out.append(_told("content_block_delta", index=self._index, delta=delta))

    def _close(self, out: list[bytes]) -> None:
        if self._kind is None:
            return
        self._kind = None
        out.append(_told("content_block_stop", index=self._index))
        if self._held:
            held, self._held = "".join(self._held), []
            self._text(held, out)
            self._close(out)

    def _finish(self, out: list[bytes]) -> None:
        if self._index < 0:
            self._open("text", {"text": ""}, out)
        self._close(out)
        last = None if self._arguments is None else "".join(self._arguments)
        reason, sequence = _stop(self._choice, last)
        delta = {"stop_reason": reason, "stop_sequence": sequence}
        out.append(_told("message_delta", delta=delta, usage=_usage(self.usage() or Usage())))
        out.append(_told("message_stop"))


def _told(kind: str, **members: Any) -> bytes:
    return b"event: %b\ndata: %b\n\n" % (kind.encode(), msgspec.json.encode({"type": kind, **members}))


def _message(model: str, request_id: str) -> dict[str, Any]:
    return {"id": f"msg_{request_id}", "type": "message", "role": "assistant", "model": model}


def _usage(usage: Usage) -> dict[str, int]:
    """Anthropic counts what was found in the cache apart from the other input. Nobody pays for filling it."""
    return {
        "input_tokens": usage.input_tokens - usage.cached_tokens,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": usage.cached_tokens,
        "output_tokens": usage.output_tokens,
    }


def _stop(choice: Choice, arguments: str | None) -> tuple[str, str | None]:
    """(stop reason, stop sequence). ``arguments``: the last tool's input, None when no tool is used."""
    if choice.finish_reason == "length":
        return "max_tokens", None
    if choice.finish_reason == "content_filter":
        return "refusal", None
    if isinstance(choice.stop_reason, str) and (arguments is None or not _is_object(arguments)):
        # A tool's input that was cut short by a stop sequence must not be taken for a whole one.
        return "stop_sequence", choice.stop_reason
    return ("end_turn", None) if arguments is None else ("tool_use", None)


def _is_object(text: str) -> bool:
    try:
        _decode_object(text or "{}")
    except UNREADABLE:
        return False
    return True


def _input(arguments: str) -> dict[str, Any]:
    """A tool's input. One that was cut off is no JSON: it is told as Anthropic suggests to tell such inputs."""
    try:
        return _decode_object(arguments or "{}")
    except UNREADABLE:
        return {"INVALID_JSON": arguments}
