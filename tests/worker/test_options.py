"""What a runtime's options mean: what is spoken, how an engine is asked whether it serves, what is filled in."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from worker.options import (
    PLACEHOLDERS,
    RESERVED_ARGS,
    OptionError,
    fill,
    probe_request,
    read_command,
    read_vllm,
    speaks,
)

ONE_TOKEN = {"prompt": "1", "max_tokens": 1, "temperature": 0}
COMMAND = {"argv": ["server", "--port", "{port}"]}


@pytest.mark.parametrize(
    ("runtime", "options", "spoken"),
    [
        ("simulated", {"anything": 1}, ("generate",)),
        ("vllm", {}, ("generate",)),
        ("vllm", {"task": "embed"}, ("embed", "score")),
        ("vllm", {"task": "score"}, ("score",)),
        ("mlflow", {}, ("invocations",)),
        ("command", COMMAND, ("generate",)),
        ("command", COMMAND | {"speaks": ["embed", "http", "embed"]}, ("embed", "http")),
    ],
)
def test_what_is_spoken(runtime: str, options: dict[str, Any], spoken: tuple[str, ...]) -> None:
    assert speaks(runtime, options) == spoken


@pytest.mark.parametrize(
    ("runtime", "options", "path", "body", "proof"),
    [
        ("vllm", {}, "/v1/completions", ONE_TOKEN | {"priority": -1000}, "completion"),
        ("vllm", {"task": "embed"}, "/v1/embeddings", {"input": "1", "priority": -1000}, "embedding"),
        ("vllm", {"task": "score"}, "/v1/rerank", {"query": "1", "documents": ["1"], "priority": -1000}, "ranking"),
        ("command", COMMAND, "/v1/completions", ONE_TOKEN, "completion"),
        ("command", COMMAND | {"speaks": ["embed"]}, "/v1/embeddings", {"input": "1"}, "embedding"),
    ],
)  # fmt: skip
def test_engines_are_asked_for_the_cheapest_thing_they_do(
    runtime: str, options: dict[str, Any], path: str, body: dict[str, Any], proof: str
) -> None:
    asked = probe_request(runtime, options, model="m")
    assert (asked.path, asked.body, asked.proof) == (path, {"model": "m", **body}, proof)


@pytest.mark.parametrize(
    ("runtime", "options", "path", "body", "proof"),
    [
        ("mlflow", {}, "/ping", None, "status"),
        ("mlflow", {"probe_input": {"inputs": [[1]]}}, "/invocations", {"inputs": [[1]]}, "predictions"),
        ("command", COMMAND | {"speaks": ["http"], "readiness_path": "/ready"}, "/ready", None, "status"),
        ("command", COMMAND | {"probe": {"path": "/live"}}, "/live", None, "status"),
        ("command", COMMAND | {"probe": {"path": "/do", "body": {"x": 1}}}, "/do", {"x": 1}, "answer"),
    ],
)
def test_others_are_asked_as_their_revision_says(
    runtime: str, options: dict[str, Any], path: str, body: dict[str, Any] | None, proof: str
) -> None:
    asked = probe_request(runtime, options, model="m")
    assert (asked.path, asked.body, asked.proof) == (path, body, proof)


def test_placeholders_are_filled_once() -> None:
    values = {"host": "h", "port": "80", "model": "{port}", "name": "n"}
    assert fill("{host}:{port} {model} {{name}}", values) == "h:80 {port} {n}"


@given(st.text())
def test_text_without_placeholders_stays_as_it_is(text: str) -> None:
    clean = text
    for name in PLACEHOLDERS:
        clean = clean.replace(f"{{{name}}}", "")
    assume(not any(f"{{{name}}}" in clean for name in PLACEHOLDERS))
    assert fill(clean, {}) == clean


@pytest.mark.parametrize("argument", ['{"a": {"b": 1}}', "{}", "{ port }", "a{b", "x{word}"])
def test_other_braces_are_text(argument: str) -> None:
    assert fill(argument, {}) == argument
    assert read_command({"argv": ["s", argument]}).argv[1] == argument


@pytest.mark.parametrize(
    ("argument", "name"),
    [
        ("--api-key", "--api-key"),
        ("--api_key=x", "--api-key"),
        ("--served_model_name=x", "--served-model-name"),
        ("--max_num-seqs=9", "--max-num-seqs"),
        ("--api-ke=x", "--api-key"),
        ("--api_key.a=x", "--api-key"),
        ("--no_enable_prompt_tokens_details", "--enable-prompt-tokens-details"),
        ("--runner", "--runner"),
        ("--config=/tmp/arguments.yaml", "--config"),
    ],
)
def test_what_penstock_decides_is_refused_however_vllm_lets_it_be_written(argument: str, name: str) -> None:
    assert name in RESERVED_ARGS
    with pytest.raises(OptionError, match=f"extra_args: {name} "):
        read_vllm({"extra_args": [argument]})


@pytest.mark.parametrize(
    "arguments",
    [
        ["--config-format", "mistral", "--tokenizer-mode", "mistral", "--load-format", "mistral"],
        ["--max-num-partial-prefills=2", "--model-impl", "auto", "--no-enable-chunked-prefill"],
        ["-O3", "--hf-overrides", '{"api_key": 1}', "/a/path"],
    ],
)
def test_other_arguments_pass(arguments: list[str]) -> None:
    assert read_vllm({"extra_args": arguments}).extra_args == tuple(arguments)


@pytest.mark.parametrize(
    ("name", "wrong", "right"),
    [
        ("start_limit_s", (0, -1, 86_401, 1e300), (1, 0.5, 86_400)),
        ("max_model_len", (0, -5, 2**31), (1, 131_072)),
        ("max_num_batched_tokens", (0, 2**40), (1, 8192)),
        ("omp_threads", (0, -1), (1, 64)),
        ("images_per_request", (-1,), (0, 8)),
        ("max_lora_rank", (0,), (1, 64)),
        ("gpu_memory_utilization", (0, -0.1, 1.01, 90), (0.01, 0.9, 1)),
    ],
)
def test_numbers_for_vllm_have_bounds(name: str, wrong: tuple[float, ...], right: tuple[float, ...]) -> None:
    for value in wrong:
        with pytest.raises(OptionError, match=f"vLLM option {name}: give "):
            read_vllm({name: value})
    for value in right:
        assert getattr(read_vllm({name: value}), name) == value
