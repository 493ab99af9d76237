"""The official client against the gateway, and the same bodies straight from the engine."""

from __future__ import annotations

from typing import Any

import httpx
import openai
import pytest

from penstock.testing import CANARY
from tests.gateway.conftest import Shared
from tests.gateway.harness import wait_for
from tests.pictures import PIXEL_URL

USER: Any = [{"role": "user", "content": CANARY}]


def test_a_chat_answer(shared: Shared) -> None:
    answer = shared.client().chat.completions.create(model="alpha", messages=USER, max_tokens=5)
    assert answer.choices[0].message.content == "tok tok tok tok tok "
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (10, 5)
    assert answer._request_id


def test_a_chat_stream_without_usage(shared: Shared) -> None:
    with shared.client().chat.completions.create(model="alpha", messages=USER, max_tokens=4, stream=True) as stream:
        chunks = list(stream)
    assert "".join(c.choices[0].delta.content or "" for c in chunks) == " tok" * 4
    assert chunks[-1].choices[0].finish_reason == "length"
    assert all(c.usage is None for c in chunks)
    assert len(chunks) == 5


def test_a_chat_stream_with_usage(shared: Shared) -> None:
    chunks = list(
        shared.client().chat.completions.create(
            model="alpha", messages=USER, max_tokens=4, stream=True, stream_options={"include_usage": True}
        )
    )
    assert [c.usage is not None for c in chunks] == [False] * 5 + [True]
    assert chunks[-1].choices == []
    assert chunks[-1].usage.completion_tokens == 4


def test_several_choices_in_a_stream_are_counted_together(shared: Shared) -> None:
    raw = shared.client().chat.completions.with_raw_response.create(
        model="alpha", messages=USER, max_tokens=3, n=3, stream=True
    )
    chunks = list(raw.parse())
    assert {c.choices[0].index for c in chunks} == {0, 1, 2}
    end = shared.cluster.ended(raw.headers["x-penstock-request-id"])
    assert end["usage"] == {"input_tokens": 10, "output_tokens": 9}


def test_completions_of_texts_token_ids_and_lists(shared: Shared) -> None:
    client = shared.client()
    assert client.completions.create(model="alpha", prompt="abcd" * 3, max_tokens=2).usage.prompt_tokens == 3
    assert client.completions.create(model="alpha", prompt=[1, 2, 3, 4], max_tokens=2).usage.prompt_tokens == 4
    several = client.completions.create(model="alpha", prompt=["abcd", "abcdefgh"], max_tokens=2, n=2)
    assert len(several.choices) == 4
    assert (several.usage.prompt_tokens, several.usage.completion_tokens) == (3, 8)
    stream = client.completions.create(model="alpha", prompt="abcd", max_tokens=3, stream=True)
    assert "".join(c.choices[0].text for c in stream) == " tok" * 3


def test_images_and_every_knob_reach_the_engine_as_they_are(shared: Shared) -> None:
    image = {"type": "image_url", "image_url": {"url": PIXEL_URL}}
    asked: dict[str, Any] = {
        "model": "alpha",
        "messages": [{"role": "user", "content": [{"type": "text", "text": "what?"}, image]}],
        "max_tokens": 2,
        "tools": [{"type": "function", "function": {"name": "now", "parameters": {"type": "object"}}}],
        "tool_choice": "auto",
        "parallel_tool_calls": False,
        "response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "object"}}},
        "logprobs": True,
        "top_logprobs": 2,
        "stop": ["a", "b"],
        "seed": 7,
        "logit_bias": {"5": 1},
    }
    answer = shared.post("/v1/chat/completions", asked)
    served: Any = shared.served(answer.headers["x-penstock-request-id"])
    assert {name: value for name, value in served["body"].items() if name not in ("priority", "cache_salt")} == asked
    parts = [{"type": "input_text", "text": "what?"}, {"type": "input_image", "image_url": image["image_url"]["url"]}]
    turns = [{"role": "user", "content": parts}]
    answer = shared.post("/v1/responses", {"model": "alpha", "input": turns, "max_output_tokens": 1})
    served = shared.served(answer.headers["x-penstock-request-id"])
    assert served["body"]["input"] == turns


