"""``POST /v1/responses``: passed to the engine's own route, which honours priority and cache salt. Stores nothing."""

from __future__ import annotations

from typing import Any

import msgspec

from serving.gateway import errors
from serving.gateway.dialects import base, media
from serving.gateway.dialects.base import Answer, Dialect, Parsed, utf8_length
from serving.gateway.records import Usage
from serving.gateway.relay import EventRelay, Relay, RelayError, error_message, payload_of
from serving.gateway.usage import UNREADABLE, EngineUsage, PromptDetails
from serving.policy.admission import Ask
from serving.policy.images import Gallery

MAX_ITEMS = 4096
_ALLOWED = frozenset(
    {
        "model",
        "input",
        "instructions",
        "include",
        "max_output_tokens",
        "max_tool_calls",
        "metadata",
        "parallel_tool_calls",
        "reasoning",
        "include_reasoning",
        "stream",
        "text",
        "tool_choice",
        "tools",
        "temperature",
        "top_logprobs",
        "top_p",
        "top_k",
        "min_p",
        "frequency_penalty",
        "presence_penalty",
        "repetition_penalty",
        "logit_bias",
        "seed",
        "stop",
        "stop_token_ids",
        "include_stop_str_in_output",
        "ignore_eos",
        "skip_special_tokens",
        "structured_outputs",
        "chat_template_kwargs",
        "truncation",
        "user",
    }
)
_ITEMS = frozenset({"message", "reasoning", "function_call", "function_call_output"})
_PARTS = frozenset({"input_text", "output_text", "text", "refusal", "summary_text", "reasoning_text", "input_image"})


class Part(msgspec.Struct, forbid_unknown_fields=True):
    """A piece of an item's content, with the members of all kinds. None may be in one that is not listed here: see
    ``chat.Part``."""

    type: str
    text: str | None = None
    refusal: str | None = None
    image_url: str | None = None
    file_id: str | None = None
    detail: str | None = None
    annotations: msgspec.Raw = msgspec.Raw()
    logprobs: msgspec.Raw = msgspec.Raw()
    parsed: msgspec.Raw = msgspec.Raw()
    cache_control: msgspec.Raw = msgspec.Raw()
    prompt_cache_breakpoint: msgspec.Raw = msgspec.Raw()


class Item(msgspec.Struct):
    """A turn of the conversation, with the fields of all kinds. Without a type it is a message."""

    type: str = "message"
    role: str | None = None
    content: str | list[Part] | None = None
    summary: list[Part] | None = None
    arguments: str | None = None
    output: str | list[Part] | None = None


class Tool(msgspec.Struct):
    type: str


class Fields(msgspec.Struct):
    model: str
    input: str | list[Item]
    instructions: str | None = None
    tools: list[Tool] | None = None
    stream: bool | None = None
    max_output_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    store: bool | None = None
    background: bool | None = None
    truncation: str | None = None
    user: str | None = None
    prompt_cache_key: str | None = None
    chat_template_kwargs: dict[str, msgspec.Raw] | None = None
    previous_response_id: msgspec.Raw = msgspec.Raw()
    conversation: msgspec.Raw = msgspec.Raw()
    prompt: msgspec.Raw = msgspec.Raw()


_decoder = msgspec.json.Decoder(Fields)
_KEPT = {
    "store": "Responses are not stored here: send 'store': false, or leave it out.",
    "background": "Responses are not made in the background: leave 'background' out, and stream the answer instead.",
    "previous_response_id": "Responses are not stored here: send the whole conversation as 'input' instead.",
    "conversation": "Conversations are not stored here: send the whole conversation as 'input' instead.",
    "prompt": "Prompt templates are not stored here: send the text as 'instructions' and 'input' instead.",
}
"""What needs a store, and what to do without it."""


class Responses(Dialect):
    name = "responses"
    engine_path = b"/v1/responses"
    input_field = "input"
    shape = errors.RESPONSES

    def parse(self, body: bytes) -> Parsed:
        members: dict[str, Any] = dict(base.read_members(body, _ALLOWED))
        fields = base.read_fields(_decoder, body)
        for name, words in _KEPT.items():
            value = getattr(fields, name)
            if value if isinstance(value, bool) else value and bytes(value) != b"null":
                raise errors.bad_request(words, param=name, code="unsupported_parameter")
        base.require_range("max_output_tokens", fields.max_output_tokens, 1, base.MAX_OUTPUT_TOKENS)
        base.refuse_template_internals(fields.chat_template_kwargs)
        base.require_few(len(fields.tools or ()), base.MAX_TOOLS, "tools")
        for number, tool in enumerate(fields.tools or ()):
            if tool.type != "function":
                raise errors.bad_request(
                    f"Tools of type '{tool.type[:40]}' are OpenAI's own and not available here. Use functions.",
                    param=f"tools[{number}].type",
                    code="unsupported_parameter",
                )
        text_bytes, items = utf8_length(fields.instructions or "") + len(members.get("tools", b"")), 1
        images = Gallery()
        if isinstance(fields.input, str):
            text_bytes += utf8_length(fields.input)
        else:
            items = len(fields.input)
            base.require_range("input", items, 1, MAX_ITEMS)
            for number, item in enumerate(fields.input):
                text_bytes += _measure(item, f"input[{number}]", images)
        members["store"] = False
        return Parsed(
            model=fields.model,
            members=members,
            ask=Ask(
                prompts=1,
                choices=1,
                text_bytes=text_bytes,
                messages=items,
                media=len(images.bounds),
                images=tuple(images.bounds),
                max_output=fields.max_output_tokens,
                cut_to=-1 if fields.truncation == "auto" else None,
            ),
            is_stream=bool(fields.stream),
            is_cut=fields.truncation == "auto",
            workload=fields.prompt_cache_key or "",
        )

    def engine_body(self, parsed: Parsed, *, priority: int, cache_salt: str) -> bytes:
        return msgspec.json.encode({**parsed.members, "priority": priority, "cache_salt": cache_salt})

    def read_answer(self, parsed: Parsed, body: bytes, request_id: str) -> Answer:
        answer = _decode_response(body)
        if answer.status == "failed":
            raise msgspec.DecodeError("the engine failed on the response")
        return Answer(body, _record(answer), _finish(answer))

    def relay(self, parsed: Parsed, request_id: str) -> Relay:
        return ResponsesRelay()


