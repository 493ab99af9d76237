"""The relay under any split of the stream. The oracle reads the whole stream with the json module."""

from __future__ import annotations

import itertools
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.gateway.relay import MAX_EVENT, RelayError, StreamRelay

TEXT = st.text(max_size=12) | st.sampled_from(
    [',"usage":{"prompt_tokens":9}', '"finish_reason":"x"', "data: [DONE]\n\n"]
)


def compact(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False)


def usage(prompt: int, done: int) -> dict[str, Any]:
    return {"prompt_tokens": prompt, "total_tokens": prompt + done, "completion_tokens": done}


def chunk(index: int, content: str, finish: str | None, counts: dict[str, Any] | None) -> dict[str, Any]:
    event: dict[str, Any] = {
        "id": "chatcmpl-1",
        "object": "chat.completion.chunk",
        "created": 1,
        "model": "m",
        "choices": [{"index": index, "delta": {"content": content}, "logprobs": None, "finish_reason": finish}],
    }
    if counts is not None:
        event["usage"] = counts
    return event


@st.composite
def streams(draw: st.DrawFn) -> tuple[list[dict[str, Any]], int, str, bool]:
    """(events, choices, separator, whether the serialiser puts blanks)."""
    choices = draw(st.integers(1, 3))
    prompt = draw(st.integers(0, 50))
    counts = dict.fromkeys(range(choices), 0)
    events = []
    for index, content in draw(st.lists(st.tuples(st.integers(0, choices - 1), TEXT), max_size=8)):
        counts[index] += 1
        events.append(chunk(index, content, None, usage(prompt, counts[index])))
    for index in counts:
        events.append(chunk(index, "", draw(st.sampled_from(["stop", "length"])), usage(prompt, counts[index])))
    events.append({**chunk(0, "", None, usage(prompt, sum(counts.values()))), "choices": []})
    return events, choices, draw(st.sampled_from(["\n\n", "\r\n\r\n"])), draw(st.booleans())


def encode(events: list[dict[str, Any]], separator: str, blanks: bool, *, done: bool = True) -> bytes:
    lines = [f"data: {json.dumps(event) if blanks else compact(event)}{separator}" for event in events]
    return ("".join(lines) + (f"data: [DONE]{separator}" if done else "")).encode()


def pieces(data: bytes, cuts: list[int]) -> list[bytes]:
    marks = sorted({0, len(data), *(cut % (len(data) + 1) for cut in cuts)})
    return [data[a:b] for a, b in itertools.pairwise(marks)]


def feed(relay: StreamRelay, parts: list[bytes]) -> bytes:
    return b"".join(relay.feed(part) for part in parts)


def read(data: bytes) -> list[Any]:
    blocks = data.decode().replace("\r\n", "\n").split("\n\n")
    return [json.loads(b[6:]) for b in blocks if b.startswith("data: ") and b != "data: [DONE]"]


@settings(max_examples=150)
@given(streams(), st.lists(st.integers(0, 10**6), max_size=12), st.booleans(), st.booleans())
def test_any_split_gives_the_same_bytes_and_the_same_counts(
    made: tuple[list[dict[str, Any]], int, str, bool], cuts: list[int], show: bool, continuous: bool
) -> None:
    events, choices, separator, blanks = made
    data = encode(events, separator, blanks)
    whole = StreamRelay(show_usage=show, show_continuous=continuous, choices=choices)
    cut = StreamRelay(show_usage=show, show_continuous=continuous, choices=choices)
    expected = whole.feed(data)
    got = feed(cut, pieces(data, cuts))
    assert got == expected
    assert cut.usage() == whole.usage()
    assert cut.is_done
    assert cut.finish_reason == whole.finish_reason == events[-2]["choices"][0]["finish_reason"]
    last = events[-1]["usage"]
    counted = whole.usage()
    assert counted is not None
    assert (counted.input_tokens, counted.output_tokens) == (last["prompt_tokens"], last["completion_tokens"])
    hidden = [{k: v for k, v in event.items() if k != "usage"} for event in events[:-1]]
    if show and continuous:
        assert got == data
    elif show:
        assert read(got) == [*hidden, events[-1]]
    else:
        assert read(got) == hidden
    assert got.endswith(f"data: [DONE]{separator}".encode())


@settings(max_examples=100)
@given(streams(), st.integers(0, 10**6))
def test_a_cut_stream_has_exact_counts_so_far(made: tuple[list[dict[str, Any]], int, str, bool], cut: int) -> None:
    events, choices, separator, blanks = made
    data = encode(events, separator, blanks, done=False)
    data = data[: cut % (len(data) + 1)]
    relay = StreamRelay(show_usage=True, show_continuous=True, choices=choices)
    relayed = relay.feed(data)
    seen = read(relayed)
    counted = relay.usage()
    if not seen:
        assert counted is None
        return
    assert counted is not None
    if not seen[-1]["choices"]:
        expected = seen[-1]["usage"]["completion_tokens"]
    else:
        by_index = {event["choices"][0]["index"]: event["usage"]["completion_tokens"] for event in seen}
        expected = sum(by_index.values())
    assert counted.output_tokens == expected
    assert not relay.is_done


