"""The shelf of ready configs: GPT-2's four sizes, modern models of like sizes, three of each for a laptop's CPU.

A preset is a run's config with the sizes filled in. The GPT-2 ones keep the textbook setting (AdamW, cosine), the
modern ones use the recipe. Their vocab_size is an upper bound when the text gets a tokenizer of its own.
Sizes: Radford et al. 2019; optimizer of GPT-2's size: Brown et al. 2020, table 2.1.
"""

from __future__ import annotations

from typing import Any

from lightwell.config.check import nearest
from lightwell.config.gpt import GPT_CONFIG_124M
from lightwell.errors import UserError

Raw = dict[str, Any]


def _gpt2(rate: float, batch_size: int, **sizes: Any) -> Raw:
    return {
        "model": {"family": "gpt2", **sizes},
        "optimizer": {"name": "adamw", "learning_rate": rate, "weight_decay": 0.1},
        "schedule": {"name": "cosine", "warmup": 0.02, "final": 0.1},
        "train": {"batch_size": batch_size},
    }


def _modern(batch_size: int, **sizes: Any) -> Raw:
    return {"model": {"family": "modern", "tie_embeddings": False, **sizes}, "train": {"batch_size": batch_size}}


def _sizes(vocab_size: int, context_length: int, emb_dim: int, n_heads: int, n_layers: int, **more: Any) -> Raw:
    return {
        "vocab_size": vocab_size,
        "context_length": context_length,
        "emb_dim": emb_dim,
        "n_heads": n_heads,
        "n_layers": n_layers,
        **more,
    }


PRESETS: dict[str, Raw] = {
    "nano": _modern(16, **_sizes(1024, 128, 128, 4, 4)),
    "micro": _modern(16, **_sizes(2048, 256, 256, 4, 6)),
    "mini": _modern(16, **_sizes(8192, 256, 384, 6, 6)),
    "gpt2-nano": _gpt2(3e-3, 16, **_sizes(1024, 128, 128, 4, 4)),
    "gpt2-micro": _gpt2(2e-3, 16, **_sizes(2048, 256, 256, 4, 6)),
    "gpt2-mini": _gpt2(1e-3, 16, **_sizes(8192, 256, 384, 6, 6)),
    "gpt2-124m": _gpt2(6e-4, 480, **GPT_CONFIG_124M),
    "gpt2-355m": _gpt2(3e-4, 480, **{**GPT_CONFIG_124M, "emb_dim": 1024, "n_heads": 16, "n_layers": 24}),
    "gpt2-774m": _gpt2(2.5e-4, 480, **{**GPT_CONFIG_124M, "emb_dim": 1280, "n_heads": 20, "n_layers": 36}),
    "gpt2-1558m": _gpt2(2e-4, 960, **{**GPT_CONFIG_124M, "emb_dim": 1600, "n_heads": 25, "n_layers": 48}),
    "modern-s": _modern(480, **_sizes(50257, 1024, 768, 12, 14, n_kv_heads=4)),
    "modern-m": _modern(480, **_sizes(50257, 1024, 1024, 16, 28, n_kv_heads=8)),
    "modern-l": _modern(480, **_sizes(50257, 1024, 1280, 20, 40, n_kv_heads=10)),
    "modern-xl": _modern(960, **_sizes(50257, 1024, 1600, 25, 50, n_kv_heads=5)),
}


def preset(name: str) -> Raw:
    """A preset's raw config (a fresh copy). Raises UserError with the nearest name."""
    if name not in PRESETS:
        near = nearest(name, list(PRESETS))
        hint = f"Did you mean {near}?" if near else "`lightwell presets` lists them."
        raise UserError(f"expected the name of a preset, got {name!r}.", hint)
    return {section: dict(values) for section, values in PRESETS[name].items()}
