"""Bodies of vLLM's API: typed, checked, turned into sequences. Errors have vLLM's shape and wording."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import msgspec

from worker.simulated.profile import EngineProfile
from worker.simulated.tokenizer import VOCABULARY, encode, encode_chat

Shape = TypeVar("Shape", bound=msgspec.Struct)
Dialect = Literal["chat", "completions"]
_COMPLETION_MAX_TOKENS = 16
"""OpenAI's and vLLM's default for /v1/completions; chat answers may fill the context."""


class ApiError(Exception):
    """An answer other than 200."""

    def __init__(self, status: int, message: str, *, kind: str = "BadRequestError", param: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.body = msgspec.json.encode(
            {"error": {"message": message, "type": kind, "param": param, "code": status}},
        )


class StreamOptions(msgspec.Struct):
    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None


class ContentPart(msgspec.Struct):
    type: str
    text: str | None = None


class Message(msgspec.Struct):
    role: str
    content: str | list[ContentPart] | None = None

    @property
    def text(self) -> str:
        """The text of the message. Raises ApiError for a part that is no text."""
        if not isinstance(self.content, list):
            return self.content or ""
        other = next((part.type for part in self.content if part.type != "text"), None)
        if other:
            raise ApiError(400, f"At most 0 {other.removesuffix('_url')}(s) may be provided in one prompt.")
        return "\n".join(part.text or "" for part in self.content)


class _Request(msgspec.Struct):
    model: str | None = None
    max_tokens: int | None = None
    min_tokens: int | None = 0
    n: int | None = 1
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    stop: str | list[str] | None = None
    seed: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    ignore_eos: bool | None = False
    priority: int = 0
    cache_salt: str | None = None


class ChatRequest(_Request, kw_only=True):
    messages: list[Message]
    max_completion_tokens: int | None = None
    add_generation_prompt: bool = True


class CompletionRequest(_Request, kw_only=True):
    prompt: Any = None
    echo: bool | None = False


class TokenizeRequest(msgspec.Struct):
    model: str | None = None
    prompt: str | None = None
    messages: list[Message] | None = None
    add_generation_prompt: bool = True


class DetokenizeRequest(msgspec.Struct):
    tokens: list[int]
    model: str | None = None


@dataclass(slots=True)
class Plan:
    """A checked request: the prompts of its sequences in the order of their choices, and how to answer."""

    dialect: Dialect
    prompts: list[list[int]]
    n: int
    max_tokens: list[int]
    eos_after: list[int | None]
    seeds: list[int]
    priority: int
    salt: str
    stop: tuple[str, ...]
    is_stream: bool
    include_usage: bool
    continuous_usage: bool
    echo: tuple[str, ...] | None

    @property
    def prompt_tokens(self) -> int:
        return sum(len(prompt) for prompt in self.prompts)


def decode_body(body: bytes, shape: type[Shape]) -> Shape:
    """Decode a JSON body. Raises ApiError 400."""
    try:
        return msgspec.json.decode(body, type=shape)
    except msgspec.ValidationError as error:
        raise ApiError(400, str(error)) from error
    except msgspec.DecodeError as error:
        raise ApiError(400, f"There was an error parsing the body: {error}") from error


def plan_chat(body: bytes, profile: EngineProfile, model: str, engine_seed: int) -> Plan:
    """Check a chat request. Raises ApiError."""
    request = decode_body(body, ChatRequest)
    check_model(request.model, model)
    if not request.messages:
        raise ApiError(400, "messages must not be empty", param="messages")
    messages = [(message.role, message.text) for message in request.messages]
    prompt = encode_chat(messages, add_generation_prompt=request.add_generation_prompt)
    asked = request.max_tokens if request.max_completion_tokens is None else request.max_completion_tokens
    return _plan(request, "chat", [prompt], asked, None, profile, engine_seed)


def plan_completion(body: bytes, profile: EngineProfile, model: str, engine_seed: int) -> Plan:
    """Check a completion request. Raises ApiError."""
    request = decode_body(body, CompletionRequest)
    check_model(request.model, model)
    texts, prompts = _prompts(request.prompt)
    asked = _COMPLETION_MAX_TOKENS if request.max_tokens is None else request.max_tokens
    return _plan(request, "completions", prompts, asked, texts if request.echo else None, profile, engine_seed)


def check_model(asked: str | None, served: str) -> None:
    """Raise ApiError 404 unless ``asked`` is what is served, or nothing."""
    if asked and asked != served:
        raise ApiError(404, f"The model `{asked}` does not exist.", kind="NotFoundError", param="model")


def _plan(
    request: _Request,
    dialect: Dialect,
    prompts: list[list[int]],
    asked: int | None,
    echo: tuple[str, ...] | None,
    profile: EngineProfile,
    engine_seed: int,
) -> Plan:
    n = 1 if request.n is None else request.n
    _check_numbers(request, n, asked)
    max_tokens: list[int] = []
    eos_after: list[int | None] = []
    seeds: list[int] = []
    for prompt in prompts:
        room = profile.max_model_len - len(prompt)
        if room < 1:
            raise ApiError(
                400,
                f"This model's maximum context length is {profile.max_model_len} tokens. However, your request has "
                f"{len(prompt)} input tokens. Please reduce the length of the input messages.",
                param="input_tokens",
            )
        limit = room if asked is None else min(asked, room)
        for i in range(n):
            seed = _seed(prompt, engine_seed if request.seed is None else request.seed, i)
            max_tokens.append(limit)
            seeds.append(seed)
            eos = None
            if not request.ignore_eos:
                eos = max(request.min_tokens or 0, _answer_length(seed, profile.mean_output_tokens))
            eos_after.append(eos)
    stop = (request.stop,) if isinstance(request.stop, str) else tuple(request.stop or ())
    options = request.stream_options or StreamOptions()
    return Plan(
        dialect=dialect,
        prompts=[prompt for prompt in prompts for _ in range(n)],
        n=n,
        max_tokens=max_tokens,
        eos_after=eos_after,
        seeds=seeds,
        priority=request.priority,
        salt=request.cache_salt or "",
        stop=tuple(text for text in stop if text),
        is_stream=bool(request.stream),
        include_usage=bool(options.include_usage),
        continuous_usage=bool(options.include_usage and options.continuous_usage_stats),
        echo=None if echo is None else tuple(text for text in echo for _ in range(n)),
    )


def _check_numbers(request: _Request, n: int, asked: int | None) -> None:
    if n < 1:
        raise ApiError(400, f"n must be at least 1, got {n}.", param="n")
    if asked is not None and asked < 1:
        raise ApiError(400, f"max_tokens must be at least 1, got {asked}.", param="max_tokens")
    if (request.min_tokens or 0) < 0:
        raise ApiError(400, f"min_tokens must be greater than or equal to 0, got {request.min_tokens}.")
    if request.temperature is not None and request.temperature < 0:
        raise ApiError(400, f"temperature must be non-negative, got {request.temperature}.", param="temperature")
    if request.top_p is not None and not 0 < request.top_p <= 1:
        raise ApiError(400, f"top_p must be in (0, 1], got {request.top_p}.", param="top_p")
    if request.stream_options is not None and not request.stream:
        raise ApiError(400, "Stream options can only be defined when `stream=True`.", param="stream_options")
    if request.cache_salt == "":
        raise ApiError(400, "Parameter 'cache_salt' must be a non-empty string if provided.", param="cache_salt")


def _prompts(prompt: Any) -> tuple[tuple[str, ...], list[list[int]]]:
    """Return texts and tokens of a string, a list of strings, token ids, or a list of lists of token ids."""
    if isinstance(prompt, str):
        return (prompt,), [encode(prompt)]
    if isinstance(prompt, list) and prompt:
        if all(isinstance(item, str) for item in prompt):
            return tuple(prompt), [encode(item) for item in prompt]
        lists = prompt if all(isinstance(item, list) for item in prompt) else [prompt]
        if all(_is_token(token) for ids in lists for token in ids) and all(lists):
            texts = tuple(b"".join(VOCABULARY[i] for i in ids).decode("utf-8", "replace") for ids in lists)
            return texts, [list(ids) for ids in lists]
    raise ApiError(400, "prompt must be a string, a list of strings, token ids or a list of those", param="prompt")


def _is_token(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < len(VOCABULARY)


def _seed(prompt: list[int], seed: int, index: int) -> int:
    """Return the sampling seed of a choice: equal prompts and seeds give equal answers, in any process."""
    digest = hashlib.blake2b(f"{seed} {index} {prompt}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big")


def _answer_length(seed: int, mean: float) -> int:
    """Draw the length of an answer that ends by itself: geometric with ``mean`` tokens, from the seed."""
    uniform = ((seed ^ 0x9E3779B97F4A7C15) >> 11 & ((1 << 53) - 1)) / (1 << 53)
    if mean <= 1:
        return 1
    return 1 + int(math.log(1.0 - uniform) / math.log(1.0 - 1.0 / mean))
