"""Which runtime fits an artifact: a table of rules over the names of its files and what a few of them say.

Nobody opens anything here: whoever asks has looked (``serving.artifacts``). The first rule that fits decides, its
reason is shown to people, and what they say themselves goes before it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

EXAMPLE = "serving_input_example.json"
DESCRIPTIONS = ("config.json", "MLmodel", EXAMPLE)
"""Files whose contents the rules read, where they are there."""
_LARGEST_EXAMPLE = 16_384
"""Characters of an input example that becomes an option; each health check sends it."""
IMAGES_PER_REQUEST = 8
"""What a vision-language model takes at most where nobody says: each image costs memory that the engine sets aside."""


@dataclass(frozen=True, slots=True)
class Artifact:
    """``kind`` and ``value`` as in ``capacity.models.Model``. ``names``: its files' paths below it with ``/``, None
    where nobody could look (``unseen`` says why); ``files``: the contents of ``DESCRIPTIONS`` among them."""

    kind: str
    value: str = ""
    names: frozenset[str] | None = None
    files: Mapping[str, str] = field(default_factory=dict)
    unseen: str = ""


@dataclass(frozen=True, slots=True)
class Choice:
    """The runtime, options that it needs for this artifact, and why. ``missing``: what a person must still say."""

    runtime: str
    options: Mapping[str, Any]
    reason: str
    missing: str = ""


class Rule(NamedTuple):
    """``choose`` gives a choice where the rule fits, else None."""

    name: str
    choose: Callable[[Artifact], Choice | None]


def choose(artifact: Artifact) -> Choice:
    """The runtime for ``artifact``, by the first rule of ``RULES`` that fits."""
    for rule in RULES:
        if found := rule.choose(artifact):
            return found
    return Choice(
        "command",
        {},
        "Its files are of no kind that a runtime here is known to serve, so a server of your own must.",
        missing="Give the runtime command with argv, the program that serves it and its arguments.",
    )


def _no_weights(artifact: Artifact) -> Choice | None:
    if artifact.kind != "none":
        return None
    return Choice("simulated", {}, "The model has no weights, so the simulated engine answers in its place.")


def _tiny(artifact: Artifact) -> Choice | None:
    if artifact.kind != "tiny":
        return None
    if artifact.value == "embed":
        return Choice("vllm", {"task": "embed"}, "The built-in tiny embedding model: vLLM pools its vectors.")
    if artifact.value == "vision":
        options = {"images_per_request": IMAGES_PER_REQUEST}
        return Choice("vllm", options, "The built-in tiny vision-language model: vLLM generates with it.")
    return Choice("vllm", {}, "The built-in tiny language model: vLLM generates with it.")


def _unseen(artifact: Artifact) -> Choice | None:
    if artifact.names is not None:
        return None
    reason = f"{artifact.unseen or 'Its files could not be looked at'}, so it is taken for a causal language model"
    return Choice("vllm", {}, f"{reason}: set the runtime, or the option task, if it is another kind.")


def _mlflow(artifact: Artifact) -> Choice | None:
    if "MLmodel" not in _names(artifact):
        return None
    described = artifact.files.get("MLmodel", "")
    flavours = _flavours(described)
    if "python_function" in flavours:
        others = [name for name in flavours if name != "python_function"]
        saved = f" of {', '.join(others)}" if others else ""
        example = _example(artifact.files.get(EXAMPLE, ""))
        asked = " Its input example is what health checks ask." if example else ""
        reason = f"MLmodel describes a model{saved} with the python_function flavour.{asked}"
        return Choice("mlflow", {"probe_input": example} if example else {}, reason)
    return Choice(
        "command",
        {},
        "MLmodel describes no python_function flavour, which MLflow's scoring server needs.",
        missing="Save it with that flavour, or give the runtime command with argv.",
    )


def _example(text: str) -> dict[str, Any] | None:
    """The body that MLflow saved as an example for ``/invocations``, where it is one of moderate size."""
    if len(text) > _LARGEST_EXAMPLE:
        return None
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) and found else None


def _flavours(described: str) -> list[str]:
    """The names below ``flavors:`` of an MLmodel file (YAML, as MLflow writes it)."""
    found: list[str] = []
    is_inside = False
    for line in described.splitlines():
        if re.match(r"^\S", line):
            is_inside = line.startswith("flavors:")
        elif is_inside and (name := re.match(r"^ {2}([\w-]+):", line)):
            found.append(name[1])
    return found


def _triton(artifact: Artifact) -> Choice | None:
    names = _names(artifact)
    # Triton needs no config.pbtxt for some formats: then a numbered folder of a version is what tells.
    pattern = r"[\w.-]+/(config\.pbtxt|\d+)" if "config.json" not in names else r"[\w.-]+/config\.pbtxt"
    models = sorted({name.split("/", 1)[0] for name in names if re.fullmatch(pattern, name, re.ASCII)})
    if models:
        argv = ["tritonserver", "--model-repository={model}", "--http-address={host}", "--http-port={port}"]
        argv += ["--allow-grpc=false", "--allow-metrics=false"]
        asked = f"/v2/models/{models[0]}/infer"
        options = {"argv": argv, "readiness_path": "/v2/health/ready", "speaks": ["http"], "invocations_path": asked}
        reason = f"A Triton model repository: tritonserver of its host serves it, and requests go to {models[0]}."
        if len(models) > 1:
            others = ", ".join(models[1:4]) + (" and more" if len(models) > 4 else "")
            reason += f" Set invocations_path for another ({others})."
        return Choice("command", options, reason)
    if "config.pbtxt" in names:
        return Choice(
            "command",
            {},
            "One model of a Triton repository, not the repository.",
            missing="Name the folder above it, which tritonserver takes as its model repository.",
        )
    return None


def _sequence_classifier(artifact: Artifact) -> Choice | None:
    config = _config(artifact)
    found = _ending(config, "ForSequenceClassification", "ForRanking")
    if found is None:
        return None
    labels = _labels(config)
    if labels == 1 or found.endswith("ForRanking"):
        return Choice("vllm", {"task": "score"}, f"{found} with one label scores pairs of texts: a reranker.")
    return Choice(
        "command",
        {},
        f"{found} with {labels} labels classifies texts, which no API here asks for.",
        missing="Give the runtime command with argv, a server that answers POST /invocations.",
    )


def _labels(config: Mapping[str, Any]) -> int:
    """How many a classifier has; 2 where its configuration does not say, as in transformers."""
    stated, named = config.get("num_labels"), config.get("id2label")
    if isinstance(stated, int) and stated > 0:
        return stated
    return len(named) if isinstance(named, dict) and named else 2


def _embedding(artifact: Artifact) -> Choice | None:
    names, config = _names(artifact), _config(artifact)
    found = _ending(config, "Model", "ForTextEncoding", "EmbeddingModel", "ForMaskedLM")
    is_sentence = bool(names & {"modules.json", "config_sentence_transformers.json", "1_Pooling/config.json"})
    if is_sentence and config:
        what = found or (_architectures(config) or ["its architecture"])[0]
        return Choice("vllm", {"task": "embed"}, f"A sentence-transformers model ({what}): vLLM pools its vectors.")
    if found and not found.endswith("ForMaskedLM") and not found.endswith(("ChatModel", "LMHeadModel")):
        return Choice("vllm", {"task": "embed"}, f"{found} has no head that generates: vLLM pools its vectors.")
    return None


def _vision(artifact: Artifact) -> Choice | None:
    config = _config(artifact)
    found = _ending(config, "ForConditionalGeneration", "ForCausalLM", "ChatModel", "LMHeadModel")
    sees = any(name in config for name in ("vision_config", "vision_tower", "mm_vision_tower", "visual"))
    if not found or not sees:
        return None
    options = {"images_per_request": IMAGES_PER_REQUEST}
    return Choice("vllm", options, f"{found} with a vision tower takes images beside text: vLLM generates with it.")


def _causal(artifact: Artifact) -> Choice | None:
    config = _config(artifact)
    found = _ending(config, "ForCausalLM", "LMHeadModel", "ChatModel")
    if found is None:
        return None
    own = " It brings code of its own: set trust_remote_code if vLLM asks for it." if "auto_map" in config else ""
    return Choice("vllm", {}, f"{found} is a causal language model: vLLM generates with it.{own}")


def _mistral(artifact: Artifact) -> Choice | None:
    names = _names(artifact)
    if "params.json" not in names or not any(name.startswith("consolidated") for name in names):
        return None
    options = {"extra_args": ["--tokenizer-mode", "mistral", "--config-format", "mistral", "--load-format", "mistral"]}
    return Choice("vllm", options, "A language model in Mistral's own format: vLLM generates with it.")


def _gguf(artifact: Artifact) -> Choice | None:
    files = sorted(name for name in _names(artifact) if name.lower().endswith(".gguf") and "/" not in name)
    files = [name for name in files if not name.lower().startswith("mmproj")]
    if not files:
        return None
    # Of a model in parts the first is named, and brings the others.
    argv = ["llama-server", "--model", f"{{model}}/{files[0]}", "--host", "{host}", "--port", "{port}"]
    argv += ["--alias", "{name}", "--metrics"]
    options = {"argv": argv, "speaks": ["generate"], "metrics_path": "/metrics"}
    return Choice("command", options, f"{files[0]} is in GGUF: llama-server of its host serves it.")


RULES = (
    Rule("no weights", _no_weights),
    Rule("built-in tiny model", _tiny),
    Rule("nobody could look", _unseen),
    Rule("MLflow model", _mlflow),
    Rule("Triton repository", _triton),
    Rule("reranker or classifier", _sequence_classifier),
    Rule("embedding model", _embedding),
    Rule("vision-language model", _vision),
    Rule("causal language model", _causal),
    Rule("Mistral's format", _mistral),
    Rule("GGUF", _gguf),
)
"""In this order: an MLflow model may hold a ``config.json``, and sentence-transformers are of any architecture."""


def _names(artifact: Artifact) -> frozenset[str]:
    return artifact.names or frozenset()


def _config(artifact: Artifact) -> Mapping[str, Any]:
    """``config.json`` as an object; empty where it is none."""
    try:
        found = json.loads(artifact.files.get("config.json", "{}"))
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _architectures(config: Mapping[str, Any]) -> list[str]:
    listed = config.get("architectures")
    return [name[:100] for name in listed if isinstance(name, str)] if isinstance(listed, list) else []


def _ending(config: Mapping[str, Any], *endings: str) -> str | None:
    """The first architecture with one of ``endings``."""
    return next((name for name in _architectures(config) if name.endswith(endings)), None)
