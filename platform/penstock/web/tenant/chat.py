"""What a page may say over the playground's websocket, and the request that a gateway is sent for it. No I/O."""

from __future__ import annotations

import re
from typing import Any, Literal

import msgspec

MAX_FRAME = 12 * 1024 * 1024
"""Bytes of one message from the page, images included."""
MAX_MESSAGES = 200
MAX_TEXT = 400_000
"""Characters of text in a whole conversation."""
MAX_IMAGES = 8
MAX_IMAGE = 6 * 1024 * 1024
"""Characters of one image as a data URI: about 4.5 MB of file."""
MAX_TOKENS = 1_000_000
MAX_TEMPERATURE = 2.0

_IMAGE = re.compile(r"data:image/(?:png|jpeg|webp|gif);base64,[A-Za-z0-9+/]+={0,2}")


class AskError(ValueError):
    """The page's message cannot be sent on; the message is for people."""


class Turn(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """One message of the conversation. Images are data URIs."""

    role: Literal["user", "assistant"]
    text: str
    images: list[str] = []


class Ask(msgspec.Struct, kw_only=True, tag_field="type", tag="ask", forbid_unknown_fields=True):
    """Answer the conversation. ``id`` names the answer in everything that is said of it."""

    id: int
    model: str
    turns: list[Turn]
    system: str = ""
    temperature: float | None = None
    max_tokens: int | None = None


class Stop(msgspec.Struct, kw_only=True, tag_field="type", tag="stop", forbid_unknown_fields=True):
    """End the answer ``id``, if it still comes."""

    id: int


_decoder: msgspec.json.Decoder[Ask | Stop] = msgspec.json.Decoder(Ask | Stop)


def read_message(text: str) -> Ask | Stop:
    """What the page says. Raises AskError, which never quotes it."""
    if len(text) > MAX_FRAME:
        raise AskError("This is more than the playground takes at once: leave out images or start anew.")
    try:
        message = _decoder.decode(text)
    except (msgspec.DecodeError, UnicodeEncodeError):
        raise AskError("The page and the server do not understand each other: reload the page.") from None
    if isinstance(message, Ask):
        _check(message)
    return message


def _check(ask: Ask) -> None:
    if not ask.model or len(ask.model) > 200:
        raise AskError("Choose a model.")
    if not ask.turns or ask.turns[-1].role != "user":
        raise AskError("Write a message first.")
    if len(ask.turns) > MAX_MESSAGES:
        raise AskError(f"A conversation has at most {MAX_MESSAGES} messages here: clear it and start anew.")
    if len(ask.system) + sum(len(turn.text) for turn in ask.turns) > MAX_TEXT:
        raise AskError(f"A conversation has at most {MAX_TEXT:,} characters here: shorten it or start anew.")
    images = [image for turn in ask.turns for image in turn.images]
    if len(images) > MAX_IMAGES:
        raise AskError(f"A conversation has at most {MAX_IMAGES} images here.")
    if any(len(image) > MAX_IMAGE or not _IMAGE.fullmatch(image) for image in images):
        raise AskError("Images must be PNG, JPEG, WebP or GIF files of at most 4.5 MB.")
    if any(turn.images and turn.role != "user" for turn in ask.turns):
        raise AskError("Only your own messages can hold images.")
    last = ask.turns[-1]
    if not last.text.strip() and not last.images:
        raise AskError("Write a message first.")
    if ask.temperature is not None and not 0 <= ask.temperature <= MAX_TEMPERATURE:
        raise AskError(f"The temperature must be between 0 and {MAX_TEMPERATURE:g}.")
    if ask.max_tokens is not None and not 1 <= ask.max_tokens <= MAX_TOKENS:
        raise AskError(f"Max output must be between 1 and {MAX_TOKENS:,} tokens.")


def gateway_request(ask: Ask) -> dict[str, Any]:
    """The body of the chat completion, streamed, with usage at its end."""
    messages: list[dict[str, Any]] = [{"role": "system", "content": ask.system}] if ask.system.strip() else []
    messages += [{"role": turn.role, "content": _content(turn)} for turn in ask.turns]
    body: dict[str, Any] = {
        "model": ask.model,
        "messages": messages,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    if ask.temperature is not None:
        body["temperature"] = ask.temperature
    if ask.max_tokens is not None:
        body["max_tokens"] = ask.max_tokens
    return body


def _content(turn: Turn) -> str | list[dict[str, Any]]:
    if not turn.images:
        return turn.text
    images = [{"type": "image_url", "image_url": {"url": image}} for image in turn.images]
    return [*images, {"type": "text", "text": turn.text}] if turn.text else images


class Piece(msgspec.Struct, kw_only=True):
    """What one event of a gateway's stream says."""

    text: str = ""
    thinking: str = ""
    finish_reason: str = ""
    usage: dict[str, int] | None = None
    """``input``, ``cached`` and ``output`` tokens."""
    error: str = ""


class _Delta(msgspec.Struct):
    content: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None


class _Choice(msgspec.Struct):
    delta: _Delta | None = None
    finish_reason: str | None = None


class _Details(msgspec.Struct):
    cached_tokens: int | None = None


class _Usage(msgspec.Struct):
    prompt_tokens: int = 0
    completion_tokens: int | None = None
    prompt_tokens_details: _Details | None = None


class _Error(msgspec.Struct):
    message: str = ""
    code: str | int | None = None


class _Event(msgspec.Struct):
    choices: list[_Choice] = []
    usage: _Usage | None = None
    error: _Error | None = None


class _Refusal(msgspec.Struct):
    error: _Error


_events = msgspec.json.Decoder(_Event)
_refusals = msgspec.json.Decoder(_Refusal)


def read_event(data: bytes) -> Piece:
    """One ``data:`` of the stream. Raises AskError when it is no chunk of a chat completion."""
    try:
        event = _events.decode(data)
    except msgspec.DecodeError:
        raise AskError("The gateway sent something that is no answer.") from None
    if event.error is not None:
        return Piece(error=event.error.message or "The answer broke off.")
    piece = Piece()
    for choice in event.choices[:1]:
        delta = choice.delta or _Delta()
        piece.text = delta.content or ""
        piece.thinking = delta.reasoning_content or delta.reasoning or ""
        piece.finish_reason = choice.finish_reason or ""
    if event.usage is not None:
        details = event.usage.prompt_tokens_details
        piece.usage = {
            "input": event.usage.prompt_tokens,
            "cached": (details.cached_tokens or 0) if details else 0,
            "output": event.usage.completion_tokens or 0,
        }
    return piece


def read_refusal(body: bytes) -> tuple[str, str]:
    """Message and code of an answer that is no stream."""
    try:
        error = _refusals.decode(body).error
    except msgspec.DecodeError:
        return "The gateway refused the request and did not say why.", ""
    return error.message or "The gateway refused the request.", str(error.code or "")