def _measure(item: Item, at: str, images: Gallery) -> int:
    """UTF-8 bytes of text of one item; takes its images into ``images``. Raises ApiError 400."""
    if item.type not in _ITEMS:
        raise errors.bad_request(
            f"Items of type '{item.type[:40]}' are not supported.", param=f"{at}.type", code="invalid_value"
        )
    size = utf8_length(item.arguments or "")
    for name, content in (("content", item.content), ("summary", item.summary), ("output", item.output)):
        if isinstance(content, str):
            size += utf8_length(content)
            continue
        base.require_few(len(content or ()), base.MAX_PARTS, f"{at}.{name}")
        for number, part in enumerate(content or ()):
            where = f"{at}.{name}[{number}]"
            if part.type not in _PARTS or part.file_id is not None:
                what = "Files" if part.file_id is not None else f"Content of type '{part.type[:40]}'"
                raise errors.bad_request(f"{what} cannot be sent here.", param=where, code="invalid_value")
            if part.image_url is not None:
                media.add_image(images, part.image_url, where)
            elif part.type == "input_image":
                param = f"{where}.image_url"
                raise errors.bad_request(
                    f"Missing required parameter: '{param}'.", param=param, code="missing_required_parameter"
                )
            size += utf8_length(part.text or "") + utf8_length(part.refusal or "")
    return size


class InputDetails(msgspec.Struct):
    cached_tokens: int | None = None


class ResponseUsage(msgspec.Struct):
    input_tokens: int = 0
    output_tokens: int | None = 0
    input_tokens_details: InputDetails | None = None


class Incomplete(msgspec.Struct):
    reason: str | None = None


class Response(msgspec.Struct):
    """What the gateway reads of a response."""

    status: str
    usage: ResponseUsage | None = None
    incomplete_details: Incomplete | None = None
    error: msgspec.Raw = msgspec.Raw()


class Event(msgspec.Struct):
    type: str
    response: Response | None = None


_decode_response = msgspec.json.Decoder(Response).decode
_decode_event = msgspec.json.Decoder(Event).decode
_decode_members = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_LAST = frozenset({"response.completed", "response.incomplete", "response.cancelled"})
_DELTA = b".delta"


def _record(response: Response) -> Usage | None:
    told = response.usage
    if told is None:
        return None
    cached = told.input_tokens_details.cached_tokens if told.input_tokens_details is not None else None
    details = PromptDetails(cached_tokens=cached)
    return EngineUsage(told.input_tokens, told.output_tokens, details).record()


def _finish(response: Response) -> str:
    """In the words of the other dialects, where they have one."""
    if response.status != "incomplete":
        return "stop" if response.status == "completed" else response.status
    reason = (response.incomplete_details.reason if response.incomplete_details is not None else None) or "incomplete"
    return "length" if reason == "max_output_tokens" else reason


class ResponsesRelay(EventRelay):
    """Passes the engine's events through. Usage comes with the last one alone: before it the events with a piece of
    output are counted, each of which is at least one token."""

    __slots__ = ("_deltas", "_usage")

    def __init__(self) -> None:
        super().__init__()
        self._usage: Usage | None = None
        self._deltas = 0

    @property
    def is_exact(self) -> bool:
        return self._usage is not None

    def usage(self) -> Usage | None:
        if self._usage is not None:
            return self._usage
        return Usage(output_tokens=self._deltas) if self._deltas else None

    def _event(self, event: bytes, separator: bytes) -> bytes:
        self.events += 1
        first, _, _ = event.partition(b"\n")
        if first.startswith(b"event:"):
            kind = first[6:].strip()
            if kind.endswith(_DELTA):
                self._deltas += 1
                return event + separator
            if not kind.startswith(_ENDS):
                return event + separator
        payload = payload_of(event)
        if payload is None or payload == b"[DONE]":
            return event + separator
        try:
            told = _decode_event(payload)
        except UNREADABLE as error:
            return self._unread(payload, error)
        if told.type == "error" or told.type == "response.failed":
            self.error = error_message(_decode_members(payload))
            return b""
        if told.type in _LAST and told.response is not None:
            self._usage = _record(told.response)
            self.finish_reason = _finish(told.response)
            self.is_done = True
        elif told.type.endswith(".delta"):
            self._deltas += 1
        return event + separator

    def _unread(self, payload: bytes, error: Exception) -> bytes:
        """An event without a type: an engine's error in the shape of its other APIs, or nothing that is understood."""
        try:
            members = _decode_members(payload)
        except UNREADABLE:
            members = {}
        if "error" not in members:
            raise RelayError("an event of the engine is not what the Responses API sends") from error
        self.error = error_message(members)
        return b""


_ENDS = (b"response.completed", b"response.incomplete", b"response.cancelled", b"response.failed", b"error")
"""Kinds of event whose data are read. An event without a kind is read, too."""
