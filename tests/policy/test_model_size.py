"""Sizes read from names, as makers write them."""

from __future__ import annotations

import pytest

from serving.policy.model_size import parameters_from_name


@pytest.mark.parametrize(
    ("name", "billions"),
    [
        ("Qwen/Qwen3-8B", 8),
        ("Qwen/Qwen3-30B-A3B", 30),
        ("mistralai/Mixtral-8x7B-Instruct-v0.1", 56),
        ("HuggingFaceTB/SmolLM2-135M", 0.135),
        ("google/gemma-3-1b-it", 1),
        ("Qwen/Qwen2.5-0.5B-Instruct", 0.5),
        ("/srv/models/Llama-3.1-70B", 70),
        ("openai/gpt-oss-120b", 120),
        ("deepseek-ai/DeepSeek-V3", None),
        ("org/model-v2", None),
        ("70B/chat", None),
        ("sentence-transformers/all-MiniLM-L6-v2", None),
        ("org/a0B", None),
        ("", None),
    ],
)
def test_sizes_in_names(name: str, billions: float | None) -> None:
    assert parameters_from_name(name) == (None if billions is None else int(billions * 1e9))