def test_models_are_those_the_tenant_may_use(shared: Shared) -> None:
    mine = {m.id for m in shared.client().models.list()}
    assert mine >= {"alpha", "bare", "beta"}
    assert {m.id for m in shared.client("mu_other1_secret").models.list()} == {*mine, "secret"}
    assert [m.id for m in shared.client("mu_onemodel1_secret").models.list()] == ["alpha"]
    assert shared.client().models.retrieve("alpha").owned_by == "penstock"
    with pytest.raises(openai.NotFoundError):
        shared.client().models.retrieve("secret")


def test_tokenize(shared: Shared) -> None:
    for path in ("/tokenize", "/v1/tokenize"):
        answer = shared.http.post(path, json={"model": "alpha", "prompt": "abcd" * 5})
        assert (answer.status_code, answer.json()["count"]) == (200, 5)


@pytest.mark.parametrize(
    ("key", "kind", "code"),
    [
        ("mu_acme1_wrong", openai.AuthenticationError, "invalid_api_key"),
        ("mu_nobody_secret", openai.AuthenticationError, "invalid_api_key"),
        ("mu_oldpepper1_secret", openai.AuthenticationError, "invalid_api_key"),
        ("sk-something", openai.AuthenticationError, "invalid_api_key"),
        ("mu_revoked1_secret", openai.AuthenticationError, "invalid_api_key"),
        ("mu_expired1_secret", openai.AuthenticationError, "expired_api_key"),
        ("mu_idle1_secret", openai.PermissionDeniedError, "tenant_inactive"),
        ("mu_scopeless1_secret", openai.PermissionDeniedError, "insufficient_scope"),
        ("mu_elsewhere1_secret", openai.PermissionDeniedError, "ip_not_allowed"),
    ],
)
def test_keys_that_do_not_open(shared: Shared, key: str, kind: type[openai.APIStatusError], code: str) -> None:
    with pytest.raises(kind) as caught:
        shared.client(key).chat.completions.create(model="alpha", messages=USER)
    assert caught.value.code == code
    if caught.value.status_code == 401:
        assert caught.value.response.headers["www-authenticate"].startswith("Bearer")


def test_no_key_at_all(shared: Shared) -> None:
    answer = httpx.post(f"{shared.url}/v1/chat/completions", json={"model": "alpha", "messages": USER})
    assert answer.status_code == 401
    assert set(answer.json()["error"]) == {"message", "type", "param", "code"}
    assert "www-authenticate" in answer.headers


def test_an_allowed_address_and_an_allowed_model(shared: Shared) -> None:
    assert shared.client("mu_here1_secret").completions.create(model="alpha", prompt="a", max_tokens=1)
    assert shared.client("mu_onemodel1_secret").completions.create(model="alpha", prompt="a", max_tokens=1)
    with pytest.raises(openai.PermissionDeniedError) as caught:
        shared.client("mu_onemodel1_secret").completions.create(model="beta", prompt="a", max_tokens=1)
    assert caught.value.code == "model_not_allowed"


def test_unknown_and_invisible_models_look_the_same(shared: Shared) -> None:
    seen = []
    for name in ("secret", "nothing"):
        with pytest.raises(openai.NotFoundError) as caught:
            shared.client().chat.completions.create(model=name, messages=USER)
        assert caught.value.code == "model_not_found"
        seen.append(caught.value.body["message"].replace(name, "X"))
    assert seen[0] == seen[1]


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"model": "alpha", "messages": USER, "n": 0}, "n"),
        ({"model": "alpha", "messages": USER, "n": 1000}, "n"),
        ({"model": "alpha", "messages": "text"}, "messages"),
        ({"model": 5, "messages": USER}, "model"),
        ({"model": "alpha"}, "messages"),
        ({"model": "alpha", "messages": USER, "priority": -5}, "priority"),
        ({"model": "alpha", "messages": USER, "temperature": "x"}, "temperature"),
    ],
)
def test_wrong_bodies(shared: Shared, body: dict[str, Any], param: str) -> None:
    answer = shared.http.post("/v1/chat/completions", json=body)
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert (error["type"], error["param"]) == ("invalid_request_error", param)


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/v1/chat/completions", 405),
        ("DELETE", "/v1/models", 405),
        ("POST", "/v1/nothing", 404),
        ("GET", "/", 404),
        ("POST", "/healthz", 405),
        ("GET", "/v1/models/nothing", 404),
    ],
)
def test_paths_and_methods(shared: Shared, method: str, path: str, status: int) -> None:
    answer = shared.http.request(method, path)
    assert answer.status_code == status
    assert answer.json()["error"]["code"] in ("unknown_url", "method_not_allowed", "model_not_found")
    if status == 405:
        assert answer.headers["allow"] in ("GET", "POST")


