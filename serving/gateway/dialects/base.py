"""What every dialect has in common: the interface, allow-lists, and errors that name the field."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple, TypeVar

import msgspec

from serving.gateway import errors
from serving.gateway.dialects.structure import require_readable
from serving.gateway.errors import ErrorShape
from serving.gateway.records import DeploymentRecord, Usage
from serving.gateway.relay import Relay, StreamRelay
from serving.gateway.usage import decode_answer
from serving.policy.admission import Ask

MAX_CHOICES = 128
"""Sequences that one request may generate: n × prompts, or best_of × prompts."""
MAX_OUTPUT_TOKENS = 2**31 - 1
"""Beyond every context; more would overflow what is estimated and kept of a request."""
MAX_VALUES = 100_000
"""Fields and list items of one body. Reading a body of as many takes well below 100 ms (``docs/performance.md``)."""
MAX_LISTED = 1_100_000
"""The same where lists of numbers are sent, of which each costs far less: room for 2,048 inputs of 512 token ids."""
MAX_PARTS = 4096
"""Content parts of one message."""
MAX_TOOLS = 1024
MAX_INPUTS = 2048
"""Texts that one request may have embedded or ranked."""
MAX_BYTES_PER_TOKEN = 128
"""No tokenizer in use makes one token of more: a longer text is too long whatever its words are."""

SAMPLING = frozenset(
    {
        "model",
        "stream",
        "stream_options",
        "n",
        "max_tokens",
        "min_tokens",
        "temperature",
        "top_p",
        "top_k",
        "min_p",
        "frequency_penalty",
        "presence_penalty",
        "repetition_penalty",
        "length_penalty",
        "logit_bias",
        "logprobs",
        "prompt_logprobs",
        "seed",
        "stop",
        "stop_token_ids",
        "include_stop_str_in_output",
        "ignore_eos",
        "bad_words",
        "allowed_token_ids",
        "skip_special_tokens",
        "spaces_between_special_tokens",
        "truncate_prompt_tokens",
        "add_special_tokens",
        "response_format",
        "structured_outputs",
        "guided_json",
        "guided_regex",
        "guided_choice",
        "guided_grammar",
        "return_tokens_as_token_ids",
        "return_token_ids",
        "user",
    }
)
"""Fields of generating requests that go to the engine. Whatever is not listed stays here: engine-internal fields
(request ids, cache salts, KV transfer, server-side templates, ...) and those that only OpenAI's platform knows."""

S = TypeVar("S", bound=msgspec.Struct)
Members = dict[str, msgspec.Raw]
_decode_members = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_PATH = re.compile(r"(.*) - at `\$\.?([^`]*)`$", re.DOTALL)


class StreamOptions(msgspec.Struct):
    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None


class Parsed(msgspec.Struct, kw_only=True):
    """A request as its dialect understood it. ``members``: the engine's fields, as the client wrote them."""

    model: str
    ask: Ask
    members: dict[str, Any]
    raw: bytes = b""
    """The body itself, of dialects that pass it on as it is."""
    is_stream: bool = False
    show_usage: bool = False
    show_continuous: bool = False
    workload: str = ""
    """The client's own word for requests that share a prefix (``prompt_cache_key``), where it gives one."""
    longest: int = 0
    """UTF-8 bytes of the longest pair, where texts are read in pairs."""
    is_cut: bool = False
    """The engine is asked to cut the input to a length: it cannot be too long, but for what reading it would take."""


class Answer(NamedTuple):
    """A complete answer: what the client gets, and what the books do. ``usage`` None: the engine told none."""

    body: bytes
    usage: Usage | None
    finish_reason: str = ""


