"""``POST /v1/score`` and ``POST /v1/rerank``: how well texts go together, as vLLM, Jina and Cohere ask it."""

from __future__ import annotations

import msgspec

from serving.gateway import errors
from serving.gateway.dialects import base
from serving.gateway.dialects.base import Dialect, Parsed, utf8_length
from serving.policy.admission import Ask

_COMMON = frozenset(
    {
        "model",
        "user",
        "instruction",
        "max_tokens_per_doc",
        "max_tokens_per_query",
        "truncate_prompt_tokens",
        "truncation_side",
        "use_activation",
    }
)
_PAIRS = (("text_1", "text_2"), ("queries", "documents"), ("queries", "items"), ("data_1", "data_2"))
"""What the two sides may be called. The first pair is the one to recommend."""
_SCORE = _COMMON.union(*_PAIRS)
_RERANK = _COMMON | {"query", "documents", "top_n"}

Texts = str | list[str]


class ScoreFields(msgspec.Struct):
    model: str
    text_1: Texts | None = None
    text_2: Texts | None = None
    queries: Texts | None = None
    documents: Texts | None = None
    items: Texts | None = None
    data_1: Texts | None = None
    data_2: Texts | None = None
    truncate_prompt_tokens: int | None = None


class RerankFields(msgspec.Struct):
    model: str
    query: str
    documents: Texts
    top_n: int | None = None
    truncate_prompt_tokens: int | None = None


_score_decoder = msgspec.json.Decoder(ScoreFields)
_rerank_decoder = msgspec.json.Decoder(RerankFields)


class Score(Dialect):
    name = "score"
    engine_path = b"/v1/score"
    speaks = ("score",)
    input_field = "text_2"

    def parse(self, body: bytes) -> Parsed:
        members = base.read_members(body, _SCORE)
        fields = base.read_fields(_score_decoder, body)
        given = [pair for pair in _PAIRS if all(getattr(fields, name) is not None for name in pair)]
        if len(given) != 1:
            raise errors.bad_request(
                "Send two sides to compare, 'text_1' and 'text_2': a text each, one text and a list of texts, or two "
                "lists of the same length.",
                param="text_1",
                code="missing_required_parameter",
            )
        names = given[0]
        left, right = (_listed(getattr(fields, name), name) for name in names)
        if len(left) not in (1, len(right)):
            raise errors.bad_request(
                f"'{names[0]}' must hold one text, or as many as '{names[1]}'.", param=names[0], code="invalid_value"
            )
        return _parsed(fields.model, members, left, right, is_cut=fields.truncate_prompt_tokens is not None)

    def engine_body(self, parsed: Parsed, *, priority: int, cache_salt: str) -> bytes:
        return base.pooling_body(parsed, priority=priority, cache_salt=cache_salt)


class Rerank(Dialect):
    name = "rerank"
    engine_path = b"/v1/rerank"
    speaks = ("score",)
    input_field = "documents"

    def parse(self, body: bytes) -> Parsed:
        members = base.read_members(body, _RERANK)
        fields = base.read_fields(_rerank_decoder, body)
        base.require_range("top_n", fields.top_n, 0, base.MAX_OUTPUT_TOKENS)
        documents = _listed(fields.documents, "documents")
        is_cut = fields.truncate_prompt_tokens is not None
        return _parsed(fields.model, members, [fields.query], documents, is_cut=is_cut)

    def engine_body(self, parsed: Parsed, *, priority: int, cache_salt: str) -> bytes:
        return base.pooling_body(parsed, priority=priority, cache_salt=cache_salt)


def _listed(texts: Texts, field: str) -> list[str]:
    """Raises ApiError 400 for no text, and for too many."""
    listed = [texts] if isinstance(texts, str) else texts
    if not listed:
        raise errors.bad_request(f"'{field}' must not be empty.", param=field, code="empty_array")
    base.require_inputs(len(listed), field)
    return listed


def _parsed(model: str, members: base.Members, left: list[str], right: list[str], *, is_cut: bool) -> Parsed:
    """Each text of ``right`` is read with its partner of ``left``, or with the only one."""
    pairs = len(right)
    text_bytes = sum(map(utf8_length, right)) + sum(map(utf8_length, left)) * (pairs // len(left))
    return Parsed(
        model=model,
        members=dict(members),
        is_cut=is_cut,
        ask=Ask(prompts=pairs, choices=0, text_bytes=text_bytes, max_output=0),
    )
