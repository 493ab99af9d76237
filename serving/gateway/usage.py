"""The engine's token counts, as OpenAI's ``usage`` object carries them."""

from __future__ import annotations

import msgspec

from capacity.policy.cost import MEDIA
from serving.gateway.records import Usage

UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
"""What decoding raises for bytes that are not what was expected. Bytes that are no UTF-8 get an error of their own,
which holds them: it must never reach a log."""
MAX_TOKENS = 2**53
"""What the books and a float hold exactly; an engine that says more is broken, and its price must not overflow."""


class PromptDetails(msgspec.Struct):
    """``multimodal_tokens``: how many of the prompt's tokens stand for images, sound or video, by vLLM's words."""

    cached_tokens: int | None = None
    multimodal_tokens: dict[str, int] | None = None


class EngineUsage(msgspec.Struct):
    prompt_tokens: int = 0
    completion_tokens: int | None = 0
    prompt_tokens_details: PromptDetails | None = None

    def record(self) -> Usage:
        """As the journal keeps it. Neither cached nor media tokens exceed input tokens, whatever the engine says."""
        details = self.prompt_tokens_details
        cached = (details.cached_tokens or 0) if details is not None else 0
        prompt = min(max(0, self.prompt_tokens), MAX_TOKENS)
        media = (details.multimodal_tokens or {}) if details is not None else {}
        units = {MEDIA[word]: float(min(max(0, count), prompt)) for word, count in media.items() if word in MEDIA}
        return Usage(
            units=units,
            input_tokens=prompt,
            cached_tokens=min(max(0, cached), prompt),
            output_tokens=min(max(0, self.completion_tokens or 0), MAX_TOKENS),
        )


class Choice(msgspec.Struct):
    index: int = 0
    finish_reason: str | None = None


class Answer(msgspec.Struct):
    """What the gateway reads of a complete answer, or of one event of a stream."""

    usage: EngineUsage | None = None
    choices: list[Choice] = msgspec.field(default_factory=list)


decode_usage = msgspec.json.Decoder(EngineUsage | None).decode
decode_answer = msgspec.json.Decoder(Answer).decode
