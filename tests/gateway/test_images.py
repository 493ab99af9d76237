"""What images are charged, by the engine's word and without it. The scripted engine makes 20 tokens of each."""

from __future__ import annotations

import json
import socket
from typing import Any

import pytest

from tests.gateway.conftest import Shared
from tests.gateway.harness import PROFILE, wait_for
from tests.pictures import PIXEL, png_url

TEXT = "what is it?!"
"""Three tokens, and four of the message."""
SEEN = 20.0


def picture(url: str) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": url}}


def turns(*urls: str) -> list[dict[str, Any]]:
    return [{"role": "user", "content": [{"type": "text", "text": TEXT}, *map(picture, urls)]}]


def by_hand(profile: dict[str, Any], usage: dict[str, Any]) -> float:
    fresh = usage["input_tokens"] - usage.get("cached_tokens", 0)
    cached = profile["alpha"] * profile["cached_factor"] * usage.get("cached_tokens", 0)
    images = usage["units"]["image_token"] * 0.25
    return float(
        profile["base"] + profile["alpha"] * fresh + cached + profile["beta"] * usage["output_tokens"] + images
    )


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
def test_the_engines_count_of_image_tokens_is_charged(shared: Shared, stream: bool) -> None:
    urls = (png_url(56, 56), png_url(84, 28))
    answer = shared.post(
        "/v1/chat/completions", {"model": "sighted", "messages": turns(*urls), "max_tokens": 2, "stream": stream}
    )
    assert answer.status_code == 200
    admitted, end = shared.books(answer)
    assert end["usage"]["units"] == {"image_token": 2 * SEEN}
    assert end["usage"]["input_tokens"] == 7 + 2 * SEEN
    assert end["actual_mu"] == pytest.approx(by_hand(PROFILE, end["usage"]))
    assert admitted["estimated"]["units"]["image_token"] >= end["usage"]["units"]["image_token"]
    assert admitted["estimated_mu"] >= end["actual_mu"]


def test_several_answers_share_the_images_of_their_prompt(shared: Shared) -> None:
    asked = {"model": "sighted", "messages": turns(png_url(56, 56)), "max_tokens": 2, "n": 3, "stream": True}
    _, end = shared.books(shared.post("/v1/chat/completions", asked))
    assert (end["usage"]["units"], end["usage"]["output_tokens"]) == ({"image_token": SEEN}, 6)


def test_the_messages_api_counts_them_too(shared: Shared) -> None:
    source = {"type": "base64", "media_type": "image/png", "data": PIXEL}
    content = [{"type": "text", "text": TEXT}, {"type": "image", "source": source}]
    asked = {"model": "sighted", "max_tokens": 2, "messages": [{"role": "user", "content": content}]}
    admitted, end = shared.books(shared.post("/v1/messages", asked))
    assert (admitted["dialect"], end["usage"]["units"]) == ("messages", {"image_token": SEEN})


def test_a_stream_that_is_cut_is_charged_its_images_by_what_the_text_leaves(shared: Shared) -> None:
    """Engines say at the end alone how much of the input the images are."""
    body = {"model": "sighted", "messages": turns(png_url(56, 56)), "max_tokens": 3000, "stream": True}
    raw = json.dumps(body | {"user": json.dumps({"delay_ms": 20})}).encode()
    head = "POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer mu_acme1_secret\r\n"
    head += f"Content-Type: application/json\r\nX-Request-Id: cut-in-the-middle\r\nContent-Length: {len(raw)}\r\n\r\n"
    with socket.create_connection(("127.0.0.1", shared.gateways[0].port)) as client:
        client.sendall(head.encode() + raw)
        seen = b""
        while seen.count(b"data: ") < 3:
            seen += client.recv(65536)
    request_id = next(
        line.partition(b": ")[2].decode()
        for line in seen.split(b"\r\n")
        if line.lower().startswith(b"x-penstock-request-id")
    )
    end = wait_for("the end", lambda: shared.cluster.ended(request_id))
    assert end["outcome"] == "client_closed"
    assert end["usage"]["input_tokens"] == 7 + SEEN
    assert 0 < end["usage"]["units"]["image_token"] <= SEEN + 7


def test_a_picture_that_is_refused_here_reaches_no_engine_and_no_books(shared: Shared) -> None:
    answer = shared.post("/v1/chat/completions", {"model": "sighted", "messages": turns("data:text/plain,hello")})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "messages[0].content")
    source = {"type": "base64", "media_type": "image/png", "data": "aGVsbG8="}
    asked = {"role": "user", "content": [{"type": "image", "source": source}]}
    answer = shared.post("/v1/messages", {"model": "sighted", "max_tokens": 2, "messages": [asked]})
    assert (answer.status_code, answer.json()["error"]["type"]) == (400, "invalid_request_error")
    assert "PNG, JPEG, GIF or WebP" in answer.json()["error"]["message"]
