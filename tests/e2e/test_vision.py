"""A vision-language model on real vLLM: deployed by its kind, asked with images by each client, and metered.

The oracle is the engine itself, asked directly with the same body.
"""

from __future__ import annotations

import base64
import json
import struct
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import anthropic
import openai
import pytest

from tests.e2e.conformance import address_of, body_of, require_alike, streamed
from tests.e2e.operate import answered, deploy, operator_of
from tests.e2e.stack import Stack, wait_for
from tests.pictures import claimed, png, png_url

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.vllm,
    pytest.mark.slow,
    pytest.mark.timeout(1200),
    pytest.mark.together("stack"),
]

MODEL = "tiny-sight"
SIZES = {(56, 56): 4, (224, 224): 64, (1024, 768): 234}
"""Tokens of images, as the engine has been seen to count them: 28 × 28 pixels each, of at most 256 × 28 × 28."""
LARGE = png_url(1024, 768)
WORDS = "What is to be seen here?"


class Served(NamedTuple):
    """The clients of the engine itself and of Penstock, and what was made of the deployment."""

    direct: openai.OpenAI
    through: openai.OpenAI
    own: anthropic.Anthropic
    claude: anthropic.Anthropic
    made: dict[str, Any]


@pytest.fixture(scope="module")
def seen(stack: Stack) -> Iterator[Served]:
    model = {"artifact_kind": "tiny", "artifact_value": "vision"}
    made = deploy(stack, MODEL, model=model, options={"kv_cache_bytes": 1 << 26, "max_model_len": 2048})
    address = address_of(stack, MODEL)
    wait_for("the model at the gateways", lambda: stack.is_serving(MODEL), seconds=30)
    with (
        openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0) as direct,
        openai.OpenAI(base_url=stack.base_url, api_key=stack.key(), max_retries=0) as through,
        anthropic.Anthropic(base_url=address, api_key="none", max_retries=0) as own,
        anthropic.Anthropic(base_url=stack.base_url.removesuffix("/v1"), api_key=stack.key(), max_retries=0) as claude,
    ):
        yield Served(direct, through, own, claude, made)


def test_the_built_in_model_is_served_by_its_kind(stack: Stack, seen: Served) -> None:
    assert (seen.made["runtime"], seen.made["options"]["images_per_request"]) == ("vllm", 8)
    assert "built-in tiny vision-language model" in seen.made["reason"]
    lines = [" ".join(process.cmdline()) for process in stack.engines()]
    serving = [line for line in lines if f"--served-model-name {MODEL}" in line]
    assert serving
    assert all("/vllm-cpu-vision-" in line.split()[0] for line in serving)
    assert all("/agent/models/tiny-vision-" in line for line in serving)


def test_its_files_alone_choose_the_same_runtime_and_options(stack: Stack, seen: Served) -> None:
    """What the agent built, named by its folder: nobody says what kind of model it is."""
    (folder,) = (stack.data / "agent" / "models").glob("tiny-vision-*")
    with operator_of(stack) as client:
        model = {"name": "sight-by-its-folder", "artifact_kind": "path", "artifact_value": str(folder)}
        answered(client.post("/models", json=model))
        choice = answered(client.get("/models/sight-by-its-folder/runtime"))
    assert choice["runtime"] == "vllm"
    assert "Qwen2VLForConditionalGeneration with a vision tower" in choice["reason"]
    assert choice["options"]["images_per_request"] == 8


# ------------------------------------------------------------------ answers
def picture(url: str) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": url}}


def turns(*urls: str) -> list[Any]:
    return [{"role": "user", "content": [{"type": "text", "text": WORDS}, *map(picture, urls)]}]


