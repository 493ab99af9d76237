"""A LoRA adapter on real vLLM, asked for by its own name by both official clients."""

from __future__ import annotations

import json
import random
import struct
from pathlib import Path

import anthropic
import openai
import pytest

from tests.e2e.conformance import address_of
from tests.e2e.stack import Stack, wait_for

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.vllm,
    pytest.mark.slow,
    pytest.mark.timeout(1200),
    pytest.mark.together("stack"),
]

RANK, HIDDEN, LAYERS = 8, 64, 2
DEPLOY = """
from capacity.models import Model, Pool
from capacity.services.pools import pool_create
from penstock.demo import this_hardware
from serving.services.deployments import deployment_create
pool = pool_create(
    name="Adapted", model=Model.objects.get(slug="demo-tiny"), hardware_type=this_hardware(), actor="test"
)
deployment_create(
    pool=pool, name="adapted", runtime="vllm", options={"adapters": {"adapted:law": %r}, "max_model_len": 2048},
    actor="test",
)
"""


def save_adapter(folder: Path) -> None:
    """A random adapter of the tiny model's attention, as PEFT saves one."""
    folder.mkdir()
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": RANK,
        "lora_alpha": 64,
        "target_modules": ["q_proj", "v_proj"],
        "lora_dropout": 0.0,
        "bias": "none",
        "base_model_name_or_path": "tiny",
    }
    (folder / "adapter_config.json").write_text(json.dumps(config))
    dice, header, data = random.Random(1), {}, b""
    for layer in range(LAYERS):
        for part in ("q_proj", "v_proj"):
            for name, shape in (("lora_A", [RANK, HIDDEN]), ("lora_B", [HIDDEN, RANK])):
                values = [dice.gauss(0.0, 1.0) for _ in range(RANK * HIDDEN)]
                raw = struct.pack(f"<{len(values)}f", *values)
                at = f"base_model.model.model.layers.{layer}.self_attn.{part}.{name}.weight"
                header[at] = {"dtype": "F32", "shape": shape, "data_offsets": [len(data), len(data) + len(raw)]}
                data += raw
    head = json.dumps(header).encode()
    (folder / "adapter_model.safetensors").write_bytes(struct.pack("<Q", len(head)) + head + data)


def test_an_adapter_answers_for_itself(stack: Stack, tmp_path: Path) -> None:
    save_adapter(tmp_path / "law")
    stack.manage(DEPLOY % str(tmp_path / "law"))
    address_of(stack, "adapted")
    wait_for("the adapter at the gateways", lambda: stack.is_serving("adapted:law"), seconds=60)
    base_url = stack.base_url.removesuffix("/v1")
    with (
        openai.OpenAI(base_url=stack.base_url, api_key=stack.key(), max_retries=0) as client,
        anthropic.Anthropic(base_url=base_url, api_key=stack.key(), max_retries=0) as claude,
    ):
        listed = {model.id: model for model in client.models.list()}
        assert listed["adapted:law"].to_dict()["parent"] == "adapted"
        said = {
            name: client.completions.create(
                model=name, prompt="Once upon", max_tokens=12, temperature=0, extra_body={"ignore_eos": True}
            )
            for name in ("adapted", "adapted:law")
        }
        assert {name: answer.model for name, answer in said.items()} == {name: name for name in said}
        assert said["adapted"].choices[0].text != said["adapted:law"].choices[0].text
        message = claude.messages.create(
            model="adapted:law",
            max_tokens=6,
            messages=[{"role": "user", "content": "hi"}],
            extra_headers={"X-Request-Id": "adapter-usage"},
        )
    row = wait_for("the usage row", lambda: stack.usage("client_request_id = 'adapter-usage'"), seconds=20)[0]
    assert (row["model"], row["dialect"], row["output_tokens"]) == (
        "adapted:law",
        "messages",
        message.usage.output_tokens,
    )
