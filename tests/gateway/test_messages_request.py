"""Anthropic's API: what the engine is asked instead, and what is refused because no engine could be told."""

from __future__ import annotations

import json
from typing import Any

import pytest

from serving.gateway.dialects import CountTokens, Messages
from serving.gateway.errors import ApiError
from tests import pictures

USER: dict[str, Any] = {"role": "user", "content": "say something"}
TOOL: dict[str, Any] = {"name": "now", "description": "The time.", "input_schema": {"properties": {}}}
PIXEL = {"type": "base64", "media_type": "image/png", "data": pictures.PIXEL}
PIXEL_URL = pictures.PIXEL_URL


def engine(**fields: Any) -> dict[str, Any]:
    """What the engine is asked."""
    body = {"model": "m", "max_tokens": 5, "messages": [USER]} | fields
    dialect = Messages()
    sent = dialect.engine_body(dialect.parse(json.dumps(body).encode()), priority=3, cache_salt="salt")
    return json.loads(sent)  # type: ignore[no-any-return]


def chat(messages: list[dict[str, Any]], **fields: Any) -> list[dict[str, Any]]:
    return engine(messages=messages, **fields)["messages"]  # type: ignore[no-any-return]


def refusal(**fields: Any) -> ApiError:
    with pytest.raises(ApiError) as caught:
        engine(**fields)
    return caught.value


def test_fields_become_those_of_a_chat() -> None:
    sent = engine(
        system="Be terse.",
        temperature=0.5,
        top_p=0.9,
        top_k=7,
        stop_sequences=["X"],
        metadata={"user_id": "u1"},
        stream=True,
        output_config={"effort": "low", "format": {"type": "json_schema", "schema": {"type": "object"}}},
        thinking={"type": "enabled", "budget_tokens": 1024},
        service_tier="auto",
        cache_salt="theirs",
        kv_transfer_params={"a": 1},
        chat_template_kwargs={"chat_template": "x"},
        whatever=1,
    )
    assert sent == {
        "model": "m",
        "messages": [{"role": "system", "content": "Be terse."}, USER],
        "max_tokens": 5,
        "temperature": 0.5,
        "top_p": 0.9,
        "top_k": 7,
        "stop": ["X"],
        "user": "u1",
        "stream": True,
        "stream_options": {"include_usage": True, "continuous_usage_stats": True},
        "response_format": {
            "type": "json_schema",
            "json_schema": {"name": "output", "schema": {"type": "object"}},
        },
        "reasoning_effort": "low",
        "chat_template_kwargs": {"enable_thinking": True},
        "priority": 3,
        "cache_salt": "salt",
    }


def test_blocks_become_parts_calls_and_results() -> None:
    sent = chat(
        [
            {"role": "user", "content": [{"type": "text", "text": "look"}, {"type": "image", "source": PIXEL}]},
            {
                "role": "assistant",
                "content": [
                    {"type": "thinking", "thinking": "hm", "signature": "s"},
                    {"type": "redacted_thinking", "data": "x"},
                    {"type": "text", "text": "calling"},
                    {"type": "tool_use", "id": "t1", "name": "now", "input": {"zone": "UTC"}},
                ],
            },
            {
                "role": "user",
                "content": [
                    {
                        "type": "tool_result",
                        "tool_use_id": "t1",
                        "content": [{"type": "text", "text": "noon"}, {"type": "image", "source": PIXEL}],
                    },
                    {"type": "tool_result", "tool_use_id": "t2", "content": "twelve", "is_error": True},
                    {"type": "tool_result", "tool_use_id": "t3"},
                    {"type": "text", "text": "so?", "cache_control": {"type": "ephemeral"}},
                    {"type": "document", "source": {"type": "text", "media_type": "text/plain", "data": "paper"}},
                ],
            },
        ]
    )
    image = {"type": "image_url", "image_url": {"url": PIXEL_URL}}
    call = {"id": "t1", "type": "function", "function": {"name": "now", "arguments": '{"zone": "UTC"}'}}
    assert sent == [
        {"role": "user", "content": [{"type": "text", "text": "look"}, image]},
        {"role": "assistant", "reasoning": "hm", "tool_calls": [call], "content": "calling"},
        {"role": "tool", "tool_call_id": "t1", "content": "noon"},
        {"role": "tool", "tool_call_id": "t2", "content": "Error: twelve"},
        {"role": "tool", "tool_call_id": "t3", "content": ""},
        {"role": "user", "content": [image, {"type": "text", "text": "so?"}, {"type": "text", "text": "paper"}]},
    ]


def test_no_member_of_a_block_reaches_the_engine_that_is_not_translated() -> None:
    image = {"type": "image", "source": PIXEL | {"uuid": "theirs"}, "uuid": "theirs", "image_embeds": "AAAA"}
    result = {"type": "tool_result", "tool_use_id": "t1", "content": [image], "uuid": "theirs"}
    sent = json.dumps(chat([{"role": "user", "content": [image, result]}]))
    assert PIXEL_URL in sent
    assert "theirs" not in sent
    assert "embeds" not in sent


def test_images_of_several_results_follow_all_of_them() -> None:
    image = {"type": "image", "source": PIXEL}
    results = [{"type": "tool_result", "tool_use_id": name, "content": [image]} for name in ("t1", "t2")]
    sent = chat([{"role": "user", "content": results}])
    assert [message["role"] for message in sent] == ["tool", "tool", "user"]
    assert sent[-1]["content"] == [{"type": "image_url", "image_url": {"url": PIXEL_URL}}] * 2