def block(data: str) -> dict[str, Any]:
    return {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": data}}


def ask_chat(client: openai.OpenAI, *urls: str, **fields: Any) -> Any:
    given = {"model": MODEL, "messages": turns(*urls), "max_tokens": 6, "temperature": 0} | fields
    return client.chat.completions.create(**given)


def ask_response(client: openai.OpenAI, *urls: str, **fields: Any) -> Any:
    parts: list[Any] = [{"type": "input_text", "text": WORDS}]
    parts += [{"type": "input_image", "detail": "auto", "image_url": url} for url in urls]
    given = {"model": MODEL, "input": [{"role": "user", "content": parts}], "max_output_tokens": 6} | fields
    return client.responses.create(**given, temperature=0)


def ask_message(client: anthropic.Anthropic, *data: str, **fields: Any) -> Any:
    content: Any = [{"type": "text", "text": WORDS}, *map(block, data)]
    given = {"model": MODEL, "max_tokens": 6, "messages": [{"role": "user", "content": content}]} | fields
    return client.messages.create(**given, extra_body={"temperature": 0})


Call = Callable[[openai.OpenAI], Any]


def chat(*urls: str, **fields: Any) -> Call:
    return lambda client: body_of(ask_chat(client, *urls, **fields))


def chat_stream(*urls: str) -> Call:
    return lambda client: streamed(ask_chat(client, *urls, stream=True, stream_options={"include_usage": True}))


def response(*urls: str) -> Call:
    return lambda client: body_of(ask_response(client, *urls))


def refused(call: Call) -> Call:
    def ask(client: openai.OpenAI) -> Any:
        with pytest.raises(openai.APIStatusError) as caught:
            call(client)
        return {"status": caught.value.status_code, "class": type(caught.value).__name__, "body": caught.value.body}

    return ask


def bitmap_url() -> str:
    """One white pixel in a format that engines read and the APIs do not have."""
    size = struct.pack("<IiiHHIIiiII", 40, 1, 1, 1, 24, 0, 4, 0, 0, 0, 0)
    data = b"BM" + struct.pack("<IHHI", 58, 0, 0, 54) + size + b"\xff\xff\xff\0"
    return f"data:image/bmp;base64,{base64.b64encode(data).decode()}"


CUT = f"data:image/png;base64,{png(224, 224, cut_at=2000)}"
HUGE = f"data:image/png;base64,{claimed(40_000, 40_000)}"
LAST: dict[str, Any] = {"extra_headers": {"Connection": "close"}}
"""Of what the engine answers with 500: it closes the connection then, on which a client might send its next request."""
CALLS: dict[str, Call] = {
    "no image": chat(),
    "image": chat(png_url(56, 56)),
    "image, streamed": chat_stream(LARGE),
    "two images": chat(png_url(224, 224), png_url(56, 56, noise=2)),
    "response": response(png_url(224, 224, noise=3)),
    "broken": refused(chat(CUT)),
    "broken, streamed": refused(chat_stream(CUT)),
    "broken, response": refused(response(CUT)),
    "too many": refused(chat(*[png_url(28, 28)] * 9)),
    "too narrow": refused(chat(png_url(1, 400))),
    "bitmap": lambda client: refused(chat(bitmap_url()))(client) if is_through(client) else chat(bitmap_url())(client),
    "plain text": refused(chat("data:text/plain,hello")),
    "huge": refused(chat(HUGE, **LAST)),
    "remote": refused(chat("http://127.0.0.1:9/a.png", **LAST)),
}
JUSTIFIED: dict[str, str] = {
    r".*\.(id|item_id)$": "Ids are made for each request.",
    r".*\.(created|created_at|completed_at)$": "The two calls are made at different times.",
    r".*\.system_fingerprint$": "Names the engine process.",
    r".*\.(cached_tokens|created_cache_tokens|cache_write_tokens)$": "Prefix caches are separate per tenant.",
    r"^(broken.*|too many|too narrow)\.body\..*": "Error bodies carry OpenAI's type and code.",
    r"^bitmap\b.*": "Images are PNG, JPEG, GIF or WebP, as OpenAI and Anthropic take them: their size is read here.",
    r"^(plain text|huge)\.(status|class|body)\b.*": "A client's mistake is 400; the engine answers 501 and 500.",
    r"^remote\.(status|class|body)\b.*": "Nothing is fetched for a client; the engine tried, and answers 500.",
}
RARE = frozenset({name for name in JUSTIFIED if "cached_tokens" in name or "fingerprint" in name or "created" in name})


def is_through(client: openai.OpenAI) -> bool:
    return client.api_key != "none"


def test_answers_are_equal_but_for_justified_differences(seen: Served) -> None:
    require_alike(CALLS, seen.direct, seen.through, JUSTIFIED, rare=RARE)


# ----------------------------------------------------------------- metering
KINDS = pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])


def named(name: str, **fields: Any) -> dict[str, Any]:
    return {"extra_headers": {"X-Request-Id": name}, **fields}


@pytest.fixture(scope="module")
def told(seen: Served) -> dict[str, int]:
    """Input tokens of requests by their ids, as the engine itself tells them; each was asked through Penstock too."""
    found: dict[str, int] = {}
    for stream in (False, True):
        for number, (size, tokens) in enumerate(SIZES.items()):
            url, name = png_url(*size, noise=10 + number + 3 * stream), f"chat-{size[0]}-{stream}"
            usage = ask_chat(seen.direct, url).usage
            assert body_of(usage)["prompt_tokens_details"]["multimodal_tokens"] == {"image": tokens}
            found[name] = usage.prompt_tokens
            ended(ask_chat(seen.through, url, stream=stream, **named(name)))
        url, data = png_url(224, 224, noise=20 + stream), png(224, 224, noise=22 + stream)
        found[f"claude-{stream}"] = ask_message(seen.own, data).usage.input_tokens
        ended(ask_message(seen.claude, data, stream=stream, **named(f"claude-{stream}")))
        found[f"response-{stream}"] = ask_response(seen.direct, url).usage.input_tokens
        ended(ask_response(seen.through, url, stream=stream, **named(f"response-{stream}")))
    return found


def ended(answer: Any) -> None:
    """To the end of it, where it is a stream."""
    if not hasattr(answer, "usage"):
        assert streamed(answer)