def test_a_prompt_over_the_context_by_tokens_by_bytes_and_by_the_engines_count(shared: Shared) -> None:
    for prompt in ([1] * 5000, "x" * 600_000, "abcd" * 4096):
        with pytest.raises(openai.BadRequestError) as caught:
            shared.client().completions.create(model="alpha", prompt=prompt, max_tokens=1)
        assert caught.value.code == "context_length_exceeded"
        assert "4096" in caught.value.message


def test_no_ready_replica(shared: Shared) -> None:
    with pytest.raises(openai.InternalServerError) as caught:
        shared.client().chat.completions.create(model="bare", messages=USER)
    assert caught.value.status_code == 503
    assert int(caught.value.response.headers["retry-after"]) >= 1
    end = shared.cluster.ended(caught.value.response.headers["x-penstock-request-id"])
    assert (end["outcome"], end["status"], end["actual_mu"]) == ("refused", 503, 0.0)


def test_request_ids_in_out_and_at_the_engine(shared: Shared) -> None:
    mine = "client-id:42"
    answer = shared.http.post(
        "/v1/completions", json={"model": "alpha", "prompt": "x", "max_tokens": 1}, headers={"x-request-id": mine}
    )
    assert answer.headers["x-request-id"] == mine
    own = answer.headers["x-penstock-request-id"]
    assert own[14] == "7"
    assert shared.served(own)["path"] == "/v1/completions"
    assert shared.cluster.journal()[own]["a"]["client_request_id"] == mine
    for bad in ("a b", "x" * 201, 'quote"'):
        answer = shared.http.get("/v1/models", headers={"x-request-id": bad})
        assert answer.headers["x-request-id"] == answer.headers["x-penstock-request-id"]


def test_what_the_engine_gets_and_what_the_client_is_told(shared: Shared) -> None:
    sent = {"model": "alpha", "prompt": "x" * 40, "max_tokens": 2, "cache_salt": "mine", "kv_transfer_params": {}}
    ids = []
    for key in ("acme1", "acme1", "other1"):
        headers = {"authorization": f"Bearer mu_{key}_secret"}
        answer = shared.http.post("/v1/completions", json=sent, headers=headers)
        assert answer.headers["x-penstock-class"] == "best_effort"
        assert float(answer.headers["x-penstock-mu-estimated"]) > 0
        assert answer.headers["x-penstock-replica"] in ("d-alpha-a", "d-alpha-b")
        ids.append(answer.headers["x-penstock-request-id"])
    bodies: list[Any] = [shared.served(request_id)["body"] for request_id in ids]
    assert all(set(b) == {"model", "prompt", "max_tokens", "priority", "cache_salt"} for b in bodies)
    assert bodies[0]["cache_salt"] == bodies[1]["cache_salt"] != bodies[2]["cache_salt"]
    assert "mine" not in {b["cache_salt"] for b in bodies}


BODIES: list[dict[str, Any]] = [
    {"path": "chat/completions", "messages": USER, "max_tokens": 3},
    {"path": "chat/completions", "messages": USER, "max_tokens": 3, "stream": True},
    {
        "path": "chat/completions",
        "messages": USER,
        "max_tokens": 3,
        "stream": True,
        "n": 2,
        "stream_options": {"include_usage": True},
    },
    {
        "path": "completions",
        "prompt": ["a", "b"],
        "max_tokens": 3,
        "stream": True,
        "stream_options": {"include_usage": True, "continuous_usage_stats": True},
    },
    {"path": "completions", "prompt": "ab", "max_tokens": 3, "echo": True},
]


