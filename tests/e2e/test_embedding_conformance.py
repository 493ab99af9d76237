"""Embeddings, ranks and scores of a real vLLM pooling engine, directly and through Penstock, by client and by curl."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from typing import Any

import httpx
import openai
import pytest

from tests.e2e.conformance import address_of, body_of, require_alike
from tests.e2e.operate import deploy
from tests.e2e.pages import usage_pages
from tests.e2e.stack import Stack, wait_for

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.vllm,
    pytest.mark.slow,
    pytest.mark.timeout(1200),
    pytest.mark.together("stack"),
]

MODEL = "demo-embed"
DOCUMENTS = ["The quick brown fox", "Health checks go first", "A model unit"]

Call = Callable[[openai.OpenAI], Any]


def embeddings(**fields: Any) -> Call:
    return lambda client: body_of(client.embeddings.create(**{"model": MODEL, "input": "The quick fox"} | fields))


def posted(path: str, **fields: Any) -> Call:
    """A route that OpenAI's API does not have."""

    def ask(client: openai.OpenAI) -> Any:
        body = {"model": MODEL, **fields}
        return json.loads(client.post(path, body=body, cast_to=httpx.Response).text)

    return ask


def refused(call: Call) -> Call:
    def ask(client: openai.OpenAI) -> Any:
        with pytest.raises(openai.APIStatusError) as caught:
            call(client)
        return {"status": caught.value.status_code, "class": type(caught.value).__name__, "body": caught.value.body}

    return ask


CALLS: dict[str, Call] = {
    "embedding": embeddings(),
    "embedding, plain numbers": embeddings(encoding_format="float"),
    "embeddings of a list": embeddings(input=["one", "two and three"]),
    "embeddings of tokens": embeddings(input=[[10, 11, 12], [13]]),
    "embedding, cut": embeddings(input="word " * 6000, extra_body={"truncate_prompt_tokens": 16}),
    "rerank": posted("/rerank", query="fox", documents=DOCUMENTS),
    "rerank, best": posted("/rerank", query="fox", documents=DOCUMENTS, top_n=1),
    "score": posted("/score", text_1="fox", text_2=DOCUMENTS),
    "score of pairs": posted("/score", queries=DOCUMENTS, documents=DOCUMENTS),
    "unknown model": refused(embeddings(model="no-such-model")),
    "too long": refused(embeddings(input="word " * 6000)),
    "dimensions of a model without": refused(embeddings(dimensions=8)),
    "input of a wrong type": refused(embeddings(input={"a": 1})),
    "completion": refused(lambda client: client.completions.create(model=MODEL, prompt="a")),
}
JUSTIFIED: dict[str, str] = {
    r".*\.id$": "Ids are made for each request.",
    r".*\.created$": "The two calls are made at different times.",
    r"^(unknown model|too long|dimensions|input of|completion).*\.body\b.*": (
        "Error bodies carry OpenAI's type and code and say what to do; status and exception are the same."
    ),
}


@pytest.fixture(scope="module")
def address(stack: Stack) -> str:
    """Where the engine itself listens."""
    made = deploy(stack, MODEL, model={"artifact_kind": "tiny", "artifact_value": "embed"})
    assert (made["runtime"], made["options"]["task"]) == ("vllm", "embed")
    assert "built-in tiny embedding model" in made["reason"]
    found = address_of(stack, MODEL)
    headers = {"Authorization": f"Bearer {stack.key()}"}
    body = {"model": MODEL, "input": "a"}

    def is_serving() -> bool:
        return httpx.post(f"{stack.base_url}/embeddings", json=body, headers=headers, timeout=20).status_code == 200

    wait_for("demo-embed at the gateways", is_serving, seconds=30)
    return found


def test_answers_are_equal_but_for_justified_differences(stack: Stack, address: str) -> None:
    with (
        openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0) as direct,
        openai.OpenAI(base_url=stack.base_url, api_key=stack.key(), max_retries=0) as through,
    ):
        require_alike(CALLS, direct, through, JUSTIFIED, rare=frozenset({r".*\.created$"}))


def test_an_embedding_has_its_usage_row(stack: Stack, address: str) -> None:
    with openai.OpenAI(base_url=stack.base_url, api_key=stack.key(), max_retries=0) as client:
        answer = client.embeddings.create(
            model=MODEL, input=["one", "two"], extra_headers={"X-Request-Id": "embedding-usage"}
        )
    row = wait_for("the usage row", lambda: stack.usage("client_request_id = 'embedding-usage'"), seconds=20)[0]
    assert (row["dialect"], row["outcome"]) == ("embeddings", "completed")
    assert (row["input_tokens"], row["output_tokens"]) == (answer.usage.prompt_tokens, 0)
    assert row["actual_mu"] > 0
    receipt, told_mu = usage_pages(stack, row)
    assert "embedding-usage" in receipt
    assert told_mu == pytest.approx(row["actual_mu"], rel=0.01)


CURLS: dict[str, tuple[str, dict[str, Any]]] = {
    "embeddings": ("/embeddings", {"model": MODEL, "input": "fox"}),
    "rerank": ("/rerank", {"model": MODEL, "query": "fox", "documents": DOCUMENTS}),
    "score": ("/score", {"model": MODEL, "text_1": "fox", "text_2": "dog"}),
    "chat": (
        "/chat/completions",
        {"model": "demo-tiny", "max_tokens": 4, "messages": [{"role": "user", "content": "hi"}]},
    ),
    "completions": ("/completions", {"model": "demo-tiny", "max_tokens": 4, "prompt": "hi"}),
    "messages": ("/messages", {"model": "demo-tiny", "max_tokens": 4, "messages": [{"role": "user", "content": "hi"}]}),
    "responses": ("/responses", {"model": "demo-tiny", "max_output_tokens": 4, "input": "hi"}),
}


@pytest.mark.parametrize("name", CURLS)
def test_curl_gets_the_same_members_from_both(stack: Stack, address: str, name: str) -> None:
    path, body = CURLS[name]
    engine = address if body["model"] == MODEL else address_of(stack, body["model"])
    direct, through = curl(f"{engine}/v1{path}", "none", body), curl(f"{stack.base_url}{path}", stack.key(), body)
    assert direct[0] == through[0] == 200
    # Only Penstock tells Anthropic's clients of the cache where nothing was found in it.
    own = {"cache_creation_input_tokens", "cache_read_input_tokens"}
    assert shape(through[1]) - own == shape(direct[1]) - own


def curl(url: str, key: str, body: dict[str, Any]) -> tuple[int, Any]:
    """(status, body)."""
    command = ["curl", "-sS", "-m", "60", "-w", "\n%{http_code}", url, "-H", f"Authorization: Bearer {key}"]
    command += ["-H", "Content-Type: application/json", "-d", json.dumps(body)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=90, check=True)
    answer, _, status = done.stdout.rpartition("\n")
    return int(status), json.loads(answer)


def shape(value: Any) -> set[str]:
    """Names of all members that hold something."""
    if isinstance(value, list):
        return set().union(*map(shape, value))
    if not isinstance(value, dict):
        return set()
    held = {name: each for name, each in value.items() if each is not None}
    return set(held).union(*map(shape, held.values()))