def test_a_compact_stream_without_options_loses_nothing_but_usage() -> None:
    event = chunk(0, 'a "quoted" ,"usage":{} tail', None, usage(3, 1))
    relay = StreamRelay(show_usage=False, show_continuous=False)
    bare = {k: v for k, v in event.items() if k != "usage"}
    assert relay.feed(encode([event], "\n\n", False, done=False)) == encode([bare], "\n\n", False, done=False)


def test_usage_in_the_middle_of_an_event_is_found_and_hidden() -> None:
    event = chunk(0, "x", None, usage(3, 1)) | {"prompt_token_ids": [1, 2]}
    relay = StreamRelay(show_usage=False, show_continuous=False)
    out = relay.feed(encode([event], "\n\n", False, done=False))
    assert read(out) == [{k: v for k, v in event.items() if k != "usage"}]
    counted = relay.usage()
    assert counted is not None
    assert counted.output_tokens == 1


def test_usage_inside_a_choice_is_the_clients_own() -> None:
    event = chunk(0, "x", None, None)
    event["choices"][0]["delta"]["usage"] = {"prompt_tokens": 7}
    data = encode([event], "\n\n", False, done=False)
    relay = StreamRelay(show_usage=False, show_continuous=False)
    assert relay.feed(data) == data
    assert relay.usage() is None


def test_cached_tokens_are_read_and_bounded() -> None:
    counts = usage(100, 2) | {"prompt_tokens_details": {"cached_tokens": 96}}
    relay = StreamRelay(show_usage=False, show_continuous=False)
    relay.feed(encode([chunk(0, "x", None, counts)], "\n\n", False))
    counted = relay.usage()
    assert counted is not None
    assert counted.cached_tokens == 96


@pytest.mark.parametrize("cut", range(0, 90, 7))
def test_an_error_event_followed_by_done_is_a_failure(cut: int) -> None:
    error = b'data: {"error": {"message": "EngineCore encountered an issue", "type": "x", "code": 500}}\n\n'
    data = encode([chunk(0, "x", None, usage(3, 1))], "\n\n", False, done=False) + error + b"data: [DONE]\n\n"
    relay = StreamRelay(show_usage=False, show_continuous=False)
    out = feed(relay, [data[:cut], data[cut:]])
    assert relay.error == "EngineCore encountered an issue"
    assert not relay.is_done
    assert b"EngineCore" not in out
    assert b"[DONE]" not in out
    counted = relay.usage()
    assert counted is not None
    assert counted.output_tokens == 1


def test_comments_pass_and_what_follows_done_does_not() -> None:
    relay = StreamRelay(show_usage=False, show_continuous=False)
    assert relay.feed(b": ping\n\n") == b": ping\n\n"
    assert relay.feed(b"data: [DONE]\n\ndata: more\n\n") == b"data: [DONE]\n\n"
    assert relay.feed(b"data: more\n\n") == b""


def test_what_is_not_json_and_what_never_ends_is_refused() -> None:
    with pytest.raises(RelayError):
        StreamRelay(show_usage=False, show_continuous=False).feed(b"data: {oops\n\n")
    with pytest.raises(RelayError):
        StreamRelay(show_usage=False, show_continuous=False).feed(b"data: " + b"x" * (MAX_EVENT + 1))


@settings(max_examples=100)
@given(st.lists(st.binary(max_size=60), max_size=8))
def test_no_bytes_break_it_otherwise(parts: list[bytes]) -> None:
    relay = StreamRelay(show_usage=False, show_continuous=False, choices=2)
    try:
        feed(relay, [*parts, b"\n\n"])
    except RelayError:
        return


@pytest.mark.parametrize("broken", ["data: {nonsense", 'data: {"id":1,"choices":[{"finish_reason":"st'])
def test_what_came_before_an_event_that_cannot_be_read_goes_out(broken: str) -> None:
    relay = StreamRelay(show_usage=True, show_continuous=True)
    good = "".join(f"data: {compact(chunk(0, word, None, usage(3, n + 1)))}\n\n" for n, word in enumerate("ab"))
    out = relay.feed((good + broken + "\n\n").encode())
    assert out.decode() == good
    assert relay.broken
    assert relay.is_over
    counted = relay.usage()
    assert counted is not None
    assert counted.output_tokens == 2, "what was relayed is what is counted"
    with pytest.raises(RelayError):
        StreamRelay(show_usage=True, show_continuous=True).feed((broken + "\n\n").encode())
