"""``POST /v1/messages`` and ``/v1/messages/count_tokens``: Anthropic's API, asked of the engine as a chat.

Engines that have the route themselves take no priority there, so the gateway translates: the request in
``messages_request``, the answer in ``messages_answer``.
"""

from __future__ import annotations

from typing import Any

import msgspec

from serving.gateway import errors
from serving.gateway.dialects import base
from serving.gateway.dialects.base import Answer, Dialect, Parsed
from serving.gateway.dialects.messages_answer import MessagesRelay, message_of
from serving.gateway.dialects.messages_request import Chat, Conversation, Fields
from serving.gateway.relay import Relay

_COUNTED = (
    "model",
    "messages",
    "tools",
    "add_generation_prompt",
    "continue_final_message",
    "chat_template_kwargs",
)
"""Fields of a chat that say what its prompt is, and that the engine's tokenizer takes."""

_decoder = msgspec.json.Decoder(Fields)
_count_decoder = msgspec.json.Decoder(Conversation)
_decode_count = msgspec.json.Decoder(dict[str, Any]).decode


class Messages(Dialect):
    name = "messages"
    engine_path = b"/v1/chat/completions"
    input_field = "messages"
    shape = errors.ANTHROPIC

    def parse(self, body: bytes) -> Parsed:
        fields = base.read_fields(_decoder, body)
        base.require_range("max_tokens", fields.max_tokens, 1, base.MAX_OUTPUT_TOKENS)
        chat = Chat(fields)
        members = chat.members | {"max_tokens": fields.max_tokens}
        if fields.stream:
            members["stream"] = True
        if fields.stop_sequences:
            members["stop"] = fields.stop_sequences
        for name in ("temperature", "top_p", "top_k"):
            if (value := getattr(fields, name)) is not None:
                members[name] = value
        if fields.metadata is not None and fields.metadata.user_id is not None:
            members["user"] = fields.metadata.user_id
        if fields.output_config is not None and fields.output_config.format is not None:
            schema = {"name": "output", "schema": fields.output_config.format.schema}
            members["response_format"] = {"type": "json_schema", "json_schema": schema}
        return Parsed(
            model=fields.model, members=members, ask=chat.ask(fields.max_tokens), is_stream=bool(fields.stream)
        )

    def engine_body(self, parsed: Parsed, *, priority: int, cache_salt: str) -> bytes:
        return base.generating_body(parsed, priority=priority, cache_salt=cache_salt)

    def read_answer(self, parsed: Parsed, body: bytes, request_id: str) -> Answer:
        return message_of(body, model=parsed.model, request_id=request_id)

    def relay(self, parsed: Parsed, request_id: str) -> Relay:
        return MessagesRelay(model=parsed.model, request_id=request_id)


class CountTokens(Dialect):
    """The engine's own count of the chat that the messages become. Costs no MU."""

    name = "count_tokens"
    engine_path = b"/tokenize"
    is_metered = False
    input_field = "messages"
    shape = errors.ANTHROPIC

    def parse(self, body: bytes) -> Parsed:
        fields = base.read_fields(_count_decoder, body)
        chat = Chat(fields)
        members = {name: chat.members[name] for name in _COUNTED if name in chat.members}
        return Parsed(model=fields.model, members=members, ask=chat.ask(0))

    def engine_body(self, parsed: Parsed, *, priority: int, cache_salt: str) -> bytes:
        return msgspec.json.encode(parsed.members)

    def read_answer(self, parsed: Parsed, body: bytes, request_id: str) -> Answer:
        count = _decode_count(body).get("count")
        if not isinstance(count, int):
            raise msgspec.DecodeError("the engine told no count")
        return Answer(msgspec.json.encode({"input_tokens": count}), None)
