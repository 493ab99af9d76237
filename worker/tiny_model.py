"""Build a tiny demonstration model: a random-weight Llama that generates, or a Qwen3 that embeds.

Run by an engine environment's interpreter (``python tiny_model.py OUT --kind embed``), so it imports nothing of
Penstock. The result is deterministic and takes a few seconds and 250 kB; its answers are noise, its token counts exact.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

CONTEXT = 4096
SPECIAL_TOKENS = ("<|endoftext|>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>", "<|pad|>")
SPECIAL_ROLES = {"bos_token": "<|endoftext|>", "eos_token": "<|end|>", "pad_token": "<|pad|>"}
CORPUS = """The quick brown fox jumps over the lazy dog. A model unit measures capacity: a replica serves a number of
units per minute, and long outputs cost more than long inputs. Health checks go first in the queue.
def greet(name): return f"hello {name}"  # {"role": "user", "content": "hi"} 0123456789 GET /v1/models HTTP/1.1
"""
CHAT_TEMPLATE = (
    "{% for m in messages %}<|{{ m['role'] if m['role'] in ('system', 'user', 'assistant') else 'user' }}|>\n"
    "{% if m['content'] is string %}{{ m['content'] }}{% else %}{% for p in m['content'] or [] %}"
    "{% if p['type'] == 'text' %}{{ p['text'] }}{% endif %}{% endfor %}{% endif %}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)


def build(out: Path, *, kind: str = "generate") -> None:
    """Write model and tokenizer to ``out``; ``kind`` is ``generate`` or ``embed``."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, Qwen3Config, Qwen3Model

    out.mkdir(parents=True, exist_ok=True)
    text = Tokenizer(models.BPE())
    text.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    text.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=512,
        special_tokens=list(SPECIAL_TOKENS),
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    text.train_from_iterator([CORPUS * 20], trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=text,
        **SPECIAL_ROLES,
        additional_special_tokens=list(SPECIAL_TOKENS[1:]),
        model_max_length=CONTEXT,
    )
    if kind == "generate":
        tokenizer.chat_template = CHAT_TEMPLATE
    tokenizer.save_pretrained(out)

    torch.manual_seed(0)
    hidden = 64
    config_of = Qwen3Config if kind == "embed" else LlamaConfig
    config = config_of(
        vocab_size=(len(tokenizer) + 63) // 64 * 64,
        hidden_size=hidden,
        intermediate_size=hidden * 2,
        num_hidden_layers=2,
        num_attention_heads=hidden // 32,
        num_key_value_heads=hidden // 32,
        head_dim=32,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = Qwen3Model(config) if kind == "embed" else LlamaForCausalLM(config)
    model.to(torch.bfloat16).save_pretrained(out)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--kind", choices=("generate", "embed"), default="generate")
    chosen = parser.parse_args()
    build(chosen.out, kind=chosen.kind)
