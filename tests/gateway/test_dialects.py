"""Dialects: what reaches the engine, what is refused and how it is told."""

from __future__ import annotations

import base64
import json
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from serving.gateway.dialects import DIALECTS, Chat, Completions, Dialect, Invocations, Tokenize
from serving.gateway.errors import OPENAI, ApiError
from serving.gateway.records import DeploymentRecord
from tests.pictures import BY_PILLOW, PIXEL_URL, claimed, png_url

USER = {"role": "user", "content": "hi"}
PIXEL = PIXEL_URL


def parse(dialect: Dialect, **fields: Any) -> Any:
    return dialect.parse(json.dumps({"model": "m", **fields}).encode())


def engine(dialect: Dialect, **fields: Any) -> dict[str, Any]:
    body = dialect.engine_body(parse(dialect, **fields), priority=3, cache_salt="salt")
    return json.loads(body)  # type: ignore[no-any-return]


def refusal(dialect: Dialect, **fields: Any) -> ApiError:
    with pytest.raises(ApiError) as caught:
        parse(dialect, **fields)
    return caught.value


INTERNAL = {
    "cache_salt": "theirs",
    "request_id": "x",
    "kv_transfer_params": {"a": 1},
    "chat_template": "{{ bad }}",
    "mm_processor_kwargs": {},
    "vllm_xargs": {},
    "lora_request": {},
    "use_beam_search": True,
    "metadata": {"a": "b"},
    "store": True,
    "service_tier": "flex",
    "whatever": 1,
}


@pytest.mark.parametrize(
    ("dialect", "fields"),
    [(Chat(), {"messages": [USER]}), (Completions(), {"prompt": "hi"})],
    ids=["chat", "completions"],
)
class TestGenerating:
    def test_only_listed_fields_reach_the_engine(self, dialect: Dialect, fields: dict[str, Any]) -> None:
        sent = engine(dialect, temperature=0.5, **INTERNAL, **fields)
        assert sent == {"model": "m", "temperature": 0.5, "priority": 3, "cache_salt": "salt", **fields}

    def test_priority_is_refused(self, dialect: Dialect, fields: dict[str, Any]) -> None:
        error = refusal(dialect, priority=-1, **fields)
        assert (error.status, error.param) == (400, "priority")

    def test_a_stream_is_asked_for_usage_on_every_event(self, dialect: Dialect, fields: dict[str, Any]) -> None:
        wanted = {"include_usage": True, "continuous_usage_stats": True}
        assert engine(dialect, stream=True, **fields)["stream_options"] == wanted
        asked = parse(dialect, stream=True, stream_options={"include_usage": True}, **fields)
        assert (asked.show_usage, asked.show_continuous) == (True, False)
        assert "stream_options" not in engine(dialect, stream=False, **fields)

    @pytest.mark.parametrize(
        ("name", "value", "param"),
        [
            ("model", 5, "model"),
            ("n", "two", "n"),
            ("n", 0, "n"),
            ("n", 100_000, "n"),
            ("max_tokens", -1, "max_tokens"),
            ("max_tokens", "many", "max_tokens"),
            ("stream", "yes", "stream"),
            ("temperature", "hot", "temperature"),
            ("stream_options", [], "stream_options"),
            ("stop", {"a": 1}, "stop"),
        ],
    )
    def test_wrong_values_name_the_field(
        self, dialect: Dialect, fields: dict[str, Any], name: str, value: Any, param: str
    ) -> None:
        error = refusal(dialect, **{**fields, name: value})
        assert (error.status, error.param) == (400, param)

    @pytest.mark.parametrize("body", [b"", b"{", b"[]", b'"x"', b"null", b"{'model': 1}", b"\xff\xfe", b"[" * 100_000])
    def test_what_is_not_a_json_object_is_refused(self, dialect: Dialect, fields: dict[str, Any], body: bytes) -> None:
        with pytest.raises(ApiError) as caught:
            dialect.parse(body)
        assert (caught.value.status, caught.value.code) == (400, "invalid_json")


