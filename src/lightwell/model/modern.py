"""The modern family, whole: the forward pass of Qwen3, so that what reads Qwen3 can run it.

    B  batch: sequences side by side          H  n_heads: heads of queries
    T  time: tokens in the sequence           G  n_kv_heads: heads of keys and values, each shared by H / G queries
    C  emb_dim: numbers per token             D  head_dim: numbers per head
    V  vocab_size: different tokens           S  tokens seen so far: T, plus those in the cache

What differs from gpt2.py, and why:
- positions are not added to the tokens; queries and keys are *rotated* by an angle that grows with the position, so
  that their product depends on the distance between them (RoPE, Su et al. 2021);
- RMSNorm divides by the root mean square and does not subtract the mean (Zhang and Sennrich 2019); queries and keys
  are normalised too, per head, which keeps the attention scores in bounds (QK-norm, Henry et al. 2020);
- fewer heads of keys and values than of queries make a smaller cache (Ainslie et al. 2023);
- the MLP's hidden layer is a product of two, one of them through SiLU: a gate (SwiGLU, Shazeer 2020);
- no biases anywhere.

Source: Yang et al. 2025, "Qwen3 Technical Report". Dropout, which Qwen3 does not use, sits where GPT-2 has it.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightwell.config.gpt import ModernConfig
from lightwell.model.attention import attend, token_positions, visible_tokens
from lightwell.model.blocks import run_block
from lightwell.model.cache import KVCache, LayerCache
from lightwell.model.checks import check_inputs, known_vocab_size
from lightwell.model.init import Embedding, Linear, initialise
from lightwell.model.kernels import fused
from lightwell.model.loss import cross_entropy_sum
from lightwell.model.norms import RMSNorm
from lightwell.model.tying import tie_head

Rotation = tuple[Tensor, Tensor]  # cosines and sines of the angles, each (1 or B, T, 1, D / 2)


def rotation(positions: Tensor, head_dim: int, theta: float, dtype: torch.dtype) -> Rotation:
    """The angles of RoPE for `positions` (1 or B, T): pair i of D / 2 turns by position / theta^(2i / D) radians."""
    exact = torch.promote_types(dtype, torch.float32)  # an angle of 1000 radians needs its decimals
    pair = torch.arange(0, head_dim, 2, device=positions.device).to(exact)  # 2i, (D / 2,)
    angles = positions.to(exact)[:, :, None, None] / theta ** (pair / head_dim)  # (1 or B, T, 1, D / 2)
    return angles.cos().to(dtype), angles.sin().to(dtype)


def rotate(x: Tensor, turn: Rotation) -> Tensor:
    """Turns the pairs (x[i], x[i + D/2]) of `x` (B, T, heads, D) by their angles: the half-rotation layout."""
    cos, sin = turn
    first, second = x.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)


class Attention(nn.Module):
    """Causal self-attention with rotated, normalised queries and keys in grouped heads."""

    def __init__(self, config: ModernConfig) -> None:
        super().__init__()
        C, H, G, D = config.emb_dim, config.n_heads, config.kv_heads, config.size_per_head
        self.heads = (H, G, G)  # of queries, keys, values
        self.drop_rate = config.drop_rate
        self.qkv = Linear(C, (H + G + G) * D, bias=False)
        self.q_norm = RMSNorm(D, config.norm_eps)
        self.k_norm = RMSNorm(D, config.norm_eps)
        self.out = Linear(H * D, C, bias=False)
        self.drop = nn.Dropout(config.drop_rate)

    def forward(self, x: Tensor, turn: Rotation, mask: Tensor | None, cache: LayerCache | None) -> Tensor:
        B, T, _ = x.shape
        q, k, v = self.queries_keys_values(self.qkv(x), turn)  # (B, H, T, D), (B, G, T, D), (B, G, T, D)
        if cache is not None:
            k, v = cache.extend(k, v)  # (B, G, S, D)
        y = attend(q, k, v, mask, self.drop_rate if self.training else 0.0)  # (B, H, T, D)
        y = y.transpose(1, 2).reshape(B, T, -1)  # (B, T, H * D)
        return self.drop(self.out(y))

    def queries_keys_values(self, qkv: Tensor, turn: Rotation) -> tuple[Tensor, Tensor, Tensor]:
        """The heads in `qkv` (B, T, (H + G + G) D), queries and keys normalised and rotated."""
        (B, T, _), (H, G, _), (cos, sin) = qkv.shape, self.heads, turn
        norms = self.q_norm, self.k_norm  # an experiment may have put others there
        if type(norms[0]) is type(norms[1]) is RMSNorm and norms[0].eps == norms[1].eps and len(cos) == 1:
            gains = norms[0].weight, norms[1].weight
            if fused.usable(qkv, gains=(*gains, *turn)):
                return fused.heads(qkv, *gains, cos[0, :, 0], sin[0, :, 0], norms[0].eps, (H, G))
        q, k, v = qkv.view(B, T, H + G + G, -1).split(self.heads, dim=2)
        q, k = rotate(self.q_norm(q), turn), rotate(self.k_norm(k), turn)
        return q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)


class MLP(nn.Module):
    """SwiGLU, on each token alone: what `up` proposes passes as far as SiLU of `gate` lets it."""

    def __init__(self, config: ModernConfig) -> None:
        super().__init__()
        self.gate = Linear(config.emb_dim, config.mlp_dim, bias=False)
        self.up = Linear(config.emb_dim, config.mlp_dim, bias=False)
        self.down = Linear(config.mlp_dim, config.emb_dim, bias=False)
        self.drop = nn.Dropout(config.drop_rate)

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.gate(x), self.up(x)  # (B, T, hidden_dim) each
        x = fused.swiglu(gate, up) if fused.usable(gate, up) else F.silu(gate) * up
        return self.drop(self.down(x))  # (B, T, C)


class Block(nn.Module):
    """One layer: attention, then the MLP, each added to the residual stream it reads through an RMSNorm."""

    def __init__(self, config: ModernConfig) -> None:
        super().__init__()
        self.norm1 = RMSNorm(config.emb_dim, config.norm_eps)
        self.attn = Attention(config)
        self.norm2 = RMSNorm(config.emb_dim, config.norm_eps)
        self.mlp = MLP(config)

    def forward(self, x: Tensor, turn: Rotation, mask: Tensor | None, cache: LayerCache | None) -> Tensor:
        x = x + self.attn(self.norm1(x), turn, mask, cache)
        return x + self.mlp(self.norm2(x))


class Modern(nn.Module):
    """A modern model of the sizes in `config`, in float32 on the CPU, its numbers drawn from `generator` (see init.py).

    Attributes and errors as in `gpt2.GPT2`.
    """

    def __init__(self, config: ModernConfig, generator: torch.Generator | None = None) -> None:
        super().__init__()
        V, C = known_vocab_size(config), config.emb_dim
        self.config = config
        self.checkpoint_activations = False
        self.plain_loss = False
        self.tok_emb = Embedding(V, C)
        self.drop = nn.Dropout(config.drop_rate)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.n_layers))
        self.final_norm = RMSNorm(C, config.norm_eps)
        self.head = Linear(C, V, bias=False)
        if config.tie_embeddings:
            tie_head(self)  # head.weight is tok_emb.weight
        initialise(self, generator)

    def forward(
        self,
        ids: Tensor,
        targets: Tensor | None = None,
        *,
        cache: KVCache | None = None,
        documents: Tensor | None = None,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """`ids` (B, T) to logits (B, T, V); with `targets` to (loss_sum, n_targets). As `gpt2.GPT2.forward` in all."""
        check_inputs(self.config, ids, targets, cache, documents)
        mask = visible_tokens(ids, cache, documents)  # None: every token sees itself and all before it
        x = self.drop(self.tok_emb(ids))  # (B, T, C)
        positions = token_positions(ids, cache)  # (1, T), or (B, T) if the rows begin at different places
        turn = rotation(positions, self.config.size_per_head, self.config.rope_theta, x.dtype)
        for layer, block in enumerate(self.blocks):
            x = run_block(block, x, turn, mask, cache and cache[layer], checkpoint=self.checkpoint_activations)
        x = self.final_norm(x)  # (B, T, C)
        if cache is not None:
            cache.advance(ids.shape[1])
        if targets is None:
            return self.head(x)  # (B, T, V)
        return cross_entropy_sum(x.flatten(0, 1), self.head.weight, targets.flatten(), plain=self.plain_loss)

    @property
    def device(self) -> torch.device:
        return self.tok_emb.weight.device
