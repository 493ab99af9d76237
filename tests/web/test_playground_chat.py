"""What a page may say over the playground's websocket, and what is made of it and of a gateway's stream."""

import json
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.web.tenant.chat import (
    MAX_FRAME,
    MAX_IMAGE,
    MAX_TEXT,
    Ask,
    AskError,
    Stop,
    gateway_request,
    read_event,
    read_message,
    read_refusal,
)

PIXEL = "data:image/png;base64,iVBORw0KGgo="
USER = {"role": "user", "text": "hello"}


def said(**fields: Any) -> str:
    return json.dumps({"type": "ask", "id": 1, "model": "m", "turns": [USER]} | fields)


def asked(**fields: Any) -> Ask:
    message = read_message(said(**fields))
    assert isinstance(message, Ask)
    return message


def test_a_conversation_becomes_a_streamed_chat_completion() -> None:
    turns = [USER, {"role": "assistant", "text": "hi"}, {"role": "user", "text": "look", "images": [PIXEL]}]
    body = gateway_request(asked(turns=turns, system="Be brief.", temperature=0, max_tokens=5))
    assert body == {
        "model": "m",
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "hello"},
            {"role": "assistant", "content": "hi"},
            {
                "role": "user",
                "content": [{"type": "image_url", "image_url": {"url": PIXEL}}, {"type": "text", "text": "look"}],
            },
        ],
        "stream": True,
        "stream_options": {"include_usage": True},
        "temperature": 0,
        "max_tokens": 5,
    }


def test_what_is_not_set_is_left_to_the_model() -> None:
    body = gateway_request(asked(system="  "))
    assert set(body) == {"model", "messages", "stream", "stream_options"}
    assert body["messages"] == [{"role": "user", "content": "hello"}]


def test_a_stop_names_its_answer() -> None:
    assert read_message('{"type":"stop","id":7}') == Stop(id=7)


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"model": ""}, "Choose a model"),
        ({"turns": []}, "Write a message"),
        ({"turns": [{"role": "user", "text": "  "}]}, "Write a message"),
        ({"turns": [USER, {"role": "assistant", "text": "hi"}]}, "Write a message"),
        ({"turns": [USER] * 201}, "at most 200 messages"),
        ({"system": "x" * MAX_TEXT}, "characters"),
        ({"turns": [USER | {"images": ["https://example.com/cat.png"]}]}, "Images must be"),
        ({"turns": [USER | {"images": ["data:text/html;base64,AAAA"]}]}, "Images must be"),
        ({"turns": [USER | {"images": ["data:image/svg+xml;base64,AAAA"]}]}, "Images must be"),
        ({"turns": [USER | {"images": ["data:image/png;base64," + "A" * MAX_IMAGE]}]}, "Images must be"),
        ({"turns": [USER | {"images": [PIXEL] * 9}]}, "at most 8 images"),
        ({"turns": [{"role": "assistant", "text": "", "images": [PIXEL]}, USER]}, "Only your own"),
        ({"temperature": 2.1}, "between 0 and 2"),
        ({"max_tokens": 0}, "between 1 and"),
        ({"turns": [{"role": "system", "text": "x"}]}, "reload the page"),
        ({"tools": []}, "reload the page"),
        ({"type": "other"}, "reload the page"),
    ],
)
def test_what_cannot_be_sent_on_is_refused_in_words(fields: dict[str, Any], why: str) -> None:
    with pytest.raises(AskError, match=why):
        read_message(said(**fields))


@given(st.text())
def test_no_text_breaks_the_reader(text: str) -> None:
    with suppress(AskError):
        read_message(text)


def test_a_refusal_never_quotes_what_was_said() -> None:
    with pytest.raises(AskError) as refused:
        read_message(said(turns=[USER | {"text": "my secret", "role": "nobody"}]))
    assert "secret" not in f"{refused.value!r}"
    assert refused.value.__cause__ is None


def test_a_message_that_is_too_long_is_not_even_read() -> None:
    with pytest.raises(AskError, match="at once"):
        read_message(" " * (MAX_FRAME + 1))


def test_events_of_a_stream() -> None:
    piece = read_event(b'{"choices":[{"delta":{"content":"Hi"},"finish_reason":null}]}')
    assert (piece.text, piece.finish_reason, piece.usage) == ("Hi", "", None)
    assert read_event(b'{"choices":[{"delta":{"reasoning_content":"hm"}}]}').thinking == "hm"
    assert read_event(b'{"choices":[{"delta":{},"finish_reason":"length"}]}').finish_reason == "length"
    usage = (
        b'{"choices":[],"usage":{"prompt_tokens":9,"completion_tokens":4,"prompt_tokens_details":{"cached_tokens":2}}}'
    )
    assert read_event(usage).usage == {"input": 9, "cached": 2, "output": 4}
    assert read_event(b'{"error":{"message":"The engine fell silent.","code":"x"}}').error == "The engine fell silent."
    with pytest.raises(AskError):
        read_event(b"nonsense")


def test_refusals() -> None:
    assert read_refusal(b'{"error":{"message":"Slow down.","code":"rate_limited"}}') == ("Slow down.", "rate_limited")
    assert read_refusal(b"<html>") == ("The gateway refused the request and did not say why.", "")