class Dialect(ABC):
    """One API: what its requests may say, what the engine is asked instead, and how its answers are read.

    Instances hold no state of requests. ``name`` stands in the books, ``engine_path`` is the engine's route.
    """

    name: ClassVar[str]
    engine_path: ClassVar[bytes]
    speaks: ClassVar[tuple[str, ...]] = ("generate",)
    """A deployment must speak one of these, see ``DeploymentRecord.speaks``."""
    is_metered: ClassVar[bool] = True
    """Whether requests make an engine work: they are then estimated, admitted, journalled and settled."""
    keeps_type: ClassVar[bool] = False
    """Whether complete answers go out under the engine's own content type, since they need not be JSON."""
    input_field: ClassVar[str] = "prompt"
    """What to shorten when the input is too long."""
    shape: ClassVar[ErrorShape] = errors.OPENAI
    max_values: ClassVar[int] = MAX_VALUES
    """See ``structure.require_readable``."""

    def read(self, body: bytes) -> Parsed:
        """A request as it came, of any bytes. Raises ApiError 400."""
        require_readable(body, self.max_values)
        return self.parse(body)

    @abstractmethod
    def parse(self, body: bytes) -> Parsed:
        """What ``read`` has found to be of bearable size. Raises ApiError 400."""

    def require(self, parsed: Parsed, deployment: DeploymentRecord) -> None:
        """Raises ApiError for what this deployment cannot be asked, whatever its engine would say."""
        if not any(word in deployment.speaks for word in self.speaks):
            raise errors.not_spoken(deployment.name, deployment.speaks)
        if not parsed.is_cut:
            require_context(parsed.ask, deployment, self.input_field)

    def path_of(self, deployment: DeploymentRecord) -> bytes:
        """The route at the engines of ``deployment``."""
        return self.engine_path

    def is_own(self, deployment: DeploymentRecord) -> bool:
        """Whether a server of its own kind is asked: its word, of whatever status, is the client's, and what may have
        reached it is not sent again, since nobody knows what it does."""
        return False

    @abstractmethod
    def engine_body(self, parsed: Parsed, *, priority: int, cache_salt: str) -> bytes:
        """The request for the engine. ``priority``: lower is sooner. ``cache_salt`` keeps tenants' prefixes apart."""

    def read_answer(self, parsed: Parsed, body: bytes, request_id: str) -> Answer:
        """A complete answer. Raises one of ``usage.UNREADABLE`` for what is not one."""
        answer = decode_answer(body)
        finish = next((c.finish_reason for c in reversed(answer.choices) if c.finish_reason), "")
        return Answer(body, answer.usage.record() if answer.usage is not None else None, finish)

    def relay(self, parsed: Parsed, request_id: str) -> Relay:
        """What turns the engine's event stream into the client's."""
        return StreamRelay(
            show_usage=parsed.show_usage,
            show_continuous=parsed.show_continuous,
            choices=parsed.ask.choices,
            prompts=parsed.ask.prompts,
        )


def read_members(body: bytes, allowed: frozenset[str] | None = None) -> Members:
    """The allowed fields of a JSON object; all of them without ``allowed``. Raises ApiError 400."""
    try:
        members = _decode_members(body)
    except msgspec.ValidationError:
        raise errors.bad_request("The body must be a JSON object.", code="invalid_json") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise errors.bad_request(f"The body is not valid JSON: {error}", code="invalid_json") from None
    except RecursionError:
        raise errors.bad_request("The body is nested too deeply.", code="invalid_json") from None
    if allowed is None:
        return members
    if "priority" in members:
        raise priority_refused()
    return {name: value for name, value in members.items() if name in allowed}


def priority_refused() -> errors.ApiError:
    return errors.bad_request(
        "'priority' cannot be set by a request: it follows from what your account has reserved. Leave it out.",
        param="priority",
        code="unsupported_parameter",
    )


def read_fields(decoder: msgspec.json.Decoder[S], body: bytes) -> S:
    """The fields that the gateway itself needs, typed. Raises ApiError 400 that names the field."""
    try:
        return decoder.decode(body)
    except msgspec.ValidationError as error:
        raise _invalid(str(error)) from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise errors.bad_request(f"The body is not valid JSON: {error}", code="invalid_json") from None
    except RecursionError:
        raise errors.bad_request("The body is nested too deeply.", code="invalid_json") from None


def _invalid(message: str) -> errors.ApiError:
    """Put msgspec's ``message - at `$.a[...].b``` into OpenAI's words, with ``param`` ``a[0].b``."""
    match = _PATH.fullmatch(message)
    if match is None and message.startswith("Expected `object`"):
        return errors.bad_request("The body must be a JSON object.", code="invalid_json")
    param = match[2] if match else ""
    text = match[1] if match else message
    if missing := re.search(r"missing required field `(\w+)`", text):
        param = f"{param}.{missing[1]}" if param else missing[1]
        return errors.bad_request(
            f"Missing required parameter: '{param}'.", param=param, code="missing_required_parameter"
        )
    if unknown := re.search(r"contains unknown field `(.*)`", text, re.DOTALL):
        return unknown_member(f"{param}.{unknown[1][:60]}" if param else unknown[1][:60])
    where = f" for '{param}'" if param else ""
    return errors.bad_request(f"Invalid value{where}: {text}.", param=param or None, code="invalid_type")


