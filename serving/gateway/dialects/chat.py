"""``POST /v1/chat/completions``."""

from __future__ import annotations

import msgspec

from serving.gateway import errors
from serving.gateway.dialects import base
from serving.gateway.dialects import media as media_parts
from serving.gateway.dialects.base import Dialect, Parsed, StreamOptions, utf8_length
from serving.policy.admission import Ask
from serving.policy.images import Gallery

MAX_MESSAGES = 4096
_ALLOWED = base.SAMPLING | {
    "messages",
    "max_completion_tokens",
    "top_logprobs",
    "tools",
    "tool_choice",
    "parallel_tool_calls",
    "functions",
    "function_call",
    "reasoning_effort",
    "include_reasoning",
    "documents",
    "echo",
    "add_generation_prompt",
    "continue_final_message",
    "chat_template_kwargs",
}
_HOLDS = {
    "text": "text",
    "input_text": "text",
    "output_text": "text",
    "refusal": "refusal",
    "thinking": "thinking",
    "image_url": "image_url",
    "audio_url": "audio_url",
    "video_url": "video_url",
    "input_audio": "input_audio",
}
"""The member that holds what a part of each type says."""
_MEDIA = ("image_url", "audio_url", "video_url", "input_audio")
_CONTENTS = tuple(dict.fromkeys(_HOLDS.values()))


class Link(msgspec.Struct):
    url: str


class Part(msgspec.Struct, forbid_unknown_fields=True):
    """A piece of a message's content, with the members of all types.

    Messages go to the engine as they were written, so that no member may be in them that is not listed here. Engines
    know some that reach past a tenant: vLLM's ``uuid`` names a picture of its cache, whoever sent it, and takes the
    place of the picture's own hash. Others hand over tensors (``image_embeds``, ``prompt_embeds``, ...).
    """

    type: str = ""
    text: str | None = None
    refusal: str | None = None
    thinking: str | None = None
    image_url: str | Link | None = None
    audio_url: str | Link | None = None
    video_url: str | Link | None = None
    input_audio: dict[str, msgspec.Raw] | None = None
    detail: str | None = None
    closed: bool | None = None
    annotations: msgspec.Raw = msgspec.Raw()
    logprobs: msgspec.Raw = msgspec.Raw()
    cache_control: msgspec.Raw = msgspec.Raw()
    prompt_cache_breakpoint: msgspec.Raw = msgspec.Raw()


class Message(msgspec.Struct):
    role: str
    content: str | list[str | Part] | None = None
    name: str | None = None
    tool_calls: msgspec.Raw = msgspec.Raw()


class Fields(msgspec.Struct):
    model: str
    messages: list[Message]
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: int | None = None
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    stop: str | list[str] | None = None
    echo: bool | None = None
    user: str | None = None
    prompt_cache_key: str | None = None
    tools: list[msgspec.Raw] | None = None
    truncate_prompt_tokens: int | None = None
    chat_template_kwargs: dict[str, msgspec.Raw] | None = None


_decoder = msgspec.json.Decoder(Fields)


class Chat(Dialect):
    name = "chat"
    engine_path = b"/v1/chat/completions"
    input_field = "messages"

    def parse(self, body: bytes) -> Parsed:
        members = base.read_members(body, _ALLOWED)
        fields = base.read_fields(_decoder, body)
        n = fields.n or 1
        base.require_range("n", fields.n, 1, base.MAX_CHOICES)
        base.require_range("max_tokens", fields.max_tokens, 1, base.MAX_OUTPUT_TOKENS)
        base.require_range("max_completion_tokens", fields.max_completion_tokens, 1, base.MAX_OUTPUT_TOKENS)
        if not fields.messages:
            raise errors.bad_request("'messages' must hold at least one message.", param="messages", code="empty_array")
        base.require_range("messages", len(fields.messages), 1, MAX_MESSAGES)
        base.refuse_template_internals(fields.chat_template_kwargs)
        base.require_few(len(fields.tools or ()), base.MAX_TOOLS, "tools")
        base.require_range("truncate_prompt_tokens", fields.truncate_prompt_tokens, -1, base.MAX_OUTPUT_TOKENS)
        text_bytes, media = len(members.get("tools", b"")), 0
        images = Gallery()
        for number, message in enumerate(fields.messages):
            size, parts = measure(message, number, images)
            text_bytes += size
            media += parts
        options = fields.stream_options
        limits = [limit for limit in (fields.max_completion_tokens, fields.max_tokens) if limit is not None]
        return Parsed(
            model=fields.model,
            members=members,
            ask=Ask(
                prompts=1,
                choices=n,
                text_bytes=text_bytes,
                messages=len(fields.messages),
                media=media,
                images=tuple(images.bounds),
                max_output=limits[0] if limits else None,
                echo=bool(fields.echo),
                cut_to=fields.truncate_prompt_tokens,
            ),
            is_stream=bool(fields.stream),
            show_usage=bool(options and options.include_usage),
            show_continuous=bool(options and options.continuous_usage_stats),
            workload=fields.prompt_cache_key or "",
        )

    def engine_body(self, parsed: Parsed, *, priority: int, cache_salt: str) -> bytes:
        return base.generating_body(parsed, priority=priority, cache_salt=cache_salt)


def measure(message: Message, number: int, images: Gallery) -> tuple[int, int]:
    """UTF-8 bytes of text and the number of media parts of one message. Raises ApiError 400.

    Takes its images into ``images``.
    """
    size = len(message.tool_calls)
    media = 0
    if isinstance(message.content, str):
        return size + utf8_length(message.content), 0
    base.require_few(len(message.content or ()), base.MAX_PARTS, f"messages[{number}].content")
    for index, part in enumerate(message.content or ()):
        if isinstance(part, str):
            size += utf8_length(part)
            continue
        if part.type == "text" and part.text is not None and _holds_text_alone(part):
            size += utf8_length(part.text)
            continue
        size += utf8_length(part.text or "") + utf8_length(part.refusal or "") + utf8_length(part.thinking or "")
        if part.image_url is not None:
            media_parts.add_image(images, _url(part.image_url), f"messages[{number}].content")
            media += 1
        for link in (part.audio_url, part.video_url):
            if link is not None:
                media_parts.require_inline(_url(link), f"messages[{number}].content")
                media += 1
        media += part.input_audio is not None
        _require_contents(part, f"messages[{number}].content", index)
    return size, media


def _url(link: str | Link) -> str:
    return link if isinstance(link, str) else link.url


def _holds_text_alone(part: Part) -> bool:
    """Written out, since most parts are such."""
    return (
        part.image_url is None
        and part.audio_url is None
        and part.video_url is None
        and part.input_audio is None
        and part.refusal is None
        and part.thinking is None
    )


def _require_contents(part: Part, param: str, index: int) -> None:
    """Raises ApiError 400 for a part that holds something else than its type says, or no picture or sound."""
    # Engines take a picture or sound without a type, too.
    holds = _HOLDS.get(part.type) if part.type else next((n for n in _MEDIA if getattr(part, n) is not None), "type")
    if holds is None:
        raise errors.bad_request(
            f"Content parts of type '{part.type[:40]}' are not supported.", param=param, code="invalid_value"
        )
    for name in _CONTENTS:
        if name != holds and getattr(part, name) is not None:
            raise base.unknown_member(f"{param}[{index}].{name}")
    if holds == "type" or (holds in _MEDIA and getattr(part, holds) is None):
        missing = f"{param}[{index}].{holds}"
        raise errors.bad_request(
            f"Missing required parameter: '{missing}'.", param=missing, code="missing_required_parameter"
        )