class TestChat:
    def test_missing_messages(self) -> None:
        error = refusal(Chat())
        assert (error.param, error.code) == ("messages", "missing_required_parameter")
        assert refusal(Chat(), messages=[]).param == "messages"

    def test_a_wrong_part_of_a_message_is_named(self) -> None:
        assert refusal(Chat(), messages=[{"role": "user", "content": 5}]).param == "messages[0].content"

    def test_tokens_are_counted_from_text_not_from_media(self) -> None:
        image = {"type": "image_url", "image_url": {"url": png_url(100, 60)}}
        ask = parse(Chat(), messages=[{"role": "user", "content": [{"type": "text", "text": "héllo"}, image]}], n=3).ask
        assert (ask.text_bytes, ask.media, ask.choices, ask.messages) == (6, 1, 3, 1)
        assert ask.images == (4 * 3,)

    def test_an_image_whose_size_stands_too_far_behind_may_be_as_large_as_any(self) -> None:
        photo = base64.b64decode(BY_PILLOW["jpeg"])
        notes = (b"\xff\xe1" + (60_002).to_bytes(2, "big") + bytes(60_000)) * 5
        data = base64.b64encode(photo[:2] + notes + photo[2:]).decode()
        image = {"type": "image_url", "image_url": {"url": f"data:image/jpeg;base64,{data}"}}
        assert parse(Chat(), messages=[{"role": "user", "content": [image]}]).ask.images == (16_384,)

    @pytest.mark.parametrize(
        ("url", "code"),
        [
            ("data:text/plain,hello", "invalid_value"),
            ("data:image/png;base64", "invalid_value"),
            (f"data:image/png;BASE64,{PIXEL}", "invalid_value"),
            ("data:image/png," + PIXEL, "invalid_value"),
            ("data:image/png;base64,", "invalid_image"),
            ("data:image/png;base64,iVBORw0KGgo=", "invalid_image"),
            ("data:image/png;base64,!!!!", "invalid_image"),
            ("data:image/png;base64,ä", "invalid_image"),
            (f"data:image/png;base64,{claimed(0, 5)}", "invalid_image"),
            (f"data:image/png;base64,{claimed(40_000, 40_000)}", "image_too_large"),
            (f"data:image/png;base64,{claimed(64_000_001, 1)}", "image_too_large"),
        ],
    )
    def test_what_engines_answer_with_errors_of_their_own_is_refused_here(self, url: str, code: str) -> None:
        """Real vLLM: 501 for what is no base64, 500 for an image of more pixels than its library takes."""
        turns = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": url}}]}]
        for dialect in (Chat(), Tokenize()):
            error = refusal(dialect, messages=turns)
            assert (error.status, error.code, error.param) == (400, code, "messages[0].content")
        one = {"role": "user", "content": [{"type": "image_url", "image_url": {"url": PIXEL_URL}}]}
        for dialect in (Chat(), Tokenize()):
            assert refusal(dialect, messages=[one] * 501).code == "too_many_images", "however many messages hold them"
        sound = [{"role": "user", "content": [{"type": "audio_url", "audio_url": {"url": "data:audio/wav,x"}}]}]
        assert refusal(Chat(), messages=sound).code == "invalid_value"

    @pytest.mark.parametrize(
        "part",
        [
            {"type": "image_url", "image_url": {"url": "http://169.254.169.254/latest"}},
            {"type": "image_url", "image_url": "https://example.com/a.png"},
            {"image_url": "file:///etc/passwd"},
            {"type": "text", "text": "x", "image_url": {"url": "http://10.0.0.1/"}},
            {"type": "video_url", "video_url": {"url": "https://example.com/a.mp4"}},
            {"type": "audio_url", "audio_url": {"url": "ftp://example.com/a.wav"}},
        ],
    )
    def test_remote_media_is_refused(self, part: dict[str, Any]) -> None:
        error = refusal(Chat(), messages=[{"role": "user", "content": [part]}])
        assert (error.status, error.code) == (400, "remote_media_not_allowed")
        error = refusal(Tokenize(), messages=[{"role": "user", "content": [part]}])
        assert error.code == "remote_media_not_allowed"

    @pytest.mark.parametrize(
        ("part", "member"),
        [
            # vLLM takes a part's uuid for its picture's hash: whoever names another tenant's would be told of it.
            ({"type": "image_url", "image_url": None, "uuid": "theirs"}, "uuid"),
            ({"type": "image_url", "image_url": {"url": PIXEL}, "uuid": "theirs"}, "uuid"),
            ({"type": "text", "text": "x", "uuid": "theirs"}, "uuid"),
            ({"image_url": None, "uuid": "theirs"}, "uuid"),
            ({"image_pil": None}, "image_pil"),
            ({"image_embeds": "AAAA"}, "image_embeds"),
            ({"audio_embeds": "AAAA"}, "audio_embeds"),
            ({"prompt_embeds": "x", "data": "AAAA"}, "prompt_embeds"),
            ({"type": "text", "text": "x", "image_url": {"url": PIXEL}}, "image_url"),
            ({"type": "image_url", "image_url": {"url": PIXEL}, "text": "x"}, "text"),
            ({"type": "image_url"}, "image_url"),
            ({"type": "input_audio", "input_audio": None}, "input_audio"),
            ({"text": "x"}, "text"),
            ({}, "type"),
        ],
    )
    def test_parts_hold_what_their_type_says_and_nothing_else(self, part: dict[str, Any], member: str) -> None:
        for dialect in (Chat(), Tokenize()):
            error = refusal(
                dialect, messages=[USER, {"role": "user", "content": [{"type": "text", "text": "a"}, part]}]
            )
            assert (error.status, error.param) == (400, f"messages[1].content[1].{member}")
            assert f"'{error.param}'" in error.message

    def test_an_escaped_name_of_a_member_is_refused_too(self) -> None:
        part = r'{"type": "image_url", "image_url": null, "\u0075uid": "theirs"}'
        with pytest.raises(ApiError) as caught:
            Chat().parse(b'{"model": "m", "messages": [{"role": "user", "content": [%b]}]}' % part.encode())
        assert caught.value.param == "messages[0].content[0].uuid"

    @pytest.mark.parametrize(
        "part",
        [
            "plain",
            {"type": "text", "text": "a", "cache_control": {"type": "ephemeral"}},
            {"type": "output_text", "text": "a", "annotations": [], "logprobs": []},
            {"type": "refusal", "refusal": "no", "text": None},
            {"type": "thinking", "thinking": "hm", "closed": True},
            {"type": "image_url", "image_url": {"url": PIXEL, "detail": "low"}},
            {"image_url": PIXEL},
            {"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}},
        ],
    )
    def test_parts_of_every_type_go_out_as_they_came(self, part: Any) -> None:
        messages = [{"role": "user", "content": [part]}]
        assert engine(Chat(), messages=messages)["messages"] == messages
        assert engine(Tokenize(), messages=messages)["messages"] == messages

    def test_embeddings_in_place_of_media_are_refused(self) -> None:
        part = {"type": "image_embeds", "image_embeds": "AAAA"}
        assert refusal(Chat(), messages=[{"role": "user", "content": [part]}]).status == 400

    @pytest.mark.parametrize("name", ["chat_template", "tokenize"])
    def test_template_internals_are_refused(self, name: str) -> None:
        error = refusal(Chat(), messages=[USER], chat_template_kwargs={name: "x"})
        assert error.param == "chat_template_kwargs"
        assert engine(Chat(), messages=[USER], chat_template_kwargs={"enable_thinking": False})["chat_template_kwargs"]

    def test_max_completion_tokens_wins(self) -> None:
        assert parse(Chat(), messages=[USER], max_tokens=5, max_completion_tokens=7).ask.max_output == 7


class TestCompletions:
    @pytest.mark.parametrize(
        ("prompt", "expected"),
        [
            ("héllo", (1, 6, 0)),
            (["a", "bc"], (2, 3, 0)),
            ([1, 2, 3], (1, 0, 3)),
            ([[1, 2], [3]], (2, 0, 3)),
        ],
    )
    def test_prompts_are_counted(self, prompt: Any, expected: tuple[int, int, int]) -> None:
        ask = parse(Completions(), prompt=prompt).ask
        assert (ask.prompts, ask.text_bytes, ask.token_ids) == expected
        assert ask.max_output == 16

    @pytest.mark.parametrize("prompt", [[], ["a", 1], [1, [2]], [True, "x"], {"a": 1}, 7, None])
    def test_other_prompts_are_refused(self, prompt: Any) -> None:
        assert refusal(Completions(), prompt=prompt).param in ("prompt", "prompt[0]")

    def test_sequences_are_bounded_over_prompts_and_choices(self) -> None:
        assert parse(Completions(), prompt=["a"] * 16, n=8).ask.choices == 128
        assert refusal(Completions(), prompt=["a"] * 17, n=8).status == 400
        assert parse(Completions(), prompt="a", n=2, best_of=5).ask.choices == 5
        assert refusal(Completions(), prompt="a", n=3, best_of=2).param == "best_of"

    def test_scoring_a_prompt_needs_echo(self) -> None:
        assert parse(Completions(), prompt="a", max_tokens=0, echo=True).ask.max_output == 0
        assert refusal(Completions(), prompt="a", max_tokens=0).param == "max_tokens"


class TestTokenize:
    def test_either_prompt_or_messages(self) -> None:
        assert refusal(Tokenize()).status == 400
        assert refusal(Tokenize(), prompt="a", messages=[USER]).status == 400
        assert engine(Tokenize(), prompt="a", cache_salt="x") == {"model": "m", "prompt": "a"}


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner, max_size=4),
    max_leaves=12,
)
FIELDS = st.sampled_from(
    [
        "model",
        "messages",
        "prompt",
        "input",
        "n",
        "best_of",
        "stream",
        "stream_options",
        "max_tokens",
        "stop",
        "system",
        "tools",
        "tool_choice",
        "query",
        "documents",
        "text_1",
        "text_2",
        "instances",
        "priority",
        "store",
    ]
)
MLFLOW = DeploymentRecord(id="d", name="m", pool="p", revision="r", runtime="mlflow", speaks=("invocations",))
OWN = {"priority", "cache_salt", "stream_options"}
TRANSLATED = {"/v1/messages", "/v1/messages/count_tokens"}


