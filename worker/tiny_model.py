"""Build a tiny demonstration model: a random-weight Llama that generates, a Qwen3 that embeds, or a Qwen2-VL that takes
images.

Run by an engine environment's interpreter (``python tiny_model.py OUT --kind embed``), so it imports nothing of
Penstock. The result is deterministic and takes a few seconds and 250 to 700 kB; its answers are noise, its token counts
exact.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

CONTEXT = 4096
SPECIAL_TOKENS = ("<|endoftext|>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>", "<|pad|>")
VISION_TOKENS = ("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")
SPECIAL_ROLES = {"bos_token": "<|endoftext|>", "eos_token": "<|end|>", "pad_token": "<|pad|>"}
CORPUS = """The quick brown fox jumps over the lazy dog. A model unit measures capacity: a replica serves a number of
units per minute, and long outputs cost more than long inputs. Health checks go first in the queue.
def greet(name): return f"hello {name}"  # {"role": "user", "content": "hi"} 0123456789 GET /v1/models HTTP/1.1
"""
CHAT_TEMPLATE = (
    "{% for m in messages %}<|{{ m['role'] if m['role'] in ('system', 'user', 'assistant') else 'user' }}|>\n"
    "{% if m['content'] is string %}{{ m['content'] }}{% else %}{% for p in m['content'] or [] %}"
    "{% if p['type'] == 'text' %}{{ p['text'] }}MEDIA{% endif %}{% endfor %}{% endif %}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
IMAGE_TEMPLATE = "{% elif p['type'] in ('image', 'image_url') %}<|vision_start|><|image_pad|><|vision_end|>"
PATCH, MERGED = 14, 2
"""Pixels of a patch's side, and patches of a token's side."""
MIN_PIXELS, MAX_PIXELS = 4 * (PATCH * MERGED) ** 2, 256 * (PATCH * MERGED) ** 2
"""Images are scaled to between 4 and 256 tokens, each of 28 x 28 pixels."""


def build(out: Path, *, kind: str = "generate") -> None:
    """Write model and tokenizer to ``out``; ``kind`` is ``generate``, ``embed`` or ``vision``."""
    import torch

    out.mkdir(parents=True, exist_ok=True)
    tokenizer = build_tokenizer(kind)
    tokenizer.save_pretrained(out)
    if kind == "vision":
        write_processor(out)
    torch.manual_seed(0)
    build_model(kind, tokenizer).to(torch.bfloat16).save_pretrained(out)


def build_tokenizer(kind: str) -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    special = [*SPECIAL_TOKENS, *(VISION_TOKENS if kind == "vision" else ())]
    text = Tokenizer(models.BPE())
    text.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    text.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=512,
        special_tokens=special,
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    text.train_from_iterator([CORPUS * 20], trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=text,
        **SPECIAL_ROLES,
        additional_special_tokens=special[1:],
        model_max_length=CONTEXT,
    )
    if kind != "embed":
        tokenizer.chat_template = CHAT_TEMPLATE.replace("MEDIA", IMAGE_TEMPLATE if kind == "vision" else "")
    return tokenizer


def build_model(kind: str, tokenizer: Any) -> Any:
    from transformers import (
        LlamaConfig,
        LlamaForCausalLM,
        Qwen2VLConfig,
        Qwen2VLForConditionalGeneration,
        Qwen3Config,
        Qwen3Model,
    )

    hidden, head = 64, 32
    shared = {
        "vocab_size": (len(tokenizer) + 63) // 64 * 64,
        "hidden_size": hidden,
        "intermediate_size": hidden * 2,
        "num_hidden_layers": 2,
        "num_attention_heads": hidden // head,
        "num_key_value_heads": hidden // head,
        "max_position_embeddings": CONTEXT,
        "tie_word_embeddings": True,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    if kind == "embed":
        return Qwen3Model(Qwen3Config(**shared, head_dim=head))
    if kind == "generate":
        return LlamaForCausalLM(LlamaConfig(**shared, head_dim=head))
    start, end, image, video = tokenizer.convert_tokens_to_ids(list(VISION_TOKENS))
    # A pair of dimensions of each head rotates by time, height or width.
    rope = {"type": "mrope", "rope_type": "default", "mrope_section": [4, 6, 6]}
    tower = {
        "depth": 2,
        "embed_dim": hidden,
        "num_heads": hidden // head,
        "hidden_size": hidden,
        "mlp_ratio": 2,
        "patch_size": PATCH,
        "spatial_merge_size": MERGED,
    }
    config = Qwen2VLConfig(
        text_config=shared | {"rope_scaling": rope, "rope_theta": 10_000.0},
        vision_config=tower,
        vision_start_token_id=start,
        vision_end_token_id=end,
        image_token_id=image,
        video_token_id=video,
        tie_word_embeddings=True,
    )
    return Qwen2VLForConditionalGeneration(config)


def write_processor(out: Path) -> None:
    """The files by which engines prepare images: what ``AutoProcessor`` reads beside a tokenizer."""
    sizes = {
        "patch_size": PATCH,
        "merge_size": MERGED,
        "temporal_patch_size": 2,
        "min_pixels": MIN_PIXELS,
        "max_pixels": MAX_PIXELS,
        "processor_class": "Qwen2VLProcessor",
    }
    kinds = {
        "preprocessor_config.json": {"image_processor_type": "Qwen2VLImageProcessor"},
        "video_preprocessor_config.json": {"video_processor_type": "Qwen2VLVideoProcessor"},
    }
    for name, kind in kinds.items():
        (out / name).write_text(json.dumps(kind | sizes, indent=2))
    config = out / "tokenizer_config.json"
    named = {"processor_class": "Qwen2VLProcessor"}
    config.write_text(json.dumps(json.loads(config.read_text()) | named, indent=2))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--kind", choices=("generate", "embed", "vision"), default="generate")
    chosen = parser.parse_args()
    build(chosen.out, kind=chosen.kind)
