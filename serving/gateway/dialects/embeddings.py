"""``POST /v1/embeddings``."""

from __future__ import annotations

from typing import Literal

import msgspec

from serving.gateway.dialects import base
from serving.gateway.dialects.base import Dialect, Parsed, Prompt
from serving.policy.admission import Ask

_ALLOWED = frozenset(
    {
        "model",
        "input",
        "encoding_format",
        "dimensions",
        "user",
        "add_special_tokens",
        "truncate_prompt_tokens",
        "truncation_side",
        "use_activation",
    }
)


class Fields(msgspec.Struct):
    model: str
    input: Prompt
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: int | None = None
    truncate_prompt_tokens: int | None = None
    truncation_side: Literal["left", "right"] | None = None
    user: str | None = None


_decoder = msgspec.json.Decoder(Fields)


class Embeddings(Dialect):
    name = "embeddings"
    engine_path = b"/v1/embeddings"
    max_values = base.MAX_LISTED
    speaks = ("embed",)
    input_field = "input"

    def parse(self, body: bytes) -> Parsed:
        members = base.read_members(body, _ALLOWED)
        fields = base.read_fields(_decoder, body)
        base.require_range("dimensions", fields.dimensions, 1, base.MAX_OUTPUT_TOKENS)
        base.require_range("truncate_prompt_tokens", fields.truncate_prompt_tokens, -1, base.MAX_OUTPUT_TOKENS)
        inputs, text_bytes, token_ids = base.measure_prompt(fields.input, "input")
        base.require_inputs(inputs, "input")
        return Parsed(
            model=fields.model,
            members=members,
            # What the engine cuts to its length is not too long for it.
            is_cut=fields.truncate_prompt_tokens is not None,
            ask=Ask(
                prompts=inputs,
                choices=0,
                text_bytes=text_bytes,
                token_ids=token_ids,
                max_output=0,
                cut_to=fields.truncate_prompt_tokens,
            ),
        )

    def engine_body(self, parsed: Parsed, *, priority: int, cache_salt: str) -> bytes:
        return base.pooling_body(parsed, priority=priority, cache_salt=cache_salt)
