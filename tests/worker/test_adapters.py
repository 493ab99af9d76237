"""LoRA adapters of a revision: what may be said of them, and what vLLM is launched with."""

from __future__ import annotations

from typing import Any

import pytest

from tests.worker.test_launch_tables import facts, plan, vllm_order
from worker.options import OptionError, adapters, read_vllm

LORAS = {"tax": "/loras/tax", "law": "/loras/law"}


def test_vllm_is_launched_with_them() -> None:
    line = " ".join(plan(vllm_order(options={"adapters": LORAS, "max_lora_rank": 32}), facts()).argv)
    assert "--enable-lora --max-loras 2 --max-lora-rank 32 --lora-modules law=/loras/law tax=/loras/tax" in line
    many = {f"a{number}": f"/loras/{number}" for number in range(20)}
    assert "--max-loras 8 --lora-modules a0=/loras/0" in " ".join(
        plan(vllm_order(options={"adapters": many}), facts()).argv
    )
    assert "--enable-lora" not in plan(vllm_order(), facts()).argv


def test_their_names_are_what_clients_can_ask_for() -> None:
    assert adapters("vllm", {"adapters": LORAS}) == ("law", "tax")
    assert adapters("vllm", {}) == adapters("mlflow", {}) == adapters("vllm", {"adapters": 5}) == ()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"adapters": {"a=b": "/x"}}, "is no name"),
        ({"adapters": {"": "/x"}}, "is no name"),
        ({"adapters": {"a": "relative"}}, "absolute path"),
        ({"adapters": ["a"]}, "adapters"),
        ({"adapters": LORAS, "task": "embed"}, "takes none"),
        ({"max_lora_rank": 0}, "max_lora_rank"),
    ],
)
def test_what_cannot_be_is_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(OptionError, match=words):
        read_vllm(options)
