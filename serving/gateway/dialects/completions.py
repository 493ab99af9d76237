"""``POST /v1/completions``."""

from __future__ import annotations

import msgspec

from serving.gateway import errors
from serving.gateway.dialects import base
from serving.gateway.dialects.base import Parsed, StreamOptions, utf8_length
from serving.gateway.records import Usage
from serving.policy.admission import Ask

_ALLOWED = base.SAMPLING | {"prompt", "best_of", "echo", "suffix"}


class Fields(msgspec.Struct):
    model: str
    prompt: str | list[str | int | list[int]]
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: int | None = None
    best_of: int | None = None
    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    stop: str | list[str] | None = None
    echo: bool | None = None
    suffix: str | None = None
    user: str | None = None
    prompt_cache_key: str | None = None


_decoder = msgspec.json.Decoder(Fields)


class Completions:
    name = "completions"
    engine_path = b"/v1/completions"
    generates = True

    def parse(self, body: bytes) -> Parsed:
        members = base.read_members(body, _ALLOWED)
        fields = base.read_fields(_decoder, body)
        n = fields.n or 1
        base.require_range("n", fields.n, 1, base.MAX_CHOICES)
        base.require_range("best_of", fields.best_of, n, base.MAX_CHOICES)
        # With echo and without output, a completion only scores its prompt.
        base.require_range("max_tokens", fields.max_tokens, 0 if fields.echo else 1, base.MAX_OUTPUT_TOKENS)
        if fields.best_of and fields.best_of > n and fields.stream:
            raise errors.bad_request(
                "'best_of' above 'n' cannot be streamed.", param="best_of", code="unsupported_parameter"
            )
        prompts, text_bytes, token_ids = _measure(fields.prompt)
        base.require_choices(prompts * max(n, fields.best_of or 1), param="prompt" if prompts > 1 else "n")
        options = fields.stream_options
        return Parsed(
            model=fields.model,
            members=members,
            ask=Ask(
                prompts=prompts,
                choices=prompts * max(n, fields.best_of or 1),
                text_bytes=text_bytes + utf8_length(fields.suffix or ""),
                token_ids=token_ids,
                # OpenAI's and vLLM's default.
                max_output=16 if fields.max_tokens is None else fields.max_tokens,
                echo=bool(fields.echo),
            ),
            is_stream=bool(fields.stream),
            show_usage=bool(options and options.include_usage),
            show_continuous=bool(options and options.continuous_usage_stats),
            workload=fields.prompt_cache_key or "",
        )

    def engine_body(self, parsed: Parsed, *, priority: int, cache_salt: str) -> bytes:
        return base.generating_body(parsed, priority=priority, cache_salt=cache_salt)

    def read_answer(self, body: bytes) -> tuple[Usage | None, str]:
        return base.read_generated(body)


def _measure(prompt: str | list[str | int | list[int]]) -> tuple[int, int, int]:
    """(prompts, UTF-8 bytes of text, token ids). Raises ApiError 400 for an empty or a mixed list."""
    if isinstance(prompt, str):
        return 1, utf8_length(prompt), 0
    if not prompt:
        raise errors.bad_request("'prompt' must not be empty.", param="prompt", code="empty_array")
    kinds = {type(part) for part in prompt}
    if len(kinds) > 1:
        raise errors.bad_request(
            "'prompt' must be a text, a list of texts, a list of token ids, or a list of such lists.",
            param="prompt",
            code="invalid_type",
        )
    if kinds == {int}:
        return 1, 0, len(prompt)
    text_bytes = sum(utf8_length(part) for part in prompt if isinstance(part, str))
    return len(prompt), text_bytes, sum(len(part) for part in prompt if isinstance(part, list))
