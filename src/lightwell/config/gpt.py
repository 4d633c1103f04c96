"""What a GPT is: the sizes of the two model families, checked, frozen, every key a standard term.

`GPTConfig` is GPT-2 exactly (learned positions, LayerNorm, GELU); `ModernConfig` is the Qwen3 layout (rotary positions,
RMSNorm, grouped-query attention with QK-norm, SwiGLU, no biases). `GPT_CONFIG_124M` is the smallest GPT-2.
Sources: Radford et al. 2019 (GPT-2); Yang et al. 2025 (Qwen3).
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from lightwell.config.check import Strict

GPT_CONFIG_124M: dict[str, Any] = {
    "vocab_size": 50257,
    "context_length": 1024,
    "emb_dim": 768,
    "n_heads": 12,
    "n_layers": 12,
    "drop_rate": 0.1,
    "qkv_bias": False,
}

Size = Annotated[int, Field(gt=0)]
Rate = Annotated[float, Field(ge=0.0, lt=1.0)]


class _TransformerConfig(Strict):
    """What both families have. `vocab_size` None means: the tokenizer decides."""

    vocab_size: Size | None = None
    context_length: Size
    emb_dim: Size
    n_heads: Size
    n_layers: Size
    hidden_dim: Size | None = None
    drop_rate: Rate = 0.0
    tie_embeddings: bool = True


class GPTConfig(_TransformerConfig):
    """GPT-2. `hidden_dim` left out is 4 x emb_dim; `qkv_bias=True` and 50,257 tokens give OpenAI's own 124,439,808."""

    family: Literal["gpt2"] = "gpt2"
    qkv_bias: bool = False

    @classmethod
    def cross_checks(cls, values: dict[str, Any]) -> list[tuple[str, str]]:
        emb_dim, n_heads = values.get("emb_dim"), values.get("n_heads")
        if emb_dim and n_heads and emb_dim % n_heads:
            return [("n_heads", f"expected a divisor of emb_dim = {emb_dim}, got {n_heads}")]
        return []

    @property
    def head_dim(self) -> int:
        return self.emb_dim // self.n_heads

    @property
    def mlp_dim(self) -> int:
        """Width of the hidden layer of each MLP: `hidden_dim`, or 4 x emb_dim."""
        return self.hidden_dim or 4 * self.emb_dim


class ModernConfig(_TransformerConfig):
    """The Qwen3 layout. Left out: n_kv_heads = n_heads, head_dim = emb_dim / n_heads, hidden_dim = 8/3 emb_dim."""

    family: Literal["modern"] = "modern"
    n_kv_heads: Size | None = None
    head_dim: Size | None = None
    rope_theta: Annotated[float, Field(gt=0)] = 10_000.0
    norm_eps: Annotated[float, Field(gt=0)] = 1e-6

    @classmethod
    def cross_checks(cls, values: dict[str, Any]) -> list[tuple[str, str]]:
        found = []
        emb_dim, n_heads = values.get("emb_dim"), values.get("n_heads")
        n_kv_heads, head_dim = values.get("n_kv_heads"), values.get("head_dim")
        if n_heads and n_kv_heads and n_heads % n_kv_heads:
            found.append(("n_kv_heads", f"expected a divisor of n_heads = {n_heads}, got {n_kv_heads}"))
        if emb_dim and n_heads and "head_dim" in values and head_dim is None:
            if emb_dim % n_heads:
                sentence = f"expected a divisor of emb_dim = {emb_dim}, or a head_dim, got {n_heads}"
                found.append(("n_heads", sentence))
            else:
                head_dim = emb_dim // n_heads
        if head_dim and head_dim % 2:
            found.append(("head_dim", f"expected an even number, since rotary positions turn pairs, got {head_dim}"))
        return found

    @property
    def kv_heads(self) -> int:
        """Heads of keys and values: `n_kv_heads`, or as many as queries."""
        return self.n_kv_heads or self.n_heads

    @property
    def size_per_head(self) -> int:
        return self.head_dim or self.emb_dim // self.n_heads

    @property
    def mlp_dim(self) -> int:
        """`hidden_dim`, or 8/3 x emb_dim rounded up to 32s: three matrices then cost what GPT-2's two do."""
        return self.hidden_dim or -(-8 * self.emb_dim // 3 // 32) * 32


ModelConfig = GPTConfig | ModernConfig
