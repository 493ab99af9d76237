"""What a revision may say of each runtime, what the engine then speaks, and how it is asked whether it serves.

Data and pure functions. The control plane checks options with it when a revision is made, the host agent again when it
carries out the order: they may be of different versions.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, Literal, TypeVar

import msgspec

Speak = Literal["generate", "embed", "score", "invocations", "http"]
"""What a client can ask of a deployment.

``generate``: completions and chat. ``embed``: embeddings. ``score``: score and rerank. ``invocations``: MLflow's
scoring protocol (``POST /invocations``). ``http``: requests of the server's own, answered at ``POST /invocations``.
"""
Proof = Literal["completion", "embedding", "ranking", "predictions", "answer", "status"]
"""What a 200 must hold to count as an answer: a choice, a vector, a ranked document, predictions, JSON that is no
error, or nothing beyond the status."""

PROBE_PRIORITY = -1000
"""Lower is sooner. Warm-up and health probes overtake everything that waits; gateways never send one below 0."""
LONGEST_REQUEST_S = 10.0
INVOCATIONS_PATH = "/invocations"
RESERVED_ARGS = (
    "--host", "--port", "--model", "--served-model-name", "--uds", "--api-key", "--scheduling-policy", "--runner",
    "--max-num-seqs", "--enable-prompt-tokens-details", "--enable-server-load-tracking", "--root-path", "--config",
)  # fmt: skip
"""vLLM's arguments that Penstock relies on, and so decides itself. A file of ``--config`` could hold any of them."""
_MOST_TOKENS = 2**31 - 1
PLACEHOLDERS = ("host", "port", "model", "name")
"""What ``{...}`` may stand for in a command's arguments and environment."""
_PLACEHOLDER = re.compile(r"\{(" + "|".join(PLACEHOLDERS) + r")\}")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_OWN_VARIABLE = "PENSTOCK_"


class OptionError(ValueError):
    """An order asks for something the runtime cannot do; the message says what to change."""


class VllmOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """``kv_cache_bytes`` and ``omp_threads`` matter on CPU, the GPU fields on CUDA.

    ``task`` ``embed`` and ``score`` serve with the pooling runner. ``images_per_request`` is what a vision-language
    model takes at most; ``mm_processor_kwargs`` goes to its image processor, e.g. ``{"max_pixels": 1003520}``.
    ``adapters``: LoRA adapters by the name that clients ask for, each a folder on the host; ``max_lora_rank`` bounds
    their rank (vLLM's own bound without it).
    """

    task: Literal["generate", "embed", "score"] = "generate"
    max_model_len: int | None = None
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = "auto"
    quantization: str = ""
    max_num_batched_tokens: int | None = None
    kv_cache_bytes: int | None = None
    omp_threads: int | None = None
    gpu_memory_utilization: float | None = None
    pipeline_parallel_size: int = 1
    prefix_caching: bool = True
    trust_remote_code: bool = False
    tool_call_parser: str = ""
    reasoning_parser: str = ""
    chat_template: str = ""
    images_per_request: int | None = None
    mm_processor_kwargs: dict[str, Any] = {}
    adapters: dict[str, str] = {}
    max_lora_rank: int | None = None
    extra_args: tuple[str, ...] = ()
    start_limit_s: float | None = None


class MlflowOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """``probe_input`` is a body for ``/invocations``, e.g. ``{"inputs": [[5.1, 3.5, 1.4, 0.2]]}``: warm-up and health
    checks then ask for a real prediction. Without it the server's own ``/ping`` must do. ``longest_request_s``: so long
    one request may keep the server from answering another; a health check waits for three of them."""

    probe_input: dict[str, Any] | None = None
    threads: int | None = None
    start_limit_s: float | None = None
    longest_request_s: float = LONGEST_REQUEST_S


