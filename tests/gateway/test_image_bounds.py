"""How many pixels the images of one request may have together, in each dialect that takes images."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from typing import Any

import pytest

from serving.gateway.dialects import DIALECTS
from serving.gateway.errors import ApiError
from tests.pictures import BY_PILLOW, claimed

LARGEST, HALF, ONE = claimed(8000, 8000), claimed(8000, 4000), claimed(1, 1)
Turns = list[dict[str, Any]]


def chat(*data: str) -> dict[str, Any]:
    """Each image in a message of its own."""
    parts = [{"type": "image_url", "image_url": {"url": f"data:image/png;base64,{each}"}} for each in data]
    return {"messages": [{"role": "user", "content": [part]} for part in parts]}


def response(*data: str) -> dict[str, Any]:
    parts = [{"type": "input_image", "image_url": f"data:image/png;base64,{each}"} for each in data]
    return {"input": [{"role": "user", "content": [part]} for part in parts]}


def message(*data: str) -> dict[str, Any]:
    """By turns what the user shows and what a tool has found."""
    blocks = [{"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": each}} for each in data]
    found = [{"type": "tool_result", "tool_use_id": "a", "content": [block]} for block in blocks]
    said = [block if number % 2 else found[number] for number, block in enumerate(blocks)]
    return {"max_tokens": 1, "messages": [{"role": "user", "content": [each]} for each in said]}


SEEING: dict[str, Callable[..., dict[str, Any]]] = {
    "/v1/chat/completions": chat,
    "/tokenize": chat,
    "/v1/tokenize": chat,
    "/v1/responses": response,
    "/v1/messages": message,
    "/v1/messages/count_tokens": lambda *data: {"messages": message(*data)["messages"]},
}
each_dialect = pytest.mark.parametrize("path", SEEING)


def ask(path: str, *data: str) -> Any:
    return DIALECTS[path].read(json.dumps({"model": "m", **SEEING[path](*data)}).encode()).ask


def refusal(path: str, *data: str) -> ApiError:
    with pytest.raises(ApiError) as caught:
        ask(path, *data)
    return caught.value


def test_no_other_dialect_takes_images() -> None:
    # What a model of MLflow is given are rows of its own, whatever they say.
    for path in set(DIALECTS) - {*SEEING, "/invocations"}:
        for fields in (chat(ONE), response(ONE), message(ONE), {"prompt": [chat(ONE)]}, {"documents": chat(ONE)}):
            with pytest.raises(ApiError):
                DIALECTS[path].read(json.dumps({"model": "m", "query": "a", **fields}).encode())


@each_dialect
def test_as_many_pixels_as_are_allowed_are_taken(path: str) -> None:
    asked = ask(path, *[LARGEST] * 3, HALF, HALF)
    assert asked.images in ((16_384,) * 5, ()), "counting alone needs no bound of each"


@each_dialect
def test_one_pixel_more_is_refused_where_it_comes(path: str) -> None:
    error = refusal(path, *[LARGEST] * 3, HALF, HALF, ONE)
    assert (error.status, error.code) == (400, "images_too_large")
    assert error.param is not None
    assert "[5]" in error.param, "the image that is too much"
    assert str(error) == (
        "The images up to here have up to 256,000,001 pixels; at most 256,000,000 may be in one request. "
        "Send fewer of them, or smaller ones."
    )


@each_dialect
def test_an_image_that_hides_its_size_counts_as_the_largest(path: str) -> None:
    photo = base64.b64decode(BY_PILLOW["jpeg"])
    notes = (b"\xff\xe1" + (60_002).to_bytes(2, "big") + bytes(60_000)) * 5
    hidden = base64.b64encode(photo[:2] + notes + photo[2:]).decode()
    assert ask(path, *[hidden] * 4) is not None
    assert refusal(path, *[hidden] * 5).code == "images_too_large"


@each_dialect
def test_an_image_alone_that_is_too_large_is_told_as_such(path: str) -> None:
    assert refusal(path, claimed(8000, 8001)).code == "image_too_large"


@each_dialect
def test_many_images_of_a_common_size_are_taken(path: str) -> None:
    assert ask(path, *[claimed(1920, 1080)] * 120) is not None
    assert refusal(path, *[claimed(1920, 1080)] * 124).code == "images_too_large"
    assert ask(path, *[claimed(700, 700)] * 500) is not None
    assert refusal(path, *[ONE] * 501).code == "too_many_images"