@settings(max_examples=400, suppress_health_check=[HealthCheck.too_slow])
@example("/invocations", {"model": ""})
@example("/invocations", {"model": "m"})
@example("/invocations", {"model": "m", "instances": [[1]]})
@given(st.sampled_from(sorted(DIALECTS)), st.dictionaries(FIELDS, JSON, max_size=6))
def test_random_json_is_understood_or_refused_with_400(path: str, body: dict[str, Any]) -> None:
    dialect = DIALECTS[path]
    refused, sent = attempt(dialect, msgspec.json.encode(body))
    if refused is not None:
        assert refused.status == 400
        assert set(json.loads(OPENAI.body(refused, "id"))["error"]) == {"message", "type", "param", "code"}
    elif path == "/invocations":
        assert set(sent) == set(body) - {"model"}
    else:
        assert sent["model"] == body["model"]
        if path not in TRANSLATED:
            assert set(sent) - OWN - {"store"} <= set(body)


def attempt(dialect: Dialect, body: bytes) -> tuple[ApiError | None, dict[str, Any]]:
    try:
        parsed = dialect.parse(body)
        if isinstance(dialect, Invocations):
            # What MLflow is sent is made when it is known to be MLflow.
            dialect.require(parsed, MLFLOW)
    except ApiError as error:
        return error, {}
    return None, json.loads(dialect.engine_body(parsed, priority=0, cache_salt="s"))


@settings(max_examples=200)
@given(st.sampled_from(sorted(DIALECTS)), st.binary(max_size=200))
def test_random_bytes_are_refused_with_400(path: str, body: bytes) -> None:
    with pytest.raises(ApiError) as caught:
        DIALECTS[path].parse(body)
    assert caught.value.status == 400
