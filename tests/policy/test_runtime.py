"""Which runtime fits which artifact: the table, row by row, and that nothing makes it raise."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.options import engine_errors, spoken
from serving.policy.runtime import Artifact, choose

HF = ("config.json", "model.safetensors", "tokenizer.json")
SENTENCES = (*HF, "modules.json", "1_Pooling/config.json")
MLMODEL = """artifact_path: model
flavors:
  python_function:
    env:
      conda: conda.yaml
    loader_module: mlflow.sklearn
  sklearn:
    code: null
    pickled_model: model.skops
model_uuid: 0123
"""


def hf(architecture: str, names: tuple[str, ...] = HF, **config: Any) -> Artifact:
    files = {"config.json": json.dumps({"architectures": [architecture], **config})}
    return Artifact("path", "/m", frozenset(names), files)


def folder(*names: str, **files: str) -> Artifact:
    return Artifact("path", "/m", frozenset(names) | set(files), files)


@pytest.mark.parametrize(
    ("artifact", "runtime", "task"),
    [
        (Artifact("none"), "simulated", None),
        (Artifact("tiny"), "vllm", None),
        (Artifact("tiny", "embed"), "vllm", "embed"),
        (Artifact("tiny", "vision"), "vllm", None),
        (Artifact("hub", "org/name"), "vllm", None),
        (hf("LlamaForCausalLM"), "vllm", None),
        (hf("GPT2LMHeadModel"), "vllm", None),
        (hf("Qwen3ForCausalLM", SENTENCES), "vllm", "embed"),
        (hf("Qwen3Model"), "vllm", "embed"),
        (hf("BertModel", SENTENCES), "vllm", "embed"),
        (hf("BertForMaskedLM", SENTENCES), "vllm", "embed"),
        (hf("BertForMaskedLM"), "command", None),
        (hf("BertForSequenceClassification", num_labels=1), "vllm", "score"),
        (hf("BertForSequenceClassification", id2label={"0": "LABEL_0"}), "vllm", "score"),
        (hf("BertForSequenceClassification", id2label={"0": "bad", "1": "good"}), "command", None),
        (hf("BertForSequenceClassification"), "command", None),
        (hf("Qwen2VLForConditionalGeneration", vision_config={}), "vllm", None),
        (hf("Phi3VForCausalLM", vision_config={}), "vllm", None),
        (hf("T5ForConditionalGeneration"), "command", None),
        (folder(MLmodel=MLMODEL), "mlflow", None),
        (folder("model/config.json", "config.json", MLmodel=MLMODEL), "mlflow", None),
        (folder(MLmodel="flavors:\n  spark:\n    x: 1\n"), "command", None),
        (folder(MLmodel="flavors:\nother:\n  python_function:\n"), "command", None),
        (folder("resnet/config.pbtxt", "resnet/1"), "command", None),
        (folder("resnet/1"), "command", None),
        (folder("config.pbtxt", "1/model.onnx"), "command", None),
        (folder("params.json", "consolidated.safetensors"), "vllm", None),
        (folder("model-Q4_K_M.gguf", "mmproj-model.gguf"), "command", None),
        (folder(), "command", None),
        (folder("readme.md"), "command", None),
    ],
)
def test_the_table(artifact: Artifact, runtime: str, task: str | None) -> None:
    found = choose(artifact)
    assert (found.runtime, found.options.get("task")) == (runtime, task)
    assert found.reason.endswith((".", "kind."))
    if found.missing:
        assert found.runtime == "command"
        assert not found.options
    else:
        assert engine_errors(found.runtime, found.options) == [], "what is chosen can be made a revision"
        assert spoken(found.runtime, found.options)


def test_images_are_bounded_and_reasons_name_what_decided() -> None:
    seen = choose(hf("Qwen2VLForConditionalGeneration", vision_config={}))
    assert seen.options == {"images_per_request": 8}
    assert "Qwen2VLForConditionalGeneration" in seen.reason
    assert choose(Artifact("tiny", "vision")).options == seen.options
    assert "set trust_remote_code" in choose(hf("OwnForCausalLM", auto_map={"AutoModel": "x"})).reason
    assert "sklearn" in choose(folder(MLmodel=MLMODEL)).reason
    assert "set the runtime" in choose(Artifact("path", "/m", unseen="Its folder is far away")).reason
    triton = choose(folder(*(f"{name}/config.pbtxt" for name in "bacde")))
    assert "requests go to a. Set invocations_path for another (b, c, d and more)." in triton.reason
    assert triton.options["argv"][0] == "tritonserver"
    assert triton.options["invocations_path"] == "/v2/models/a/infer"
    assert choose(folder("only/1")).reason.endswith("requests go to only.")
    assert "the folder above" in choose(folder("config.pbtxt")).missing
    gguf = choose(folder("mmproj-a.gguf", "b-00001-of-00002.gguf", "b-00002-of-00002.gguf"))
    assert "{model}/b-00001-of-00002.gguf" in gguf.options["argv"]


@pytest.mark.parametrize(
    ("example", "probe"),
    [
        ('{"inputs": [[5.1, 3.5]]}', {"inputs": [[5.1, 3.5]]}),
        ("[1]", None),
        ("{}", None),
        ("{", None),
        ('{"inputs": ["' + "x" * 20_000 + '"]}', None),
    ],
)
def test_health_checks_ask_the_example_that_mlflow_saved(example: str, probe: Any) -> None:
    found = choose(folder(**{"MLmodel": MLMODEL, "serving_input_example.json": example}))
    assert found.options == ({"probe_input": probe} if probe else {})
    assert engine_errors("mlflow", found.options) == []


@pytest.mark.parametrize(
    "config",
    [
        {"architectures": "LlamaForCausalLM"},
        {"architectures": [1, None]},
        {"architectures": ["XForSequenceClassification"], "id2label": True, "num_labels": "one"},
        {"architectures": None, "vision_config": 1},
        [],
        "text",
    ],
)
def test_a_strange_configuration_is_no_known_kind(config: Any) -> None:
    assert choose(Artifact("path", "/m", frozenset(HF), {"config.json": json.dumps(config)})).runtime == "command"


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
NAMES = st.sampled_from(("architectures", "id2label", "num_labels", "vision_config", "auto_map"))
CONFIG = st.dictionaries(NAMES, JSON | st.just(["XForSequenceClassification"]) | st.just(["XForCausalLM"]))


@given(
    kind=st.sampled_from(("tiny", "path", "hub", "none")),
    names=st.none() | st.frozensets(st.sampled_from((*SENTENCES, "MLmodel", "a.gguf", "m/config.pbtxt")) | st.text()),
    config=CONFIG.map(json.dumps) | st.text(),
    described=st.text() | st.just(MLMODEL),
)
def test_no_files_make_it_raise(kind: str, names: frozenset[str] | None, config: str, described: str) -> None:
    found = choose(Artifact(kind, "", names, {"config.json": config, "MLmodel": described}))
    assert found.runtime in ("vllm", "mlflow", "command", "simulated")
    assert found.reason