@pytest.mark.parametrize(
    ("result", "text"),
    [
        ({"content": "no such file", "is_error": True}, "Error: no such file"),
        ({"content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}], "is_error": True}, "Error: a\nb"),
        ({"is_error": True}, "Error"),
        ({"content": "fine", "is_error": False}, "fine"),
        ({"content": "fine", "is_error": None}, "fine"),
    ],
)
def test_the_model_sees_that_a_tool_failed(result: dict[str, Any], text: str) -> None:
    sent = chat([{"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t1", **result}]}])
    assert sent == [{"role": "tool", "tool_call_id": "t1", "content": text}]


BILLING = "x-anthropic-billing-header: cc_version=1; cch=abc"


def test_instructions_come_first_and_without_billing_lines() -> None:
    blocks = [
        {"type": "text", "text": BILLING},
        {"type": "text", "text": "One. "},
        {"type": "text", "text": "Two."},
    ]
    later = {"role": "system", "content": "Three."}
    assert chat([USER, later], system=blocks) == [{"role": "system", "content": "One. Two.\n\nThree."}, USER]
    assert chat([USER], system=BILLING) == [USER]


def test_no_more_than_the_billing_line_is_left_out() -> None:
    said = [{"role": "system", "content": "You are terse.\nAlways."}, USER]
    assert chat([USER], system=f"{BILLING}\nYou are terse.\nAlways.") == said
    assert chat([USER], system=[{"type": "text", "text": f"{BILLING}\nYou are terse.\nAlways."}]) == said


def test_an_answer_that_is_begun_is_gone_on_with() -> None:
    sent = engine(messages=[USER, {"role": "assistant", "content": "Well, "}])
    assert (sent["continue_final_message"], sent["add_generation_prompt"]) == (True, False)
    assert "continue_final_message" not in engine()


@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        ({"type": "auto"}, {"tool_choice": "auto"}),
        ({"type": "any", "disable_parallel_tool_use": True}, {"tool_choice": "required", "parallel_tool_calls": False}),
        ({"type": "none"}, {"tool_choice": "none"}),
        ({"type": "tool", "name": "now"}, {"tool_choice": {"type": "function", "function": {"name": "now"}}}),
    ],
)
def test_tools_and_which_to_use(choice: dict[str, Any], expected: dict[str, Any]) -> None:
    sent = engine(tools=[TOOL], tool_choice=choice)
    schema = {"type": "object", "properties": {}}
    assert sent["tools"] == [
        {"type": "function", "function": {"name": "now", "parameters": schema, "description": "The time."}}
    ]
    assert expected.items() <= sent.items()
    assert engine(tools=[TOOL])["tool_choice"] == "auto"


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"max_tokens": None}, "max_tokens"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "user", "content": []}]}, "messages[0].content"),
        ({"messages": [USER, {"role": "user", "content": [{"type": "text", "text": ""}]}]}, "messages[1].content"),
        ({"messages": [{"role": "assistant", "content": []}]}, "messages"),
        ({"messages": [{"role": "system", "content": ""}]}, "messages"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": [{"type": "search_result"}]}]}, "messages[0].content[0]"),
        (
            {
                "messages": [
                    {"role": "user", "content": [{"type": "image", "source": {"type": "url", "url": "http://x"}}]}
                ]
            },
            "messages[0].content[0].source",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "image", "source": {"type": "file"}}]}]},
            "messages[0].content[0].source",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "document", "source": PIXEL}]}]},
            "messages[0].content[0].source",
        ),
        (
            {"messages": [{"role": "assistant", "content": [{"type": "tool_use", "input": [1]}]}]},
            "messages[0].content[0].input",
        ),
        ({"system": [{"type": "image", "source": PIXEL}]}, "system"),
        ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, "tools[0].type"),
        ({"tools": [{"name": "x"}]}, "tools[0].input_schema"),
        ({"tools": [TOOL], "tool_choice": {"type": "tool"}}, "tool_choice.name"),
        ({"tool_choice": {"type": "any"}}, "tool_choice"),
        ({"mcp_servers": [{"url": "http://x"}]}, "mcp_servers"),
        ({"priority": -1}, "priority"),
        ({"stop_sequences": "X"}, "stop_sequences"),
    ],
)
def test_what_no_engine_could_be_told_is_refused(fields: dict[str, Any], param: str) -> None:
    error = refusal(**fields)
    assert (error.status, error.param) == (400, param)


def test_text_and_images_are_counted_for_the_estimate() -> None:
    body = {"model": "m", "max_tokens": 9, "system": "abc", "messages": [USER]}
    image = {"role": "user", "content": [{"type": "image", "source": PIXEL | {"data": pictures.png(57, 90)}}]}
    ask = Messages().parse(json.dumps(body | {"messages": [USER, image]}).encode()).ask
    assert (ask.text_bytes, ask.media, ask.max_output, ask.choices) == (3 + 13, 1, 9, 1)
    assert ask.images == (3 * 4,)


def test_tokens_are_counted_of_the_same_chat() -> None:
    body = {"model": "m", "system": "a", "messages": [USER], "tools": [TOOL], "max_tokens": 4, "stream": True}
    dialect = CountTokens()
    sent = json.loads(dialect.engine_body(dialect.parse(json.dumps(body).encode()), priority=0, cache_salt="s"))
    full = engine(system="a", tools=[TOOL])
    assert sent == {"model": "m", "messages": full["messages"], "tools": full["tools"]}