def unknown_member(param: str) -> errors.ApiError:
    return errors.bad_request(
        f"'{param}' is not supported here. Leave it out.", param=param, code="unsupported_parameter"
    )


def require_range(name: str, value: int | None, low: int, high: int | None = None) -> None:
    """Raises ApiError 400 when a stated ``value`` lies outside of ``low``..``high``."""
    if value is None:
        return
    if value < low or (high is not None and value > high):
        bound = f"at least {low}" if high is None else f"between {low} and {high}"
        # A client may have written thousands of digits.
        shown = str(value)[:24]
        raise errors.bad_request(f"'{name}' must be {bound}, not {shown}.", param=name, code="invalid_value")


def require_inputs(count: int, field: str) -> None:
    if count > MAX_INPUTS:
        raise errors.bad_request(
            f"'{field}' holds {count} texts; at most {MAX_INPUTS} are allowed in one request. Send several requests.",
            param=field,
            code="invalid_value",
        )


def require_few(count: int, most: int, param: str) -> None:
    """Raises ApiError 400 when a list of the request is longer than anybody needs it."""
    if count > most:
        raise errors.bad_request(
            f"'{param}' holds {count} items; at most {most} are allowed. Leave some out, or join them.",
            param=param,
            code="invalid_value",
        )


def require_choices(choices: int, *, param: str) -> None:
    if choices > MAX_CHOICES:
        raise errors.bad_request(
            f"The request asks for {choices} sequences; at most {MAX_CHOICES} are allowed. Lower '{param}'.",
            param=param,
            code="invalid_value",
        )


def generating_body(parsed: Parsed, *, priority: int, cache_salt: str) -> bytes:
    """The engine request of a generating dialect: usage on every event, and the fields only the gateway sets."""
    members: dict[str, Any] = dict(parsed.members)
    if parsed.is_stream:
        members["stream_options"] = {"include_usage": True, "continuous_usage_stats": True}
    members["priority"] = priority
    members["cache_salt"] = cache_salt
    return msgspec.json.encode(members)


def pooling_body(parsed: Parsed, *, priority: int, cache_salt: str) -> bytes:
    """The engine request of a dialect that generates nothing."""
    return msgspec.json.encode({**parsed.members, "priority": priority, "cache_salt": cache_salt})


_TEMPLATE_INTERNALS = ("chat_template", "tokenize", "return_tensors", "return_dict")


def refuse_template_internals(given: Mapping[str, Any] | None) -> None:
    """Raises ApiError 400 for arguments of the chat template that are the engine's own."""
    for name in _TEMPLATE_INTERNALS:
        if given and name in given:
            raise errors.bad_request(
                f"'chat_template_kwargs.{name}' cannot be set by a request. Leave it out.",
                param="chat_template_kwargs",
                code="unsupported_parameter",
            )


def require_context(ask: Ask, deployment: DeploymentRecord, field: str) -> None:
    """Refuse what cannot fit whatever its words are; the engine counts exactly."""
    context = deployment.max_model_len
    if context is None:
        return
    at_least = ask.token_ids + ask.text_bytes // MAX_BYTES_PER_TOKEN
    if at_least > context * ask.prompts:
        raise errors.bad_request(
            f"This model's maximum context length is {context} tokens, but your request has at least {at_least} "
            "input tokens. Shorten it.",
            param=field,
            code="context_length_exceeded",
        )


Prompt = str | list[str | int | list[int]]
"""A text, a list of texts, a list of token ids, or a list of such lists."""


def measure_prompt(prompt: Prompt, field: str) -> tuple[int, int, int]:
    """(prompts, UTF-8 bytes of text, token ids). Raises ApiError 400 for an empty or a mixed list."""
    if isinstance(prompt, str):
        return 1, utf8_length(prompt), 0
    if not prompt:
        raise errors.bad_request(f"'{field}' must not be empty.", param=field, code="empty_array")
    if not isinstance(prompt[0], int):
        require_inputs(len(prompt), field)
    kinds = set(map(type, prompt))
    if len(kinds) > 1:
        raise errors.bad_request(
            f"'{field}' must be a text, a list of texts, a list of token ids, or a list of such lists.",
            param=field,
            code="invalid_type",
        )
    if kinds == {int}:
        return 1, 0, len(prompt)
    text_bytes = sum(utf8_length(part) for part in prompt if isinstance(part, str))
    return len(prompt), text_bytes, sum(len(part) for part in prompt if isinstance(part, list))


def utf8_length(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))
