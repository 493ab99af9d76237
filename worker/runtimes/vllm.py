"""vLLM: two launch tables, one for CPU and one for CUDA. Figures and failure texts were measured on vLLM 0.32.0.

CPU takes eager mode, a single process (no separate worker: 1 GB and 7 s less) and a KV cache of explicit size (vLLM
would else reserve 0.92 of all memory and die when others use it). CUDA takes none of these.
"""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Literal, cast

from worker.environments import interpreter
from worker.options import PROBE_PRIORITY as PROBE_PRIORITY
from worker.options import VllmOptions as VllmOptions
from worker.options import probe_request, read_vllm
from worker.runtimes.base import (
    CostMethod,
    EnvironmentSpec,
    HostFacts,
    LaunchPlan,
    MetricTable,
    OptionError,
    Readiness,
    WeightsSpec,
)
from worker.spec import ReplicaOrder
from worker.weights import TINY_NAMES

TINY_KV_BYTES = 64 * 1024 * 1024
CPU_KV_BYTES = 1024 * 1024 * 1024
MAX_LORAS = 8
"""Adapters that one batch may mix: each takes memory. vLLM takes turns with more."""
LONG_PREFILL_TOKENS = 512
"""What the gate's figures were found with (``bench/fairness``). vLLM knows the argument since 0.8."""
_LONG_PREFILL = "--long-prefill-token-threshold"
_CONTEXT_NAMES = ("max_position_embeddings", "n_positions", "max_sequence_length", "seq_length", "max_seq_len")
METRICS: MetricTable = {
    "running": ("vllm:num_requests_running",),
    "waiting": ("vllm:num_requests_waiting",),
    "kv_usage": ("vllm:kv_cache_usage_perc", "vllm:gpu_cache_usage_perc"),
    "preemptions_total": ("vllm:num_preemptions_total",),
    "prompt_tokens_total": ("vllm:prompt_tokens_total",),
    "cached_tokens_total": ("vllm:prompt_tokens_cached_total", "vllm:prefix_cache_hits_total"),
    "generation_tokens_total": ("vllm:generation_tokens_total",),
    "ttft_seconds_sum": ("vllm:time_to_first_token_seconds_sum",),
    "ttft_seconds_count": ("vllm:time_to_first_token_seconds_count",),
    "itl_seconds_sum": ("vllm:inter_token_latency_seconds_sum", "vllm:time_per_output_token_seconds_sum"),
    "itl_seconds_count": ("vllm:inter_token_latency_seconds_count", "vllm:time_per_output_token_seconds_count"),
    "requests_total": ("vllm:request_success_total",),
    "process_start_seconds": ("process_start_time_seconds",),
}


