"""Streams whose chunks are of other sizes, as those of a busy engine, are compared as what they tell."""

from __future__ import annotations

from typing import Any

from tests.e2e.conformance import differences, folded


def chunk(content: str, **more: Any) -> dict[str, Any]:
    own = {"index": 0, "finish_reason": None, "logprobs": {"content": [{"token": each} for each in content]}}
    delta = {"content": content, **more.pop("delta", {})}
    return {"id": "x", "choices": [{**own, "delta": delta, **more}]}


LAST = {"id": "x", "choices": [], "usage": {"completion_tokens": 4}}
FIRST = chunk("", delta={"role": "assistant"})


def test_the_sizes_of_chunks_make_no_difference() -> None:
    small = [FIRST, chunk("a"), chunk("b"), chunk("c"), chunk("d", finish_reason="length"), LAST]
    large = [FIRST, chunk("abc"), chunk("d", finish_reason="length"), LAST]
    assert len(list(differences("stream", small, large))) == 1
    assert folded(small) == folded(large) == [chunk("abcd", delta={"role": "assistant"}, finish_reason="length"), LAST]


def test_what_they_tell_does() -> None:
    other = [FIRST, chunk("abd"), chunk("c", finish_reason="length"), LAST]
    right = [FIRST, chunk("abc"), chunk("d", finish_reason="length"), LAST]
    paths = list(differences("stream", folded(other), folded(right)))
    assert "stream[0].choices[0].delta.content" in paths
    assert folded([*right, *right]) != folded(right)
    assert folded([chunk("a", index=0), chunk("b", index=1)]) == [chunk("a", index=0), chunk("b", index=1)]
    assert folded({"choices": []}) == {"choices": []}
