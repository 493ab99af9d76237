"""``POST /v1/score`` and ``POST /v1/rerank``: how well texts go together, as vLLM, Jina and Cohere ask it."""

from __future__ import annotations

import msgspec

from serving.gateway import errors
from serving.gateway.dialects import base
from serving.gateway.dialects.base import Dialect, Parsed, utf8_length
from serving.gateway.records import DeploymentRecord
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

MAX_PAIRED_BYTES = 32 * 1024 * 1024
"""UTF-8 bytes of all pairs together: the engine reads a text once for each pair it is in, also if it then cuts it."""

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


class _Pairs(Dialect):
    """Texts that are read in pairs."""

    def require(self, parsed: Parsed, deployment: DeploymentRecord) -> None:
        super().require(parsed, deployment)
        context = deployment.max_model_len
        if context is not None and parsed.longest > context * base.MAX_BYTES_PER_TOKEN:
            cut = " Cut it before you send it: the engine must read all of it to cut it." if parsed.is_cut else ""
            raise errors.bad_request(
                f"This model's maximum context length is {context} tokens, but a pair of your texts has "
                f"{parsed.longest} bytes. Shorten it.{cut}",
                param=self.input_field,
                code="context_length_exceeded",
            )

    def engine_body(self, parsed: Parsed, *, priority: int, cache_salt: str) -> bytes:
        return base.pooling_body(parsed, priority=priority, cache_salt=cache_salt)


class Score(_Pairs):
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
        return _parsed(fields, members, left, right, names)


class Rerank(_Pairs):
    name = "rerank"
    engine_path = b"/v1/rerank"
    speaks = ("score",)
    input_field = "documents"

    def parse(self, body: bytes) -> Parsed:
        members = base.read_members(body, _RERANK)
        fields = base.read_fields(_rerank_decoder, body)
        base.require_range("top_n", fields.top_n, 0, base.MAX_OUTPUT_TOKENS)
        documents = _listed(fields.documents, "documents")
        return _parsed(fields, members, [fields.query], documents, ("query", "documents"))


def _listed(texts: Texts, field: str) -> list[str]:
    """Raises ApiError 400 for no text, and for too many."""
    listed = [texts] if isinstance(texts, str) else texts
    if not listed:
        raise errors.bad_request(f"'{field}' must not be empty.", param=field, code="empty_array")
    base.require_inputs(len(listed), field)
    return listed


def _parsed(
    fields: ScoreFields | RerankFields, members: base.Members, left: list[str], right: list[str], names: tuple[str, str]
) -> Parsed:
    """Each text of ``right`` is read with its partner of ``left``, or with the only one. Raises ApiError 400."""
    cut_to = fields.truncate_prompt_tokens
    base.require_range("truncate_prompt_tokens", cut_to, -1, base.MAX_OUTPUT_TOKENS)
    firsts, seconds = list(map(utf8_length, left)), list(map(utf8_length, right))
    pairs = [second + firsts[index % len(firsts)] for index, second in enumerate(seconds)]
    text_bytes = sum(pairs)
    if text_bytes > MAX_PAIRED_BYTES:
        raise errors.bad_request(
            f"'{names[0]}' and '{names[1]}' make pairs of {text_bytes:,} bytes; at most {MAX_PAIRED_BYTES:,} are "
            f"allowed in one request. Shorten '{names[0]}', which is read with each of '{names[1]}', or send several "
            "requests.",
            param=names[0],
            code="invalid_value",
        )
    return Parsed(
        model=fields.model,
        members=dict(members),
        is_cut=cut_to is not None,
        longest=max(pairs),
        ask=Ask(prompts=len(pairs), choices=0, text_bytes=text_bytes, max_output=0, cut_to=cut_to),
    )
