"""What every dialect has in common: the interface, allow-lists, and errors that name the field."""

from __future__ import annotations

import re
from typing import Any, Protocol, TypeVar

import msgspec

from serving.gateway import errors
from serving.gateway.records import Usage
from serving.gateway.usage import decode_answer
from serving.policy.admission import Ask

MAX_CHOICES = 128
"""Sequences that one request may generate: n × prompts, or best_of × prompts."""
MAX_OUTPUT_TOKENS = 2**31 - 1
"""Beyond every context; more would overflow what is estimated and kept of a request."""

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
    """A request as its dialect understood it. ``members``: the allowed fields, as the client wrote them."""

    model: str
    ask: Ask
    members: Members
    is_stream: bool = False
    show_usage: bool = False
    show_continuous: bool = False
    workload: str = ""
    """The client's own word for requests that share a prefix (``prompt_cache_key``), where it gives one."""


class Dialect(Protocol):
    """One API. Instances hold no state."""

    name: str
    engine_path: bytes
    generates: bool
    """Whether requests make tokens: they are then estimated, admitted, journalled and settled."""

    def parse(self, body: bytes) -> Parsed:
        """Raises ApiError 400."""
        ...

    def engine_body(self, parsed: Parsed, *, priority: int, cache_salt: str) -> bytes:
        """The request for the engine. ``priority``: lower is sooner. ``cache_salt`` keeps tenants' prefixes apart."""
        ...

    def read_answer(self, body: bytes) -> tuple[Usage | None, str]:
        """Usage and finish reason of a complete answer. Raises msgspec.DecodeError for what is not JSON."""
        ...


def read_members(body: bytes, allowed: frozenset[str]) -> Members:
    """The allowed fields of a JSON object. Raises ApiError 400."""
    try:
        members = _decode_members(body)
    except msgspec.ValidationError:
        raise errors.bad_request("The body must be a JSON object.", code="invalid_json") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise errors.bad_request(f"The body is not valid JSON: {error}", code="invalid_json") from None
    except RecursionError:
        raise errors.bad_request("The body is nested too deeply.", code="invalid_json") from None
    if "priority" in members:
        raise errors.bad_request(
            "'priority' cannot be set by a request: it follows from what your account has reserved. Leave it out.",
            param="priority",
            code="unsupported_parameter",
        )
    return {name: value for name, value in members.items() if name in allowed}


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
    param = match[2] if match else ""
    text = match[1] if match else message
    if missing := re.search(r"missing required field `(\w+)`", text):
        param = f"{param}.{missing[1]}" if param else missing[1]
        return errors.bad_request(
            f"Missing required parameter: '{param}'.", param=param, code="missing_required_parameter"
        )
    where = f" for '{param}'" if param else ""
    return errors.bad_request(f"Invalid value{where}: {text}.", param=param or None, code="invalid_type")


def require_range(name: str, value: int | None, low: int, high: int | None = None) -> None:
    """Raises ApiError 400 when a stated ``value`` lies outside of ``low``..``high``."""
    if value is None:
        return
    if value < low or (high is not None and value > high):
        bound = f"at least {low}" if high is None else f"between {low} and {high}"
        # A client may have written thousands of digits.
        shown = str(value)[:24]
        raise errors.bad_request(f"'{name}' must be {bound}, not {shown}.", param=name, code="invalid_value")


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


def read_generated(body: bytes) -> tuple[Usage | None, str]:
    """Usage and the last finish reason of an OpenAI answer. Raises msgspec.DecodeError."""
    answer = decode_answer(body)
    finish = next((c.finish_reason for c in reversed(answer.choices) if c.finish_reason), "")
    return (answer.usage.record() if answer.usage is not None else None), finish


def utf8_length(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))
