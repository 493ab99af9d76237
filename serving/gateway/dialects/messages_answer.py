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


class _Tool:
    """A tool's use, as far as the stream has told of it."""

    __slots__ = ("id", "is_ended", "name", "pieces")

    def __init__(self, call_id: str, name: str) -> None:
        self.id = call_id
        self.name = name
        self.pieces: list[str] = []
        """Of the input."""
        self.is_ended = False
        """Its block was closed."""

    @property
    def is_whole(self) -> bool:
        """Nothing but blanks can follow. Not known of an input that is empty so far."""
        return bool(self.pieces) and self.pieces[-1].rstrip().endswith("}") and _is_object("".join(self.pieces))


class MessagesRelay(EventRelay):
    """A chat's stream as ``message_start``, blocks of content, ``message_delta`` and ``message_stop``.

    Blocks come one after the other. Whatever else comes between the pieces of a tool's input, text, thoughts or other
    tools, waits for the input's end.
    """

    __slots__ = (
        "_choice",
        "_counts",
        "_held",
        "_index",
        "_is_open",
        "_kind",
        "_model",
        "_request_id",
        "_tool",
        "_tools",
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
        self._tool: _Tool | None = None
        """The last that was begun, open while the kind is ``tool_use``."""
        self._tools: dict[int, _Tool] = {}
        self._held: list[tuple[Kind, str] | _Tool] = []
        """What follows the open tool, in the order in which it began. Empty while none is open."""
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
            self._piece("thinking", said.thought, out)
        if said.content:
            self._piece("text", said.content, out)
        for call in said.tool_calls or ():
            self._call(call, out)

    def _piece(self, kind: Kind, text: str, out: list[bytes]) -> None:
        if self._kind == "tool_use":
            self._held.append((kind, text))
            self._release(out)
        elif kind == "thinking":
            self._open(kind, {"thinking": "", "signature": ""}, out)
            self._delta({"type": "thinking_delta", "thinking": text}, out)
        else:
            self._open(kind, {"text": ""}, out)
            self._delta({"type": "text_delta", "text": text}, out)

    def _call(self, call: Call, out: list[bytes]) -> None:
        function = call.function or Function()
        tool = self._tools.get(call.index)
        if tool is None:
            tool = self._tools[call.index] = _Tool(call.id or "", function.name or "")
            if self._kind == "tool_use":
                self._held.append(tool)
            else:
                self._begin(tool, out)
        arguments = function.arguments or ""
        if tool.is_ended:
            if arguments.strip():
                raise RelayError("the engine goes on with a tool's input that has ended")
        elif arguments:
            tool.pieces.append(arguments)
            if tool is self._tool:
                self._delta({"type": "input_json_delta", "partial_json": arguments}, out)
        self._release(out)

    def _begin(self, tool: _Tool, out: list[bytes]) -> None:
        self._tool = tool
        self._open("tool_use", {"id": tool.id, "name": tool.name, "input": {}}, out)
        if tool.pieces:
            self._delta({"type": "input_json_delta", "partial_json": "".join(tool.pieces)}, out)

    def _release(self, out: list[bytes]) -> None:
        """Go on to what waits for the open tool, once its input is whole."""
        while self._held and self._tool is not None and self._tool.is_whole:
            self._close(out)

    def _open(self, kind: Kind, block: dict[str, Any], out: list[bytes]) -> None:
        if self._kind == kind != "tool_use":
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
        if self._kind == "tool_use" and self._tool is not None:
            self._tool.is_ended = True
        self._kind = None
        out.append(_told("content_block_stop", index=self._index))
        held, self._held = self._held, []
        for number, each in enumerate(held):
            if isinstance(each, _Tool):
                self._begin(each, out)
                self._held = held[number + 1 :]
                return
            self._piece(*each, out)

    def _finish(self, out: list[bytes]) -> None:
        if self._index < 0:
            self._open("text", {"text": ""}, out)
        while self._kind is not None:
            self._close(out)
        last = None if self._tool is None else "".join(self._tool.pieces)
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