def max_num_seqs(target_concurrency: int) -> int:
    """Slots of the running batch: the target, one for the probe (priority alone does not free a slot), and slack."""
    return target_concurrency + 1 + max(1, target_concurrency // 8)


def omp_threads(host: HostFacts, options: VllmOptions) -> int:
    """Threads of one CPU engine: its share of the cores this host may use, never of those it merely has."""
    return options.omp_threads or max(1, math.floor(host.cores / max(1, host.engines)))


class VllmRuntime:
    """vLLM's OpenAI-compatible server."""

    name = "vllm"

    def environment(self, *, order: ReplicaOrder, host: HostFacts) -> EnvironmentSpec:
        if order.accelerators and not host.has_cuda:
            raise OptionError(
                "The order names accelerators, but this host shows none: check the NVIDIA driver (nvidia-smi)."
            )
        if order.accelerators:
            return EnvironmentSpec(name="vllm-cuda")
        # A model with a vision tower needs torchvision to be loaded at all, also where it is to take no image.
        takes_images = read_vllm(order.options).images_per_request is not None
        return EnvironmentSpec(name="vllm-cpu-vision" if takes_images else "vllm-cpu")

    def weights(self, *, order: ReplicaOrder) -> WeightsSpec:
        kind, value = order.artifact.get("kind", ""), order.artifact.get("value", "")
        if kind not in ("tiny", "path", "hub"):
            raise OptionError(
                f"vLLM serves a local folder, a hub id or the built-in tiny model, not {kind or 'nothing'!r}."
            )
        if kind != "tiny" and not value:
            raise OptionError(f"The model names no {'folder' if kind == 'path' else 'hub id'}: set it.")
        if kind == "tiny" and value not in TINY_NAMES:
            known = " and ".join(repr(each) for each in TINY_NAMES if each)
            raise OptionError(f"There is no built-in tiny model {value!r}: leave its value empty, or give {known}.")
        known_kind = cast(Literal["tiny", "path", "hub"], kind)
        return WeightsSpec(kind=known_kind, value=value, revision=order.artifact.get("revision", ""))

    def launch_plan(
        self, *, order: ReplicaOrder, host: HostFacts, environment: Path | None, weights: Path | None, port: int
    ) -> LaunchPlan:
        if environment is None or weights is None:
            raise OptionError("vLLM needs an environment and weights before it can be launched.")
        options = read_vllm(order.options)
        is_cuda = bool(order.accelerators)
        proof = probe_request(self.name, order.options, model=order.served_name)
        argv = [str(interpreter(environment)), "-m", "vllm.entrypoints.openai.api_server"]
        argv += ["--model", str(weights), "--served-model-name", order.served_name]
        argv += ["--host", "127.0.0.1", "--port", str(port)]
        argv += _common_arguments(order, options)
        argv += _prefill_arguments(options, weights)
        argv += _cuda_arguments(order, options) if is_cuda else _cpu_arguments(order, options)
        argv += options.extra_args
        return LaunchPlan(
            argv=tuple(argv),
            env=_cuda_environment(order) if is_cuda else _cpu_environment(host, options),
            host="127.0.0.1",
            port=port,
            readiness=Readiness(
                health_path="/health",
                warm_up_path=proof.path,
                warm_up_body=proof.body,
                start_limit_s=options.start_limit_s or (1200.0 if is_cuda else 300.0),
                warm_up_limit_s=120.0,
            ),
        )

    def metric_table(self, engine_version: str) -> MetricTable:
        return METRICS

    def cost_method(self, *, order: ReplicaOrder) -> CostMethod:
        # On a shared CPU elapsed time tells more of the neighbours than of the engine.
        return "saturated" if order.accelerators else "engine_cpu"

    def explain_exit(self, *, exit_code: int | None, log_tail: str) -> str:
        for pattern, words in EXITS:
            if found := pattern.search(log_tail):
                return words.format(**{k: v or "" for k, v in found.groupdict().items()})
        return ""


def _common_arguments(order: ReplicaOrder, options: VllmOptions) -> list[str]:
    arguments = ["--max-num-seqs", str(max_num_seqs(order.target_concurrency))]
    arguments += ["--scheduling-policy", "priority", "--enable-prompt-tokens-details", "--enable-server-load-tracking"]
    # The gateway writes one line per request already; vLLM's own would be most of the log.
    arguments += ["--disable-uvicorn-access-log"]
    arguments += ["--enable-prefix-caching" if options.prefix_caching else "--no-enable-prefix-caching"]
    if options.max_model_len is not None:
        arguments += ["--max-model-len", str(options.max_model_len)]
    if options.dtype != "auto":
        arguments += ["--dtype", options.dtype]
    if options.quantization:
        arguments += ["--quantization", options.quantization]
    if options.max_num_batched_tokens is not None:
        arguments += ["--max-num-batched-tokens", str(options.max_num_batched_tokens)]
    if options.trust_remote_code:
        arguments += ["--trust-remote-code"]
    if options.tool_call_parser:
        arguments += ["--enable-auto-tool-choice", "--tool-call-parser", options.tool_call_parser]
    if options.reasoning_parser:
        arguments += ["--reasoning-parser", options.reasoning_parser]
    if options.chat_template:
        arguments += ["--chat-template", options.chat_template]
    if options.adapters:
        arguments += ["--enable-lora", "--max-loras", str(min(len(options.adapters), MAX_LORAS))]
        arguments += ["--max-lora-rank", str(options.max_lora_rank)] if options.max_lora_rank else []
        arguments += ["--lora-modules", *(f"{name}={folder}" for name, folder in sorted(options.adapters.items()))]
    return arguments + _kind_arguments(options)


def _prefill_arguments(options: VllmOptions, weights: Path) -> list[str]:
    """One long prompt takes so many tokens of a step at most while others are there: the gate reckons with it. vLLM
    refuses more than the context; where nobody knows that, its own default stays, and so does what ``extra_args`` say.
    """
    context = options.max_model_len or context_of(weights)
    named = [argument.partition("=")[0].replace("_", "-") for argument in options.extra_args]
    if options.task != "generate" or context is None or _LONG_PREFILL in named:
        return []
    return [_LONG_PREFILL, str(min(LONG_PREFILL_TOKENS, context))]


def context_of(weights: Path) -> int | None:
    """The context length in tokens that a model's folder states; None where it states none that can be read."""
    try:
        stated = json.loads((weights / "config.json").read_text(encoding="utf-8"))
        of_text = stated.get("text_config") or {}
        found = [part.get(name) for part in (stated, of_text) for name in _CONTEXT_NAMES]
    except (OSError, ValueError, AttributeError):
        return None
    return min((value for value in found if isinstance(value, int) and value > 0), default=None)


def _kind_arguments(options: VllmOptions) -> list[str]:
    """What kind of model it is: pooling instead of generation, images beside text."""
    arguments: list[str] = []
    if options.task != "generate":
        arguments += ["--runner", "pooling"]
    if options.task == "embed":
        # Also makes an embedding model of a causal one; one that is an embedding model already stays as it is.
        arguments += ["--convert", "embed"]
    if options.images_per_request is not None:
        arguments += ["--limit-mm-per-prompt", json.dumps({"image": options.images_per_request})]
    if options.mm_processor_kwargs:
        arguments += ["--mm-processor-kwargs", json.dumps(options.mm_processor_kwargs, sort_keys=True)]
    return arguments


def _cpu_arguments(order: ReplicaOrder, options: VllmOptions) -> list[str]:
    default = TINY_KV_BYTES if order.artifact.get("kind") == "tiny" else CPU_KV_BYTES
    return ["--enforce-eager", "--kv-cache-memory-bytes", str(options.kv_cache_bytes or default)]


def _cuda_arguments(order: ReplicaOrder, options: VllmOptions) -> list[str]:
    count, stages = len(order.accelerators), options.pipeline_parallel_size
    if stages < 1 or count % stages:
        raise OptionError(f"pipeline_parallel_size {stages} does not divide the {count} accelerators of the replica.")
    arguments = ["--tensor-parallel-size", str(count // stages)]
    arguments += ["--pipeline-parallel-size", str(stages)] if stages > 1 else []
    if options.gpu_memory_utilization is not None:
        arguments += ["--gpu-memory-utilization", str(options.gpu_memory_utilization)]
    if options.kv_cache_bytes is not None:
        arguments += ["--kv-cache-memory-bytes", str(options.kv_cache_bytes)]
    return arguments


BASE_ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "NO_COLOR": "1",
    "TOKENIZERS_PARALLELISM": "false",
    # As the gateway allows (docs/dialects.md), which reads only what a file says of itself.
    "VLLM_MAX_IMAGE_PIXELS": "64000000",
    # vLLM renames its processes; without this the rename overwrites the environment and with it our markers.
    "SPT_NOENV": "1",
}


def _cpu_environment(host: HostFacts, options: VllmOptions) -> dict[str, str]:
    return BASE_ENVIRONMENT | {
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        # The default pins every engine of a host to the same cores.
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "OMP_NUM_THREADS": str(omp_threads(host, options)),
        "CUDA_VISIBLE_DEVICES": "",
    }


def _cuda_environment(order: ReplicaOrder) -> dict[str, str]:
    return BASE_ENVIRONMENT | {
        "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
        "CUDA_VISIBLE_DEVICES": ",".join(map(str, order.accelerators)),
    }


def _exit(pattern: str, words: str) -> tuple[re.Pattern[str], str]:
    return re.compile(pattern, re.IGNORECASE), words


EXITS = (
    _exit(r"address already in use", "The engine's port was taken by another process: retry, another port is chosen."),
    _exit(
        r"unrecognized arguments: (?P<what>[^\n]+)",
        "vLLM does not know the argument {what}: correct extra_args of the revision.",
    ),
    _exit(
        r"argument (?P<what>--\S+?): (?P<why>[^\n]+)",
        "vLLM refuses the value of {what} ({why}): correct the revision's options.",
    ),
    _exit(
        r"This model does not support `--runner pooling`",
        "The model can be no embedding model or reranker: leave out the option task.",
    ),
    _exit(
        r"CUDA out of memory|torch\.OutOfMemoryError|CUDA error: out of memory",
        "The accelerator's memory is full: free it, use more accelerators, or lower max_model_len or "
        "gpu_memory_utilization.",
    ),
    _exit(
        r"Free memory on device .*? is less than desired",
        "Too little accelerator memory is free: another process uses it, or gpu_memory_utilization is too high.",
    ),
    _exit(
        r"KV cache is needed, which is larger than the available KV cache",
        "The KV cache does not hold one request of full length: raise kv_cache_bytes or lower max_model_len.",
    ),
    _exit(
        r"Available memory on node .*?(less than desired|Decrease --kv-cache-memory-bytes)",
        "Too little memory is free for the KV cache: lower kv_cache_bytes, or free memory on the host.",
    ),
    _exit(
        r"cannot allocate memory|std::bad_alloc|DefaultCPUAllocator: can't allocate memory",
        "The host's memory is full: stop other engines, or use a smaller model or KV cache.",
    ),
    _exit(
        r"User-specified max_model_len \((?P<len>\d+)\) is greater than",
        "max_model_len {len} is more than the model supports: lower it in the revision.",
    ),
    _exit(
        r"Repo id must be in the form|does not appear to have a file named config\.json|"
        r"Invalid repository ID or local directory|no such file or directory: .*config\.json",
        "The weights folder is not a model vLLM can read (no usable config.json): check the model's path.",
    ),
    _exit(
        r"No module named 'torchvision'|`?torchvision`? library but it was not found",
        "The model takes images, for which vLLM needs another environment: set images_per_request in the revision.",
    ),
    _exit(
        r"Model architectures (?P<what>\[[^\]]*\]) (are not supported|failed to be inspected)",
        "vLLM cannot serve the architecture {what} in this environment: choose another model or engine version.",
    ),
    _exit(
        r"contains custom code which must be executed|trust_remote_code",
        "The model brings its own code: set trust_remote_code in the revision if you trust its publisher.",
    ),
    _exit(
        r"ModuleNotFoundError: No module named '(?P<what>[^']+)'",
        "The engine's environment lacks the module {what}: delete the environment's folder and retry.",
    ),
    _exit(
        r"EngineDeadError|EngineCore encountered an issue|Engine core proc .* died",
        "vLLM's engine core died while the server ran: see the log for its last words.",
    ),
)
"""What vLLM's last words mean. The first that matches counts, the most specific come first."""
