"""``POST /tokenize``: the engine's own count of a prompt or of messages. It makes no tokens and costs no MU."""

from __future__ import annotations

import msgspec

from serving.gateway import errors
from serving.gateway.dialects import base, chat
from serving.gateway.dialects.base import Answer, Dialect, Parsed, utf8_length
from serving.policy.admission import Ask
from serving.policy.images import Gallery

_ALLOWED = frozenset(
    {
        "model",
        "prompt",
        "messages",
        "tools",
        "add_special_tokens",
        "add_generation_prompt",
        "continue_final_message",
        "return_token_strs",
    }
)


class Fields(msgspec.Struct):
    model: str
    prompt: str | None = None
    messages: list[chat.Message] | None = None


_decoder = msgspec.json.Decoder(Fields)


class Tokenize(Dialect):
    name = "tokenize"
    engine_path = b"/tokenize"
    speaks = ("generate", "embed", "score")
    is_metered = False

    def parse(self, body: bytes) -> Parsed:
        members = base.read_members(body, _ALLOWED)
        fields = base.read_fields(_decoder, body)
        if (fields.prompt is None) == (fields.messages is None):
            raise errors.bad_request(
                "Send either 'prompt' or 'messages'.", param="prompt", code="missing_required_parameter"
            )
        text_bytes = utf8_length(fields.prompt or "") + len(members.get("tools", b""))
        if fields.messages is not None:
            base.require_range("messages", len(fields.messages), 1, chat.MAX_MESSAGES)
            images = Gallery()
            text_bytes += sum(
                chat.measure(message, number, images)[0] for number, message in enumerate(fields.messages)
            )
        return Parsed(model=fields.model, members=members, ask=Ask(prompts=1, choices=0, text_bytes=text_bytes))

    def engine_body(self, parsed: Parsed, *, priority: int, cache_salt: str) -> bytes:
        return msgspec.json.encode(parsed.members)

    def read_answer(self, parsed: Parsed, body: bytes, request_id: str) -> Answer:
        return Answer(body, None)
