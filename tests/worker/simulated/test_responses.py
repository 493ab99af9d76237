"""The simulated engine's Responses API, by the official client."""

from __future__ import annotations

import httpx
import openai
import pytest

from tests.worker.simulated.conftest import RunningEngine

EXACT = {"ignore_eos": True}


def test_an_answer_is_the_chats(engine: RunningEngine) -> None:
    answer = engine.sdk.responses.create(model="sim", input="Hello", max_output_tokens=6, extra_body=EXACT)
    chat = engine.sdk.chat.completions.create(
        model="sim", messages=[{"role": "user", "content": "Hello"}], max_tokens=6, extra_body=EXACT
    )
    assert answer.output_text == chat.choices[0].message.content
    assert answer.usage is not None
    assert chat.usage is not None
    assert (answer.usage.input_tokens, answer.usage.output_tokens) == (chat.usage.prompt_tokens, 6)
    assert answer.status == "incomplete"
    assert answer.incomplete_details is not None
    assert answer.incomplete_details.reason == "max_output_tokens"
    assert engine.sdk.responses.create(model="sim", input="Hello").status == "completed"


def test_a_stream_tells_the_same(engine: RunningEngine) -> None:
    turns = [
        {"role": "user", "content": [{"type": "input_text", "text": "Hi"}]},
        {"type": "function_call", "call_id": "c", "name": "now", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "c", "output": "noon"},
    ]
    asked = {"model": "sim", "input": turns, "instructions": "Be terse.", "max_output_tokens": 5, "extra_body": EXACT}
    whole = engine.sdk.responses.create(**asked)  # type: ignore[call-overload]
    with engine.sdk.responses.stream(**asked) as stream:
        seen = list(stream)
        final = stream.get_final_response()
    assert final.output_text == whole.output_text
    assert final.usage is not None
    assert (final.usage.input_tokens, final.usage.output_tokens) == (whole.usage.input_tokens, 5)
    assert [event.sequence_number for event in seen] == list(range(len(seen)))
    assert (seen[0].type, seen[-1].type) == ("response.created", "response.completed")
    assert "".join(event.delta for event in seen if event.type == "response.output_text.delta") == whole.output_text


def test_errors_and_failures_are_vllms(own_engine: RunningEngine) -> None:
    with pytest.raises(openai.BadRequestError):
        own_engine.sdk.responses.create(model="sim", input="x", max_output_tokens=0)
    with pytest.raises(openai.NotFoundError):
        own_engine.sdk.responses.create(model="other", input="x")
    assert httpx.get(f"{own_engine.url}/v1/responses").status_code == 405
    own_engine.fault(mode="error_done", after_tokens=2)
    body = {"model": "sim", "input": "x", "max_output_tokens": 5, "ignore_eos": True, "stream": True}
    text = own_engine.post("/v1/responses", body).text
    assert "response.completed" not in text
    assert text.count("response.output_text.delta") == 4
