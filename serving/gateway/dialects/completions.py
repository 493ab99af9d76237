"""``POST /v1/completions``."""

from __future__ import annotations

import msgspec

from serving.gateway import errors
from serving.gateway.dialects import base
from serving.gateway.dialects.base import Dialect, Parsed, Prompt, StreamOptions, utf8_length
from serving.policy.admission import Ask

_ALLOWED = base.SAMPLING | {"prompt", "best_of", "echo", "suffix"}


class Fields(msgspec.Struct):
    model: str
    prompt: Prompt
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: int | None = None
    best_of: int | None = None
    truncate_prompt_tokens: int | None = None
    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    stop: str | list[str] | None = None
    echo: bool | None = None
    suffix: str | None = None
    user: str | None = None
    prompt_cache_key: str | None = None


_decoder = msgspec.json.Decoder(Fields)


class Completions(Dialect):
    name = "completions"
    engine_path = b"/v1/completions"
    max_values = base.MAX_LISTED

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
        base.require_range("truncate_prompt_tokens", fields.truncate_prompt_tokens, -1, base.MAX_OUTPUT_TOKENS)
        prompts, text_bytes, token_ids = base.measure_prompt(fields.prompt, "prompt")
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
                cut_to=fields.truncate_prompt_tokens,
            ),
            is_stream=bool(fields.stream),
            show_usage=bool(options and options.include_usage),
            show_continuous=bool(options and options.continuous_usage_stats),
            workload=fields.prompt_cache_key or "",
        )

    def engine_body(self, parsed: Parsed, *, priority: int, cache_salt: str) -> bytes:
        return base.generating_body(parsed, priority=priority, cache_salt=cache_salt)