@pytest.mark.parametrize("body", BODIES, ids=lambda b: "-".join(sorted(b)))
def test_the_body_is_the_engines_own_byte_for_byte(shared: Shared, body: dict[str, Any]) -> None:
    path = body["path"]
    sent = {"model": "alpha", **{name: value for name, value in body.items() if name != "path"}}
    through = shared.http.post(f"/v1/{path}", json=sent)
    direct = httpx.post(f"{shared.engines[0].url}/v1/{path}", json=sent)
    assert through.content == direct.content
    assert through.headers["content-type"].split(";")[0] == direct.headers["content-type"].split(";")[0]


def test_the_journal_has_tokens_and_mu_of_every_kind_of_answer(shared: Shared) -> None:
    for stream in (False, True):
        sent = {"model": "alpha", "prompt": "abcd" * 10, "max_tokens": 7, "stream": stream}
        answer = shared.http.post("/v1/completions", json=sent)
        request = shared.cluster.journal()[answer.headers["x-penstock-request-id"]]
        admitted, end = request["a"], request["e"]
        assert admitted["tenant"] == "acme"
        assert admitted["key"] == "uuid-acme1"
        assert admitted["profile_version"] == 3
        assert (end["usage"]["input_tokens"], end["usage"]["output_tokens"]) == (10, 7)
        cached = 0 if stream else 1
        expected = 0.5 + 0.01 * (10 - cached) + 0.01 * 0.1 * cached + 0.2 * 7
        assert end["actual_mu"] == pytest.approx(expected)
        assert (end["outcome"], end["status"], end["finish_reason"]) == ("completed", 200, "length")
        assert admitted["at"] <= end["routed_at"] <= end["first_byte_at"] <= end["at"]
        assert not end.get("lower_bound")


def test_readiness_health_and_metrics(shared: Shared) -> None:
    assert httpx.get(f"{shared.url}/healthz").json() == {"status": "ok"}
    ready = httpx.get(f"{shared.url}/readyz").json()
    assert ready["status"] == "ready"
    assert ready["journal"]["writable"]
    assert ready["snapshot"]["version"] >= 1
    assert (ready["grants"]["phase"], ready["grants"]["alone_s"]) == ("arbiter", None), "by whose word limits hold"
    shared.client().completions.create(model="alpha", prompt="a", max_tokens=1)
    token = {"authorization": "Bearer scrape"}
    text = httpx.get(f"{shared.url}/metrics", headers=token).text
    assert "penstock_gateway_requests_total{" in text or "penstock_gateway_in_flight" in text
    assert 'penstock_gateway_limits{by="arbiter"} 1.0' in text
    # With a token set, being on the same machine is not enough: a proxy may be there too.
    assert httpx.get(f"{shared.url}/metrics").status_code == 403
    through_proxy = {"x-forwarded-for": "203.0.113.9"}
    assert httpx.get(f"{shared.url}/metrics", headers=through_proxy | token).status_code == 200


def test_logs_hold_ids_but_neither_prompt_nor_key(shared: Shared) -> None:
    answer = shared.http.post(
        "/v1/completions",
        json={"model": "alpha", "prompt": "a very private prompt", "max_tokens": 1, "nonsense": "very private too"},
        headers={"x-request-id": "log-me"},
    )
    shared.http.post("/v1/completions", content=b'{"prompt": "very private broken"', headers={"x-request-id": "log-2"})
    own = answer.headers["x-penstock-request-id"]

    def lines() -> list[dict[str, Any]]:
        return [line for gateway in shared.gateways for line in gateway.log() if line.get("request_id") == own]

    found = wait_for("the log line", lines)
    assert found[0]["client_request_id"] == "log-me"
    assert found[0]["outcome"] == "completed"
    for gateway in shared.gateways:
        text = gateway.log_path.read_text()
        assert "very private" not in text
        assert "_secret" not in text