class CommandProbe(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How a command's server is asked whether it serves: GET ``path``, or POST ``body`` to it."""

    path: str
    body: dict[str, Any] | None = None


class CommandOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Any HTTP server as an engine. ``argv`` is started as it is, by no shell.

    Arguments and values of ``env`` may hold ``{host}``, ``{port}``, ``{model}`` (the model's folder or hub id) and
    ``{name}`` (what clients send as model); other braces are text. ``readiness_path`` must answer 200 within
    ``start_limit_s`` seconds of the launch. ``metrics_path``: a Prometheus page with vLLM's or llama.cpp's metric
    names, if any. ``invocations_path``: where the server answers what clients ask at ``/invocations``.
    ``longest_request_s`` as for MLflow.
    """

    argv: tuple[str, ...]
    env: dict[str, str] = {}
    readiness_path: str = "/health"
    start_limit_s: float = 300.0
    speaks: tuple[Speak, ...] = ("generate",)
    probe: CommandProbe | None = None
    metrics_path: str = ""
    invocations_path: str = INVOCATIONS_PATH
    stop_grace_s: float = 10.0
    longest_request_s: float = LONGEST_REQUEST_S


Options = VllmOptions | MlflowOptions | CommandOptions
_Options = TypeVar("_Options", VllmOptions, MlflowOptions, CommandOptions)


class ProbeRequest(msgspec.Struct, frozen=True, kw_only=True):
    """A request that only a serving engine answers. ``body`` None: GET, else POST as JSON."""

    path: str
    body: dict[str, Any] | None
    proof: Proof


def read_vllm(raw: Mapping[str, Any]) -> VllmOptions:
    """Raises OptionError that names the option."""
    options = _read("vLLM", VllmOptions, raw)
    for argument in options.extra_args:
        if name := _reserved(argument):
            what = "follows from the option task" if name == "--runner" else "is decided by Penstock"
            raise OptionError(f"vLLM option extra_args: {name} {what}; remove {argument.split('=', 1)[0]}.")
    _require_seconds("vLLM", start_limit_s=options.start_limit_s)
    for name, least in (
        ("max_model_len", 1),
        ("max_num_batched_tokens", 1),
        ("omp_threads", 1),
        ("images_per_request", 0),
        ("max_lora_rank", 1),
    ):
        value = getattr(options, name)
        if value is not None and not least <= value <= _MOST_TOKENS:
            raise OptionError(f"vLLM option {name}: give a number from {least} to {_MOST_TOKENS}, or leave it out.")
    if options.gpu_memory_utilization is not None and not 0 < options.gpu_memory_utilization <= 1:
        raise OptionError("vLLM option gpu_memory_utilization: give a share above 0, at most 1, or leave it out.")
    for name, folder in options.adapters.items():
        if not re.fullmatch(r"[A-Za-z0-9._:/-]{1,200}", name):
            raise OptionError(f"vLLM option adapters: {name[:60]!r} is no name: letters, digits and . _ : / - only.")
        if not folder.startswith("/"):
            raise OptionError(f"vLLM option adapters: give {name!r} as the absolute path of a folder on the host.")
    if options.adapters and options.task != "generate":
        raise OptionError(f"vLLM option adapters: a model of task {options.task} takes none; remove it.")
    if options.task != "generate":
        idle = [n for n in ("tool_call_parser", "reasoning_parser", "chat_template") if getattr(options, n)]
        if idle:
            raise OptionError(f"vLLM option {idle[0]}: a model of task {options.task} generates nothing; remove it.")
    return options


def _reserved(argument: str) -> str:
    """Which of ``RESERVED_ARGS`` vLLM's parser would take the argument for; empty if none.

    To it ``_`` is ``-``, what follows a dot is a member of the value, ``--no-`` turns a switch off, and the beginning
    of a name is as good as the whole.
    """
    if not argument.startswith("--"):
        return ""
    name = argument.split("=", 1)[0].split(".", 1)[0].replace("_", "-")
    names = {name, name.replace("--no-", "--", 1)} - {"--"}
    return next((one for one in RESERVED_ARGS if any(one.startswith(each) for each in names)), "")


def read_mlflow(raw: Mapping[str, Any]) -> MlflowOptions:
    """Raises OptionError that names the option."""
    options = _read("MLflow", MlflowOptions, raw)
    if options.threads is not None and options.threads < 1:
        raise OptionError("MLflow option threads: give a number from 1, or leave it out.")
    _require_seconds("MLflow", start_limit_s=options.start_limit_s, longest_request_s=options.longest_request_s)
    return options


def read_command(raw: Mapping[str, Any]) -> CommandOptions:
    """Raises OptionError that names the option."""
    options = _read("command", CommandOptions, raw)
    if not options.argv or not options.argv[0]:
        raise OptionError("command option argv: give the program and its arguments as a list.")
    if not options.speaks:
        raise OptionError("command option speaks: say what clients can ask of the server, e.g. ['generate'].")
    for text in (*options.argv, *options.env.values()):
        if "\0" in text:
            raise OptionError("command option argv: no argument may hold a NUL character.")
        if (alone := re.fullmatch(r"\{(\w+)\}", text)) and alone[1] not in PLACEHOLDERS:
            known = ", ".join(f"{{{each}}}" for each in PLACEHOLDERS)
            raise OptionError(f"command option argv: {text} stands for nothing; {known} do.")
    for name in options.env:
        if not _VARIABLE.fullmatch(name):
            raise OptionError(f"command option env: {name!r} is no name of a variable.")
        if name.startswith(_OWN_VARIABLE):
            raise OptionError(f"command option env: {name} is Penstock's own; choose another name.")
    paths = {name: getattr(options, name) for name in ("readiness_path", "invocations_path")}
    paths |= {"metrics_path": options.metrics_path or "/"}
    paths |= {"probe.path": options.probe.path} if options.probe else {}
    for name, path in paths.items():
        if not re.fullmatch(r"/(?!/)[!-~]*", path):
            raise OptionError(f"command option {name}: give a path of the server in ASCII that begins with one /.")
    limits = {name: getattr(options, name) for name in ("start_limit_s", "stop_grace_s", "longest_request_s")}
    _require_seconds("command", **limits)
    return options


def fill(text: str, values: Mapping[str, str]) -> str:
    """Put ``values`` in place of ``{host}``, ``{port}``, ``{model}`` and ``{name}``; other braces are text."""
    return _PLACEHOLDER.sub(lambda found: values[found[1]], text)


def _require_seconds(runtime: str, **limits: float | None) -> None:
    for name, value in limits.items():
        if value is not None and not 0 < value <= 86_400:
            raise OptionError(f"{runtime} option {name}: give seconds above 0, at most 86400.")


def _read(runtime: str, shape: type[_Options], raw: Mapping[str, Any]) -> _Options:
    try:
        return msgspec.convert(raw, shape)
    except msgspec.ValidationError as error:
        words, _, where = str(error).partition(" - at `$.")
        name = f" {where.rstrip('`')}" if where else ""
        known = ", ".join(shape.__struct_fields__)
        raise OptionError(f"{runtime} option{name}: {words}. Known options: {known}.") from error


READERS: Mapping[str, Callable[[Mapping[str, Any]], Options]] = {
    "vllm": read_vllm,
    "mlflow": read_mlflow,
    "command": read_command,
}
"""Who checks the options of a runtime. The simulated engine checks its own."""


_SPOKEN: Mapping[str, tuple[Speak, ...]] = {
    "generate": ("generate",),
    # An embedding model also scores pairs of texts, by the cosine of their vectors.
    "embed": ("embed", "score"),
    "score": ("score",),
}


def speaks(runtime: str, raw: Mapping[str, Any]) -> tuple[Speak, ...]:
    """What a deployment with these options speaks. Raises OptionError for options that cannot be read."""
    options = READERS[runtime](raw) if runtime in READERS else None
    if isinstance(options, VllmOptions):
        return _SPOKEN[options.task]
    if isinstance(options, MlflowOptions):
        return ("invocations",)
    if isinstance(options, CommandOptions):
        return tuple(dict.fromkeys(options.speaks))
    return ("generate",)


def adapters(runtime: str, raw: Mapping[str, Any]) -> tuple[str, ...]:
    """Names of the LoRA adapters that these options serve. Options that cannot be read serve none."""
    try:
        return tuple(sorted(read_vllm(raw).adapters)) if runtime == "vllm" else ()
    except OptionError:
        return ()


def probe_request(runtime: str, raw: Mapping[str, Any], *, model: str) -> ProbeRequest:
    """How an engine is asked whether it serves ``model``: the cheapest thing that only a working one can answer.

    Raises OptionError for options that cannot be read.
    """
    options = READERS[runtime](raw) if runtime in READERS else None
    if isinstance(options, MlflowOptions):
        if options.probe_input is None:
            return ProbeRequest(path="/ping", body=None, proof="status")
        return ProbeRequest(path="/invocations", body=options.probe_input, proof="predictions")
    if isinstance(options, CommandOptions):
        if options.probe is not None:
            proof: Proof = "status" if options.probe.body is None else "answer"
            return ProbeRequest(path=options.probe.path, body=options.probe.body, proof=proof)
        if options.speaks[0] not in _CHEAPEST:
            return ProbeRequest(path=options.readiness_path, body=None, proof="status")
        path, body, proof = _CHEAPEST[options.speaks[0]]
        return ProbeRequest(path=path, body={"model": model, **body}, proof=proof)
    path, body, proof = _CHEAPEST[options.task if options else "generate"]
    return ProbeRequest(path=path, body={"model": model, **body, "priority": PROBE_PRIORITY}, proof=proof)


_CHEAPEST: Mapping[str, tuple[str, dict[str, Any], Proof]] = {
    "generate": ("/v1/completions", {"prompt": "1", "max_tokens": 1, "temperature": 0}, "completion"),
    "embed": ("/v1/embeddings", {"input": "1"}, "embedding"),
    "score": ("/v1/rerank", {"query": "1", "documents": ["1"]}, "ranking"),
}
"""By what is spoken: path, body and proof of the cheapest request."""
