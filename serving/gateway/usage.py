"""The engine's token counts, as OpenAI's ``usage`` object carries them."""

from __future__ import annotations

import msgspec

from capacity.policy.cost import MEDIA
from capacity.usage.lines import MOST_TOKENS
from serving.gateway.records import Usage
from serving.policy.admission import Estimate

UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
"""What decoding raises for bytes that are not what was expected. Bytes that are no UTF-8 get an error of their own,
which holds them: it must never reach a log."""


class PromptDetails(msgspec.Struct):
    """``multimodal_tokens``: how many of the prompt's tokens stand for images, sound or video, by vLLM's words."""

    cached_tokens: int | None = None
    multimodal_tokens: dict[str, int] | None = None


class EngineUsage(msgspec.Struct):
    prompt_tokens: int = 0
    completion_tokens: int | None = 0
    prompt_tokens_details: PromptDetails | None = None

    def record(self) -> Usage:
        """As the journal keeps it. Neither cached nor media tokens exceed input tokens, and none what the books take:
        an engine that says more is broken.
        """
        details = self.prompt_tokens_details
        cached = (details.cached_tokens or 0) if details is not None else 0
        prompt = min(max(0, self.prompt_tokens), MOST_TOKENS)
        media = (details.multimodal_tokens or {}) if details is not None else {}
        units = {MEDIA[word]: float(min(max(0, count), prompt)) for word, count in media.items() if word in MEDIA}
        return Usage(
            units=units,
            input_tokens=prompt,
            cached_tokens=min(max(0, cached), prompt),
            output_tokens=min(max(0, self.completion_tokens or 0), MOST_TOKENS),
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


def expected_usage(estimate: Estimate) -> Usage:
    """What a request is expected to use, as its receipt tells it."""
    return Usage(
        input_tokens=estimate.input_tokens,
        cached_tokens=estimate.cached_tokens,
        output_tokens=estimate.output_tokens,
        units=dict(estimate.units),
    )