def row_of(stack: Stack, request: str) -> dict[str, Any]:
    return wait_for("the usage row", lambda: stack.usage("client_request_id = ?", request), seconds=20)[0]


def require_charged(row: dict[str, Any], price: dict[str, Any], *, tokens: int, images: float) -> None:
    """The engine's counts, and MU by hand: the formula as it is documented, with the terms of the pool's price."""
    assert (row["outcome"], row["lower_bound"], row["input_tokens"]) == ("completed", 0, tokens)
    assert json.loads(row["units"]) == {"image_token": images}
    read, cached, made = row["input_tokens"], row["cached_tokens"], row["output_tokens"]
    assert made > 0
    by_hand = price["base"] + price["alpha"] * (read - cached) + price["epsilon"] * (read**2 - cached**2)
    by_hand += price["alpha"] * price["cached_factor"] * cached
    by_hand += price["beta"] * made + price["gamma"] * made * (read + made / 2)
    by_hand += price["modalities"]["image_token"] * images
    assert price["modalities"]["image_token"] > 0
    assert row["actual_mu"] == pytest.approx(by_hand, rel=1e-9)


@pytest.mark.parametrize("size", SIZES, ids=lambda size: f"{size[0]}x{size[1]}")
@KINDS
def test_image_tokens_are_recorded_as_the_engine_tells_them(
    stack: Stack, seen: Served, told: dict[str, int], size: tuple[int, int], stream: bool
) -> None:
    name = f"chat-{size[0]}-{stream}"
    row = row_of(stack, name)
    require_charged(row, seen.made, tokens=told[name], images=SIZES[size])
    # What was set aside before the answer: enough but for the text, of which only the bytes are known, and no more than
    # the picture could be at 28 × 28 pixels a token, or a small one in models that make it larger.
    most = max(512, -(-size[0] // 28) * -(-size[1] // 28))
    assert row["input_tokens"] - 16 <= row["estimated_input_tokens"] <= most + 40


@KINDS
def test_anthropics_client_sends_images(stack: Stack, seen: Served, told: dict[str, int], stream: bool) -> None:
    row = row_of(stack, f"claude-{stream}")
    assert row["dialect"] == "messages"
    require_charged(row, seen.made, tokens=told[f"claude-{stream}"], images=64)


def test_images_are_counted_without_being_asked(seen: Served) -> None:
    data = png(224, 224, noise=30)
    content: Any = [{"type": "text", "text": WORDS}, block(data)]
    counted = seen.claude.messages.count_tokens(model=MODEL, messages=[{"role": "user", "content": content}])
    assert counted.input_tokens == ask_message(seen.own, data).usage.input_tokens


@KINDS
def test_responses_do_not_say_which_tokens_are_images(
    stack: Stack, seen: Served, told: dict[str, int], stream: bool
) -> None:
    row = row_of(stack, f"response-{stream}")
    assert row["dialect"] == "responses"
    # So they are what the text is not expected to take. The engine makes 64 of the picture, and some 20 of the text.
    images = json.loads(row["units"])["image_token"]
    assert 44 <= images <= row["input_tokens"]
    require_charged(row, seen.made, tokens=told[f"response-{stream}"], images=images)


# ----------------------------------------------------------------- refusals
def test_a_broken_image_is_a_clear_400_and_is_settled(stack: Stack, seen: Served) -> None:
    with pytest.raises(openai.BadRequestError, match="image file is truncated") as chat_error:
        ask_chat(seen.through, CUT, **named("broken-chat"))
    with pytest.raises(openai.BadRequestError, match="image file is truncated"):
        ask_response(seen.through, CUT, **named("broken-response"))
    with pytest.raises(anthropic.BadRequestError, match="image file is truncated") as claude_error:
        ask_message(seen.claude, CUT.partition(",")[2], **named("broken-message"))
    assert set(chat_error.value.response.json()["error"]) == {"message", "type", "param", "code"}
    assert claude_error.value.response.json()["error"]["type"] == "invalid_request_error"
    for name in ("broken-chat", "broken-response", "broken-message"):
        row = row_of(stack, name)
        assert (row["outcome"], row["status"], row["actual_mu"], row["input_tokens"]) == ("refused", 400, 0.0, 0)
    # Nothing is held against the replica: it answers the next.
    assert ask_chat(seen.through, LARGE).usage.prompt_tokens > 234
    assert not stack.rows("select * from serving_incident where deployment_name = ?", MODEL)


def test_images_elsewhere_are_not_fetched(seen: Served) -> None:
    remote = "http://127.0.0.1:9/a.png"
    for ask in (ask_chat, ask_response):
        with pytest.raises(openai.BadRequestError, match="sent inline") as caught:
            ask(seen.through, remote)
        assert caught.value.code == "remote_media_not_allowed"
    content: Any = [{"type": "image", "source": {"type": "url", "url": remote}}]
    with pytest.raises(anthropic.BadRequestError, match="sent inline"):
        seen.claude.messages.create(model=MODEL, max_tokens=4, messages=[{"role": "user", "content": content}])
